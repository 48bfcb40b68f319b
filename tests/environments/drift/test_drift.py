"""Drift against a transcription of the seed's dynamics, and what its rewards promise."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.drift.environment import Drift, DriftState, PushBack, build
from dynamic_graph_fed_rl.environments.drift.settings import DriftSettings
from dynamic_graph_fed_rl.environments.vector import observe
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes

DIFFICULTIES = (0.5, 0.7, 0.9, 1.1, 1.3)


def seed_episode(start: np.ndarray, actions: np.ndarray, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """The seed's `SimpleEnvironment`: states after each step and rewards, until it says done."""
    state, states, rewards = start.copy(), [], []
    for step, action in enumerate(actions, start=1):
        state = state + (1 if action == 1 else -1) * 0.1 * difficulty
        states.append(state)
        rewards.append(-np.abs(state).mean())
        if np.abs(state).max() > 5 or step >= 200:
            break
    return np.array(states), np.array(rewards)


@jax.jit
def episode(environment: Drift, start, actions):
    """All transitions of 200 decisions, whatever happens."""

    def row(state, action):
        state, transition = environment.step(jax.random.key(0), state, action[None, None])
        return state, (state.numbers, transition)

    return jax.lax.scan(row, DriftState(start, jnp.zeros((), jnp.int32)), actions)[1]


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("up", [0.5, 0.75, 1.0])
def test_against_the_seed(difficulty, up):
    rng = np.random.default_rng(int(100 * (difficulty + up)))
    start, actions = rng.normal(size=4).astype(np.float32), (rng.random(200) < up).astype(np.int32)
    states, rewards = seed_episode(start, actions, difficulty)
    numbers, transition = jax.tree.map(
        np.asarray, episode(Drift(difficulty=difficulty), jnp.asarray(start), jnp.asarray(actions))
    )
    steps = len(states)
    np.testing.assert_allclose(numbers[:steps], states, atol=1e-4)
    np.testing.assert_allclose(transition.info["metrics"]["episode_return"][:steps], rewards, atol=1e-4)
    left = np.abs(states[-1]).max() > 5
    # leaving the region is a termination, the time limit a truncation, and neither comes earlier
    ended = np.stack([transition.terminated[:, 0], transition.truncated[:, 0]])
    assert not ended[:, : steps - 1].any()
    np.testing.assert_array_equal(ended[:, steps - 1], [left, not left])
    # the seed's reward, scaled and shifted, for as long as the numbers are inside
    inside = steps - left
    np.testing.assert_allclose(transition.reward[:inside, 0], 1 + rewards[:inside] / 5, atol=1e-4)
    assert (transition.reward[:inside] >= 0).all() and (transition.reward[inside:] == 0).all()
    # what has left stays there and goes on counting
    after = transition.info["metrics"]["episode_return"][steps:]
    np.testing.assert_allclose(after, np.full(200 - steps, rewards[-1]), atol=1e-4)
    assert transition.info["metrics"]["steps_inside"].sum() == inside
    if up == 1.0 and difficulty > 0.5:
        assert left


def test_difficulties_are_stacked_over_the_owners():
    domain = build(DriftSettings(), 5)
    assert domain.owners == 5
    np.testing.assert_allclose(domain.training.difficulty, DIFFICULTIES)
    worlds = Worlds(domain.training, 3, 5)
    state, observation = worlds.reset(jax.random.key(0))
    action = jnp.ones((5, 3, 1), jnp.int32)
    after, _ = worlds.advance(worlds.keys(jax.random.key(1)), state, action)
    moved = np.asarray(after.numbers - state.numbers)
    np.testing.assert_allclose(
        moved, np.broadcast_to(0.1 * np.array(DIFFICULTIES)[:, None, None], moved.shape), atol=1e-6
    )
    assert observation.graph.nodes.shape == (5, 3, 1, 4)


def test_the_rule_is_optimal():
    """No sequence of eight pushes beats it, from anywhere."""
    stride, sequences = 0.13, np.array(list(itertools.product((-1, 1), repeat=8)))
    rule, environment = PushBack(jnp.asarray([stride])), Drift(difficulty=1.3)
    rng = np.random.default_rng(0)
    for _ in range(20):
        start = rng.normal(size=4).astype(np.float32)
        best = -np.abs(start + stride * np.cumsum(sequences, axis=1)[..., None]).mean(-1).sum(1).min()
        state, total = DriftState(jnp.asarray(start), jnp.zeros((), jnp.int32)), 0.0
        observation: Observation = observe(state.numbers, 2, jnp.asarray(True))
        for _ in range(8):
            seen = jax.tree.map(lambda leaf: leaf[:, None], observation)
            action, _ = rule.act(jax.random.key(0), None, None, seen)
            state, transition = environment.step(jax.random.key(0), state, action[:, 0])
            observation, total = transition.observation, total + float(transition.info["metrics"]["episode_return"])
        assert total == pytest.approx(best, abs=1e-4)


def test_rewards_rank_the_baselines_as_the_headline_does():
    domain = build(DriftSettings(), 5)
    standard, keys = domain.scenarios["standard"], evaluation_keys(0, 16)
    rows = {n: run_episodes(make(standard), standard, 5, keys) for n, make in domain.baselines.items()}
    headline = {n: float(row["episode_return"].mean()) for n, row in rows.items()}
    # rewards add up to the steps inside, less a fifth of what those cost
    assert headline["do-nothing"] < headline["random"] < headline["push-back"]
    inside = {n: float(row["steps_inside"].mean()) for n, row in rows.items()}
    assert inside["do-nothing"] < inside["random"] <= inside["push-back"] == 200


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"first_difficulty": 0.0}, "agent 0 would have difficulty 0; must be above 0"),
        ({"difficulty_spacing": -0.2}, "agent 3 would have difficulty -0.1"),
        ({"time_limit": 0}, "time_limit 0: must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build(DriftSettings(**values), 4)
