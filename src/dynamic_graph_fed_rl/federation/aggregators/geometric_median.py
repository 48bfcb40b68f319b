"""The geometric median."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, minority, product, shares
from dynamic_graph_fed_rl.federation.aggregators.distances import (
    inner_products,
    pairwise_squares,
    squares_to_mixture,
)


class GeometricMedian(Aggregator):
    """The point with the smallest weighted sum of distances to the updates (RFA, Pillutla et al. 2019).

    Smoothed Weiszfeld steps. Every iterate is a mixture of the updates, so that a step works on `[K, K]` inner
    products and many steps cost no more than a few. The first is the mean of the half around the most central
    update: from the mean of all, colluders far away would be left behind only by a constant factor a step.
    """

    steps: int = eqx.field(static=True, default=32)
    smoothing: float = eqx.field(static=True, default=1e-6)
    """Distances below it count as it."""

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        products, present = inner_products(updates, weights)
        share = shares(jnp.where(present, weights, 0.0))
        apart = jnp.sqrt(pairwise_squares(products))
        central = jnp.argmin(jnp.where(present, product(apart, share), jnp.inf))
        rank = jnp.argsort(jnp.argsort(jnp.where(present, apart[central], jnp.inf)))
        start = shares(jnp.where(rank <= present.sum() // 2, share, 0.0))
        # below a few roundings of the squared length a distance is noise: there the smoothing takes over
        floor = self.smoothing**2 + 4.0 * jnp.finfo(updates.dtype).eps * jnp.diagonal(products)

        def nearer(_: Array, mixture: Float[Array, " K"]) -> Float[Array, " K"]:
            distances = jnp.sqrt(jnp.maximum(squares_to_mixture(products, mixture), floor))
            return shares(share / distances)

        return product(jax.lax.fori_loop(0, self.steps, nearer, start), updates), state, {}

    def tolerance(self, senders: int) -> int:
        return minority(senders)
