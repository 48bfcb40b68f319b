"""What an exchange costs: every rule beside the plain mean as one matrix product, and whole exchanges.

The yardstick is `W @ X`, 20 rows of parameters mixed into 20: what gossip with plain averaging needs at least.
All sides run in turns, in one process.
"""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dynamic_graph_fed_rl.experiment import build as build_experiment
from dynamic_graph_fed_rl.experiment import default_experiment
from dynamic_graph_fed_rl.federation.aggregators.base import product
from dynamic_graph_fed_rl.federation.aggregators.registry import AGGREGATORS
from dynamic_graph_fed_rl.federation.aggregators.registry import build as build_rule
from dynamic_graph_fed_rl.federation.aggregators.settings import AggregatorSettings
from dynamic_graph_fed_rl.federation.build import build as build_federation
from dynamic_graph_fed_rl.federation.federation import Federation
from dynamic_graph_fed_rl.federation.settings import FederationSettings
from dynamic_graph_fed_rl.training.trainer import Trainer
from federation.rows import Row

AGENTS, SIZE = 20, 2**18
"""1 MiB of float32 an agent."""
REPEATS = 40
BYZANTINE = 3
BAR = {"median": 3.0, "trimmed-mean": 3.0}
EXCHANGES = {
    "server, mean": ("server", {}),
    "server, median": ("server", {"aggregator": "median"}),
    "server, mean, int8": ("server", {"codec": "int8"}),
    "tree 5 1, mean": ("tree", {"branches": (5,)}),
    "gossip on a ring, mean": ("gossip", {"overlay": "ring"}),
}
SHARE_OF_A_ROUND, ROUNDS = 0.05, 3


def run(quick: bool, seeds: int | None) -> list[Row]:
    """Rows of part `exchange-cost`; `seeds` is the number of repetitions."""
    repeats = 3 if quick else seeds or REPEATS
    rows = _against_a_product(2**12 if quick else SIZE, repeats)
    return rows if quick else rows + [_share_of_a_round()]


def _against_a_product(size: int, repeats: int) -> list[Row]:
    stack = jax.random.normal(jax.random.key(0), (AGENTS, size))
    mixing = jnp.full((AGENTS, AGENTS), 1.0 / AGENTS)
    ones, base, key = jnp.ones(AGENTS), jnp.zeros(size), jax.random.key(1)
    sides: dict[str, Callable[[], Any]] = {"product": _ready(jax.jit(product), mixing, stack)}
    for name in AGGREGATORS:
        rule = build_rule(AggregatorSettings(aggregator=name, assumed_byzantine=BYZANTINE))
        sides[name] = _ready(jax.jit(rule), stack, ones, base, rule.init(size), key)
    for name, (kind, fields) in EXCHANGES.items():
        federation = build_federation(FederationSettings(**fields), kind, AGENTS)
        sides[f"whole exchange: {name}"] = _exchange(federation, stack)
    milliseconds = _in_turns(sides, repeats)
    yardstick = milliseconds.pop("product")
    mebibyte = size * 4 / 2**20
    note = f"{AGENTS} agents of {mebibyte:g} MiB; median of the ratios turn by turn"
    rows = [
        Row(
            f"W @ X, {AGENTS} rows out",
            float(np.median(yardstick)),
            *_quartiles(yardstick),
            unit="ms",
            interval="quartiles of the turns",
            seeds=repeats,
            note=f"least {yardstick.min():.2f} ms; the yardstick",
        )
    ]
    for name, times in milliseconds.items():
        rows.append(
            _ratio(f"{'' if ':' in name else 'rule '}{name} over W @ X", times, yardstick, BAR.get(name), note)
        )
    # a rule has one row to give: the mean that is one product of a vector is the narrower measure
    for name, bar in BAR.items():
        claim = f"rule {name} over rule mean, one row out"
        rows.append(_ratio(claim, milliseconds[name], milliseconds["mean"], bar, note))
    return rows


def _ratio(claim: str, times: np.ndarray, yardstick: np.ndarray, bar: float | None, note: str) -> Row:
    """Milliseconds over those of the yardstick in the same turns."""
    ratio = times / yardstick
    least = f"least {times.min():.2f} ms ({times.min() / yardstick.min():.2f}x)"
    return Row(
        claim,
        float(np.median(ratio)),
        *_quartiles(ratio),
        bar=bar,
        direction="at most",
        unit="x",
        interval="quartiles of the turns",
        seeds=len(ratio),
        note=f"{np.median(times):.2f} ms, {least}; {note}",
    )


def _exchange(federation: Federation, stack: jax.Array) -> Callable[[], Any]:
    """One exchange after another, each given the memory of the state before it, as in a round of training."""
    state = federation.init(jnp.zeros_like(stack))
    state, plan = federation.plan(jax.random.key(0), state)
    exchange, key = jax.jit(Federation.exchange, donate_argnums=2), jax.random.key(1)

    def call() -> None:
        nonlocal state
        state, mixed, report = exchange(federation, key, state, stack, plan)
        jax.block_until_ready((state, mixed, report))

    call()
    return call


def _ready(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """Compiled, and called once."""
    call = lambda: jax.block_until_ready(function(*arguments))  # noqa: E731
    call()
    return call


def _in_turns(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, np.ndarray]:
    """Milliseconds of every side in every turn; every second turn in reverse order."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats):
        names = list(sides)
        gc.collect()
        for name in names if turn % 2 == 0 else names[::-1]:
            start = time.perf_counter()
            sides[name]()
            found[name].append(1e3 * (time.perf_counter() - start))
    return {name: np.array(times) for name, times in found.items()}


def _quartiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, (0.25, 0.75))
    return float(low), float(high)


def _share_of_a_round() -> Row:
    """The exchange's part of a round of `dgfrl train power-grid` as it comes."""
    trainer: Trainer = build_experiment(default_experiment("power-grid")).trainer
    training = trainer.init(jax.random.key(0))
    vectors = trainer.federation.method.held(training.federation.method) + 0.1
    exchange = _exchange(trainer.federation, vectors)
    shares, exchanges, rounds = [], [], []
    training, _ = trainer.run_round(training)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        training, metrics = trainer.run_round(training)
        jax.block_until_ready(metrics)
        rounds.append(time.perf_counter() - start)
        start = time.perf_counter()
        exchange()
        exchanges.append(time.perf_counter() - start)
        shares.append(100 * exchanges[-1] / rounds[-1])
    return Row(
        "the exchange's share of a default round on the power grid",
        float(np.median(shares)),
        min(shares),
        max(shares),
        bar=100 * SHARE_OF_A_ROUND,
        direction="at most",
        unit="%",
        interval="lowest and highest round",
        seeds=ROUNDS,
        note=(
            f"{trainer.agents} agents of {vectors.shape[1]:,} parameters through a server: "
            f"{1e3 * np.median(exchanges):.2f} ms of {np.median(rounds):.2f} s"
        ),
    )
