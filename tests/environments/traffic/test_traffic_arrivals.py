"""Cars under way reach the end of their link when they should, link by link."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.traffic.arrivals import due, later, nobody, steps_left, within

DECISIONS = 5


@pytest.mark.parametrize("taken", [[1, 2, 3, 3, 30, 7, 1, 12], [4, 4, 4], [300, 2]], ids=["unlike", "alike", "long"])
@pytest.mark.parametrize("steps", [1, 5, 40])
def test_cars_arrive_as_many_steps_after_they_came_as_their_link_takes(taken, steps):
    taken = np.sort(np.array(taken))
    received = np.random.default_rng(0).integers(0, 4, (DECISIONS * steps, len(taken))).astype(np.uint8)
    left = steps_left(taken)
    coming = nobody(left)
    assert sum(group.size for group in left) <= taken.max() * len(taken)
    for decision in range(DECISIONS):
        now = decision * steps
        # of those who came before this decision
        came = np.arange(now)[:, None] + taken
        expected = np.array([(received[:now] * (came == now + ahead)).sum(0) for ahead in range(steps)])
        np.testing.assert_array_equal(due(coming, steps), expected)
        soon = (received[:now] * (came >= now) * (came < now + 10)).sum(0)
        np.testing.assert_array_equal(within(coming, 10), soon)
        coming = later(left, coming, jnp.asarray(received[now : now + steps]))
