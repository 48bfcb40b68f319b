"""Recall against a NumPy record of what every node showed, and what its rewards promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.recall.environment import NODES, Recall, build
from dynamic_graph_fed_rl.environments.recall.settings import RecallSettings
from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes

DELAY = 4


@jax.jit
def episode(environment: Recall, key, actions):
    """The observation before each decision, and its transition; whatever happens."""

    def row(carry, given):
        state, observation = carry
        step_key, action = given
        state, transition = environment.step(step_key, state, action[None])
        return (state, transition.observation), (observation, transition)

    keys = jax.random.split(key, len(actions) + 1)
    return jax.lax.scan(row, environment.reset(keys[0]), (keys[1:], actions))[1]


def rollout(task: str, seed: int, decisions: int):
    actions = np.random.default_rng(seed).integers(0, 2, (decisions, NODES)).astype(np.int32)
    seen, transition = episode(Recall(task=task, delay=DELAY), jax.random.key(seed), jnp.asarray(actions))
    seen = jax.tree.map(lambda leaf: np.asarray(leaf[:, 0]), seen)
    return actions, seen, jax.tree.map(np.asarray, transition)


@pytest.mark.parametrize("seed", range(4))
def test_the_flag_of_the_first_decision_is_asked_for_once(seed):
    actions, seen, transition = rollout("flag", seed, DELAY + 4)
    flag = seen.graph.nodes[0, :, 0]
    np.testing.assert_array_equal(np.abs(flag), 10)
    assert (seen.graph.nodes[1:] == 0).all()
    asked = np.arange(DELAY + 4) == DELAY
    np.testing.assert_array_equal(seen.action_mask.all((1, 2)), asked)
    np.testing.assert_array_equal(seen.action_mask.any((1, 2)), asked)
    np.testing.assert_array_equal(seen.graph.globals[:, 0], asked)
    share = np.where(asked, (actions == (flag > 0)).mean(-1), 0.0)
    np.testing.assert_allclose(transition.reward[:, 0], share)
    # the answer ends the episode, and a world that goes on asks nothing more
    np.testing.assert_array_equal(transition.terminated[:, 0], np.arange(DELAY + 4) >= DELAY)
    assert not transition.truncated.any()


@pytest.mark.parametrize("seed", range(4))
def test_the_average_is_that_of_the_last_decisions_since_birth(seed):
    decisions = 4 * DELAY
    actions, seen, transition = rollout("average", seed, decisions)
    for t in range(decisions):
        right = []
        for node in np.flatnonzero(seen.graph.node_mask[t]):
            began = max((s for s in range(t + 1) if seen.births[s, node]), default=0)
            window = seen.graph.nodes[max(began, t - DELAY + 1) : t + 1, node, 0]
            right.append(actions[t, node] == (window.mean() > 0))
        assert transition.reward[t, 0] == pytest.approx(np.mean(right) if right else 0.0)
    np.testing.assert_array_equal(seen.action_mask.all(-1), seen.graph.node_mask)
    np.testing.assert_array_equal(transition.truncated[:, 0], np.arange(1, decisions + 1) >= decisions)
    assert not transition.terminated.any()
    # a node is born exactly when it comes back
    here = seen.graph.node_mask
    np.testing.assert_array_equal(seen.births[1:], here[1:] & ~here[:-1])


def test_nodes_come_and_go():
    here = np.stack([rollout("average", seed, 4 * DELAY)[1].graph.node_mask for seed in range(6)])
    assert (here[:, 1:] & ~here[:, :-1]).any() and (~here[:, 1:] & here[:, :-1]).any()


@pytest.mark.parametrize("task", ["flag", "average"])
def test_without_memory_there_is_only_guessing(task):
    domain = build(RecallSettings(task=task, delay=DELAY), 2)
    standard, keys = domain.scenarios["standard"], evaluation_keys(0, 64)
    share = {n: run_episodes(make(standard), standard, 2, keys) for n, make in domain.baselines.items()}
    right = {name: float(row["share_right"].mean()) for name, row in share.items()}
    assert right["perfect-memory"] == 1.0
    # five standard errors of the 384 flags
    assert right["random"] == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(384))
    assert right["do-nothing"] == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(384))


def test_a_delay_below_one_is_refused():
    with pytest.raises(ValueError, match="delay 0: must be at least 1"):
        build(RecallSettings(delay=0), 1)
