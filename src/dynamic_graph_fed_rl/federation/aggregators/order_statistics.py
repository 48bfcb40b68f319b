"""Median and trimmed mean of every coordinate (Yin et al. 2018). Both count the present and ignore how they weigh."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, minority
from dynamic_graph_fed_rl.federation.aggregators.sorting import ranked_sum


class TrimmedMean(Aggregator):
    """The mean of each coordinate without its `byzantine` largest and smallest values.

    Where fewer are present than that takes, it trims as many as leave a value: it is then the median.
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
        return _middle(updates, weights, self.byzantine), state, {}

    def tolerance(self, senders: int) -> int:
        return min(self.byzantine, minority(senders))


class Median(Aggregator):
    """The median of each coordinate; of an even number, the mean of the two in the middle."""

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        return _middle(updates, weights, updates.shape[0]), state, {}

    def tolerance(self, senders: int) -> int:
        return minority(senders)


def _middle(updates: Float[Array, "K P"], weights: Float[Array, " K"], trim: int) -> Float[Array, " P"]:
    present = weights > 0
    count = present.sum()
    trimmed = jnp.minimum(trim, jnp.maximum(count - 1, 0) // 2)
    rank = jnp.arange(updates.shape[0])
    kept = (rank >= trimmed) & (rank < count - trimmed)
    return ranked_sum(updates, present, kept / jnp.maximum(kept.sum(), 1).astype(updates.dtype))
