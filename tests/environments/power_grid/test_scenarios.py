"""Days: profiles from a file, kinds of day, and the moments of the weather."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dynamic_graph_fed_rl.environments.power_grid import scenarios
from dynamic_graph_fed_rl.environments.power_grid.fleet import SOLAR_CAPACITY_FACTOR, WIND_CAPACITY_FACTOR
from dynamic_graph_fed_rl.environments.power_grid.scenarios import (
    MINUTES_PER_DAY,
    SCENARIO_HELP,
    SCENARIOS,
    Weather,
    availability,
    built_in_profiles,
    load_level,
    read_profiles,
    scenario,
    stack_scenarios,
)

BUSES = np.array([1, 2, 30])


def table(header: str, rows) -> str:
    return "\n".join([header, *(",".join(str(value) for value in row) for row in rows)]) + "\n"


def hours(days: int = 1, *columns) -> list[tuple]:
    count = 24 * days
    return [(60 * h, *(column[h] for column in columns)) for h in range(count)]


def write(tmp_path, text: str):
    path = tmp_path / "days.csv"
    path.write_text(text)
    return path


def test_profiles_from_a_file(tmp_path):
    rng = np.random.default_rng(0)
    load, own = rng.uniform(50, 90, 48), rng.uniform(5, 9, 48)
    wind, solar = rng.random(48), rng.random(48)
    text = table("minute, load, load_30, wind, solar", hours(2, load, own, wind, solar))
    profiles = read_profiles(write(tmp_path, text), BUSES)
    assert profiles.load.shape == (2, MINUTES_PER_DAY, 3)
    assert profiles.wind.shape == profiles.solar.shape == (2, MINUTES_PER_DAY)
    for day in range(2):
        at = day * 24 + np.arange(24)
        np.testing.assert_allclose(profiles.wind[day, ::60], wind[at], rtol=1e-5)
        np.testing.assert_allclose(profiles.solar[day, ::60], solar[at], rtol=1e-5)
        scaled = (load - load.min()) / (load.max() - load.min())
        np.testing.assert_allclose(profiles.load[day, ::60, 0], scaled[at], atol=1e-5)
        np.testing.assert_array_equal(profiles.load[..., 0], profiles.load[..., 1])
        scaled = (own - own.min()) / (own.max() - own.min())
        np.testing.assert_allclose(profiles.load[day, ::60, 2], scaled[at], atol=1e-5)
    # linear in between
    np.testing.assert_allclose(profiles.wind[0, 90], (wind[1] + wind[2]) / 2, rtol=1e-5)


def test_what_a_file_leaves_out_is_built_in(tmp_path):
    path = write(tmp_path, table("minute,wind", hours(1, np.full(24, 0.5))))
    profiles, default = read_profiles(path, BUSES), built_in_profiles()
    np.testing.assert_allclose(profiles.wind, 0.5)
    np.testing.assert_array_equal(profiles.solar, default.solar)
    np.testing.assert_array_equal(profiles.load, default.load)


def test_blank_lines_do_not_count_as_rows(tmp_path):
    text = table("minute,wind", hours(1, np.full(24, 0.5))).replace("\n60,", "\n\n60,")
    assert read_profiles(write(tmp_path, text), BUSES).wind.shape == (1, MINUTES_PER_DAY)


HALF = np.full(24, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header.*needs 'minute'"),
        (table("time,load", hours(1, HALF)), "needs 'minute'.*unknown: time"),
        (table("minute,load_7", hours(1, HALF)), "unknown: load_7"),
        (table("minute,gas", hours(1, HALF)), "unknown: gas"),
        (table("minute,wind", [*hours(1, HALF)[:3], (180, "calm")]), r"days.csv:5: '180,calm': needs 2 finite"),
        (table("minute,wind", [(0, 0.5, 0.5)]), r"days.csv:2: .*needs 2 finite"),
        (table("minute,wind", [(0, "nan")]), r"days.csv:2: .*finite"),
        (table("minute,wind", hours(1, 3 * HALF)), "column 'wind'.*between 0 and 1"),
        (table("minute,solar", hours(1, -HALF)), "column 'solar'.*between 0 and 1"),
        (table("minute,wind", hours(1, HALF)[:23]), "whole days of 1440"),
        (table("minute,wind", hours(1, HALF)[1:]), "count from 0"),
        (table("minute,wind", [(0, 0.5)]), "'minute' must count"),
        ("minute,wind\n", "'minute' must count"),
    ],
)
def test_a_bad_file_names_itself_and_what_is_wrong(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        read_profiles(write(tmp_path, text), BUSES)
    assert "days.csv" in str(error.value)


def test_a_repeated_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="wind"):
        read_profiles(write(tmp_path, table("minute,wind,wind", hours(1, HALF, HALF))), BUSES)


def test_the_line_named_is_that_of_the_file_also_after_blank_lines(tmp_path):
    with pytest.raises(ValueError, match=r"days.csv:4:"):
        read_profiles(write(tmp_path, "minute,wind\n\n0,0.5\n60,calm\n"), BUSES)


def test_scenarios_by_name():
    stacked = stack_scenarios(SCENARIOS)
    assert set(SCENARIO_HELP) == set(SCENARIOS)
    for i, name in enumerate(SCENARIOS):
        for whole, one in zip(jax.tree.leaves(stacked), jax.tree.leaves(scenario(name)), strict=True):
            assert whole[i] == one
    assert scenario("peak").load_high > scenario("normal").load_high
    assert scenario("outages").line_failure_rate > 10 * scenario("normal").line_failure_rate
    with pytest.raises(ValueError, match="'flood': unknown; known: normal, peak, outages"):
        scenario("flood")


def test_built_in_profiles_are_a_day():
    profiles = built_in_profiles()
    load, wind, solar = (
        np.asarray(profiles.load[0, :, 0]),
        np.asarray(profiles.wind[0]),
        np.asarray(profiles.solar[0]),
    )
    assert load.min() == 0 and load.max() == 1
    assert 16 * 60 < load.argmax() < 22 * 60 and load.argmin() < 6 * 60
    assert (solar[: 6 * 60] == 0).all() and (solar[20 * 60 :] == 0).all()
    assert 11 * 60 < solar.argmax() < 15 * 60
    assert wind.mean() == pytest.approx(WIND_CAPACITY_FACTOR, abs=0.01)
    # a minute is a small step
    for course in (load, wind, solar):
        assert np.abs(np.diff(course)).max() < 0.02
    wrapped = profiles.at(jnp.asarray(0), jnp.asarray(MINUTES_PER_DAY + 5))
    for later, now in zip(wrapped, profiles.at(jnp.asarray(0), jnp.asarray(5)), strict=True):
        np.testing.assert_array_equal(later, now)


def test_farms_deliver_about_their_capacity_factors():
    """What `fleet.py` sizes the farms by is what the processes deliver over a day."""
    profiles, many = built_in_profiles(), 4000
    weather = Weather.draw(jax.random.key(0), 1, many)
    kind = jnp.arange(many) % 2 == 0

    def output(minute):
        _, wind, solar = profiles.at(jnp.asarray(0), minute)
        return availability(weather, wind, solar, kind, ~kind)

    mean = np.asarray(jax.vmap(output)(jnp.arange(0, MINUTES_PER_DAY, 30))).mean(0)
    # half of a farm's variance is common to all, so one draw is no law of large numbers: average many weathers
    draws = jax.vmap(lambda key: Weather.draw(key, 1, 2))(jax.random.split(jax.random.key(1), many))

    def day(weather):
        pair = jnp.array([True, False])
        return jax.vmap(lambda m: availability(weather, *profiles.at(jnp.asarray(0), m)[1:], pair, ~pair))(
            jnp.arange(0, MINUTES_PER_DAY, 60)
        ).mean(0)

    wind, solar = np.asarray(jax.vmap(day)(draws)).mean(0)
    assert wind == pytest.approx(WIND_CAPACITY_FACTOR, rel=0.1)
    assert solar == pytest.approx(SOLAR_CAPACITY_FACTOR, rel=0.1)
    assert ((mean > 0) & (mean < 1)).all()


def test_units_that_do_not_depend_on_the_weather_are_available():
    weather = Weather.draw(jax.random.key(0), 1, 3)
    no = jnp.zeros(3, bool)
    np.testing.assert_array_equal(availability(weather, jnp.asarray(0.3), jnp.asarray(0.0), no, no), 1.0)


@pytest.mark.parametrize("minutes", [5.0, 60.0])
def test_weather_is_a_stationary_first_order_process(minutes):
    """Unit variance for ever, correlation exp(-t / time constant), and `expected` its conditional mean."""
    count, wind = 4000, jnp.array([True, False])
    keys = jax.random.split(jax.random.key(0), (2, count))
    start = jax.vmap(lambda key: Weather.draw(key, 3, 2))(keys[0])
    after = jax.vmap(lambda key, weather: weather.after(key, minutes, wind))(keys[1], start)
    expected = jax.vmap(lambda weather: weather.expected(minutes, wind))(start)
    constants = {
        "load_common": np.array(scenarios._LOAD_COMMON[1]),
        "load_own": np.array(scenarios._LOAD_OWN[1]),
        "farm": np.array([scenarios._WIND[1], scenarios._CLOUD[1]]),
    }
    for name, time_constant in constants.items():
        a, b, mean = (np.asarray(getattr(w, name)).reshape(count, -1) for w in (start, after, expected))
        kept = np.broadcast_to(np.exp(-minutes / time_constant), a.shape[1:])
        np.testing.assert_allclose(mean, a * kept, rtol=1e-4, atol=1e-5)
        for i in range(a.shape[1]):
            assert stats.kstest(b[:, i], "norm").pvalue > 1e-4
            # five standard errors of a correlation
            assert np.corrcoef(a[:, i], b[:, i])[0, 1] == pytest.approx(
                kept[i], abs=5 * (1 - kept[i] ** 2) / 63 + 1e-3
            )
            assert np.corrcoef(b[:, i] - mean[:, i], a[:, i])[0, 1] == pytest.approx(0, abs=5 / 63)
    # farms share half of their variance
    assert np.corrcoef(start.farm[:, 0], start.farm[:, 1])[0, 1] == pytest.approx(0.5, abs=0.08)


def test_load_follows_the_scenario():
    kind, calm = scenario("peak"), Weather(jnp.zeros(()), jnp.zeros(2), jnp.zeros(1))
    np.testing.assert_allclose(load_level(kind, calm, jnp.zeros(1)), kind.load_low, rtol=1e-6)
    np.testing.assert_allclose(load_level(kind, calm, jnp.ones(1)), kind.load_high, rtol=1e-6)
    wild = Weather(jnp.asarray(-1e4), jnp.zeros(2), jnp.zeros(1))
    assert (load_level(kind, wild, jnp.ones(1)) >= 0).all()
