"""The majority's sign."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, minority, product, shares


class Majority(Aggregator):
    """A weighted vote on every coordinate's sign (signSGD with majority vote, Bernstein et al. 2019).

    All coordinates get the same size: the median over the present of their mean absolute update (a mean would let
    one sender choose it). It goes with the sign codec, whose updates it returns unchanged when all agree. A tie is 0.
    """

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        present = weights > 0
        count = present.sum()
        # divided before the sum, which huge values would overflow
        sizes = jnp.sort(jnp.where(present, (jnp.abs(updates) / updates.shape[1]).sum(1), jnp.inf))
        middle = 0.5 * sizes[jnp.maximum(count - 1, 0) // 2] + 0.5 * sizes[count // 2]
        vote = jnp.sign(product(shares(weights), jnp.sign(updates)))
        return jnp.where(count > 0, middle, 0.0) * vote, state, {}

    def tolerance(self, senders: int) -> int:
        return minority(senders)
