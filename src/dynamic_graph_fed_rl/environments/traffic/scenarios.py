"""Kinds of hour: how much demand there is, and what happens on the roads. The events themselves: `events.py`."""

from dataclasses import dataclass, replace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.traffic.detours import ClosureSet, closable, joint, mean_flow
from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network

CANDIDATES = 8
"""Busiest links that incidents may close, works take away, or capacity drops hit."""
RANDOM_SETS = 16


@dataclass(frozen=True)
class Kind:
    """One kind of hour."""

    demand: tuple[float, float] = (1.0, 1.0)
    """Demand over that of the network's file, drawn uniformly for an episode."""
    course: tuple[float, float] = (1.0, 1.0)
    """Factor on it in the first and last quarter of an hour, and at the peak in the middle."""
    peak_shift_s: float = 0.0
    """How much earlier or later the peak may come."""
    most_closed: int = 0
    """Busy links that close together, one to so many."""
    closed_share: float | None = None
    """Links closed at a time, others every ten minutes, as a share of all."""
    lasting: bool = False
    """What closes stays closed for the whole episode."""
    dropped_links: int = 0
    """Busy links that pass half of their saturation flow for ten minutes."""
    dark_share: float = 0.0
    """Signals that are dark for ten minutes, as a share of all, but at least one."""
    failed_share: float = 0.0
    """Links whose detectors fail for the whole episode, as a share of all, but at least one."""


_RUSH = Kind(course=(0.6, 1.4), peak_shift_s=900.0)
SCENARIOS = {
    "normal": Kind(),
    "rush_hour": _RUSH,
    "incidents": Kind(most_closed=3),
    "capacity": Kind(dropped_links=3),
    "sensor_failures": Kind(failed_share=0.1),
    "rolling_works": Kind(most_closed=1, lasting=True),
    "dark_signals": Kind(dark_share=0.1),
    "rush_hour_dynamics": replace(_RUSH, closed_share=0.01),
}
SCENARIO_HELP = {
    "normal": "the demand of the network's file; all roads open, all detectors at work",
    "rush_hour": "demand from 0.6 of the file's at the ends to 1.4 at a peak, a quarter of an hour off at most",
    "incidents": "one to three busy links close for ten minutes",
    "capacity": "three busy links pass half as many cars for ten minutes",
    "sensor_failures": "the detectors of a tenth of the links are out; who stands there is not seen",
    "rolling_works": "a busy link is closed for the whole episode, another one in each",
    "dark_signals": "a tenth of the signals, at least one, is dark for ten minutes: an all-way stop",
    "rush_hour_dynamics": "rush_hour, and one in a hundred links is closed at a time, others every ten minutes",
}


class Scenario(eqx.Module):
    """Kinds side by side, `[kinds]`; see `Kind`. Sets are rows of `events.Closures`."""

    demand_low: Float[Array, "*kinds"]
    demand_high: Float[Array, "*kinds"]
    course_low: Float[Array, "*kinds"]
    course_high: Float[Array, "*kinds"]
    peak_shift_s: Float[Array, "*kinds"]
    first_set: Int[Array, "*kinds"]
    """Closures are drawn from `sets` rows from here on."""
    sets: Int[Array, "*kinds"]
    rotating: Bool[Array, "*kinds"]
    """Another set every ten minutes."""
    lasting: Bool[Array, "*kinds"]
    dropped_links: Int[Array, "*kinds"]
    dark_signals: Int[Array, "*kinds"]
    failed_links: Int[Array, "*kinds"]


def kinds_of(names: tuple[str, ...], edge_failure_rate: float | None, time_varying_topology: bool) -> list[Kind]:
    """Kinds by name. A rate of failures overrides that of every kind without closures of its own; where the topology
    does not vary in time, what is closed stays so.

    Raises:
        ValueError: unknown name, or none.
    """
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown or not names:
        raise ValueError(f"scenarios {list(names)}: at least one of {', '.join(SCENARIOS)}")
    kinds = [SCENARIOS[name] for name in names]
    if edge_failure_rate is not None:
        kinds = [kind if kind.most_closed else replace(kind, closed_share=edge_failure_rate) for kind in kinds]
    return kinds if time_varying_topology else [replace(kind, lasting=True) for kind in kinds]


def stack_scenarios(
    network: Network, demand: Demand, kinds: list[Kind], uptake: float, spread: tuple[float, float] = (1.0, 1.0)
) -> tuple[Scenario, list[ClosureSet]]:
    """These kinds along a leading axis, their demand times that of `spread`, and the sets of links that they close;
    the first of these is none. `uptake`: see `detours.closed_demand`.

    Raises:
        ValueError: a kind closes more links than the network can do without.
    """
    rng = np.random.default_rng(0)
    sets = [ClosureSet((), demand)]
    rows: dict[tuple[int, float | None], tuple[int, int]] = {(0, None): (0, 1)}
    for kind in kinds:
        wanted = kind.most_closed, kind.closed_share
        if wanted not in rows:
            made = _busy_sets(network, demand, kind.most_closed, uptake, rng)
            if kind.closed_share is not None:
                made = _random_sets(network, demand, kind.closed_share, uptake, rng)
            rows[wanted] = len(sets), len(made)
            sets += made

    def column(values: list, dtype: type = np.float32) -> Array:
        return jnp.asarray(np.array(values, dtype))

    chosen = [rows[kind.most_closed, kind.closed_share] for kind in kinds]
    of_signals = [int(np.ceil(kind.dark_share * network.signals)) for kind in kinds]
    of_links = [int(np.ceil(kind.failed_share * network.links)) for kind in kinds]
    scenario = Scenario(
        demand_low=column([kind.demand[0] * spread[0] for kind in kinds]),
        demand_high=column([kind.demand[1] * spread[1] for kind in kinds]),
        course_low=column([kind.course[0] for kind in kinds]),
        course_high=column([kind.course[1] for kind in kinds]),
        peak_shift_s=column([kind.peak_shift_s for kind in kinds]),
        first_set=column([first for first, _ in chosen], np.int32),
        sets=column([count for _, count in chosen], np.int32),
        rotating=column([kind.closed_share is not None and not kind.lasting for kind in kinds], bool),
        lasting=column([kind.lasting for kind in kinds], bool),
        dropped_links=column([kind.dropped_links for kind in kinds], np.int32),
        dark_signals=column(of_signals, np.int32),
        failed_links=column(of_links, np.int32),
    )
    return scenario, sets


def busy_links(network: Network, demand: Demand) -> Int[np.ndarray, " candidates"]:
    """Links with most cars among those that lead to a signal, where a drop of capacity tells."""
    flow = np.where(network.link_end >= 0, mean_flow(network, demand), -1.0)
    return np.argsort(-flow, kind="stable")[: min(CANDIDATES, int((flow >= 0).sum()))]


def _busy_sets(
    network: Network, demand: Demand, most: int, uptake: float, rng: np.random.Generator
) -> list[ClosureSet]:
    """The busiest links that may close, then as many random sets of two of them, and so on."""
    if not most:
        return []
    singles = closable(network, demand, uptake, CANDIDATES)
    if not singles:
        raise ValueError(f"network '{network.name}': no link can be closed without cutting somebody off")
    more = [joint(network, demand, singles, size, uptake, rng) for size in range(2, most + 1) for _ in singles]
    return singles + more


def _random_sets(
    network: Network, demand: Demand, share: float, uptake: float, rng: np.random.Generator
) -> list[ClosureSet]:
    """Sets that have so many links in the mean."""
    mean = share * network.links
    sizes = np.floor(mean) + (np.arange(RANDOM_SETS) < round((mean % 1.0) * RANDOM_SETS))
    singles = closable(network, demand, uptake, max(CANDIDATES, 4 * int(sizes.max())))
    made = []
    for size in sizes.astype(int).tolist():
        made.append(joint(network, demand, singles, size, uptake, rng))
        most = len(made[-1].links)
        if most < size:
            raise ValueError(
                f"edge_failure_rate {share}: {size} links of network '{network.name}' would be closed at a time, but "
                f"no more than {most} were found that can be without cutting somebody off; at most "
                f"{most / network.links:.3f} is possible"
            )
    return made
