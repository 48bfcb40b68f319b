"""The loop: compiled once, repeatable, the same however agents are mapped, and flat in memory."""

import gc
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES, Traces

from dynamic_graph_fed_rl.algorithms.ppo import build
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.federation.build import build as build_federation
from dynamic_graph_fed_rl.federation.settings import FederationSettings
from dynamic_graph_fed_rl.training.trainer import Group, Trainer

AGENTS, WORLDS, DECISIONS = 3, 8, 4
SETTINGS = PPOSettings(learning_rate=1e-3, epochs=2, minibatches=2, width=8, layers=1)


def trainer_with(agent_map="vmap", joins=(0,) * AGENTS) -> Trainer:
    """Everybody from the first round on; given as data unless `joins` is empty."""
    environment = replace(PROBES["observation-and-action"].environment, traces=Traces())
    owned = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], AGENTS, axis=0), environment)
    group = Group(build(SETTINGS, 100), Worlds(owned, WORLDS, owners=AGENTS))
    federation = build_federation(FederationSettings(joins=joins), "server", AGENTS)
    return Trainer((group,), federation, DECISIONS, agent_map)


def run(trainer: Trainer, rounds: int, seed: int = 0):
    training, rows = trainer.init(jax.random.key(seed)), []
    for _ in range(rounds):
        training, metrics = trainer.run_round(training)
        rows.append(jax.tree.map(np.asarray, metrics))
    return training, rows


def numbers(tree) -> list[np.ndarray]:
    """Leaves as NumPy, keys as their data."""
    return [
        np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)
        for leaf in jax.tree.leaves(tree)
    ]


def assert_identical(left, right):
    for a, b in zip(numbers(left), numbers(right), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return trainer_with()


def test_a_round_is_compiled_once(trainer):
    traces = trainer.groups[0].worlds.environment.traces
    training = trainer.init(jax.random.key(0))
    training, _ = trainer.run_round(training)
    compiled = traces.count
    assert compiled > 0
    for _ in range(3):
        training, _ = trainer.run_round(training)
    assert traces.count == compiled
    assert int(training.round) == 4


def test_the_same_seed_gives_the_same_numbers(trainer):
    first, again, other = (run(trainer, 3, seed) for seed in (5, 5, 6))
    assert_identical(first, again)
    pairs = zip(numbers(first[0].learners), numbers(other[0].learners), strict=True)
    assert any((a != b).any() for a, b in pairs)


def test_a_run_goes_on_from_what_it_returned(trainer):
    """`Training` is all there is: leaving it on the host and coming back changes nothing."""
    training, _ = run(trainer, 2)
    host = jax.tree.map(lambda leaf: np.asarray(jax.random.key_data(leaf))
                        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.array(leaf), training)  # fmt: skip
    back = jax.tree.map(
        lambda leaf, like: (
            jax.random.wrap_key_data(jnp.asarray(leaf))
            if jnp.issubdtype(like.dtype, jax.dtypes.prng_key)
            else jnp.asarray(leaf)
        ),
        host,
        training,
    )
    assert_identical(trainer.run_round(back)[0], run(trainer, 3)[0])


def test_agents_mapped_at_once_and_one_after_the_other_agree(trainer):
    at_once, rows = run(trainer, 3)
    # a membership that is known not to change spares work and changes nothing
    in_turn, turn_rows = run(trainer_with(agent_map="map", joins=()), 3)
    for a, b in zip(numbers((at_once.learners, rows)), numbers((in_turn.learners, turn_rows)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_everybody_starts_alike_and_the_server_keeps_it_so(trainer):
    training, rows = run(trainer, 2)
    for leaf in jax.tree.leaves(trainer.groups[0].algorithm.shared(training.learners[0])):
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[:1], leaf.shape))
    # what they learned before the exchange differed
    assert all(row["federation"]["disagreement"] > 0 for row in rows)


def test_an_inactive_learner_keeps_its_state_and_has_no_say(trainer):
    run(trainer, 1)
    compiled = trainer.groups[0].worlds.environment.traces.count
    leaves = jnp.asarray([1] + [0] * (AGENTS - 1), jnp.int32)
    alone = eqx.tree_at(lambda t: t.federation.schedule.leaves, trainer, leaves)
    start = alone.init(jax.random.key(0))
    before, worlds = start.learners[0], numbers(start.actors[0])
    training, (metrics,) = run(alone, 1)
    after = training.learners[0]
    for part in ("optimiser", "scale"):
        pairs = list(zip(numbers(getattr(before, part)), numbers(getattr(after, part)), strict=True))
        assert all((a[1:] == b[1:]).all() for a, b in pairs)
        assert any((a[0] != b[0]).any() for a, b in pairs)
    # who is a member is data
    assert trainer.groups[0].worlds.environment.traces.count == compiled
    # its own worlds wait for it, and are not counted
    for a, b in zip(worlds, numbers(training.actors[0]), strict=True):
        np.testing.assert_array_equal(a[1:], b[1:])
    assert metrics["world_steps"] == WORLDS * DECISIONS
    with_all = run(trainer, 1)[0].learners[0]
    assert any((a != b).any() for a, b in zip(numbers(after.network), numbers(with_all.network), strict=True))


def test_metrics_have_one_value_an_agent(trainer):
    _, (metrics,) = run(trainer, 1)
    assert metrics["reward"].shape == (AGENTS,)
    # every step of this probe ends an episode
    assert metrics["terminated"].tolist() == [WORLDS * DECISIONS] * AGENTS
    assert all(value.shape == (AGENTS,) for value in metrics["learning"].values())
    assert metrics["ended"].tolist() == [WORLDS * DECISIONS] * AGENTS
    assert metrics["world_steps"] == AGENTS * WORLDS * DECISIONS


def test_groups_of_unlike_agents_learn_as_one():
    """Two groups with worlds of different kinds hold the same parameters after a server's exchange."""
    unlike = ("observation-and-action", "two-step")
    groups = tuple(Group(build(SETTINGS, 100), Worlds(PROBES[name].environment, WORLDS)) for name in unlike)
    federation = build_federation(FederationSettings(), "server", len(groups))
    training, (metrics,) = run(Trainer(groups, federation, DECISIONS, "vmap"), 1)
    left, right = (group.algorithm.shared(one) for group, one in zip(groups, training.learners, strict=True))
    assert_identical(left, right)
    assert metrics["reward"].shape == (len(groups),)
    assert metrics["world_steps"] == len(groups) * WORLDS * DECISIONS


def test_attackers_act_at_random():
    """An attacker that acts at random learns from other actions than an honest agent with the same draws."""
    honest = trainer_with()
    settings = FederationSettings(byzantine=1, attack="random-action", aggregator="median")
    attacked = replace(honest, federation=build_federation(settings, "server", AGENTS))
    rewards = [run(one, 1)[1][0]["reward"] for one in (honest, attacked)]
    np.testing.assert_array_equal(rewards[0][:-1], rewards[1][:-1])
    assert rewards[0][-1] != rewards[1][-1]


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident size is read from Linux's /proc")
def test_memory_does_not_grow_with_rounds(trainer):
    training = trainer.init(jax.random.key(0))
    sizes, arrays = [], []
    for round_number in range(1, 401):
        training, metrics = trainer.run_round(training)
        if round_number in (50, 400):
            jax.block_until_ready(metrics)
            gc.collect()
            sizes.append(resident_mb())
            arrays.append(len(jax.live_arrays()))
    assert arrays[1] <= arrays[0]
    # one leaked copy of this small run's state a round would be over 20 MB
    assert sizes[1] - sizes[0] < 5
