"""The PettingZoo face passes PettingZoo's own checks, and shows each agent what the Gymnasium face shows of it."""

import warnings

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from ring import LIMIT, Ring

from dynamic_graph_fed_rl.faces.gymnasium_face import GymnasiumEnv
from dynamic_graph_fed_rl.faces.pettingzoo_face import PettingZooEnv, make

with warnings.catch_warnings():
    # where pygame is installed, it imports a game of its own the old way
    warnings.simplefilter("ignore", DeprecationWarning)
    from pettingzoo.test import parallel_api_test, parallel_seed_test

FACES = {
    "graph": lambda: PettingZooEnv(Ring()),
    "flat": lambda: PettingZooEnv(Ring(), flat=True),
    "choices": lambda: PettingZooEnv(Ring(discrete=True)),
    "flat choices, held out": lambda: PettingZooEnv(Ring(discrete=True), flat=True, held_out=True),
}


@pytest.mark.parametrize("face", FACES)
def test_passes_pettingzoos_checks(face) -> None:
    parallel_api_test(FACES[face](), num_cycles=3 * LIMIT)
    parallel_seed_test(FACES[face], num_cycles=3 * LIMIT)


def test_the_grid_passes_pettingzoos_check() -> None:
    settings = {"case": "ieee14", "training_decisions": 30, "line_failure_rate": 0.05, "decision_interval": 2}
    env = make("power-grid", agents=3, **settings)
    parallel_api_test(env, num_cycles=40)
    assert env.possible_agents == ["agent_0", "agent_1", "agent_2"]


def test_each_agent_sees_what_its_own_face_shows() -> None:
    env, alone = PettingZooEnv(Ring()), GymnasiumEnv(Ring(), agent=1)
    for name in env.possible_agents:
        assert env.observation_space(name) == alone.observation_space
        assert env.action_space(name) == alone.action_space
        assert env.action_space(name) is env.action_space(name)
    seen, own = env.reset(seed=4)[0]["agent_1"], alone.reset(seed=4)[0]
    rng, ended = np.random.default_rng(0), False
    while not ended:
        assert set(seen) == set(own)
        for part in own:
            np.testing.assert_array_equal(seen[part], own[part])
        action = rng.uniform(-1, 1, 4).astype(np.float32)
        zeros = np.zeros(4, np.float32)
        shown, reward, terminated, truncated, info = env.step({"agent_0": zeros, "agent_1": action})
        own, own_reward, own_terminated, own_truncated, own_info = alone.step(action)
        seen, ended = shown["agent_1"], own_terminated or own_truncated
        assert reward["agent_1"] == own_reward and type(reward["agent_1"]) is float
        assert (terminated["agent_1"], truncated["agent_1"]) == (own_terminated, own_truncated)
        assert info["agent_1"] == own_info
        # the world is one: it ends for all, and its metrics are the same for all
        assert terminated["agent_0"] or truncated["agent_0"] or not ended
        assert info["agent_0"]["metrics"] == own_info["metrics"]
        assert info["agent_0"]["cost"] != own_info["cost"]
        assert reward["agent_0"] == pytest.approx(own_info["metrics"]["total_moved"])
    assert env.agents == []


def test_needs_an_action_of_every_agent_and_an_episode_begun() -> None:
    env = PettingZooEnv(Ring())
    with pytest.raises(ResetNeeded):
        env.step({})
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions of \['agent_0'\]: must be of \['agent_0', 'agent_1'\]"):
        env.step({"agent_0": np.zeros(4, np.float32)})
    env.close()
    with pytest.raises(ResetNeeded):
        env.step({})


def test_agents_with_worlds_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match="'cartpole': its agents have worlds of their own"):
        make("cartpole")
