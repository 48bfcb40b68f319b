"""Distances between updates, and to mixtures of them, from their inner products alone.

The product of the stack with its transpose is the only pass over the parameters; what a rule iterates on is
`[K, K]`. A squared distance so found is right to a few float32 roundings of the squared lengths.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamic_graph_fed_rl.federation.aggregators.base import product

# sums of squares of longer rows would leave float32; nobody's honest update is that long
LONGEST = 1e15


def inner_products(
    updates: Float[Array, "K P"], weights: Float[Array, " K"]
) -> tuple[Float[Array, "K K"], Bool[Array, " K"]]:
    """`updates @ updates.T`, 0 where either is absent, and who is present: a weight, and not above `LONGEST`."""
    products = product(updates, updates.T)
    present = (weights > 0) & (jnp.diagonal(products) <= LONGEST**2)
    return jnp.where(present[:, None] & present[None, :], products, 0.0), present


def pairwise_squares(products: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Squared distance of every pair."""
    squares = jnp.diagonal(products)
    return jnp.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)


def squares_to_mixture(products: Float[Array, "K K"], mixture: Float[Array, " K"]) -> Float[Array, " K"]:
    """Squared distance of every update to `mixture @ updates`."""
    across = product(products, mixture)
    own = product(mixture, across)
    return jnp.maximum(jnp.diagonal(products) - 2.0 * across + own, 0.0)
