"""Advisory use of a policy beside an operator: a snapshot of a grid in, set-points in megawatts out.

A snapshot is a JSON object; what it leaves out is filled in:

| key | holds | default |
|---|---|---|
| `minute` | minute of the day, 0 to 1439 | 720 |
| `load_mw` | MW by bus number | what the profile expects at that minute |
| `available_mw` | MW that a unit could give, by unit | capacity; for farms what the profile expects |
| `set_point_mw` | MW now asked of a unit, by unit | least-cost dispatch |
| `lines_out` | branches out of service | none |

Units and branches go by their row in the case's table, counted from 1, buses by their number there. The
forecast follows the profile's course from the given values. A snapshot is the first observation of an
episode: the policy has no memory of what came before it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from rich.console import Console
from rich.table import Table

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.power_grid.dynamics import (
    GridConstants,
    Injections,
    Network,
    intact,
    weathered,
    world_step,
)
from dynamic_graph_fed_rl.environments.power_grid.environment import PowerGrid
from dynamic_graph_fed_rl.environments.power_grid.network import Case
from dynamic_graph_fed_rl.environments.power_grid.scenarios import MINUTES_PER_DAY, Weather
from dynamic_graph_fed_rl.environments.power_grid.set_points import ramped, shed_share
from dynamic_graph_fed_rl.environments.power_grid.state import GridState, Outlook, conditions

_EXAMPLE_MINUTE, _DEFAULT_MINUTE = 1110.0, 720.0
_KEYS = ("minute", "load_mw", "available_mw", "set_point_mw", "lines_out")
# the losses of one solution are dispatched in the next
_SETTLING_STEPS = 3
_NEVER_STEPS = 1_000_000
# set-points nearer than this are the same to an operator [MW]
_SAME_MW = 0.01


class _Snapshot(eqx.Module):
    """A checked snapshot; a set-point that is NaN is left to the dispatch."""

    minute: Float[Array, ""]
    level: Float[Array, " buses"]
    available_mw: Float[Array, " units"]
    set_point_mw: Float[Array, " units"]
    out: Bool[Array, " lines"]


@dataclass(frozen=True)
class GridAdvice:
    """`Advice` for one grid; `unit_row` is each unit's row in the case's generator table, from 0."""

    environment: PowerGrid
    case: Case
    region: Int[np.ndarray, " buses"]
    unit_row: Int[np.ndarray, " units"]

    def example(self) -> dict[str, Any]:
        """An early evening without surprises, one line out."""
        snapshot = self._read({"minute": _EXAMPLE_MINUTE})
        state = _state(self.environment, snapshot)
        loads = np.asarray(self.environment.grid.load_mw * snapshot.level)
        numbers = self.case.bus_number
        lines_out = self._most_loaded_of_a_loop(np.asarray(state.network.loading))
        return {
            "minute": int(_EXAMPLE_MINUTE),
            "load_mw": {str(numbers[bus]): _rounded(loads[bus]) for bus in np.flatnonzero(loads)},
            "available_mw": self._by_unit(snapshot.available_mw),
            "set_point_mw": self._by_unit(state.set_point_mw),
            "lines_out": lines_out,
        }

    def _most_loaded_of_a_loop(self, loading: Float[np.ndarray, " lines"]) -> list[int]:
        """Row of the most loaded branch whose loss cuts nobody off; empty where each one does."""
        case = self.case
        for line in np.argsort(-np.where(case.closed, loading, -1.0)):
            remaining = case.branch_on & (np.arange(case.branches) != line)
            if np.array_equal(replace(case, branch_on=remaining).live, case.live):
                return [int(line) + 1]
        return []

    def advise(self, policy: Controller, snapshot: Any) -> dict[str, Any]:
        """Set-points for the coming decision, what limits them, and the power flow that is expected to follow.

        Raises:
            ValueError: naming the entry of the snapshot and what would be right.
        """
        state = _state(self.environment, self._read(snapshot))
        if bool(state.network.dark):
            raise ValueError("snapshot: this state is a blackout (no power flow, or most of the load cut off)")
        found = jax.device_get(_advised(self.environment, policy, state))
        units, case = self.environment.units, self.case
        kinds = np.where(units.wind, "wind", np.where(units.solar, "solar", "thermal"))
        rows = []
        for unit, bus in enumerate(np.asarray(units.bus)):
            limits = {
                "range": abs(found["requested"][unit]) > 1.0,
                "ramp": abs(found["wanted_mw"][unit] - found["advised_mw"][unit]) > _SAME_MW,
            }
            figures = {name: _rounded(found[name][unit]) for name in _UNIT_FIGURES}
            rows.append(
                {
                    "unit": int(self.unit_row[unit]) + 1,
                    "bus": int(case.bus_number[bus]),
                    "kind": str(kinds[unit]),
                    "region": int(self.region[bus]) + 1,
                    **figures,
                    "limited_by": [name for name, limited in limits.items() if limited],
                }
            )
        shed = [
            {"bus": int(case.bus_number[bus]), "shed_mw": _rounded(found["shed_mw"][bus])}
            for bus in np.flatnonzero(found["shed_mw"] > _SAME_MW)
        ]
        return {
            "minute": _rounded(found["minute"]),
            "decision_minutes": self.environment.minutes,
            "units": rows,
            "shed": shed,
            "now": self._figures(found["now"]),
            "expected": {name: self._figures(found[name]) for name in ("advised", "merit_order")},
        }

    def render(self, advice: Mapping[str, Any], console: Console) -> None:
        """A table of all units, then what is shed and what is expected."""
        table = Table(title="Set-points for the coming decision [MW]")
        for name in (
            "unit",
            "bus",
            "kind",
            "region",
            "now",
            "merit order",
            "advised",
            "change",
            "limited by",
        ):
            table.add_column(name, justify="left" if name in ("kind", "limited by") else "right")
        for row in advice["units"]:
            change = row["advised_mw"] - row["set_point_mw"]
            place = (str(row["unit"]), str(row["bus"]), row["kind"], str(row["region"]))
            numbers = (f"{row[name]:.1f}" for name in ("set_point_mw", "schedule_mw", "advised_mw"))
            style = "bold" if abs(row["advised_mw"] - row["schedule_mw"]) > 0.05 else None
            table.add_row(*place, *numbers, f"{change:+.1f}", ", ".join(row["limited_by"]), style=style)
        console.print(table)
        for row in advice["shed"]:
            console.print(f"Shed {row['shed_mw']:.1f} MW at bus {row['bus']}")
        for name, figures in (("now", advice["now"]), *advice["expected"].items()):
            console.print(
                f"{name.replace('_', ' '):>12}: highest loading {figures['highest_loading_percent']:.1f} % "
                f"(branch {figures['most_loaded_branch']}), overload {figures['overload_mva']:.1f} MVA, "
                f"generation {figures['generation_dollars_per_hour']:,.0f} $/h"
            )

    def _by_unit(self, values: Array) -> dict[str, float]:
        pairs = zip(self.unit_row, np.asarray(values), strict=True)
        return {str(row + 1): _rounded(value) for row, value in pairs}

    def _figures(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        plain = {name: _rounded(value) for name, value in figures.items() if name != "most_loaded_branch"}
        return plain | {"most_loaded_branch": int(figures["most_loaded_branch"]) + 1}

    def _read(self, snapshot: Any) -> _Snapshot:
        if not isinstance(snapshot, Mapping):
            raise ValueError(f"snapshot: must be an object with any of {', '.join(_KEYS)}")
        for key in snapshot:
            if key not in _KEYS:
                raise ValueError(f"snapshot '{key}': unknown; known: {', '.join(_KEYS)}")
        minute = _number("minute", snapshot.get("minute", _DEFAULT_MINUTE))
        if not 0 <= minute < MINUTES_PER_DAY:
            raise ValueError(f"snapshot minute {minute:g}: must lie between 0 and {MINUTES_PER_DAY - 1}")
        case, environment = self.case, self.environment
        level, available = (np.array(part) for part in _course(environment, jnp.asarray(minute)))
        nominal = np.asarray(environment.grid.load_mw)
        places = {str(number): bus for bus, number in enumerate(case.bus_number)}
        for key, bus, value in _entries(snapshot, "load_mw", places, f"a bus of case '{case.name}'"):
            if nominal[bus] == 0 or value / nominal[bus] < 0:
                right = "has no load" if nominal[bus] == 0 else f"must have the sign of {nominal[bus]:g}"
                raise ValueError(f"snapshot load_mw '{key}' {value:g}: in case '{case.name}' this bus {right}")
            level[bus] = value / nominal[bus]
        units = {str(row + 1): unit for unit, row in enumerate(self.unit_row)}
        capacity = np.asarray(environment.units.p_max_mw)
        set_point = np.full(len(units), np.nan)
        for name, into in (("available_mw", available), ("set_point_mw", set_point)):
            for key, unit, value in _entries(snapshot, name, units, "a unit (row of the generator table)"):
                # a snapshot is rounded, capacity is not
                if not 0 <= value <= capacity[unit] + _SAME_MW:
                    raise ValueError(f"snapshot {name} '{key}' {value:g}: must lie between 0 and {capacity[unit]:g}")
                into[unit] = min(value, capacity[unit])
        return _Snapshot(
            minute=jnp.asarray(minute),
            level=jnp.asarray(level),
            available_mw=jnp.asarray(available),
            set_point_mw=jnp.asarray(set_point, jnp.float32),
            out=self._out(snapshot),
        )

    def _out(self, snapshot: Mapping[str, Any]) -> Bool[Array, " lines"]:
        rows, case = snapshot.get("lines_out", []), self.case
        if not isinstance(rows, list):
            raise ValueError(f"snapshot lines_out {rows!r}: must be a list of branch rows such as [7, 12]")
        out = np.zeros(case.branches, bool)
        for row in rows:
            if isinstance(row, bool) or not isinstance(row, int) or not 1 <= row <= case.branches:
                raise ValueError(
                    f"snapshot lines_out {row!r}: must be a branch row of case '{case.name}', 1 to {case.branches}"
                )
            out[row - 1] = case.closed[row - 1]
        most = self.environment.grid.max_outages
        if out.sum() > most:
            raise ValueError(
                f"snapshot lines_out: {out.sum()} lines; the policy's grid has at most {most} out at once"
            )
        return jnp.asarray(out)


_UNIT_FIGURES = ("set_point_mw", "schedule_mw", "wanted_mw", "advised_mw")


def _entries(
    snapshot: Mapping[str, Any], name: str, places: Mapping[str, int], what: str
) -> list[tuple[str, int, float]]:
    given = snapshot.get(name, {})
    if not isinstance(given, Mapping):
        raise ValueError(f"snapshot {name}: must be an object of numbers by name")
    for key in given:
        if key not in places:
            few = ", ".join(list(places)[:12]) + (", ..." if len(places) > 12 else "")
            raise ValueError(f"snapshot {name} '{key}': is not {what}; known: {few}")
    return [(key, places[key], _number(f"{name} '{key}'", value)) for key, value in given.items()]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"snapshot {name} {value!r}: must be a finite number")
    return float(value)


def _rounded(value: Any) -> float:
    return round(float(value), 4) + 0.0


@eqx.filter_jit
def _course(environment: PowerGrid, minute: Float[Array, ""]) -> tuple[Array, Array]:
    """Expected demand over nominal a bus and possible output [MW] a unit, on the first kind of day."""
    kind = jax.tree.map(lambda leaf: leaf[0], environment.kinds)
    calm = _calm(environment)
    return conditions(environment.units, environment.profiles, kind, calm, jnp.zeros((), jnp.int32), minute)


def _calm(environment: PowerGrid) -> Weather:
    zeros = jnp.zeros_like(environment.grid.load_mw), jnp.zeros_like(environment.units.p_max_mw)
    return Weather(jnp.zeros(()), *zeros)


def _unprotected(grid: GridConstants) -> GridConstants:
    """A grid that trips nothing: lines that are in service in a snapshot are in service."""
    return eqx.tree_at(lambda g: g.instant_trip_loading, grid, jnp.asarray(jnp.inf))


@eqx.filter_jit
def _state(environment: PowerGrid, snapshot: _Snapshot) -> GridState:
    """The world that a snapshot describes: its power flow, and the outlook from there."""
    grid, units = _unprotected(environment.grid), environment.units
    level, available = snapshot.level, snapshot.available_mw
    no_shed = jnp.zeros_like(level)
    network = weathered(grid, intact(grid), snapshot.out, jnp.asarray(_NEVER_STEPS), 0)

    def asked(network: Network) -> Float[Array, " units"]:
        running = jnp.where(network.live[units.bus], available, 0.0)
        demand = jnp.where(network.live, grid.load_mw * level, 0.0).sum() + network.losses_mw
        given = jnp.isfinite(snapshot.set_point_mw)
        known = jnp.where(given, snapshot.set_point_mw, 0.0)
        lower = jnp.where(given, known, jnp.minimum(units.p_min_mw, running))
        return jnp.clip(units.dispatch(demand, running)[0], lower, jnp.where(given, known, running))

    def settle(_: Int[Array, ""], network: Network) -> Network:
        return world_step(
            grid, network, Injections(asked(network), available, level, no_shed), jnp.asarray(_NEVER_STEPS)
        )

    network = jax.lax.fori_loop(0, _SETTLING_STEPS, settle, network)
    still = jnp.zeros_like(network.voltage_change)
    network = eqx.tree_at(
        lambda n: (n.overload_steps, n.voltage_change, n.angle_change),
        network,
        (jnp.zeros_like(network.overload_steps), still, still),
    )

    expected_now = _course(environment, snapshot.minute)

    def ahead(minutes: float) -> tuple[Array, Array]:
        expected = _course(environment, snapshot.minute + minutes)
        demand = level * expected[0] / jnp.maximum(expected_now[0], 1e-6)
        output = jnp.clip(available + expected[1] - expected_now[1], 0.0, units.p_max_mw)
        return demand, jnp.where(units.farm, output, available)

    next_level, next_available = ahead(environment.minutes)
    running = jnp.where(network.live[units.bus], next_available, 0.0)
    demand = jnp.where(network.live, grid.load_mw * next_level, 0.0).sum() + network.losses_mw
    outlook = Outlook(next_level, next_available, *ahead(60.0), *units.dispatch(demand, running))
    return GridState(
        kind=jax.tree.map(lambda leaf: leaf[0], environment.kinds),
        day=jnp.zeros((), jnp.int32),
        minute=snapshot.minute,
        decisions=jnp.zeros((), jnp.int32),
        weather=_calm(environment),
        level=level,
        available_mw=available,
        set_point_mw=asked(network),
        shed=no_shed,
        network=network,
        pressure=jnp.zeros_like(network.loading),
        born=jnp.zeros(level.shape, bool),
        outlook=outlook,
    )


@eqx.filter_jit
def _advised(environment: PowerGrid, policy: Controller, state: GridState) -> dict[str, Any]:
    """What the policy asks for, what the environment would make of it, and the power flows that follow."""
    units, outlook = environment.units, state.outlook
    observation = environment.view.observe(environment, state, jnp.asarray(True))
    batch = jax.tree.map(lambda leaf: leaf[:, None], observation)
    key = jax.random.key(0)
    action, _ = policy.act(key, policy.initial_memory(None, batch), None, batch)
    info = environment.step(key, state, action[:, 0])[1].info
    count = units.bus.shape[0]
    share = (
        jnp.zeros_like(state.shed)
        .at[environment.shed_bus]
        .set(shed_share(info["clipped"][count:], environment.max_shed))
    )
    rule = ramped(outlook.schedule_mw, state.set_point_mw, units, environment.minutes)
    grid = _unprotected(environment.grid)

    def figures(network: Network) -> dict[str, Array]:
        live = network.voltage > 0
        return {
            "generation_mw": network.generation_mw.sum(),
            "served_mw": network.served_mw.sum(),
            "losses_mw": network.losses_mw,
            "generation_dollars_per_hour": units.cost(network.generation_mw).sum(),
            "highest_loading_percent": 100.0 * network.loading.max(),
            "most_loaded_branch": jnp.argmax(network.loading),
            "overload_mva": jnp.maximum(network.apparent_mva - grid.rating_mva, 0.0).sum(),
            "lowest_voltage_pu": jnp.where(live, network.voltage, jnp.inf).min(),
            "highest_voltage_pu": network.voltage.max(),
        }

    def after(target: Array, shed: Array) -> dict[str, Array]:
        asked = Injections(target, outlook.available_mw, outlook.level, shed)
        return figures(world_step(grid, state.network, asked, jnp.asarray(_NEVER_STEPS)))

    return {
        "minute": state.minute,
        "requested": info["requested"][:count],
        "set_point_mw": state.set_point_mw,
        "schedule_mw": outlook.schedule_mw,
        "wanted_mw": info["wanted_mw"],
        "advised_mw": info["applied_mw"],
        "shed_mw": share * environment.grid.load_mw * outlook.level,
        "now": figures(state.network),
        "advised": after(info["applied_mw"], share),
        "merit_order": after(rule, jnp.zeros_like(share)),
    }
