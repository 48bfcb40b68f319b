"""What a report draws of a grid: an eventful day under the policy and two rules, and the map at its worst."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.domain import Play
from dynamic_graph_fed_rl.environments.power_grid.baselines import BASELINES
from dynamic_graph_fed_rl.environments.power_grid.environment import VOLTAGE_BAND_PU, PowerGrid
from dynamic_graph_fed_rl.environments.power_grid.network import Case
from dynamic_graph_fed_rl.environments.power_grid.state import GridState

POLICY = "policy"
COMPARED = ("merit-order", "ptdf-redispatch")
# most eventful first
_PREFERRED = ("outages", "peak")


def illustrate(
    folder: Path,
    policy: Controller,
    play: Play,
    scenarios: Mapping[str, PowerGrid],
    case: Case,
    region: Int[np.ndarray, " buses"],
) -> None:
    """Saves `day.npz` and `map.npz`: the first evaluation seed of the most eventful scenario there is."""
    from dynamic_graph_fed_rl.evaluation.network_plots import NetworkMap, Timeline, layout

    scenario = next((name for name in _PREFERRED if name in scenarios), next(iter(scenarios)))
    environment = scenarios[scenario]
    controllers = {POLICY: policy} | {name: BASELINES[name](environment) for name in COMPARED}
    days = {name: _record(environment, play(one, environment)) for name, one in controllers.items()}
    own = days[POLICY]
    series: dict[str, np.ndarray] = {}
    for name, day in days.items():
        series[f"{name}/voltage"] = day["voltage_pu"]
        series[f"{name}/loading"] = day["loading_percent"].max(1)
        series[f"{name}/cost"] = day["dollars_per_hour"] / 1000.0
    series["shared/demand"] = own["demand_mw"]
    series["shared/wind and sun available"] = own["farms_mw"]
    timeline = Timeline(
        hours=own["hour"],
        series=series,
        panels=_panels(),
        title=f"One day of scenario '{scenario}', first evaluation seed",
        events=_outages(case, own["hour"], own["closed"]),
    )
    timeline.save(folder / "day.npz")

    worst = int(own["loading_percent"].max(1).argmax())
    ends = np.stack([case.branch_from, case.branch_to], axis=1)
    rated = case.rate_mva > 0
    hour = own["hour"][worst] % 24
    NetworkMap(
        positions=layout(case.buses, ends),
        edges=ends,
        edge_loading_percent=np.where(rated, own["loading_percent"][worst], np.nan),
        edge_rating=case.rate_mva,
        edge_in_service=own["closed"][worst],
        region=region,
        node_demand=own["served_mw"][worst],
        node_is_source=np.isin(np.arange(case.buses), np.asarray(environment.units.bus)),
        title=f"{case.name}, scenario '{scenario}', under the policy at its highest loading "
        f"({int(hour):02d}:{round(hour % 1 * 60):02d})",
        loading_label="line loading (%)",
        demand_unit="MW",
        source_label="generator",
    ).save(folder / "map.npz")


def _panels() -> tuple[Any, ...]:
    from dynamic_graph_fed_rl.evaluation.network_plots import Panel

    return (
        Panel("Voltage, lowest, mean and highest bus", "p.u.", ("voltage",), VOLTAGE_BAND_PU),
        Panel("Highest line loading", "%", ("loading",), (100.0,)),
        Panel("Operating cost, charges included", "thousand $/h", ("cost",)),
        Panel("Demand and renewable supply", "MW", ("demand", "wind and sun available")),
    )


@eqx.filter_jit
def _figures(environment: PowerGrid, state: GridState) -> dict[str, Array]:
    """What is drawn of the first world of a batch."""
    state = jax.tree.map(lambda leaf: leaf[0], state)
    network = state.network
    on = network.voltage > 0
    lowest = jnp.where(on, network.voltage, jnp.inf).min()
    mean = jnp.where(on, network.voltage, 0.0).sum() / jnp.maximum(on.sum(), 1)
    band = jnp.stack([lowest, mean, network.voltage.max()])
    return {
        "minute": state.minute,
        "voltage_pu": jnp.where(on.any(), band, jnp.nan),
        "loading_percent": 100.0 * network.loading,
        "closed": network.closed,
        "served_mw": network.served_mw,
        "demand_mw": (environment.grid.load_mw * state.level).sum(),
        "farms_mw": jnp.where(environment.units.farm, state.available_mw, 0.0).sum(),
    }


def _record(environment: PowerGrid, episode: Any) -> dict[str, np.ndarray]:
    """The day decision by decision, `[T, ...]`; `hour` counts on where the day goes on past midnight."""
    rows = []
    for state, metrics in episode:
        rows.append(_figures(environment, state) | {"dollars": metrics["total_dollars"][0]})
    day = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    # the minute of a state is the end of its decision
    day["hour"] = (day.pop("minute") - environment.minutes) / 60.0
    day["dollars_per_hour"] = day.pop("dollars") * 60.0 / environment.minutes
    return day


def _outages(case: Case, hours: Float[np.ndarray, " T"], closed: np.ndarray) -> dict[str, float]:
    """Text and hour of each line that goes out of service."""
    before = np.concatenate([case.closed[None], closed[:-1]])
    events: dict[str, float] = {}
    for when, row in np.argwhere(before & ~closed):
        ends = case.bus_number[case.branch_from[row]], case.bus_number[case.branch_to[row]]
        events.setdefault(f"line {ends[0]}-{ends[1]} out", float(hours[when]))
    return events
