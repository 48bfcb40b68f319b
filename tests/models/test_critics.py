"""Values of continuous actions as parabolas."""

import jax
import jax.numpy as jnp
import numpy as np

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.models.critics import QuadraticCritic

SPEC = Spec(
    agents=1,
    nodes=3,
    edges=2,
    slots=3,
    action="continuous",
    action_size=2,
    node_features=(Column("x"),),
    edge_features=(Column("w"),),
    slot_features=(Column("s"),),
)
REACH = 0.1


def seen() -> Observation:
    """One graph of three nodes; the last slot is not in use."""
    rng = np.random.default_rng(0)
    blank = jax.tree.map(lambda leaf: leaf[0], Observation.blank(SPEC, 1))
    whole = jax.tree.map(
        lambda leaf: (
            jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else jnp.ones_like(leaf)
        ),
        blank,
    )
    return Observation(
        whole.graph, whole.slots, whole.slot_owner, jnp.array([True, True, False]), whole.first, whole.births
    )


def test_a_parabola_of_each_number_that_opens_downwards():
    """Second differences do not depend on where they are taken, and numbers do not meet in products."""
    critic, observation = QuadraticCritic(jax.random.key(0), 1, SPEC, 8, 1, "edge-gated", REACH), seen()
    grown = jax.tree.map(lambda leaf: 3.0 * leaf, critic)
    value = jax.jit(lambda action: grown(observation.graph, observation, action.reshape(3, 2)))
    here, there = (np.asarray(jax.hessian(value)(place)) for place in (jnp.zeros(6), jnp.linspace(-1.0, 1.0, 6)))
    np.testing.assert_allclose(here, there, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(here, np.diag(np.diag(here)), atol=1e-4)
    assert (np.diag(here)[:4] < -1e-3).all() and (here[4:] == 0).all()


def test_at_first_nothing_is_better_than_nothing():
    """The best action by fresh critics lies within a hundredth of the actions that are tried; an action of the
    size tried costs about half of softplus(0) = 0.69 in every number, a mean over slots."""
    observation = seen()
    for seed in range(5):
        critic = QuadraticCritic(jax.random.key(seed), 1, SPEC, 8, 1, "edge-gated", REACH)
        value = lambda action, critic=critic: critic(observation.graph, observation, action.reshape(3, 2))  # noqa: E731
        slope, bends = jax.grad(value)(jnp.zeros(6)), jnp.diag(jax.hessian(value)(jnp.zeros(6)))
        best = -slope[:4] / bends[:4]
        assert jnp.abs(best).max() < 0.05 * REACH
        cost = float(value(jnp.zeros(6)) - value(jnp.full(6, REACH)))
        assert abs(cost - 2 * 0.5 * np.log(2.0)) < 0.03
