"""LunarLander under our contract: what an episode is judged by, Gymnasium's own rule, and what is refused."""

import importlib
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.lunar_lander.environment import build, lander
from dynamic_graph_fed_rl.environments.lunar_lander.settings import LunarLanderSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes
from dynamic_graph_fed_rl.experiment import default_experiment

OWNERS, COPIES, DECISIONS = 2, 3, 150
MODULE = "dynamic_graph_fed_rl.environments.lunar_lander.environment"


def stepped(settings: LunarLanderSettings):
    """`DECISIONS` of falling or of random engines, what has ended staying ended: rewards, features, metrics, ends."""
    worlds = Worlds(lander(settings, held_out=False), COPIES, OWNERS)
    moves = np.random.default_rng(0).integers(0, 4, (DECISIONS, OWNERS, COPIES, 1))
    moves[:, 0] = 0

    def decide(state, action):
        state, transition = worlds.advance(jax.random.split(jax.random.key(1), (OWNERS, COPIES)), state, action)
        ended = transition.terminated | transition.truncated
        features = transition.observation.graph.nodes[..., 0, :]
        return state, (transition.reward, features, transition.info["metrics"], ended)

    state, _ = worlds.reset(jax.random.key(0))
    _, rows = jax.jit(lambda state, moves: jax.lax.scan(decide, state, moves))(state, jnp.asarray(moves, jnp.int32))
    return jax.tree.map(np.asarray, rows)


@pytest.fixture(scope="module")
def plain():
    return stepped(LunarLanderSettings())


def test_the_shaped_return_lacks_a_twentieth_of_the_distance_at_every_decision_of_the_episode(plain) -> None:
    reward, features, metrics, ended = plain
    going = np.concatenate([np.ones_like(ended[:1]), ~ended[:-1]])
    assert ended[-1].all() and going.sum() < ended.size
    np.testing.assert_array_equal(metrics["episode_return"], reward)
    np.testing.assert_array_equal(metrics["length"], going)
    expected = np.where(going, reward - 0.05 * np.abs(features[..., 0]), 0.0)
    np.testing.assert_allclose(metrics["shaped_return"], expected, atol=1e-5)
    # a lander that only falls ends with a crash
    assert (metrics["episode_return"].sum(0)[0] < -80).all()


def test_learning_from_the_shaped_reward_changes_nothing_but_the_reward(plain) -> None:
    reward, _, metrics, _ = stepped(LunarLanderSettings(shaped=True))
    np.testing.assert_array_equal(reward, metrics["shaped_return"])
    # contacts may differ from one world to the next of the same seed: compared before the first of them
    early = slice(0, 40)
    np.testing.assert_allclose(metrics["episode_return"][early], plain[0][early], atol=1e-4)


def test_gymnasiums_own_rule_lands() -> None:
    domain = build(LunarLanderSettings(), agents=1)
    rule = domain.baselines["heuristic"](domain.scenarios["standard"])
    figures = run_episodes(rule, domain.scenarios["standard"], 1, evaluation_keys(0, 10))
    assert float(figures["episode_return"].mean()) > 150
    assert float(figures["length"].max()) <= 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LunarLanderSettings(gravity=-12.0), "gravity -12.0: must be above -12 and below 0"),
        (LunarLanderSettings(wind_power=21.0), "wind_power 21.0: must be from 0 to 20"),
        (LunarLanderSettings(turbulence_power=-1.0), "turbulence_power -1.0: must be from 0 to 2"),
        (LunarLanderSettings(time_limit=0), "time_limit 0: must be at least 1"),
    ],
)
def test_what_gymnasium_does_not_take_is_refused_by_name(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        lander(settings, held_out=False)


def test_settings_reach_gymnasium() -> None:
    windy = replace(LunarLanderSettings(), gravity=-4.0, enable_wind=True, wind_power=5.0, turbulence_power=0.5)
    one = lander(windy, held_out=False).pool._make().unwrapped
    assert (one.gravity, one.enable_wind, one.wind_power, one.turbulence_power) == (-4.0, True, 5.0, 0.5)


def test_dqn_is_what_it_is_trained_with() -> None:
    experiment = default_experiment("lunar-lander")
    assert (experiment.algorithm, experiment.learning.steps) == ("dqn", 5)
    assert default_experiment("lunar-lander", algorithm="ppo").algorithm == "ppo"


def test_without_box2d_the_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.delitem(sys.modules, MODULE)
    with pytest.raises(ValueError, match=r"pip install 'dynamic-graph-fed-rl\[lander\]'"):
        importlib.import_module(MODULE)
