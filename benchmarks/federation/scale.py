"""Ten thousand agents in one process: what a round costs an agent beside a hundred, and that memory stays flat.

Every measurement is a process of its own, so that one's memory is not another's. The agents balance poles with
small policies, as `dgfrl train cartpole` builds them.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import jax
import numpy as np

from dynamic_graph_fed_rl.experiment import build, default_experiment
from federation.rows import Row

MANY, FEW = 10_000, 100
ROUNDS, QUICK_ROUNDS = 100, 12
EARLY = 10
"""Round from which memory must not grow: the first ones compile and fill the allocator."""
GROWTH_BAR = 0.05
SMALL: dict[str, Any] = {
    "worlds": 1, "minibatches": 1, "epochs": 1, "decisions_per_round": 4, "width": 8, "layers": 1,
}  # fmt: skip
FEDERATIONS: dict[str, Callable[[int], dict[str, Any]]] = {
    "gossip": lambda agents: {"overlay": "random"},
    "tree": lambda agents: {"branches": (agents // 100, agents // 10)},
}
# the other federations, and several processes, are compared in tests/training/test_placement.py
SPREAD: dict[str, dict[str, Any]] = {"gossip": {"overlay": "random"}}
DEVICES, SPREAD_AGENTS, SPREAD_ROUNDS, SPREAD_BAR = 4, 16, 3, 1e-6
NAMES = {"gossip": "gossip on a random overlay, 2 neighbours", "tree": "tree of three levels"}


def run(quick: bool, seeds: int | None) -> list[Row]:
    """Rows of part `scale`; there is nothing to repeat by seed, an interval is over the rounds of one run."""
    rounds, many = (QUICK_ROUNDS, 1000) if quick else (ROUNDS, MANY)
    rows = []
    for federation in FEDERATIONS:
        few = _alone(_measure, federation, FEW, rounds)
        crowd = _alone(_measure, federation, many, rounds)
        rows += _rows(federation, few, crowd, many, rounds)
    if not quick:
        rows += [_spread_row(federation) for federation in SPREAD]
    return rows


def _rows(federation: str, few: dict[str, Any], crowd: dict[str, Any], many: int, rounds: int) -> list[Row]:
    label = f"{many:,} agents, {NAMES[federation]}"
    # the first rounds compile and warm up
    seconds, seconds_few = (np.array(side["seconds"][2:]) for side in (crowd, few))
    rates = 1.0 / seconds
    ratio = (seconds / many) / (np.median(seconds_few) / FEW)
    early, late = crowd["resident_mib"]
    return [
        Row(
            f"{label}: rounds a second",
            float(np.median(rates)),
            *map(float, np.quantile(rates, (0.25, 0.75))),
            unit="1/s",
            interval="quartiles of the rounds",
            note=(
                f"{crowd['parameters']:,} parameters an agent, 1 world each, {SMALL['decisions_per_round']} "
                f"decisions a round; state {crowd['state_mib']:.0f} MiB, compilation {crowd['seconds'][0]:.0f} s"
            ),
        ),
        Row(
            f"{label}: time of a round an agent over that of {FEW}",
            float(np.median(ratio)),
            *map(float, np.quantile(ratio, (0.25, 0.75))),
            unit="x",
            interval="quartiles of the rounds",
            note="1 is linear in the number of agents",
        ),
        Row(
            f"{label}: growth of the resident size from round {EARLY} to {rounds}",
            100 * (late / early - 1),
            bar=100 * GROWTH_BAR,
            direction="at most",
            unit="%",
            note=f"{early:.0f} MiB, then {late:.0f} MiB; peak {crowd['peak_mib']:.0f} MiB; {FEW} agents hold "
            f"{few['resident_mib'][1]:.0f} MiB",
        ),
    ]


def _spread_row(federation: str) -> Row:
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES} {flags}"
    try:
        difference = _alone(_difference, federation)
    finally:
        os.environ["XLA_FLAGS"] = flags
    return Row(
        f"{federation}: agents spread over {DEVICES} devices, largest relative difference to one device",
        difference,
        bar=SPREAD_BAR,
        direction="at most",
        note=f"parameters of {SPREAD_AGENTS} agents after {SPREAD_ROUNDS} rounds, virtual devices of one CPU",
    )


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's value, from a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def _measure(federation: str, agents: int, rounds: int) -> dict[str, Any]:
    experiment = default_experiment(
        "cartpole", agents=agents, federation=federation, rounds=rounds, **FEDERATIONS[federation](agents), **SMALL
    )
    trainer = build(experiment).trainer
    training = trainer.init(jax.random.key(0))
    seconds, resident = [], []
    for number in range(1, rounds + 1):
        start = time.perf_counter()
        training, metrics = trainer.run_round(training)
        jax.block_until_ready((training, metrics))
        seconds.append(time.perf_counter() - start)
        if number in (EARLY, rounds):
            resident.append(_status_mib("VmRSS"))
    return {
        "seconds": seconds,
        "resident_mib": resident,
        "peak_mib": _status_mib("VmHWM"),
        "parameters": trainer.federation.method.held(training.federation.method).shape[1],
        "state_mib": sum(leaf.nbytes for leaf in jax.tree.leaves(training)) / 2**20,
    }


def _status_mib(name: str) -> float:
    """A size of this process, from Linux's /proc."""
    with open("/proc/self/status") as file:
        found = {line.split(":")[0]: line.split()[1] for line in file if line.startswith("Vm")}
    return int(found[name]) / 1024


def _difference(federation: str) -> float:
    from dynamic_graph_fed_rl.training.placement import agent_mesh, spread

    experiment = default_experiment(
        "cartpole", agents=SPREAD_AGENTS, federation=federation, **SPREAD[federation], **SMALL
    )
    trainer = build(experiment).trainer
    several = spread(trainer, agent_mesh(DEVICES))
    one = trainer.init(jax.random.key(0))
    apart = several.place(one)
    for _ in range(SPREAD_ROUNDS):
        one, _ = trainer.run_round(one)
        apart, _ = several.run_round(apart)
    pairs = zip(*(jax.tree.leaves(side.learners[0].network) for side in (one, apart)), strict=True)
    # of each array, relative to its largest number
    return max(
        float(np.abs(np.asarray(a) - np.asarray(b)).max() / max(float(np.abs(a).max()), 1e-12))
        for a, b in pairs
        if a.size
    )
