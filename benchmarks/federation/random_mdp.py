"""QAvg on random MDPs: the tabular experiment of federated learning under environment heterogeneity.

Jin, Peng, Yang, Wang, Zhang: "Federated Reinforcement Learning with Environment Heterogeneity" (AISTATS 2022),
in the setting of its published code (pengyang7881187/FedRL, `tabular/QAvg_random_MDP.py`): 5 states, 5 actions,
discount 0.9; five agents share rewards but not transitions, take E damped steps of value iteration each, and a
server averages their Q tables (here by the package's own aggregator); the greedy policy of the average is judged
on the five training environments and on twenty more. 128 iterations, so 128 / E averagings. The rate starts at
0.01 and halves after every averaging that did not raise the training objective by a thousandth, from the fourth
on. The objective is the mean value over states less 0.5 / (1 - discount).

The published code names an "eps" of 0.05, which its default way of drawing transitions does not read.
"""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from multiprocessing import get_context

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.federation.aggregators.mean import Mean
from federation import random_mdp_draw as setting
from federation import random_mdp_oracle as oracle
from federation.random_mdp_draw import ACTIONS, STATES, TRAINING_AGENTS, Mdps
from federation.rows import Row

PERIODS: tuple[int | None, ...] = (1, 2, 4, 8, 16, 32, None)
"""Local steps between two averagings (E); None: never averaged, only the judged policy is."""
ITERATIONS = 128
DISCOUNT = 0.9
RATE, RATE_DECAY, SMALLEST_GAIN = 0.01, 0.5, 1e-3

TOTAL = 16_000
ORACLE_MDPS = 60
TOLERANCE = 1e-3
SECONDS_BAR, SECONDS_STRETCH = 60.0, 20.0
PROCESSES = 2

# (train, test) for each of PERIODS that the published code prints when told to draw 60 MDPs in all
PUBLISHED_MDPS = 60
PUBLISHED = (
    (3.406887443, 3.301772370),
    (3.406887443, 3.301772370),
    (3.406887443, 3.301463382),
    (3.406887443, 3.309340301),
    (3.406046463, 3.313192671),
    (3.404760100, 3.311129437),
    (3.406734574, 3.301772370),
)

# of one batch: the training agents' transitions (5 kB an MDP) stay in a core's cache
BATCH = 64

_DIGITS = ACTIONS ** np.arange(STATES)


@dataclass(frozen=True)
class Curves:
    """Objectives of the judged policies over `M` MDPs, axis 1 being training and test environments.

    `mean` is the mean curve over MDPs, `final` every MDP's last value, `first` the whole curves of the first
    MDPs; `alone` is the last value of the policies that the five agents reach without any averaging, their mean.
    """

    mean: Float[np.ndarray, "periods 2 iterations"]
    final: Float[np.ndarray, "periods 2 M"]
    alone: Float[np.ndarray, "2 M"]
    first: Float[np.ndarray, "periods 2 iterations first"]


def run(quick: bool, seeds: int | None) -> list[Row]:
    """Rows of part `random-mdp`; `seeds` is the number of MDPs (None: the 16,000 of the publication)."""
    count = min(seeds or (2 * BATCH if quick else TOTAL), TOTAL)
    checked = min(count, 2 if quick else ORACLE_MDPS)
    start, cpu = time.perf_counter(), _cpu_seconds()
    with _compiling_anew(), jax.enable_x64(True):
        ours = solve(TOTAL, count, checked)
        seconds, cpu = time.perf_counter() - start, _cpu_seconds() - cpu
        published = solve(PUBLISHED_MDPS, PUBLISHED_MDPS, 0)
    reference = oracle.curves(TOTAL, checked, PERIODS)
    agreement = float(abs(ours.first - reference.transpose(1, 2, 3, 0)).max())
    reproduced = float(abs(published.mean.max(2) - np.array(PUBLISHED)).max())
    return [
        Row(
            "QAvg: largest difference from a NumPy oracle, any MDP, E, iteration, environments",
            agreement,
            bar=TOLERANCE,
            direction="at most",
            seeds=checked,
            note="the oracle draws the MDPs itself",
        ),
        Row(
            "QAvg: largest difference from the means that the published code prints for 60 MDPs, any E",
            reproduced,
            bar=TOLERANCE,
            direction="at most",
            seeds=PUBLISHED_MDPS,
            source="pengyang7881187/FedRL run with outer_iter_num = 60",
        ),
        Row(
            f"QAvg: {count:,} MDPs at all E, drawing and compiling included",
            seconds,
            bar=SECONDS_BAR if count == TOTAL else None,
            stretch=SECONDS_STRETCH,
            direction="at most",
            unit="s",
            seeds=count,
            note=f"wall time; {cpu:.1f} CPU seconds, where the published code needs about 0.9 an MDP",
        ),
        *_objectives(ours, count),
    ]


def _objectives(curves: Curves, count: int) -> Iterator[Row]:
    spread = 1.96 / np.sqrt(count)
    # as the publication reports it: the best iteration of the mean curve, the last iteration's spread
    for period, mean, final in zip(PERIODS, curves.mean.max(2), curves.final, strict=True):
        name = "infinity" if period is None else str(period)
        for side, value, values in zip(("training", "test"), mean, final, strict=True):
            yield _objective(f"QAvg objective, E = {name}, {side} environments", value, values, spread)
    for side, values in zip(("training", "test"), curves.alone, strict=True):
        yield _objective(f"agents alone (mean of the five), {side} environments", values.mean(), values, spread)


def _objective(claim: str, value: float, values: Float[np.ndarray, " M"], spread: float) -> Row:
    half = float(spread * values.std())
    return Row(
        claim,
        float(value),
        float(value) - half,
        float(value) + half,
        seeds=values.size,
        interval="1.96 standard errors over MDPs",
    )


def _cpu_seconds() -> float:
    """Of this process and of those it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def solve(total: int, count: int, keep: int) -> Curves:
    """The first `count` MDPs of an experiment of `total`, whole curves of the first `keep`. Asks for 64 bit."""
    mean = np.zeros((len(PERIODS), 2, ITERATIONS))
    finals, alones, firsts = [], [], []
    for mdps in _drawn(total, count):
        curves, alone = _solve_batch(mdps)
        mean += curves.sum(3)
        # copies, since a view would keep the whole batch in memory
        firsts.append(curves[..., : max(0, keep - BATCH * len(finals))].copy())
        finals.append(curves[:, :, -1].copy())
        alones.append(alone)
    return Curves(mean / count, np.concatenate(finals, 2), np.concatenate(alones, 1), np.concatenate(firsts, 3))


def _drawn(total: int, count: int) -> Iterator[Mdps]:
    """Batches in order, drawn in processes of their own while earlier ones are solved."""
    batches = [(total, start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
    if len(batches) <= PROCESSES:
        yield from (setting.draw(*batch) for batch in batches)
        return
    # not forked: jax has threads
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        yield from pool.map(setting.draw, *zip(*batches, strict=True))


def _solve_batch(mdps: Mdps) -> tuple[Float[np.ndarray, "periods 2 iterations B"], Float[np.ndarray, "2 B"]]:
    lanes = mdps.rewards.shape[-1]
    # one compiled size for all: a short batch repeats its last MDP
    fill = [(0, 0), (0, 0), (0, BATCH - lanes)]
    transitions = jnp.asarray(np.pad(mdps.transitions, [(0, 0), (0, 0), *fill], mode="edge"))
    rewards, first_q = (jnp.asarray(np.pad(table, fill, mode="edge")) for table in (mdps.rewards, mdps.first_q))
    merged, alone = (np.asarray(codes) for codes in federate(transitions, rewards, first_q))
    codes = np.concatenate([merged.reshape(-1, BATCH), alone])
    # a handful of policies is all that an MDP meets: each is judged once
    found = [np.unique(column, return_inverse=True) for column in codes.T]
    widest = max(distinct.size for distinct, _ in found)
    table = np.stack([np.pad(distinct, (0, widest - distinct.size), mode="edge") for distinct, _ in found], axis=1)
    values = np.stack([np.asarray(judge(transitions, rewards, jnp.asarray(row))) for row in table])
    places = np.stack([place for _, place in found], axis=1)
    objective = values[places, :, np.arange(BATCH)] - 0.5 / (1 - DISCOUNT)
    curves = objective[: -len(alone)].reshape(*merged.shape, 2).transpose(0, 3, 1, 2)
    return curves[..., :lanes], objective[-len(alone) :].mean(0).T[:, :lanes]


@jax.jit
def federate(
    transitions: Float[Array, "actions next agents states B"],
    rewards: Float[Array, "actions states B"],
    first_q: Float[Array, "actions states B"],
) -> tuple[Int[Array, "periods iterations B"], Int[Array, "training B"]]:
    """Policies judged at every iteration for each of `PERIODS`, and those the agents reach alone in the end.

    A policy is one number: its action in state `s` is digit `s` to the base of the number of actions.
    """
    moves = DISCOUNT * transitions[:, :, :TRAINING_AGENTS]

    def backup(value: Float[Array, "agents states B"]) -> Float[Array, "actions agents states B"]:
        ahead = [sum(moves[a, t] * value[:, t, None] for t in range(STATES)) for a in range(ACTIONS)]
        return jnp.stack(ahead) + rewards[:, None]

    def exchange(
        base: Float[Array, "actions states B"], q: Float[Array, "actions agents states B"]
    ) -> Float[Array, "actions states B"]:
        sent = jnp.moveaxis(q - base[:, None], 1, 0).reshape(TRAINING_AGENTS, ACTIONS * STATES, -1)
        held = base.reshape(ACTIONS * STATES, -1)
        rule = jax.vmap(Mean(), in_axes=(2, None, 1, None, None), out_axes=(1, None, None))
        update, _, _ = rule(sent, jnp.ones(TRAINING_AGENTS), held, None, jax.random.key(0))
        return base + update.reshape(base.shape)

    def one_period(
        case: tuple[Int[Array, ""], Bool[Array, ""]],
    ) -> tuple[Int[Array, "iterations B"], Int[Array, "agents B"]]:
        steps, merges = case

        def averaging(number, carried):
            q, average, rate, last, before_last, policies = carried
            average = exchange(average, q)
            policy = _greedy(average)
            objective = _values(moves, rewards, policy).mean(0)
            stalled = (number > 2) & (last - before_last < SMALLEST_GAIN * before_last)
            rate = jnp.where(stalled, RATE_DECAY * rate, rate)
            value = jnp.where(merges, average[:, None], q).max(0)
            value = jax.lax.fori_loop(0, steps, lambda _, v: (1 - rate) * v + rate * backup(v).max(0), value)
            return backup(value), average, rate, objective, last, policies.at[number].set(policy)

        lanes = first_q.shape[-1]
        q = jnp.broadcast_to(first_q[:, None], (ACTIONS, TRAINING_AGENTS, STATES, lanes))
        none = jnp.zeros(lanes)
        carried = q, first_q, jnp.full(lanes, RATE), none, none, jnp.zeros((ITERATIONS, lanes), jnp.int32)
        q, *_, policies = jax.lax.fori_loop(0, ITERATIONS // steps, averaging, carried)
        return policies[jnp.arange(ITERATIONS) // steps], _greedy(q)

    steps = jnp.array([period or 1 for period in PERIODS])
    merges = jnp.array([period is not None for period in PERIODS])
    policies, last = jax.lax.map(one_period, (steps, merges))
    return policies, last[PERIODS.index(None)]


@jax.jit
def judge(
    transitions: Float[Array, "actions next agents states B"],
    rewards: Float[Array, "actions states B"],
    policy: Int[Array, " B"],
) -> Float[Array, "2 B"]:
    """Mean value of a policy over states and over the training, then the test environments."""
    values = _values(DISCOUNT * transitions, rewards, policy)
    return jnp.stack([values[:TRAINING_AGENTS].mean(0), values[TRAINING_AGENTS:].mean(0)])


def _greedy(q: Float[Array, "actions *more states B"]) -> Int[Array, "*more B"]:
    # the first of equal actions, as argmax has it, but over the leading axis without its slow reduction
    best, action = q[0], jnp.zeros(q[0].shape, jnp.int32)
    for a in range(1, ACTIONS):
        action = jnp.where(q[a] > best, a, action)
        best = jnp.maximum(best, q[a])
    return jnp.tensordot(jnp.asarray(_DIGITS, jnp.int32), jnp.moveaxis(action, -2, 0), 1)


def _values(
    moves: Float[Array, "actions next agents states B"],
    rewards: Float[Array, "actions states B"],
    policy: Int[Array, " B"],
) -> Float[Array, "agents B"]:
    """Mean over states of a deterministic policy's value, by elimination on all agents and MDPs at once.

    The equations are diagonally dominant (each row of `moves` sums to the discount), so no pivot is needed.
    """
    taken = (policy // jnp.asarray(_DIGITS)[:, None]) % ACTIONS
    chosen = taken[None] == jnp.arange(ACTIONS)[:, None, None]
    # spelled out, since a reduction over the leading axis is several times slower
    move = reduce(jnp.add, [jnp.where(chosen[a], moves[a], 0.0) for a in range(ACTIONS)])
    gain = jnp.broadcast_to(jnp.where(chosen, rewards, 0.0).sum(0), move.shape[1:])
    # columns of [identity - move | gain]: [column, agent, row, B]
    system = jnp.concatenate([jnp.eye(STATES)[:, None, :, None] - move, gain[None]])
    pivots = []
    for _ in range(STATES):
        # without the barrier the compiler fuses all steps and does each of them many times over
        system = jax.lax.optimization_barrier(system)
        pivot = system[1:, :, 0] / system[:1, :, 0]
        pivots.append(pivot)
        system = system[1:, :, 1:] - system[:1, :, 1:] * pivot[:, :, None]
    value: list[Float[Array, "agents B"]] = []
    for pivot in reversed(pivots):
        value.insert(0, pivot[-1] - sum(weight * known for weight, known in zip(pivot[:-1], value, strict=True)))
    return jnp.stack(value).mean(0)


@contextmanager
def _compiling_anew() -> Iterator[None]:
    """Compilation is part of what is timed: programs kept from an earlier run do not count."""
    used = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", used)
        compilation_cache.reset_cache()
