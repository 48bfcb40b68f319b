"""Weather, demand and failures: what happens to a grid whatever its controllers do.

Loads and farms follow a day's profile with first-order autoregressive deviations. All draws of a decision come
from its key alone, so two controllers that are given the same keys meet the same weather and the same faults.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

MINUTES_PER_DAY = 1440


class Scenario(eqx.Module):
    """One kind of day. Scenarios stack, so that training can mix them.

    **Fields:** load level [share of nominal] at the night's minimum and the evening's peak; failures per line and
    hour; mean time to repair [h].
    """

    load_low: Float[Array, "*kinds"]
    load_high: Float[Array, "*kinds"]
    line_failure_rate: Float[Array, "*kinds"]
    repair_hours: Float[Array, "*kinds"]


def _scenario(low: float, high: float, failures: float, repair: float) -> Scenario:
    return Scenario(*(jnp.asarray(value, jnp.float32) for value in (low, high, failures, repair)))


SCENARIO_HELP = {
    "normal": "an ordinary day: load 60-95 % of nominal, about one line fault a day",
    "peak": "a heat wave: load 85-108 % of nominal, about one line fault a day",
    "outages": "a storm: load 65-100 % of nominal, about twenty line faults",
}
SCENARIOS = tuple(SCENARIO_HELP)


def scenario(name: str) -> Scenario:
    """A scenario by name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name == "normal":
        return _scenario(0.60, 0.95, 0.0002, 2.0)
    if name == "peak":
        return _scenario(0.85, 1.08, 0.0002, 2.0)
    if name == "outages":
        return _scenario(0.65, 1.00, 0.005, 2.0)
    raise ValueError(f"scenario '{name}': unknown; known: {', '.join(SCENARIOS)}")


def stack_scenarios(names: tuple[str, ...]) -> Scenario:
    """Scenarios side by side, `[kinds]`; a reset draws one of them."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(scenario(name) for name in names))


class Profiles(eqx.Module):
    """A day's course, minute by minute, for one or more days.

    `load` is 0 at the minimum and 1 at the peak, per load or for all alike; `wind` and `solar` are the expected
    output over capacity. A column of a user's file replaces the built-in course.
    """

    load: Float[Array, "days minutes loads"]
    wind: Float[Array, "days minutes"]
    solar: Float[Array, "days minutes"]

    def at(self, day: Int[Array, ""], minute: Int[Array, ""]) -> tuple[Array, Array, Array]:
        wrapped = minute % MINUTES_PER_DAY
        return self.load[day, wrapped], self.wind[day, wrapped], self.solar[day, wrapped]


def built_in_profiles() -> Profiles:
    """A weekday of a temperate summer: morning shoulder and evening peak, steady wind, a clear-sky sun.

    The load's two humps follow the BDEW standard profiles' shape; the sun is the sine of the elevation between
    6 and 20 h, to the power 1.2 for the air mass.
    """
    hour = np.arange(MINUTES_PER_DAY) / 60.0

    def hump(centre: float, width: float) -> np.ndarray:
        distance = np.minimum(np.abs(hour - centre), 24 - np.abs(hour - centre))
        return np.exp(-0.5 * (distance / width) ** 2)

    load = 0.70 * hump(11.0, 3.2) + 0.95 * hump(18.5, 2.6) + 0.35 * hump(21.5, 2.0)
    load = (load - load.min()) / (load.max() - load.min())
    elevation = np.clip(np.sin(np.pi * (hour - 6.0) / 14.0), 0.0, None) * ((hour > 6) & (hour < 20))
    solar = 0.78 * elevation**1.2
    wind = 0.35 + 0.06 * np.cos(2 * np.pi * (hour - 3.0) / 24.0)
    return Profiles(*(jnp.asarray(a, jnp.float32) for a in (load[None, :, None], wind[None], solar[None])))


def read_profiles(path: str | Path, load_bus_numbers: Int[np.ndarray, " loads"]) -> Profiles:
    """A user's days from a CSV file with a header: `minute` and any of `load`, `load_<bus>`, `wind`, `solar`.

    `minute` counts from 0 in equal steps that divide a day, over whole days. Loads are in MW (or any unit: each
    day set is scaled from its minimum to its maximum); `wind` and `solar` are output over capacity, 0 to 1.

    Raises:
        ValueError: naming the file, and the column or the line that is wrong.
    """
    written = enumerate(Path(path).read_text().splitlines(), start=1)
    lines = [(number, line) for number, line in written if line.strip()]
    header = [name.strip() for name in lines[0][1].split(",")] if lines else []
    known = {"minute", "load", "wind", "solar"} | {f"load_{number}" for number in load_bus_numbers}
    if "minute" not in header or not set(header) <= known:
        wrong = sorted(set(header) - known)
        raise ValueError(
            f"{path}: header {header}: needs 'minute' and any of load, load_<bus number>, wind, solar"
            + (f"; unknown: {', '.join(wrong)}" if wrong else "")
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: header: column {', '.join(twice)} stands there more than once")
    rows = []
    for number, line in lines[1:]:
        try:
            row = [float(word) for word in line.split(",")]
        except ValueError:
            row = []
        if len(row) != len(header) or not np.isfinite(row).all():
            raise ValueError(f"{path}:{number}: '{line}': needs {len(header)} finite numbers")
        rows.append(row)
    columns = np.reshape(rows, (-1, len(header))).T
    table = dict(zip(header, columns, strict=True))
    minutes = table.pop("minute")
    step = minutes[1] - minutes[0] if len(minutes) > 1 else 0.0
    days = len(minutes) * step / MINUTES_PER_DAY
    if step <= 0 or not np.allclose(minutes, np.arange(len(minutes)) * step) or days < 1 or days % 1:
        raise ValueError(f"{path}: 'minute' must count from 0 in equal steps over whole days of 1440 minutes")
    for name in ("wind", "solar"):
        if name in table and not ((table[name] >= 0) & (table[name] <= 1)).all():
            raise ValueError(f"{path}: column '{name}': output over capacity must lie between 0 and 1")

    def by_minute(column: np.ndarray) -> np.ndarray:
        fine = np.interp(np.arange(int(days) * MINUTES_PER_DAY), minutes, column)
        return fine.reshape(int(days), MINUTES_PER_DAY)

    def shape(column: np.ndarray) -> np.ndarray:
        return (column - column.min()) / max(column.max() - column.min(), 1e-9)

    default = built_in_profiles()
    own = [f"load_{number}" in table for number in load_bus_numbers]
    common = by_minute(shape(table["load"])) if "load" in table else None
    if any(own) or common is not None:
        fallback = np.tile(np.asarray(default.load[0, :, 0]), (int(days), 1)) if common is None else common
        load = np.stack(
            [
                by_minute(shape(table[f"load_{number}"])) if f"load_{number}" in table else fallback
                for number in load_bus_numbers
            ],
            axis=-1,
        )
        load = load if any(own) else load[..., :1]
    else:
        load = np.tile(np.asarray(default.load), (int(days), 1, 1))
    wind, solar = (
        by_minute(table[name]) if name in table else np.tile(np.asarray(getattr(default, name)), (int(days), 1))
        for name in ("wind", "solar")
    )
    return Profiles(*(jnp.asarray(a, jnp.float32) for a in (load, wind, solar)))


# standard deviation and time constant [min] of the deviations from the profile
_LOAD_COMMON = (0.015, 120.0)
_LOAD_OWN = (0.03, 60.0)
_WIND = (0.9, 240.0)  # of the logit of wind output
_CLOUD = (0.8, 60.0)  # of the logit of cloud cover


class Weather(eqx.Module):
    """Standard-normal deviations from the profiles: of all loads, each load, and each farm's wind or cloud."""

    load_common: Float[Array, ""]
    load_own: Float[Array, " loads"]
    farm: Float[Array, " units"]
    """A farm's latent, half of its variance common to all farms."""

    @staticmethod
    def draw(key: PRNGKeyArray, loads: int, units: int) -> "Weather":
        keys = jax.random.split(key, 4)
        common = jax.random.normal(keys[2]) * jnp.sqrt(0.5)
        return Weather(
            jax.random.normal(keys[0]),
            jax.random.normal(keys[1], (loads,)),
            common + jnp.sqrt(0.5) * jax.random.normal(keys[3], (units,)),
        )

    def after(self, key: PRNGKeyArray, minutes: float, wind: Bool[Array, " units"]) -> "Weather":
        """The weather `minutes` later: each deviation decays towards its mean and is stirred anew."""
        fresh = Weather.draw(key, self.load_own.shape[0], self.farm.shape[0])
        expected = self.expected(minutes, wind)

        def stir(kept: Array, new: Array, time_constant: Array | float) -> Array:
            return kept + jnp.sqrt(1 - jnp.exp(-2 * minutes / time_constant)) * new

        return Weather(
            stir(expected.load_common, fresh.load_common, _LOAD_COMMON[1]),
            stir(expected.load_own, fresh.load_own, _LOAD_OWN[1]),
            stir(expected.farm, fresh.farm, jnp.where(wind, _WIND[1], _CLOUD[1])),
        )

    def expected(self, minutes: float, wind: Bool[Array, " units"]) -> "Weather":
        """The best forecast of the weather `minutes` ahead."""
        return Weather(
            self.load_common * jnp.exp(-minutes / _LOAD_COMMON[1]),
            self.load_own * jnp.exp(-minutes / _LOAD_OWN[1]),
            self.farm * jnp.exp(-minutes / jnp.where(wind, _WIND[1], _CLOUD[1])),
        )


def load_level(kind: Scenario, weather: Weather, shape: Float[Array, " loads_or_1"]) -> Float[Array, " loads"]:
    """Each load over its nominal value."""
    level = kind.load_low + (kind.load_high - kind.load_low) * shape
    deviation = _LOAD_COMMON[0] * weather.load_common + _LOAD_OWN[0] * weather.load_own
    return level * jnp.maximum(1.0 + deviation, 0.0)


def availability(
    weather: Weather,
    wind_profile: Float[Array, ""],
    solar_profile: Float[Array, ""],
    wind: Bool[Array, " units"],
    solar: Bool[Array, " units"],
) -> Float[Array, " units"]:
    """Possible output over capacity: 1 for units that do not depend on the weather."""
    blowing = jax.nn.sigmoid(jax.scipy.special.logit(jnp.clip(wind_profile, 0.01, 0.99)) + _WIND[0] * weather.farm)
    # cloud cover takes up to three quarters of the clear-sky output, a quarter at its median
    clear = 1.0 - 0.75 * jax.nn.sigmoid(-0.7 + _CLOUD[0] * weather.farm)
    return jnp.where(wind, blowing, jnp.where(solar, solar_profile * clear, 1.0))
