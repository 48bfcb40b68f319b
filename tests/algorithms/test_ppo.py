"""PPO on environments of known value, and on CartPole."""

from dataclasses import asdict, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES

from dynamic_graph_fed_rl.algorithms.ppo import PPO, ReturnScale, build
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.evaluation.evaluate import LearnedPolicy, evaluation_keys, run_episodes
from dynamic_graph_fed_rl.experiment import build as build_experiment
from dynamic_graph_fed_rl.experiment import default_experiment
from dynamic_graph_fed_rl.federation.federation import Independent
from dynamic_graph_fed_rl.training.trainer import Trainer

ROUNDS = 200


def learn(environment, discount):
    settings = PPOSettings(
        learning_rate=0.01, discount=discount, trace=0.9, entropy_weight=0.0, epochs=4, minibatches=2, width=8,
        layers=1,
    )  # fmt: skip
    trainer = Trainer(build(settings, ROUNDS), Worlds(environment, 16), Independent(1), 8)
    training = trainer.init(jax.random.key(1))
    for _ in range(ROUNDS):
        training, metrics = trainer.run_round(training)
    return trainer.algorithm, jax.tree.map(lambda leaf: leaf[0], training.learners), metrics


@pytest.mark.parametrize("name", PROBES)
def test_probe(name):
    probe = PROBES[name]
    algorithm, learner, metrics = learn(probe.environment, probe.discount)
    assert np.isfinite([float(value.sum()) for value in jax.tree.leaves(metrics)]).all()
    # one after the other, as an episode meets them: memory is part of what the critic sees
    memory = None
    for state, value in probe.value.items():
        starts = probe.environment.start[state] > 0
        observation = probe.environment.observe(jnp.asarray(state), starts)
        memory = algorithm.initial_memory(learner, observation) if memory is None else memory
        action, memory, _ = algorithm.act(None, learner, memory, observation)
        estimate = learner.scale.restore(learner.network.value(memory, observation))
        assert estimate.item() == pytest.approx(value, abs=0.1), f"value of state {state}"
        if state in probe.choice:
            assert action.item() == probe.choice[state], f"choice in state {state}"


def test_cartpole_as_a_graph_of_one_node_reaches_475_within_500_000_steps():
    decisions, worlds = 32, 32
    limit = 500_000 // (decisions * worlds)
    experiment = default_experiment(
        "cartpole", federation="independent", agents=1, rounds=limit, decisions_per_round=decisions, worlds=worlds,
        learning_rate=2.5e-3, discount=0.99, trace=0.95, entropy_weight=0.01, epochs=4, minibatches=4, width=64,
        layers=1,
    )  # fmt: skip
    built = build_experiment(experiment)
    training = built.trainer.init(jax.random.key(0))
    keys, best = evaluation_keys(0, 16), 0.0
    for round_number in range(1, limit + 1):
        training, _ = built.trainer.run_round(training)
        if round_number % 50 == 0:
            policy = LearnedPolicy(built.trainer.algorithm, training.learners)
            episodes = run_episodes(policy, built.domain.scenarios["standard"], built.domain.owners, keys)
            best = float(episodes["episode_return"].mean())
            if best >= 475:
                break
    assert best >= 475


def test_returns_are_standardised_whatever_their_scale():
    """The first batch counts fully, scale and shift of all returns are undone, and the past is forgotten."""
    rng = np.random.default_rng(0)
    batches = jnp.asarray(rng.normal(size=(5, 512)), jnp.float32)
    first = ReturnScale.initial().update(7.0 + 3.0 * batches[0])
    standard = np.asarray(first.standardise(7.0 + 3.0 * batches[0]))
    # an eighth of a standard deviation is three standard errors of the median of 512 draws
    assert abs(standard.mean()) < 0.125 and abs(standard.std() - 1) < 0.125
    plain, moved = ReturnScale.initial(), ReturnScale.initial()
    for batch in batches:
        plain, moved = plain.update(batch), moved.update(80.0 + 50.0 * batch)
    values = jnp.asarray([-1.0, 0.0, 5.0])
    np.testing.assert_allclose(
        moved.standardise(80.0 + 50.0 * values), plain.standardise(values), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(moved.restore(moved.standardise(values)), values, rtol=1e-4, atol=1e-4)
    for batch in rng.normal(size=(150, 512)):
        moved = moved.update(jnp.asarray(batch, jnp.float32))
    np.testing.assert_allclose(moved.standardise(values), values, atol=0.2)


def test_only_the_network_leaves_the_agent():
    algorithm = build(replace(PPOSettings(), width=4, layers=1), 10)
    learner = algorithm.init(jax.random.key(0), PROBES["one-step"].environment.spec)
    shared = algorithm.shared(learner)
    assert jax.tree.structure(shared) == jax.tree.structure(learner.network)
    moved = algorithm.with_shared(learner, jax.tree.map(lambda leaf: leaf + 1, shared))
    for before, after in zip(jax.tree.leaves(learner.network), jax.tree.leaves(moved.network), strict=True):
        np.testing.assert_array_equal(after, before + 1)
    for part in ("optimiser", "scale"):
        for before, after in zip(
            jax.tree.leaves(getattr(learner, part)), jax.tree.leaves(getattr(moved, part)), strict=True
        ):
            np.testing.assert_array_equal(after, before)


def test_every_setting_reaches_the_algorithm():
    settings = PPOSettings()
    algorithm = build(settings, 7)
    assert isinstance(algorithm, PPO)
    for name, value in asdict(settings).items():
        assert float(getattr(algorithm, name)) == pytest.approx(value)
    assert float(algorithm.decay_rounds) == 7
