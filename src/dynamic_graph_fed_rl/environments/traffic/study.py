"""The dynamics beside SUMO: baselines by name, and fixed-time plans at random.

python -m dynamic_graph_fed_rl.environments.traffic.study baselines cologne8 --seeds 3
python -m dynamic_graph_fed_rl.environments.traffic.study plans cologne8 --plans 10 --seeds 3
python -m dynamic_graph_fed_rl.environments.traffic.study calibrate cologne8 --plans 14 --seeds 2 --worlds 4
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, Int, PRNGKeyArray
from scipy.stats import spearmanr

from dynamic_graph_fed_rl.environments.traffic.baselines import rules
from dynamic_graph_fed_rl.environments.traffic.conducts import read_city
from dynamic_graph_fed_rl.environments.traffic.constants import (
    DemandConstants,
    RoadConstants,
    demand_constants,
    road_constants,
)
from dynamic_graph_fed_rl.environments.traffic.demand import routed
from dynamic_graph_fed_rl.environments.traffic.dynamics import (
    Conditions,
    TrafficState,
    advance,
    empty_roads,
    switched,
)
from dynamic_graph_fed_rl.environments.traffic.live import drive, drive_plan, play_plan
from dynamic_graph_fed_rl.environments.traffic.network import Conduct, Demand, Network
from dynamic_graph_fed_rl.environments.traffic.rules import Program, plan_phases
from dynamic_graph_fed_rl.environments.traffic.sensing import signal_constants
from dynamic_graph_fed_rl.environments.traffic.sumo_files import installed_begin_s, installed_files
from dynamic_graph_fed_rl.environments.traffic.sumo_process import SumoSettings

GREEN_TIMES_S = (8.0, 12.0, 18.0, 25.0, 35.0, 45.0)
CALIBRATION_SEED = 1
CONDUCT_RANGES = {
    "saturation_per_s": (0.34, 0.6),
    "lost_s": (0.0, 3.0),
    "yellow_use_s": (0.0, 3.0),
    "cruise": (0.7, 0.95),
    "gap_s": (2.0, 9.0),
    "patience_s": (20.0, 120.0),
}


def installed(name: str) -> tuple[Network, Demand, SumoSettings]:
    """An installed network for both simulators."""
    net, routes = installed_files(name)
    routes, begin_s = routed(net, routes), installed_begin_s(routes) or 0.0
    return *read_city(net, routes, begin_s), SumoSettings(net, routes, begin_s)


def random_plans(network: Network, count: int, seed: int = 0) -> list[Program]:
    """The network's own plan, then such with green times drawn at random and 3 s of yellow."""
    rng, own = np.random.default_rng(seed), Program.of(network)
    plans = [own]
    for _ in range(count - 1):
        green = jnp.where(own.green_s > 0, jnp.asarray(rng.choice(GREEN_TIMES_S, own.green_s.shape)), 0.0)
        clearance = jnp.where(own.green_s > 0, 3.0, 0.0)
        plans.append(eqx.tree_at(lambda p: (p.green_s, p.clearance_s), own, (green.astype(jnp.float32), clearance)))
    return plans


@dataclass(frozen=True)
class Study:
    """What to compare, and where."""

    what: Annotated[Literal["baselines", "plans", "calibrate"], tyro.conf.Positional]
    network: Annotated[str, tyro.conf.Positional]
    seeds: int = 3
    plans: int = 10
    worlds: int = 16
    """Copies of the dynamics that a figure is the mean of."""
    tries: int = 50
    """Conducts that a calibration tries."""


def study_baselines(settings: Study) -> None:
    """Each baseline in SUMO: seconds of delay, and cars that never entered."""
    network, demand, sumo = installed(settings.network)
    named = {"as filed": None, **rules(network, demand, signal_constants(network))}
    print(f"{'controller':18} seed  delay  delay of entered  waiting  finished  never entered  gridlock")
    for name, rule in named.items():
        for seed in range(settings.seeds):
            o = drive(network, _seeded(sumo, seed), rule)
            print(
                f"{name:18} {seed:4} {o.mean_delay_s:6.1f} {o.mean_delay_of_entered_s:17.1f} "
                f"{o.waiting_s.mean():8.1f} {o.finished:9} {o.never_entered:14}  {o.gridlocked}",
                flush=True,
            )


def study_plans(settings: Study) -> None:
    """Plans at random in both, the file's not among them: seconds of delay, and how far the two agree."""
    network, demand, sumo = installed(settings.network)
    rows: list[tuple[float, float, float]] = []
    print("plan  dynamics  (s.d.)  never entered   SUMO waiting   delay  never entered")
    for number, plan in enumerate(random_plans(network, settings.plans + 1)[1:], start=1):
        ours = play_plan(network, demand, plan, settings.worlds)
        runs = [drive_plan(network, _seeded(sumo, seed), plan) for seed in range(settings.seeds)]
        delay, waiting = _mean([o.mean_delay_s for o in runs]), _mean([o.mean_standing_s for o in runs])
        rows.append((float(ours["delay_s"].mean()), delay, waiting))
        print(
            f"{number:4} {rows[-1][0]:9.1f} {ours['delay_s'].std():7.1f} {ours['never_entered'].mean():14.0f} "
            f"{waiting:14.1f} {delay:7.1f} {_mean([o.never_entered for o in runs]):14.1f}",
            flush=True,
        )
    table = np.array(rows)
    ratio = table[:, 0] / table[:, 1]
    print(
        f"Spearman {spearmanr(table[:, 0], table[:, 1])[0]:.2f}; dynamics over SUMO: median {np.median(ratio):.2f}, "
        f"from {ratio.min():.2f} to {ratio.max():.2f}"
    )


def calibrate(settings: Study) -> None:
    """The conduct whose delays come nearest to SUMO's, by the mean of |log(dynamics / SUMO)|, under the file's plan
    and others than those of `study_plans`: at random in the first half of the tries, then around the best so far."""
    network, demand, sumo = installed(settings.network)
    plans = random_plans(network, settings.plans, CALIBRATION_SEED)
    target = np.array(
        [
            _mean([drive_plan(network, _seeded(sumo, seed), plan).mean_delay_s for seed in range(settings.seeds)])
            for plan in plans
        ]
    )
    orders = jnp.stack([plan_phases(plan, jnp.arange(demand.duration_s)) for plan in plans])
    keys, wishes = jax.random.split(jax.random.key(0), settings.worlds), demand_constants(network, demand)
    rng, best, least = np.random.default_rng(0), network.conduct, np.inf
    for number in range(settings.tries):
        tried = best if number == 0 else _neighbour(best, rng, 1.0 if number < settings.tries / 2 else 0.15)
        roads = road_constants(replace(network, conduct=tried))
        ratio = np.asarray(_delays(roads, wishes, orders, keys)).mean(1) / target
        error = float(np.abs(np.log(ratio)).mean())
        if error < least:
            best, least = tried, error
            print(f"try {number}: {error:.3f}, from {ratio.min():.2f} to {ratio.max():.2f}: {best}", flush=True)


def _neighbour(conduct: Conduct, rng: np.random.Generator, width: float) -> Conduct:
    """At random; with a width below 1, at most so much of each range away."""

    def near(name: str) -> float:
        low, high = CONDUCT_RANGES[name]
        now = low + (high - low) * rng.uniform()
        return (
            now
            if width >= 1.0
            else float(np.clip(getattr(conduct, name) + width * (2 * now - low - high), low, high))
        )

    found = {name: near(name) for name in CONDUCT_RANGES}
    # the step count of the links, and with it the compiled program, depends on this one
    return Conduct(**(found | {"cruise": round(20.0 * found["cruise"]) / 20.0}))


@eqx.filter_jit
def _delays(
    roads: RoadConstants, wishes: DemandConstants, orders: Int[Array, "plans seconds signals"], keys: PRNGKeyArray
) -> Float[Array, "plans worlds"]:
    """Mean delay of a car [s]."""
    signals = orders.shape[-1]
    yellow_s, normal = jnp.full(signals, 3.0), Conditions.normal(roads.link_storage.shape[0], signals)

    def one(rows: Array, key: PRNGKeyArray) -> Array:
        def second(state: TrafficState, row: tuple[Array, Array]) -> tuple[TrafficState, Array]:
            state, counts = advance(roads, wishes, switched(state, row[0], yellow_s), row[1], normal, jnp.ones(()), 1)
            lost_s = counts.queued_s.sum() + counts.outside_s.sum() + counts.slowed_s
            return state, jnp.stack([lost_s, counts.wanted])

        _, sums = jax.lax.scan(second, empty_roads(roads, signals), (rows, jax.random.split(key, len(rows))))
        lost_s, cars = sums.sum(0)
        return lost_s / cars

    return jax.vmap(lambda rows: jax.vmap(lambda key: one(rows, key))(keys))(orders)


def _seeded(sumo: SumoSettings, seed: int) -> SumoSettings:
    return SumoSettings(sumo.net, sumo.routes, sumo.begin_s, seed=seed)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    chosen = tyro.cli(Study)
    {"baselines": study_baselines, "plans": study_plans, "calibrate": calibrate}[chosen.what](chosen)
