"""What a report draws of a city: an eventful hour under the policy and two rules, and the map when it is fullest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, Int

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.domain import Play
from dynamic_graph_fed_rl.environments.traffic.baselines import RuleController
from dynamic_graph_fed_rl.environments.traffic.environment import CityState, Traffic
from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network
from dynamic_graph_fed_rl.environments.traffic.rules import Rule
from dynamic_graph_fed_rl.environments.traffic.splits import GreenSplits

POLICY = "policy"
COMPARED = ("max-pressure", "fixed-time")
# most eventful first
_PREFERRED = ("incidents", "rolling_works", "rush_hour_dynamics", "capacity", "dark_signals", "rush_hour")
_SMOOTHED_S = 120.0


def illustrate(
    folder: Path,
    policy: Controller,
    play: Play,
    scenarios: Mapping[str, Traffic | GreenSplits],
    rules: Mapping[str, Rule],
    network: Network,
    demand: Demand,
    district: Int[np.ndarray, " signals"],
) -> None:
    """Saves `day.npz` and `map.npz`: the first evaluation seed of the most eventful scenario there is."""
    from dynamic_graph_fed_rl.evaluation.network_plots import Timeline

    scenario = next((name for name in _PREFERRED if name in scenarios), next(iter(scenarios)))
    environment = scenarios[scenario]
    controllers = {POLICY: policy} | {name: RuleController(environment.city, rules[name]) for name in COMPARED}
    decisions = environment.spec.episode_decisions
    hours = {name: _record(environment.city, play(one, environment), decisions) for name, one in controllers.items()}
    own, series = hours[POLICY], {}
    smoothed = max(1, round(_SMOOTHED_S / environment.decision_s))
    for name, hour in hours.items():
        series[f"{name}/standing"] = hour["standing"]
        series[f"{name}/outside"] = hour["outside"]
        left_per_h = hour["left"] * 3600.0 / environment.decision_s
        series[f"{name}/left"] = np.convolve(left_per_h, np.full(smoothed, 1.0 / smoothed), "same")
    clock_h = (demand.begin_s + own["time_s"]) / 3600.0
    Timeline(
        hours=clock_h,
        series=series,
        panels=_panels(),
        title=f"An hour of scenario '{scenario}', first evaluation seed",
        events=_closures(network, clock_h, own["closed"]),
    ).save(folder / "day.npz")
    fullest = int((own["standing"] + own["outside"]).argmax())
    clock = clock_h[fullest] % 24
    _map(
        network, district, {name: rows[fullest] for name, rows in own.items()},
        f"{network.name}, scenario '{scenario}', under the policy when most cars stand "
        f"({int(clock):02d}:{int(clock % 1 * 60):02d})",
    ).save(folder / "map.npz")  # fmt: skip


def _panels() -> tuple[Any, ...]:
    from dynamic_graph_fed_rl.evaluation.network_plots import Panel

    return (
        Panel("Cars that stand in queues", "cars", ("standing",)),
        Panel("Cars that wait to enter", "cars", ("outside",)),
        Panel("Cars that reach their end, mean of two minutes", "1/h", ("left",)),
    )


@eqx.filter_jit
def _figures(environment: Traffic, state: CityState) -> dict[str, Array]:
    """What is drawn of the first world of a batch."""
    state = jax.tree.map(lambda leaf: leaf[0], state)
    sensed = environment.sensed(state)
    lanes = environment.roads.link_lanes.sum(environment.roads.lane_movements.sum(state.traffic.queue))
    return {
        "time_s": state.traffic.time_s,
        "standing": state.traffic.queue.sum(),
        "outside": state.traffic.entry.sum(),
        "queue": lanes,
        "vehicles": state.traffic.vehicles,
        "closed": sensed.closed,
    }


def _record(environment: Traffic, episode: Any, times: int) -> dict[str, np.ndarray]:
    """The hour at so many times, `[T, ...]`, by the last of the decisions since the one before."""
    rows = [_figures(environment, state) | {"left": metrics["total_left"][0]} for state, metrics in episode]
    hour = {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    each = len(rows) // times
    left = hour["left"].reshape(times, each).sum(1)
    return {name: values[each - 1 :: each] for name, values in hour.items()} | {"left": left}


def _closures(network: Network, clock_h: Float[np.ndarray, " T"], closed: np.ndarray) -> dict[str, float]:
    """Text and hour of each link that closes or opens again."""
    before = np.concatenate([np.zeros_like(closed[:1]), closed[:-1]])
    events: dict[str, float] = {}
    for when, link in np.argwhere(before != closed):
        what = "closed" if closed[when, link] else "open"
        events.setdefault(f"{network.link_edges[link][0]} {what}", float(clock_h[when]))
    return events


def _map(
    network: Network, district: Int[np.ndarray, " signals"], moment: Mapping[str, np.ndarray], title: str
) -> Any:
    """Roads by their ends, both directions as one, as full as the fuller of them."""
    from dynamic_graph_fed_rl.evaluation.network_plots import NetworkMap

    points, ends = np.unique(np.round(network.link_xy_m.reshape(-1, 2), 1), axis=0, return_inverse=True)
    ends = ends.reshape(-1, 2)
    roads, road = np.unique(np.sort(ends, axis=1), axis=0, return_inverse=True)
    full = np.zeros(len(roads))
    np.maximum.at(full, road.reshape(-1), 100.0 * moment["vehicles"] / network.link_storage)
    lanes = np.bincount(road.reshape(-1), network.link_lanes, minlength=len(roads))
    shut = np.bincount(road.reshape(-1), moment["closed"], minlength=len(roads)) > 0
    apart = np.linalg.norm(points[:, None] - network.signal_xy_m, axis=-1)
    signal = np.zeros(len(points), bool)
    signal[apart.argmin(0)] = True
    centred = points - points.mean(0)
    return NetworkMap(
        positions=centred / np.abs(centred).max(),
        edges=roads,
        edge_loading_percent=full,
        edge_rating=lanes,
        edge_in_service=~shut,
        region=district[apart.argmin(1)],
        node_demand=np.bincount(ends[:, 1], moment["queue"], minlength=len(points)),
        node_is_source=signal,
        title=title,
        loading_label="how full a road is (%)",
        demand_label="queue",
        demand_unit="cars",
        source_label="signal",
        placed="Drawn by place; both directions of a road as one, as wide as its lanes.",
        region_names=tuple(f"district {one + 1}" for one in range(int(district.max()) + 1)),
    )
