import jax.numpy as jnp
import numpy as np
import pytest
from stacks import AGENTS, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator
from dynamic_graph_fed_rl.federation.aggregators.bucketing import Bucketing
from dynamic_graph_fed_rl.federation.aggregators.mean import Mean
from dynamic_graph_fed_rl.federation.aggregators.order_statistics import Median


class Seen(Aggregator):
    """A rule that remembers what it was given."""

    def __call__(self, updates, weights, base, state, key):
        return jnp.zeros_like(base), (updates, weights), {}

    def tolerance(self, senders):
        return senders


@pytest.mark.parametrize("seed", range(4))
def test_every_present_agent_is_in_one_bucket_and_only_the_last_is_short(seed):
    weights = np.array([1, 2, 0, 3, 1, 0, 2.0])
    _, (means, totals), _ = apply(Bucketing(Seen(), 2), np.eye(AGENTS), weights, seed=seed)
    means, totals = np.asarray(means), np.asarray(totals)
    np.testing.assert_allclose(totals @ means, weights, atol=1e-6)
    np.testing.assert_array_equal((means > 0).sum(1), [2, 2, 1, 0])
    np.testing.assert_array_equal((means > 0).sum(0), weights > 0)
    np.testing.assert_allclose(means.sum(1), totals > 0, atol=1e-6)


def test_buckets_are_drawn_anew():
    drawn = {apply(Bucketing(Seen(), 2), np.eye(AGENTS), seed=seed)[1][0].tobytes() for seed in range(8)}
    assert len(drawn) > 4


def test_of_a_mean_is_the_mean():
    weights = np.arange(AGENTS)
    bucketed, plain = (apply(rule, draw(1), weights)[0] for rule in (Bucketing(Mean(), 3), Mean()))
    np.testing.assert_allclose(bucketed, plain, atol=1e-6)


def test_a_byzantine_sender_spoils_a_bucket():
    assert Bucketing(Median(), 2).tolerance(20) == 4
    assert Bucketing(Median(), 2).tolerance(13) == 3
