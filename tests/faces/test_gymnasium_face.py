"""The Gymnasium faces pass Gymnasium's own checks, and many worlds in one call are as many single ones."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from ring import LIMIT, Ring

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.evaluation.evaluate import begin, evaluation_keys, play, run_episodes
from dynamic_graph_fed_rl.experiment import build, default_experiment
from dynamic_graph_fed_rl.faces.gymnasium_face import GymnasiumEnv, GymnasiumVectorEnv, make, make_vec

FACES = {
    "joint graph": lambda: GymnasiumEnv(Ring()),
    "joint flat": lambda: GymnasiumEnv(Ring(), flat=True),
    "one agent": lambda: GymnasiumEnv(Ring(), agent=1),
    "joint choices": lambda: GymnasiumEnv(Ring(discrete=True)),
    "one agent's choices, held out": lambda: GymnasiumEnv(Ring(discrete=True), agent=0, flat=True, held_out=True),
    "cartpole": lambda: make("cartpole", time_limit=20),
    "pendulum as a graph": lambda: make("pendulum", flat=False),
}


# told of infinite bounds and of rendering, which we have none of
@pytest.mark.filterwarnings("ignore:.*(infinity|alternative render modes|observation space).*")
@pytest.mark.parametrize("face", FACES)
def test_passes_gymnasiums_check(face) -> None:
    check_env(FACES[face]())


def test_cartpole_is_gymnasiums_cartpole() -> None:
    ours, theirs = make("cartpole"), gymnasium.make("CartPole-v1")
    assert ours.observation_space.shape == theirs.observation_space.shape
    assert ours.action_space == theirs.action_space
    seen, _ = ours.reset(seed=3)
    theirs.reset(seed=0)
    theirs.unwrapped.state = seen.astype(np.float64)
    rng, ended = np.random.default_rng(0), False
    while not ended:
        action = int(rng.integers(2))
        left, right = ours.step(action), theirs.step(action)
        np.testing.assert_allclose(left[0], right[0], rtol=1e-4, atol=1e-5)
        assert left[1:4] == right[1:4]
        assert (type(left[1]), type(left[2]), type(left[3])) == (float, bool, bool)
        ended = left[2]
    theirs.close()


def test_flat_is_nodes_edges_globals_and_slots_with_zeros_where_masked() -> None:
    seen, _ = GymnasiumEnv(Ring(), agent=1, flat=True).reset(seed=0)
    graph, _ = GymnasiumEnv(Ring(), agent=1).reset(seed=0)
    level = graph["nodes"][:, 0]
    np.testing.assert_array_equal(graph["node_mask"], [1, 1, 0])
    edges = graph["edges"].ravel()
    # agent 1 has no third node and no second slot
    np.testing.assert_allclose(seen, [level[0], level[1], 0.0, *edges, 0.0, 5.0, 0.0])
    first, _ = GymnasiumEnv(Ring(discrete=True), agent=0, flat=True).reset(seed=0)
    # agent 0 has no second edge; a slot with a choice left is not masked
    np.testing.assert_allclose(first[3:], [*edges[:2], 0.0, 0.0, 0.0, 5.0, 5.0], rtol=1e-6)


def test_others_do_nothing_and_all_together_act_in_a_row() -> None:
    action = np.array([0.5, -1.0, 0.25, 1.0], np.float32)
    alone = GymnasiumEnv(Ring(), agent=0)
    alone.reset(seed=0)
    *_, info = alone.step(action)
    assert info["metrics"]["total_moved"] == pytest.approx(float(action @ [1, 2, 3, 4]))
    assert set(info["cost"]) == {"spill"}
    together = GymnasiumEnv(Ring())
    together.reset(seed=0)
    both = np.concatenate([action, -action[::-1]])
    seen, reward, *_, info = together.step(both)
    moved = float(both @ np.arange(1.0, 9.0))
    assert info["metrics"]["total_moved"] == pytest.approx(moved)
    level = seen["nodes"][0, :2, 0]
    assert reward == pytest.approx((moved - level[0]) / 2, rel=1e-5)
    assert info["cost"]["spill"] == pytest.approx(level.mean(), rel=1e-5)


def test_the_end_of_an_episode_has_its_metrics_and_must_be_followed_by_a_reset() -> None:
    env = GymnasiumEnv(Ring(), agent=0, flat=True)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(4, np.float32))
    env.reset(seed=0)
    sums, ended = 0.0, False
    while not ended:
        _, _, terminated, truncated, info = env.step(np.ones(4, np.float32) * 0.1)
        sums, ended = sums + info["metrics"]["total_moved"], terminated or truncated
        assert not (terminated and truncated)
        assert ("episode_metrics" in info) == ended
    assert info["episode_metrics"] == {"moved": pytest.approx(sums)}
    with pytest.raises(ResetNeeded, match="ended"):
        env.step(np.zeros(4, np.float32))
    env.reset()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step(np.zeros(4, np.float32))


def test_masks_of_choices() -> None:
    env = GymnasiumEnv(Ring(discrete=True), agent=1)
    seen, info = env.reset(seed=0)
    expected = np.array([[1, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(seen["slot_mask"], expected)
    np.testing.assert_array_equal(info["slot_mask"], expected)
    np.testing.assert_array_equal(env.action_masks(), expected.ravel().astype(bool))
    one, info = make("cartpole", flat=False).reset(seed=0)
    np.testing.assert_array_equal(one["action_mask"], [1, 1])
    np.testing.assert_array_equal(info["action_mask"], [1, 1])
    with pytest.raises(ValueError, match="continuous"):
        GymnasiumEnv(Ring()).action_masks()


@pytest.mark.parametrize(
    ("discrete", "options"),
    [
        (False, {}),
        (False, {"agent": 1, "flat": True}),
        (True, {"agent": 0, "held_out": True}),
        (True, {"flat": True}),
    ],
)
def test_many_worlds_in_one_call_are_as_many_single_ones(discrete, options) -> None:
    worlds, ring = 3, Ring(discrete=discrete)
    many = GymnasiumVectorEnv(ring, worlds, **options)
    singles = [lambda: GymnasiumEnv(ring, **options) for _ in range(worlds)]
    one_by_one = SyncVectorEnv(singles, autoreset_mode=AutoresetMode.SAME_STEP)
    if options.get("held_out"):
        for env in one_by_one.envs:  # worlds share the evaluation seeds: each takes every third
            object.__setattr__(env.player, "stride", worlds)
    assert many.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert many.single_observation_space == one_by_one.single_observation_space
    assert many.observation_space == one_by_one.observation_space
    assert many.action_space == one_by_one.action_space
    left, right = many.reset(seed=11), one_by_one.reset(seed=11)
    assert data_equivalence(left, right)
    many.action_space.seed(1)
    ends = 0
    for _ in range(3 * LIMIT):
        action = many.action_space.sample()
        left, right = many.step(action), one_by_one.step(action)
        if (left[2] | left[3]).all():  # Gymnasium leaves out what no world has
            right[4].update({name: left[4][name] for name in left[4] if name not in right[4]})
        assert same(left, right), (left, right)
        assert left[0] in many.observation_space
        assert left[1].dtype == np.float64
        ends += int((left[2] | left[3]).sum())
    assert ends >= 2 * worlds
    left, right = many.reset(), one_by_one.reset()
    assert data_equivalence(left, right)
    many.close()
    with pytest.raises(ResetNeeded):
        many.step(action)


def same(left, right) -> bool:
    """Equal in structure, and in numbers as far as one program differs from another in rounding."""
    if isinstance(left, dict):
        return set(left) == set(right) and all(same(left[name], right[name]) for name in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if left is None or right is None:
        return left is right
    left, right = np.asarray(left), np.asarray(right)
    if left.dtype == object:
        return left.shape == right.shape and all(map(same, left.tolist(), right.tolist()))
    return left.shape == right.shape and np.allclose(left, right, rtol=1e-5, atol=1e-5)


def test_gymnasiums_statistics_read_the_vector_environment_rightly() -> None:
    env = RecordEpisodeStatistics(GymnasiumVectorEnv(Ring(), 2, agent=0, flat=True))
    env.reset(seed=0)
    sums, returns, recorded = np.zeros(2), [], []
    for _ in range(2 * LIMIT):
        _, reward, terminated, truncated, info = env.step(np.full((2, 4), 0.1, np.float32))
        sums += reward
        for world in np.flatnonzero(terminated | truncated):
            returns.append(sums[world])
            sums[world] = 0.0
            recorded.append(info["episode"]["r"][world])
    np.testing.assert_allclose(recorded, returns, rtol=1e-5)
    assert returns


class Hold(Controller):
    """0.1 everywhere."""

    def initial_memory(self, state, observation):
        return None

    def act(self, key, memory, state, observation):
        return jnp.full((*observation.action_mask.shape, 2), 0.1), None


def test_held_out_episodes_are_those_of_the_evaluation() -> None:
    ring = Ring()
    env = GymnasiumEnv(ring, held_out=True)
    _, seen = begin(ring, None, evaluation_keys(7, 2))
    steps = [np.asarray(metrics["total_moved"]) for _, metrics in play(Hold(), ring, None, evaluation_keys(7, 2))]
    np.testing.assert_array_equal(env.reset(seed=7)[0]["nodes"], seen.graph.nodes[:, 0])
    after, *_, info = env.step(np.full(8, 0.1, np.float32))
    assert info["metrics"]["total_moved"] == pytest.approx(steps[0][0])
    state = next(play(Hold(), ring, None, evaluation_keys(7, 2)))[0]
    np.testing.assert_allclose(after["nodes"][0, :, 0], state[0][0], rtol=1e-6)
    # the next episode is the next seed
    np.testing.assert_array_equal(env.reset()[0]["nodes"], seen.graph.nodes[:, 1])


def test_held_out_cartpole_lasts_as_long_as_in_the_evaluation() -> None:
    domain = build(default_experiment("cartpole", agents=2)).domain
    rule = domain.baselines["do-nothing"](domain.training)
    expected = run_episodes(rule, domain.scenarios["standard"], 2, evaluation_keys(0, 2))["episode_return"]
    returns = np.zeros((2, 2))
    for agent in range(2):
        env = make("cartpole", agents=2, agent=agent, scenario="standard", held_out=True)
        for episode in range(2):
            env.reset(seed=0 if episode == 0 else None)
            ended = False
            while not ended:
                *_, terminated, truncated, info = env.step(0)
                ended = terminated or truncated
            returns[agent, episode] = info["episode_metrics"]["episode_return"]
    np.testing.assert_array_equal(returns.mean(0), expected)


def test_training_episodes_meet_no_held_out_one() -> None:
    seeds, episodes = (jnp.arange(50, dtype=jnp.int32) for _ in range(2))

    def keys(held_out: bool) -> set[tuple[int, ...]]:
        player = GymnasiumVectorEnv(Ring(), 1, held_out=held_out).player
        grid = jax.vmap(lambda s: jax.vmap(lambda e: player._key(s, e, jnp.int32(0)))(episodes))(seeds)
        return set(map(tuple, np.asarray(jax.random.key_data(grid)).reshape(-1, 2).tolist()))

    training = keys(False)
    assert len(training) == 2500
    assert not training & keys(True)


def test_search_through_the_face_alone_learns_to_balance() -> None:
    """Cross-entropy search for a linear rule, written against Gymnasium's interface only."""
    worlds, rng = 16, np.random.default_rng(0)
    env = make_vec("cartpole", worlds, time_limit=120)
    mean, spread = np.zeros(4), np.ones(4)
    for generation in range(5):
        rules = mean + spread * rng.normal(size=(worlds, 4))
        seen, _ = env.reset(seed=generation * worlds)
        alive, returns = np.ones(worlds, bool), np.zeros(worlds)
        while alive.any():
            seen, reward, terminated, truncated, _ = env.step((np.vecdot(rules, seen) > 0).astype(np.int64))
            returns += reward * alive
            alive &= ~(terminated | truncated)
        elite = rules[np.argsort(returns)[-4:]]
        mean, spread = elite.mean(0), elite.std(0) + 0.1
    assert np.median(returns) >= 90  # a random rule lasts 20 to 40 steps


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("cartpol"), "environment 'cartpol': unknown; known: .*cartpole"),
        (
            lambda: make("cartpole", learning_rate=1.0),
            "setting of environment 'cartpole' 'learning_rate'.*time_limit",
        ),
        (lambda: make("cartpole", scenario="rain"), "scenario of environment 'cartpole' 'rain'.*standard"),
        (lambda: make("cartpole", agent=1), "agent 1: there are 1, counted from 0"),
        (lambda: GymnasiumEnv(Ring(), agent=2), "agent 2: there are 2, counted from 0"),
        (lambda: GymnasiumVectorEnv(Ring(), 0), "num_envs 0: must be at least 1"),
        (lambda: make_vec("gymnasium", 2), "CartPole-v1.*make_vec"),
        (lambda: GymnasiumVectorEnv(Ring(), 2).reset(seed=[1]), "seed: 1 of them, but there are 2"),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_action_of_another_shape_is_refused() -> None:
    env = GymnasiumEnv(Ring(), agent=0)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action of shape \(3,\): must be \(4,\)"):
        env.step(np.zeros(3))
