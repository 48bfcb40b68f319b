"""The sorting network against NumPy's sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.federation.aggregators.sorting import network, ranked_sum


@pytest.mark.parametrize("size", range(1, 21))
def test_network_sorts(size):
    rng = np.random.default_rng(size)
    # a network that sorts all sequences of 0 and 1 sorts everything (Knuth 5.3.4, theorem Z)
    bits = rng.integers(0, 2, (size, 4096)) if size > 12 else (np.arange(2**size) >> np.arange(size)[:, None]) & 1
    rows = list(bits)
    for stage in network(size):
        assert len({index for pair in stage for index in pair}) == 2 * len(stage)
        for low, high in stage:
            rows[low], rows[high] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    np.testing.assert_array_equal(rows, np.sort(bits, axis=0))


@pytest.mark.parametrize("agents", [1, 6, 34])
def test_every_rank_of_the_present(agents):
    rng = np.random.default_rng(agents)
    rows = rng.normal(size=(agents, 6)).astype(np.float32)
    present = rng.random(agents) < 0.7
    present[0] = True
    rows[~present] = 1e38
    count = present.sum()
    ranked = jax.jit(jax.vmap(ranked_sum, in_axes=(None, None, 0)))
    got = ranked(jnp.asarray(rows), jnp.asarray(present), jnp.eye(agents))
    np.testing.assert_array_equal(got[:count], np.sort(rows[present], axis=0))
