"""Buffers as objects against the pure replay, and against the decisions that were put into them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streams import played

from dynamic_graph_fed_rl import DynamicGraphEnv
from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.buffers import GraphTemporalBuffer
from dynamic_graph_fed_rl.environments.base import Transition
from dynamic_graph_fed_rl.objects.agents import GraphTD3

EPISODE = 5


@pytest.fixture(scope="module")
def rows():
    """Three episodes of a pendulum, cut off after 5 decisions each."""
    return played(DynamicGraphEnv("pendulum", num_agents=1, time_limit=EPISODE), 3 * EPISODE)


def filled(rows, **arguments) -> GraphTemporalBuffer:
    buffer = GraphTemporalBuffer(60, **arguments)
    for row in rows:
        buffer.add(row)
    return buffer


def half(values) -> np.ndarray:
    return np.asarray(values).astype(np.float16).astype(np.float32)


def test_it_is_the_pure_replay(rows):
    """Within an episode: row for row, memory for memory, what `Algorithm.recall` keeps of the same experience."""
    rows = rows[:4]
    settings = {"width": 4, "layers": 1, "window": 2, "batch_size": 2, "memory": "gru"}
    agent = GraphTD3(buffer_size=60, **settings)
    agent.begin(rows[0].graph_t.spec)
    for row in rows:
        agent.buffer.add(row)
    assert len(agent.buffer) == 4

    learner = agent.algorithm.init(jax.random.key(0), agent.spec, 1)
    seen, after = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *(one.observation for one in graphs))
        for graphs in ([row.graph_t for row in rows], [row.graph_t1 for row in rows])
    )
    reward = jnp.asarray([[row.reward] for row in rows])
    never = jnp.zeros((4, 1), bool)
    outcome = Transition(after, reward, jnp.zeros((4, 1, 0)), never, never, {})
    action = jnp.asarray(np.stack([row.action for row in rows]), jnp.float32)[:, None]
    blank = agent.algorithm.initial_memory(learner, jax.tree.map(lambda leaf: leaf[0], seen))
    experience = Experience(blank, seen, action, outcome, None)
    expected = agent.algorithm.recall(jax.random.key(1), learner, experience)[0].replay
    assert expected is not None
    jax.tree.map(np.testing.assert_array_equal, agent.buffer.replay, expected)


def test_every_decision_has_what_was_seen_after_it(rows):
    """Also the last of an episode that was cut off."""
    buffer = filled(rows)
    # an extra row at the end of each of three episodes
    assert len(buffer) == 3 * EPISODE + 3
    expected = {float(half(row.graph_t.nodes[0, 2])): (half(row.graph_t1.nodes[0]), row.reward) for row in rows}
    met = set()
    for _ in range(15):
        sample = buffer.sample(18).sample
        # now and then an extra row is drawn in vain
        drawn = np.flatnonzero(sample.valid[0])
        assert len(drawn) > 9 and sample.valid[1, drawn].all()
        for k in drawn:
            before, after = np.asarray(sample.observation.graph.nodes[:, k, 0])
            successor, reward = expected[float(before[2])]
            np.testing.assert_array_equal(after, successor)
            assert float(sample.reward[0, k]) == pytest.approx(reward)
            met.add(float(before[2]))
    assert met == set(expected)


def test_a_gap_begins_an_episode(rows):
    """Decisions 1 and 3 of an episode are not neighbours, whatever lies between."""
    buffer = filled([rows[0], rows[2], rows[3]])
    assert len(buffer) == 4
    first = np.asarray(buffer.replay.rows.runs.episode[0, :4])
    np.testing.assert_array_equal(first, [1, 2, 1, 2])
    depths = set()
    for _ in range(10):
        sample = buffer.sample_temporal(4, lookback=3).sample
        last = np.asarray(sample.observation.graph.nodes[-1, :, 0, 2]).tolist()
        depth = np.asarray(sample.valid.sum(0)).tolist()
        # now and then the extra row is drawn in vain
        depths |= {pair for pair in zip(last, depth, strict=True) if pair[1]}
    # windows end with decision 1, 3 or 4; only the last has one before it
    speeds = [float(half(rows[i].graph_t.nodes[0, 2])) for i in (0, 2, 3)]
    assert depths == {(speeds[0], 1), (speeds[1], 1), (speeds[2], 2)}


def test_rows_wait_for_their_window(rows):
    buffer = filled(rows[:3], time_window=2)
    assert len(buffer) == 3 and int(buffer.replay.size) == 2
    buffer.add(rows[3])
    assert len(buffer) == 4 and int(buffer.replay.size) == 4


def test_too_little_is_said_by_name(rows):
    with pytest.raises(ValueError, match="nothing has been added yet"):
        GraphTemporalBuffer(10).sample(1)
    buffer = filled(rows[:4])
    with pytest.raises(ValueError, match="batch of 9 windows of 2 rows: needs 9 stored transitions; there are 4"):
        buffer.sample(9)
    with pytest.raises(ValueError, match="windows of 61 rows: longer than the 60 rows"):
        buffer.sample_temporal(1, lookback=61)
    discrete = played(DynamicGraphEnv("cartpole", num_agents=1), 1)
    with pytest.raises(ValueError, match="other features or sizes"):
        buffer.add(discrete[0])
