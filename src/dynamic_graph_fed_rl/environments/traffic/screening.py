"""What an incident costs, and which closures cost enough to be a test: in a redundant network most cost nothing.

python -m dynamic_graph_fed_rl.environments.traffic.screening cologne8
"""

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import tyro

from dynamic_graph_fed_rl.environments.traffic.detours import closable, entering_flow, joint
from dynamic_graph_fed_rl.environments.traffic.live import drive, recovery_s
from dynamic_graph_fed_rl.environments.traffic.rules import MaxPressure
from dynamic_graph_fed_rl.environments.traffic.sensing import signal_constants
from dynamic_graph_fed_rl.environments.traffic.study import installed
from dynamic_graph_fed_rl.environments.traffic.sumo_process import Outcome

KEPT_FROM = 0.1
"""Excess delay from which on a closure is a test."""
MOST_ENDED = 0.1
"""Share of the drivers concerned who may lose their goal by it."""


@dataclass(frozen=True)
class Screening:
    """Closes busy links in SUMO, one after the other, under max pressure."""

    network: Annotated[str, tyro.conf.Positional]
    candidates: int = 12
    together: int = 1
    """Links that are closed at a time; several are drawn from the candidates."""
    seeds: int = 2
    from_s: float = 900.0
    until_s: float = 1500.0
    uptake: float = 0.5


def screen(settings: Screening) -> dict[tuple[str, ...], float]:
    """Excess delay of each candidate (first edges of its links) over the same seeds without it, as a share; prints a
    table."""
    network, demand, sumo = installed(settings.network)
    rule = MaxPressure(signal_constants(network))
    seeded = [replace(sumo, seed=seed, uptake=settings.uptake) for seed in range(settings.seeds)]
    calm = [drive(network, one, rule) for one in seeded]
    base_s, per_hour = _mean(calm, "mean_delay_s"), 3600.0 * entering_flow(network, demand)
    print(f"{settings.network}: open: delay {base_s:.1f} s, 95th percentile {_mean(calm, 'p95_delay_s'):.0f} s")
    columns = ("delay", "p95", "excess %", "recovery", "around", "let in", "ended", "outside", "removed", "gridlock")
    print(f"{'cars/h':>7}" + "".join(f"{name:>9}" for name in columns) + "  first edges")
    sets = closable(network, demand, settings.uptake, settings.candidates)
    if settings.together > 1:
        rng = np.random.default_rng(0)
        drawn = [joint(network, demand, sets, settings.together, settings.uptake, rng) for _ in sets]
        sets = list({one.links: one for one in drawn if len(one.links) == settings.together}.values())
    excess: dict[tuple[str, ...], float] = {}
    kept = []
    for one in sets:
        closures = tuple((link, settings.from_s, settings.until_s) for link in one.links)
        runs = [drive(network, replace(s, closures=closures), rule) for s in seeded]
        step_s = sumo.duration_s / (len(runs[0].standing) - 1)
        back = [recovery_s(o.standing, c.standing, settings.until_s, step_s) for o, c in zip(runs, calm, strict=True)]
        edges = tuple(network.link_edges[link][0] for link in one.links)
        excess[edges] = _mean(runs, "mean_delay_s") / base_s - 1.0
        around, ended = _mean(runs, "led_around"), _mean(runs, "ended_before")
        figures = (
            *(_mean(runs, "mean_delay_s"), _mean(runs, "p95_delay_s"), 100 * excess[edges], float(np.mean(back))),
            *(around, _mean(runs, "let_in"), ended, _mean(runs, "never_entered"), _mean(runs, "removed")),
            _mean(runs, "gridlocked"),
        )
        print(
            f"{per_hour[list(one.links)].sum():7.0f}"
            + "".join(f"{x:9.1f}" for x in figures)
            + f"  {' '.join(edges)}",
            flush=True,
        )
        if excess[edges] >= KEPT_FROM and ended <= MOST_ENDED * (around + ended):
            kept.append(" + ".join(edges))
    print(f"kept: {', '.join(kept) or 'none'}")
    return excess


def _mean(runs: list[Outcome], name: str) -> float:
    return float(np.mean([getattr(o, name) for o in runs]))


if __name__ == "__main__":
    screen(tyro.cli(Screening))
