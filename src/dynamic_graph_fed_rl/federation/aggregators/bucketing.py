"""Random buckets before a rule."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, product


class Bucketing(Aggregator):
    """Averages random buckets of `size` senders and hands the averages to another rule (Karimireddy et al. 2022).

    Agents whose experience differs look less unlike each other in buckets, which the robust rules need; in return a
    Byzantine sender spoils its whole bucket. The present fill the buckets in a random order drawn anew every time,
    the last bucket with what is left.
    """

    inner: Aggregator
    size: int = eqx.field(static=True)

    def init(self, size: int) -> PyTree:
        return self.inner.init(size)

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        order_key, inner_key = jax.random.split(key)
        agents = updates.shape[0]
        # draws lie in [0, 1): the absent come after all the present
        place = jnp.argsort(jnp.argsort(jax.random.uniform(order_key, (agents,)) + (weights <= 0)))
        buckets = jnp.arange(-(-agents // self.size))
        members = jnp.where(place // self.size == buckets[:, None], weights, 0.0)
        totals = members.sum(1)
        mixing = members / jnp.where(totals > 0, totals, 1.0)[:, None]
        means = product(mixing, updates)
        return self.inner(means, totals, base, state, inner_key)

    def tolerance(self, senders: int) -> int:
        return self.inner.tolerance(-(-senders // self.size))
