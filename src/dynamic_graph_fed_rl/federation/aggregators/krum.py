"""Krum and multi-Krum (Blanchard et al. 2017): trust whoever has close company."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, product, shares
from dynamic_graph_fed_rl.federation.aggregators.distances import inner_products, pairwise_squares


class Krum(Aggregator):
    """The one update with the smallest sum of squared distances to its `present - byzantine - 2` nearest.

    Counts the present and ignores how they weigh. Needs `2 byzantine + 3` senders; of fewer it takes at least the
    one nearest.
    """

    byzantine: int = eqx.field(static=True, default=0)

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        scores, present = _scores(updates, weights, self.byzantine)
        return jnp.where(present.any(), updates[jnp.argmin(scores)], 0.0), state, {}

    def tolerance(self, senders: int) -> int:
        return _tolerance(self.byzantine, senders)


class MultiKrum(Aggregator):
    """The weighted mean of the `present - byzantine - 2` updates that Krum scores best.

    That many, the most with a proof, is from Damaskinos et al. 2019 (AggregaThor).
    """

    byzantine: int = eqx.field(static=True, default=0)

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        scores, present = _scores(updates, weights, self.byzantine)
        rank = jnp.argsort(jnp.argsort(scores))
        chosen = present & (rank < _company(present, self.byzantine))
        return product(shares(jnp.where(chosen, weights, 0.0)), updates), state, {}

    def tolerance(self, senders: int) -> int:
        return _tolerance(self.byzantine, senders)


def _company(present: Bool[Array, " K"], byzantine: int) -> Array:
    return jnp.maximum(present.sum() - byzantine - 2, 1)


def _scores(
    updates: Float[Array, "K P"], weights: Float[Array, " K"], byzantine: int
) -> tuple[Float[Array, " K"], Bool[Array, " K"]]:
    products, present = inner_products(updates, weights)
    agents = updates.shape[0]
    others = present[None, :] & ~jnp.eye(agents, dtype=bool)
    nearest = jnp.sort(jnp.where(others, pairwise_squares(products), jnp.inf), axis=1)
    counted = (jnp.arange(agents) < _company(present, byzantine)) & jnp.isfinite(nearest)
    return jnp.where(present, jnp.where(counted, nearest, 0.0).sum(1), jnp.inf), present


def _tolerance(byzantine: int, senders: int) -> int:
    return min(byzantine, max(senders - 3, 0) // 2)
