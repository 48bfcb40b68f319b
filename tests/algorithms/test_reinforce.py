"""REINFORCE: its gradient by hand, what it leaves out, and that it learns the drift federation."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import CHOICES, PROBES

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.on_policy import unroll
from dynamic_graph_fed_rl.algorithms.reinforce import build
from dynamic_graph_fed_rl.algorithms.settings import ReinforceSettings
from dynamic_graph_fed_rl.environments.base import Transition
from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes
from dynamic_graph_fed_rl.experiment import build as build_experiment
from dynamic_graph_fed_rl.experiment import default_experiment

# two worlds, four rows: the first ends at row 2 (a termination) and goes on, the second at row 3 (a time limit)
REWARD = np.array([[1.0, 0.0], [0.0, -2.0], [3.0, 1.0], [9.0, 4.0]], np.float32)
TERMINATED = np.array([[0, 0], [0, 0], [1, 0], [0, 0]], bool)
TRUNCATED = np.array([[0, 0], [0, 0], [0, 0], [0, 1]], bool)
ACTION = np.array([[0, 1], [1, 1], [0, 0], [1, 0]])
DISCOUNT = 0.5


@pytest.fixture(scope="module")
def case():
    """The algorithm, a learner, and the experience above."""
    algorithm = build(ReinforceSettings(discount=DISCOUNT, width=4), 10)
    environment = PROBES["observation-and-action"].environment
    learner = algorithm.init(jax.random.key(0), environment.spec, 1)
    seen = jax.vmap(jax.vmap(environment.observe))(jnp.asarray(ACTION), jnp.zeros((4, 2), bool))
    observation = jax.tree.map(lambda leaf: leaf[:, :, 0], seen)
    memory = algorithm.initial_memory(learner, jax.tree.map(lambda leaf: leaf[0], observation))
    transition = Transition(
        observation, jnp.asarray(REWARD), jnp.zeros((4, 2, 0)), jnp.asarray(TERMINATED), jnp.asarray(TRUNCATED), {}
    )
    action = jnp.asarray(ACTION)[..., None]
    experience = Experience(memory, observation, action, transition, jnp.zeros((4, 2, 1)))
    return algorithm, learner, experience


@eqx.filter_jit
def lesson_of(algorithm, learner, experience):
    memory = unroll(learner.network, experience.memory, experience.observation)
    return algorithm.prepare(learner, memory, experience)


def test_the_gradient_is_that_by_hand(case):
    algorithm, learner, experience = case
    lesson, _, figures = lesson_of(algorithm, learner, experience)
    # returns to go of the seven rows whose episode ended: by hand, gamma 1/2
    returns = np.array([[1.75, 0.0 - 1.0 + 0.25 + 0.5], [1.5, -2.0 + 0.5 + 1.0], [3.0, 1.0 + 2.0], [0.0, 4.0]])
    counts = np.array([[1, 1], [1, 1], [1, 1], [0, 1]], bool)
    weight = np.where(counts, (returns - returns[counts].mean()) / returns[counts].std(), 0.0) / 7
    gradient = jax.jit(jax.grad(lambda network: algorithm.loss(network, lesson)[0]))(learner.network)
    probability = np.exp(learner.network.actions(lesson.memory, lesson.observation).log_probs[:, :, 0])
    # the logits' common bias: d(-w log pi_a)/d logits = w (pi - onehot(a))
    by_hand = (weight[..., None] * (probability - np.eye(CHOICES)[ACTION])).sum((0, 1))
    np.testing.assert_allclose(gradient.actor.head.layers[-1].bias, by_hand, atol=1e-6)
    assert figures["taught_share"] == pytest.approx(7 / 8)


def test_what_did_not_end_does_not_teach(case):
    """The reward after the first world's new beginning changes nothing, the others do."""
    algorithm, learner, experience = case
    lesson = lesson_of(algorithm, learner, experience)[0]
    for row, teaches in ((3, False), (2, True)):
        reward = jnp.asarray(REWARD).at[row, 0].add(100.0)
        other = Transition(**{**vars(experience.transition), "reward": reward})
        changed = Experience(**{**vars(experience), "transition": other})
        same = np.array_equal(lesson_of(algorithm, learner, changed)[0].advantage, lesson.advantage)
        assert same != teaches


def test_five_unlike_agents_learn_drift():
    """Seed 004's federation: far beyond random and idle on held-out seeds, near the optimal rule."""
    built = build_experiment(default_experiment("drift", algorithm="reinforce", agents=5, rounds=40))
    training = built.trainer.init(jax.random.key(0))
    for _ in range(40):
        training, _ = built.trainer.run_round(training)
    standard, keys = built.domain.scenarios["standard"], evaluation_keys(0, 16)

    def reached(controller) -> float:
        return float(run_episodes(controller, standard, built.domain.owners, keys)["episode_return"].mean())

    score = {name: reached(make(standard)) for name, make in built.domain.baselines.items()}
    learned = reached(built.policy(training))
    assert score["do-nothing"] < score["random"] < learned < score["push-back"]
    assert learned > score["random"] + 0.8 * (score["push-back"] - score["random"])
