"""Published results and figures of the federation, part by part: `dgfrl benchmark federation [PART ...]`.

A part is one file with `run(quick, seeds) -> list[Row]` and one line in `PARTS`. This module imports neither
jax nor NumPy, so that listing the parts is quick.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.rows import Row


@dataclass(frozen=True)
class Part:
    """What a part shows, the bar it has to reach, and the module of this folder that measures it."""

    help: str
    bar: str
    module: str

    def run(self, quick: bool, seeds: int | None) -> "list[Row]":
        """Measure. `quick` is a smoke run; `seeds` is the number of independent repetitions (None: the part's)."""
        return import_module(f"{__name__}.{self.module}").run(quick, seeds)


PARTS: dict[str, Part] = {
    "random-mdp": Part(
        "QAvg on 16,000 random MDPs, n = 5 (Jin et al., AISTATS 2022)",
        "a NumPy oracle to 1e-3, under 60 s",
        "random_mdp",
    ),
    "fedpg": Part(
        "CartPole, 1, 3 and 10 agents and a server, then with 3 attackers (FedPG-BR, Fan et al., NeurIPS 2021)",
        "475 by 1,000 trajectories an agent and half of what one agent needs; within 5 % under attack",
        "fedpg",
    ),
    "decbyzpg": Part(
        "gossip among 13 CartPole agents of which 3 attack, on a ring and a random overlay (DecByzPG, Jordan et al.)",
        "490 at 8,000 trajectories",
        "decbyzpg",
    ),
    "speed-up": Part(
        "what each CartPole agent needs, with 1 to 32 agents alike; slope between logarithms, picture",
        "no bar: reported",
        "speed_up",
    ),
    "time-law": Part(
        "rounds of learning a unit of virtual time, asynchronous and synchronous, agents of unlike speed",
        "sum(1 / t) and A / max(t), exact",
        "time_law",
    ),
    "exchange-cost": Part(
        "every rule and whole exchanges beside W @ X, 20 agents of 1 MiB; an exchange beside a default round",
        "median and trimmed mean under 3x, 5 % of a round",
        "exchange_cost",
    ),
    "scale": Part(
        "10,000 agents in one process, gossip and tree: time an agent, memory; agents spread over devices",
        "memory grows by at most 5 %, spread = one device to 1e-6",
        "scale",
    ),
    "grid-gossip": Part(
        "asynchronous gossip on the power grid, agents dropping out, fewer bytes, against the synchronous server",
        "lower bound of the difference above -5 points of score",
        "grid_gossip",
    ),
    "four-sizes": Part(
        "one graph network federated over ieee14, 30, 57 and 118, against each alone; unchanged on ieee300",
        "better than alone on every grid",
        "four_sizes",
    ),
}


def run_parts(names: Sequence[str], quick: bool = False, seeds: int | None = None) -> int:
    """Run the named parts (none named: all), print one table, write the results; returns 0 whatever passes.

    Results are written after every part: rows of other parts stay as they were, and what a run of hours has
    measured outlives its end.

    Raises:
        ValueError: an unknown part, or fewer than one seed.
    """
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise ValueError(f"benchmark federation: part '{unknown[0]}': unknown; known: {', '.join(PARTS)}")
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds {seeds}: must be at least 1")
    from federation import rows

    chosen = [name for name in PARTS if name in names or not names]
    path = rows.results_path(quick)
    measured = []
    for number, name in enumerate(chosen, 1):
        print(f"{name} ({number} of {len(chosen)}): {PARTS[name].help}", flush=True)
        noise = rows.Noise()
        noise.sample()
        found = PARTS[name].run(quick, seeds)
        noise.sample()
        rows.write(path, name, found, noise, order=list(PARTS))
        measured += [(name, row) for row in found]
    rows.print_table("Federation" + (" (smoke run)" if quick else ""), measured)
    print(f"written: {path}")
    return 0
