"""An environment of Gymnasium under our contract: what is acted on, what comes back, and what does not fit."""

import sys

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

from dynamic_graph_fed_rl.environments.gymnasium.environment import build, wrapped
from dynamic_graph_fed_rl.environments.gymnasium.settings import GymnasiumSettings
from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.evaluation.evaluate import begin, evaluation_keys, run_episodes
from dynamic_graph_fed_rl.experiment import build as build_experiment
from dynamic_graph_fed_rl.experiment import default_experiment
from dynamic_graph_fed_rl.faces.gymnasium_face import GymnasiumEnv

OWNERS, COPIES, DECISIONS = 2, 3, 25
CARTPOLE = GymnasiumSettings(id="CartPole-v1", time_limit=12)


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return Worlds(wrapped(CARTPOLE, held_out=False), COPIES, OWNERS)


@pytest.fixture(scope="module")
def run(worlds):
    """`DECISIONS` of given actions `[T, A, B, 1]` in one compiled scan."""

    @jax.jit
    def run(key, state, observation, actions):
        def decide(carry, row):
            state, observation = carry
            key, action = row
            after, following, transition = worlds.step(key, state, action)
            return (after, following), (observation, transition)

        return jax.lax.scan(decide, (state, observation), (jax.random.split(key, DECISIONS), actions))

    return run


def actions(seed: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, 2, (DECISIONS, OWNERS, COPIES, 1)), jnp.int32)


def test_a_compiled_scan_is_gymnasiums_own_loop(worlds, run) -> None:
    state, observation = worlds.reset(jax.random.key(0))
    moves = actions(0)
    _, (observations, transitions) = run(jax.random.key(1), state, observation, moves)
    seen = np.asarray(observations.graph.nodes)[..., 0, :]
    final = np.asarray(transitions.observation.graph.nodes)[..., 0, :]
    assert seen.shape == final.shape == (DECISIONS, OWNERS, COPIES, 4)
    first = np.asarray(observations.first)
    assert first[0].all() and not np.asarray(transitions.observation.first).any()
    ends = 0
    for a in range(OWNERS):
        for b in range(COPIES):
            env = gymnasium.make("CartPole-v1", max_episode_steps=12)
            env.reset()
            elapsed = 0
            for t in range(DECISIONS):
                if first[t, a, b]:
                    env.reset()
                    env.unwrapped.state, elapsed = seen[t, a, b].astype(np.float64), 0
                row, _, fell, late, _ = env.step(int(moves[t, a, b, 0]))
                elapsed += 1
                np.testing.assert_allclose(final[t, a, b], row, rtol=1e-4, atol=1e-5)
                assert transitions.reward[t, a, b] == transitions.info["metrics"]["episode_return"][t, a, b] == 1.0
                assert (transitions.terminated[t, a, b], transitions.truncated[t, a, b]) == (fell, late and not fell)
                if t + 1 < DECISIONS:
                    assert first[t + 1, a, b] == (fell or late)
                ends += fell or late
    assert ends >= OWNERS * COPIES
    # no two worlds begin alike
    assert len(np.unique(seen[0].reshape(-1, 4), axis=0)) == OWNERS * COPIES


def test_training_repeats_from_its_seed(worlds, run) -> None:
    def once():
        state, observation = worlds.reset(jax.random.key(3))
        return run(jax.random.key(4), state, observation, actions(1))[1]

    for left, right in zip(jax.tree.leaves(once()), jax.tree.leaves(once()), strict=True):
        np.testing.assert_array_equal(left, right)


def test_decisions_that_were_thrown_away_end_the_episode_by_truncation(worlds, run) -> None:
    state, observation = worlds.reset(jax.random.key(5))
    run(jax.random.key(6), state, observation, actions(2))
    # as if nothing of it had happened: an agent that did not take part, or a run resumed from a checkpoint
    _, (observations, transitions) = run(jax.random.key(6), state, observation, actions(2))
    assert np.asarray(transitions.truncated)[0].all() and not np.asarray(transitions.terminated)[0].any()
    assert (np.asarray(transitions.reward)[0] == 0).all()
    np.testing.assert_array_equal(transitions.observation.graph.nodes[0], observations.graph.nodes[0])
    assert np.asarray(observations.first)[1].all()
    assert not np.asarray(transitions.truncated & (transitions.reward == 0))[1:].any()


def test_siblings_begin_alike(worlds) -> None:
    pairs = Worlds(worlds.environment, 4, OWNERS, siblings=2)
    _, observation = pairs.reset(jax.random.key(0))
    nodes = np.asarray(observation.graph.nodes)
    np.testing.assert_array_equal(nodes[:, 0], nodes[:, 1])
    assert (nodes[:, 0] != nodes[:, 2]).any()


def test_no_episode_of_training_has_the_seed_of_a_held_out_one() -> None:
    keys = jax.random.split(jax.random.key(0), (2, 500))
    training, held_out = (np.asarray(wrapped(CARTPOLE, held)._seeds(keys)) for held in (False, True))
    assert (training % 2 == 0).all() and (held_out % 2 == 1).all()
    assert len(np.unique(training)) == 1000 and training.max() < 2**31


def test_evaluation_counts_an_episode_once() -> None:
    domain = build(CARTPOLE, OWNERS)
    keys = evaluation_keys(0, 3)
    standard = domain.scenarios["standard"]
    returns = run_episodes(domain.baselines["do-nothing"](standard), standard, OWNERS, keys)["episode_return"]
    _, observation = begin(standard, OWNERS, keys)
    lengths = np.zeros((OWNERS, 3))
    for a in range(OWNERS):
        for b in range(3):
            env = gymnasium.make("CartPole-v1", max_episode_steps=12)
            env.reset()
            env.unwrapped.state = np.asarray(observation.graph.nodes[a, b, 0], np.float64)
            ended = False
            while not ended:
                *_, fell, late, _ = env.step(0)
                lengths[a, b] += 1
                ended = fell or late
    np.testing.assert_array_equal(returns, lengths.mean(0))


def test_there_and_back_again() -> None:
    ours = GymnasiumEnv(wrapped(GymnasiumSettings(id="Pendulum-v1"), held_out=False))
    assert ours.observation_space.shape == (3,) and ours.action_space.shape == (1,)
    seen, _ = ours.reset(seed=0)
    theirs = gymnasium.make("Pendulum-v1")
    theirs.reset()
    theirs.unwrapped.state = np.array([np.arctan2(seen[1], seen[0]), seen[2]], np.float64)
    for action in (0.5, -1.0, 1.0):
        left, right = ours.step(np.array([action])), theirs.step(np.array([2.0 * action]))
        np.testing.assert_allclose(left[0], right[0], rtol=1e-4, atol=1e-5)
        assert left[1] == pytest.approx(right[1], rel=1e-4)


def test_spaces_of_other_kinds() -> None:
    lake = wrapped(GymnasiumSettings(id="FrozenLake-v1", arguments="{is_slippery: false}"), held_out=False)
    assert (len(lake.spec.node_features), lake.spec.action_size, lake.spec.episode_decisions) == (16, 4, 100)
    _, observation = lake.begin(jax.random.split(jax.random.key(0), (1, 1)))
    np.testing.assert_array_equal(observation.graph.nodes[0, 0, 0], np.eye(16)[0])


class Odd(gymnasium.Env):
    """Spaces that cannot be ours."""

    def __init__(self, action=None, observation=None):
        self.action_space = action or spaces.Discrete(2)
        self.observation_space = observation or spaces.Box(0, 1, (2,))


for _name, _spaces in {
    "Unbounded": {"action": spaces.Box(-np.inf, np.inf, (1,))},
    "Pair": {"action": spaces.MultiDiscrete([2, 3])},
    "Endless": {"observation": spaces.Sequence(spaces.Discrete(2))},
}.items():
    gymnasium.register(f"Odd{_name}-v0", Odd, max_episode_steps=5, kwargs=_spaces)
gymnasium.register("OddTimeless-v0", Odd)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "CartPol-v1"}, "id 'CartPol-v1': .*CartPole"),
        ({"id": "CartPole-v1", "arguments": "{wings: 2}"}, "id 'CartPole-v1': .*wings"),
        ({"id": "nowhere_at_all:Thing-v0"}, "id 'nowhere_at_all:Thing-v0': .*nowhere_at_all"),
        ({"arguments": "[1, 2]"}, r"arguments '\[1, 2\]': must be names and values"),
        ({"arguments": "{a: "}, "arguments '{a: ': not YAML"),
        ({"time_limit": 0}, "time_limit 0: must be at least 1"),
        ({"id": "OddUnbounded-v0"}, "id 'OddUnbounded-v0': its actions have no bounds"),
        ({"id": "OddPair-v0"}, r"id 'OddPair-v0': actions must be Discrete or a Box.*MultiDiscrete"),
        ({"id": "OddEndless-v0"}, "id 'OddEndless-v0': what it shows has no fixed size"),
        ({"id": "OddTimeless-v0"}, "id 'OddTimeless-v0': has no time limit of its own"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        build_experiment(default_experiment("gymnasium", **settings))


def test_without_the_library_its_extra_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, ENVIRONMENTS["gymnasium"].module)
    with pytest.raises(ValueError, match=r"needs the library gymnasium: pip install 'dynamic-graph-fed-rl\[gym\]'"):
        build_experiment(default_experiment("gymnasium"))


def test_several_devices_and_shared_worlds_are_refused(worlds) -> None:
    with pytest.raises(ValueError, match="devices 2: environment 'gymnasium' runs on one"):
        default_experiment("gymnasium", devices=2)
    with pytest.raises(ValueError, match="Worlds must be told the owners"):
        Worlds(worlds.environment, 3).reset(jax.random.key(0))
