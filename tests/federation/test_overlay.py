"""Mixing weights of every overlay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.federation.overlay import OVERLAYS, Complete, RandomPairs, Ring, present


@pytest.mark.parametrize("name", OVERLAYS)
@pytest.mark.parametrize("agents", [1, 2, 3, 7])
def test_weights_are_doubly_stochastic_and_everybody_hears_itself(name, agents):
    for seed in range(3):
        weights = np.asarray(OVERLAYS[name](agents).weights(jax.random.key(seed)))
        assert (weights >= 0).all()
        np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
        # the mean of all agents' parameters is kept
        np.testing.assert_allclose(weights.sum(0), 1.0, atol=1e-6)
        assert (np.diag(weights) > 0).all()


def test_neighbours_on_a_ring():
    weights = np.asarray(Ring(5).weights(jax.random.key(0)))
    for agent in range(5):
        assert set(np.flatnonzero(weights[agent])) == {agent, (agent + 1) % 5, (agent - 1) % 5}
    np.testing.assert_allclose(weights[weights > 0], 1 / 3, rtol=1e-6)


def test_a_complete_overlay_is_uniform():
    np.testing.assert_allclose(Complete(4).weights(jax.random.key(0)), 0.25)


def test_random_pairs_have_their_degree_and_change():
    overlay = RandomPairs(8, degree=3)
    drawn = np.stack([overlay.weights(jax.random.key(seed)) for seed in range(4)])
    assert ((drawn > 0).sum(-1) == 4).all()
    assert (drawn[0] != drawn[1]).any()
    # more neighbours asked for than there are others: everybody
    np.testing.assert_allclose(RandomPairs(3, degree=9).weights(jax.random.key(0)), 1 / 3, rtol=1e-6)


@given(st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 1000))
def test_among_those_present(active, seed):
    rng = np.random.default_rng(seed)
    weights = rng.random((6, 6)) + 0.01
    weights /= weights.sum(1, keepdims=True)
    active = np.array(active)
    kept = np.asarray(present(jnp.asarray(weights, jnp.float32), jnp.asarray(active)))
    np.testing.assert_allclose(kept.sum(1), 1.0, atol=1e-5)
    others = ~np.eye(6, dtype=bool)
    both = active[:, None] & active[None, :]
    assert (kept[others & ~both] == 0).all()
    np.testing.assert_allclose(kept[others & both], weights[others & both], rtol=1e-5)
    np.testing.assert_allclose(kept[~active], np.eye(6)[~active], atol=1e-6)
