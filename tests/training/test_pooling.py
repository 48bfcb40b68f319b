"""A server's learner of pooled experience, and what of it the agents get."""

from dataclasses import replace
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.buffers.screening import Nearest
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.experiment import build, default_experiment
from dynamic_graph_fed_rl.training.rollout import collect, start
from dynamic_graph_fed_rl.training.trainer import Training

AGENTS, WORLDS, DECISIONS = 2, 3, 8
TINY = {
    "algorithm": "dqn",
    "agents": AGENTS,
    "worlds": WORLDS,
    "decisions_per_round": DECISIONS,
    "lessons": 2,
    "updates": 2,
    "server_updates": 3,
    "batch_size": 8,
    "warm_up": 6,
    "steps": 1,
    "replay": 300,
    "width": 8,
    "layers": 0,
    "value_scale": 1.0,
}


def assert_close(left, right, tolerance: float = 1e-6) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


@eqx.filter_jit
def study(pool, key, server, experience, there):
    return pool.study(key, server, experience, there)


@eqx.filter_jit
def learned_alone(algorithm, recall_key, learn_key, learner, experience):
    learner, lesson = algorithm.recall(recall_key, learner, experience)
    return algorithm.learn(learn_key, learner, lesson)[0]


@cache
def trained(federation: str, rounds: int, **changes) -> Training:
    trainer = build(default_experiment("cartpole", federation=federation, **(TINY | changes))).trainer
    training = trainer.init(jax.random.key(0))
    for _ in range(rounds):
        training, _ = trainer.run_round(training)
    return training


@pytest.fixture(scope="module")
def pooled():
    """The pool, its learner, what one agent in `AGENTS * WORLDS` worlds experienced, and that of as many agents."""
    trainer = build(default_experiment("cartpole", federation="shared", **TINY)).trainer
    group, pool = trainer.groups[0], trainer.pool
    assert pool is not None
    environment = jax.tree.map(lambda leaf: leaf[:1], group.worlds.environment)
    worlds = Worlds(environment, AGENTS * WORLDS, owners=1)
    server = pool.init(jax.random.key(1), worlds.spec, AGENTS * WORLDS)
    learners = jax.tree.map(lambda leaf: leaf[None], server)
    actors = start(jax.random.key(2), pool.algorithm, worlds, learners)
    _, experience, _ = collect(jax.random.key(3), pool.algorithm, worlds, learners, actors, DECISIONS)
    alone = jax.tree.map(lambda leaf: leaf[0], experience)

    def among(leaf):
        # `[T, A * B, ...]` to `[A, T, B, ...]`
        return jnp.stack(jnp.split(leaf, AGENTS, axis=1))

    memory = jax.tree.map(lambda leaf: jnp.stack(jnp.split(leaf, AGENTS)), alone.memory)
    rows = jax.tree.map(among, (alone.observation, alone.action, alone.transition, alone.extras))
    return pool, server, alone, type(alone)(memory, *rows)


def test_learns_as_one_agent_in_all_worlds(pooled) -> None:
    pool, server, alone, several = pooled
    key = jax.random.key(4)
    _, recall_key, learn_key = jax.random.split(key, 3)
    expected = learned_alone(pool.algorithm, recall_key, learn_key, server, alone)
    learned, metrics = study(pool, key, server, several, jnp.ones(AGENTS, bool))
    assert_close(learned, expected)
    assert int(learned.updates) == TINY["server_updates"]
    assert float(metrics["pooled"]) == AGENTS * WORLDS * DECISIONS
    with pytest.raises(AssertionError):
        assert_close(learned.networks, server.networks)


def test_nothing_is_learned_from_an_agent_that_is_not_there(pooled) -> None:
    pool, server, _, several = pooled
    there = jnp.asarray([True, False])
    learned, metrics = study(pool, jax.random.key(4), server, several, there)
    assert float(metrics["pooled"]) == WORLDS * DECISIONS

    def spoilt(absent: int):
        where = lambda one: (one.action, one.transition.reward)  # noqa: E731
        wrong = (1 - several.action[absent], several.transition.reward[absent] + 100.0)
        parts = tuple(leaf.at[absent].set(new) for leaf, new in zip(where(several), wrong, strict=True))
        return eqx.tree_at(where, several, parts)

    same, _ = study(pool, jax.random.key(4), server, spoilt(1), there)
    assert_close(same.networks, learned.networks, 0.0)
    other, _ = study(pool, jax.random.key(4), server, spoilt(0), there)
    with pytest.raises(AssertionError):
        assert_close(other.networks, learned.networks)


def test_shared_agents_hold_what_the_server_learned_and_do_not_learn() -> None:
    training = trained("shared", 3)
    learners = training.learners[0]
    for agent in range(AGENTS):
        assert_close(jax.tree.map(lambda leaf, i=agent: leaf[i], learners.networks), training.server.networks, 0.0)
    begun = trained("shared", 0).learners[0]
    assert_close(learners.optimiser, begun.optimiser, 0.0)
    assert_close(learners.targets, begun.targets, 0.0)
    # their exploration falls as if they learned
    assert int(learners.updates[0]) == 3 * TINY["lessons"] * TINY["updates"]


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_hybrid_is_the_weighted_mean_of_the_servers_learner_and_the_agents(share) -> None:
    """After one round, as all begin alike: the agents learn what they learn alone, the server what it does there."""
    agents = jax.tree.map(lambda leaf: leaf.mean(0), trained("independent", 1).learners[0].networks)
    server = trained("shared", 1).server.networks
    expected = jax.tree.map(lambda s, a: share * s + (1 - share) * a, server, agents)
    training = trained("hybrid", 1, server_share=share)
    assert_close(training.server.networks, expected, 1e-5)
    for agent in range(AGENTS):
        networks = jax.tree.map(lambda leaf, i=agent: leaf[i], training.learners[0].networks)
        assert_close(networks, expected, 1e-5)


def test_a_screen_that_lets_nothing_pass_keeps_the_first_round_only(pooled) -> None:
    pool, server, _, several = pooled
    closed = replace(pool, screen=Nearest(1e9, 4))
    there = jnp.ones(AGENTS, bool)
    server, first = study(closed, jax.random.key(5), server, several, there)
    _, second = study(closed, jax.random.key(6), server, several, there)
    assert (float(first["pooled"]), float(second["pooled"])) == (AGENTS * WORLDS * DECISIONS, 0.0)
