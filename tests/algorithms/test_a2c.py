"""A2C: one gradient step, and exactly the one that PPO would make."""

from dataclasses import asdict

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from probes import PROBES

from dynamic_graph_fed_rl.algorithms import a2c, ppo
from dynamic_graph_fed_rl.algorithms.on_policy import unroll
from dynamic_graph_fed_rl.algorithms.settings import A2CSettings, PPOSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.training.rollout import collect, start


def test_a2c_is_ppo_with_one_step_a_round():
    """Huang et al. 2022: before the first step every ratio is 1 and nothing is clipped."""
    settings = A2CSettings(width=8, trace=0.9, entropy_weight=0.02, learning_rate=0.01)
    ours, theirs = a2c.build(settings, 50), ppo.build(PPOSettings(**asdict(settings), clip=0.2), 50)
    worlds = Worlds(PROBES["two-step"].environment, 16)
    learner = ours.init(jax.random.key(0), worlds.spec, worlds.copies)
    learners = jax.tree.map(lambda leaf: leaf[None], learner)
    actors = start(jax.random.key(1), ours, worlds, learners)
    _, experience, _ = eqx.filter_jit(collect)(jax.random.key(2), ours, worlds, learners, actors, 8)
    experience = jax.tree.map(lambda leaf: leaf[0], experience)
    left, metrics = eqx.filter_jit(ours.learn)(jax.random.key(3), learner, experience)
    right, _ = eqx.filter_jit(theirs.learn)(jax.random.key(3), learner, experience)
    assert set(metrics) == {"policy_loss", "value_loss", "entropy", "explained_variance"}
    moved = 0.0
    for before, a, b in zip(*map(jax.tree.leaves, (learner.network, left.network, right.network)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
        moved += float(np.abs(np.asarray(a) - np.asarray(before)).sum())
    assert moved > 0.1


def test_a_time_limit_is_bootstrapped_and_the_segment_end_too():
    """An endless stream of ones, cut off after every step: each target is 1 + gamma * value, whatever follows."""
    settings = A2CSettings(width=8, discount=0.8)
    algorithm = a2c.build(settings, 50)
    environment = PROBES["truncated"].environment
    worlds = Worlds(environment, 4)
    learner = algorithm.init(jax.random.key(0), worlds.spec, worlds.copies)
    learners = jax.tree.map(lambda leaf: leaf[None], learner)
    actors = start(jax.random.key(1), algorithm, worlds, learners)
    _, experience, _ = eqx.filter_jit(collect)(jax.random.key(2), algorithm, worlds, learners, actors, 3)
    experience = jax.tree.map(lambda leaf: leaf[0], experience)
    network, seen = learner.network, experience.transition.observation
    memory = unroll(network, experience.memory, experience.observation)
    lesson, scale, _ = algorithm.prepare(learner, memory, experience)
    following = network.value(network.remember(memory, seen), seen)
    np.testing.assert_allclose(scale.restore(lesson.target), 1 + 0.8 * following, rtol=1e-4)
    # without the limits the last row alone stands on a value
    endless = eqx.tree_at(lambda e: e.transition.truncated, experience, jnp.zeros((3, 4), bool))
    lesson, scale, _ = algorithm.prepare(learner, memory, endless)
    expected = 1 + 0.8 * (1 + 0.8 * (1 + 0.8 * following[-1]))
    np.testing.assert_allclose(scale.restore(lesson.target)[0], expected, rtol=1e-4)
