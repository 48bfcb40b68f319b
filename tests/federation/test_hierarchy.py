"""Servers of servers: equal to a star where clocks agree, and each level on its own clock where they do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_federation import course, made

AGENTS, SIZE = 6, 3


def steps(ticks: int) -> jax.Array:
    return jax.random.normal(jax.random.key(5), (ticks, AGENTS, SIZE))


START = jnp.zeros((AGENTS, SIZE))


@pytest.mark.parametrize("branches", [(3,), (2, 3), (4,), (6,)])
def test_a_tree_is_a_star_when_all_clocks_agree(branches):
    tree, _ = course(made("tree", AGENTS, branches=branches), START, steps(5))
    star, _ = course(made("server", AGENTS), START, steps(5))
    np.testing.assert_allclose(tree, star, atol=1e-5)


def test_a_tree_is_a_star_when_agents_are_absent_too():
    tree, present = course(made("tree", AGENTS, branches=(3,), dropout=0.4), START, steps(5))
    star, _ = course(made("server", AGENTS, dropout=0.4), START, steps(5))
    assert not present.all()
    # whoever was there at the last tick holds the model
    np.testing.assert_allclose(tree[-1][present[-1]], star[-1][present[-1]], atol=1e-5)


def test_levels_on_their_own_clocks_against_numpy():
    """Two groups of three average every round; the root averages the groups every second round."""
    after, _ = course(made("tree", AGENTS, branches=(2,), clocks=(1, 2)), START, steps(4))
    model = np.zeros((2, SIZE))
    for t, step in enumerate(np.asarray(steps(4)), start=1):
        model = model + step.reshape(2, 3, SIZE).mean(1)
        if t % 2 == 0:
            model[:] = model.mean(0)
        np.testing.assert_allclose(after[t - 1], model.repeat(3, 0), atol=1e-5)


def test_a_seed_hierarchy_of_three_levels_meets_at_the_root():
    """5 transmission, 20 distribution and 100 microgrid nodes, as in the power grid's hierarchy."""
    federation = made("tree", 100, branches=(5, 20), clocks=(1, 2, 4))
    moves = jax.random.normal(jax.random.key(0), (4, 100, SIZE))
    after, _ = course(federation, jnp.zeros((100, SIZE)), moves)
    spread = np.asarray(after).std(1).max(1)
    # alike in groups of 5, then of 20, then all
    assert len(np.unique(np.asarray(after[0, :, 0]))) == 20
    assert len(np.unique(np.asarray(after[1, :, 0]))) == 5
    assert spread[0] > 0.05 and spread[3] < 1e-6
    np.testing.assert_allclose(after[3, 0], np.asarray(moves).sum(0).mean(0), atol=1e-5)


def test_uneven_branches_weigh_by_their_agents():
    after, _ = course(made("tree", 5, branches=(2,)), jnp.zeros((5, SIZE)), jnp.ones((1, 5, SIZE)).at[0, 0].set(6.0))
    np.testing.assert_allclose(after[0], 2.0, rtol=1e-6)
