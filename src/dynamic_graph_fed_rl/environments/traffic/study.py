"""The dynamics beside SUMO: baselines by name, and fixed-time plans at random.

python -m dynamic_graph_fed_rl.environments.traffic.study baselines cologne8 --seeds 3
python -m dynamic_graph_fed_rl.environments.traffic.study plans cologne8 --plans 10 --seeds 3
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import tyro
from scipy.stats import spearmanr

from dynamic_graph_fed_rl.environments.traffic.baselines import rules
from dynamic_graph_fed_rl.environments.traffic.demand import read_demand, routed
from dynamic_graph_fed_rl.environments.traffic.joining import read_network
from dynamic_graph_fed_rl.environments.traffic.live import drive, drive_plan, play_plan
from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network
from dynamic_graph_fed_rl.environments.traffic.rules import Program
from dynamic_graph_fed_rl.environments.traffic.sensing import signal_constants
from dynamic_graph_fed_rl.environments.traffic.sumo_files import installed_begin_s, installed_files
from dynamic_graph_fed_rl.environments.traffic.sumo_process import SumoSettings

GREEN_TIMES_S = (8.0, 12.0, 18.0, 25.0, 35.0, 45.0)


def installed(name: str) -> tuple[Network, Demand, SumoSettings]:
    """An installed network for both simulators."""
    net, routes = installed_files(name)
    routes, begin_s = routed(net, routes), installed_begin_s(routes) or 0.0
    network = read_network(net)
    return network, read_demand(network, routes, begin_s), SumoSettings(net, routes, begin_s)


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

    what: Annotated[Literal["baselines", "plans"], tyro.conf.Positional]
    network: Annotated[str, tyro.conf.Positional]
    seeds: int = 3
    plans: int = 10
    worlds: int = 16
    """Copies of the dynamics that a figure is the mean of."""


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
    """Plans at random in both: seconds of delay, and how far the two agree on their order."""
    network, demand, sumo = installed(settings.network)
    rows: list[tuple[float, float, float]] = []
    print("plan  dynamics  (s.d.)  never entered   SUMO waiting   delay  never entered")
    for number, plan in enumerate(random_plans(network, settings.plans)):
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
    ratio = table[:, 0] / table[:, 2]
    print(
        f"Spearman with delay {spearmanr(table[:, 0], table[:, 1])[0]:.2f}, with waiting "
        f"{spearmanr(table[:, 0], table[:, 2])[0]:.2f}; dynamics over waiting: median {np.median(ratio):.2f}, "
        f"from {ratio.min():.2f} to {ratio.max():.2f}"
    )


def _seeded(sumo: SumoSettings, seed: int) -> SumoSettings:
    return SumoSettings(sumo.net, sumo.routes, sumo.begin_s, seed=seed)


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


if __name__ == "__main__":
    chosen = tyro.cli(Study)
    (study_baselines if chosen.what == "baselines" else study_plans)(chosen)
