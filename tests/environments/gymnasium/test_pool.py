"""A pool of worlds does what Gymnasium's own environments do, and knows a world that was lost."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from dynamic_graph_fed_rl.environments.gymnasium.pool import GymnasiumPool, as_actions

SEEDS = np.array([2, 4, 6], np.uint32)


def cartpole(limit: int = 9):
    return gymnasium.make("CartPole-v1", max_episode_steps=limit, disable_env_checker=True)


@pytest.fixture
def pool():
    one = cartpole()
    made = GymnasiumPool(cartpole, one.observation_space, one.action_space)
    yield made
    made.close()


def test_steps_and_restarts_as_gymnasium_does(pool) -> None:
    place, ticket, features = pool.begin(SEEDS)
    theirs = [cartpole() for _ in SEEDS]
    expected = np.stack([env.reset(seed=int(seed))[0] for env, seed in zip(theirs, SEEDS, strict=True)])
    np.testing.assert_array_equal(features, expected)
    rng, ends = np.random.default_rng(0), 0
    for t in range(30):
        action, seeds = rng.integers(0, 2, 3), (np.arange(3) * 2 + 100 * t).astype(np.uint32)
        before = ticket
        ticket, features, reward, terminated, truncated, lost, upcoming = pool.advance(place, ticket, action, seeds)
        assert not lost.any() and (ticket != before).all()
        for i, env in enumerate(theirs):
            seen, gained, fell, late, _ = env.step(int(action[i]))
            np.testing.assert_array_equal(features[i], seen)
            assert (reward[i], terminated[i], truncated[i]) == (gained, fell, late and not fell)
            if fell or late:
                ends, seen = ends + 1, env.reset(seed=int(seeds[i]))[0]
            np.testing.assert_array_equal(upcoming[i], seen)
    assert ends >= 6


def test_what_has_ended_stays_as_it_is_and_earns_nothing(pool) -> None:
    place, ticket, _ = pool.begin(SEEDS[:1])
    rows = []
    for _ in range(14):
        ticket, *row = pool.advance(place, ticket, np.ones(1, int), None)
        rows.append([np.array(part[0]) for part in row])
    features, reward, terminated, truncated, lost, _ = (np.stack(part) for part in zip(*rows, strict=True))
    end = int(np.argmax(terminated | truncated))
    np.testing.assert_array_equal(reward, (np.arange(14) <= end).astype(float))
    np.testing.assert_array_equal(terminated | truncated, np.arange(14) >= end)
    assert (features[end:] == features[end]).all() and not lost.any()


def test_whoever_comes_with_an_old_ticket_has_lost_its_world_and_begins_anew(pool) -> None:
    place, old, _ = pool.begin(SEEDS)
    ticket, *_ = pool.advance(place, old, np.zeros(3, int), SEEDS)
    mixed = np.array([ticket[0], old[1], ticket[2]])
    after, _, reward, terminated, truncated, lost, upcoming = pool.advance(place, mixed, np.zeros(3, int), SEEDS)
    np.testing.assert_array_equal(lost, [False, True, False])
    np.testing.assert_array_equal(truncated, lost)
    np.testing.assert_array_equal(reward, [1.0, 0.0, 1.0])
    assert not terminated.any()
    np.testing.assert_array_equal(upcoming[1], cartpole().reset(seed=int(SEEDS[1]))[0])
    # from there on it goes its way
    *_, lost, _ = pool.advance(place, after, np.zeros(3, int), SEEDS)
    assert not lost.any()


def test_a_pool_of_another_process_has_none_of_the_worlds(pool) -> None:
    place, ticket, _ = pool.begin(SEEDS)
    one = cartpole()
    other = GymnasiumPool(cartpole, one.observation_space, one.action_space)
    ticket, *_, lost, upcoming = other.advance(place, ticket, np.zeros(3, int), SEEDS)
    assert lost.all()
    expected = [cartpole().reset(seed=int(seed))[0] for seed in SEEDS]
    np.testing.assert_array_equal(upcoming, expected)
    *_, lost, _ = other.advance(place, ticket, np.zeros(3, int), SEEDS)
    assert not lost.any()
    other.close()


def test_numbers_between_minus_one_and_one_span_the_bounds() -> None:
    box = spaces.Box(np.array([[0.0, -2.0]], np.float32), np.array([[1.0, 6.0]], np.float32))
    action = np.array([[-1.0, -1.0], [0.0, 0.5], [3.0, 1.0], [np.nan, -np.inf]], np.float32)
    rows = as_actions(box, action)
    np.testing.assert_allclose(rows, [[[0.0, -2.0]], [[0.5, 4.0]], [[1.0, 6.0]], [[0.5, -2.0]]])
    assert all(row in box for row in rows)


def test_choices_count_from_the_spaces_start() -> None:
    assert as_actions(spaces.Discrete(3, start=5), np.array([0, 2, -4, 9])) == [5, 7, 5, 7]
