"""Trust by the cosine of the angle between the receiver's parameters and each sender's."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, product, shares


class Trust(Aggregator):
    """`alpha * global + (1 - alpha) * sum_k w_k parameters_k`, with `w_k` in proportion to `max(0, cosine_k)`.

    The cosine is that of `base` and `base + update_k`; example weights multiply it. Where the formula divides by
    0, because nobody points the receiver's way, the update is 0; a receiver whose parameters are all 0 has no
    direction and trusts everybody the same. The rule favours agreement with what is held already and does not see
    lengths, so it bears no Byzantine sender: parameters scaled a thousandfold keep a cosine of 1.
    """

    alpha: float = eqx.field(static=True, default=0.5)

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        own = product(base, base)
        inner = own + product(updates, base)
        # two roots, since the product of two squares leaves float32 before either square does
        lengths = jnp.sqrt(own) * jnp.sqrt(((base + updates) ** 2).sum(1))
        known = jnp.isfinite(inner) & jnp.isfinite(lengths) & (lengths > 0)
        cosine = jnp.where(known, inner / jnp.where(known, lengths, 1.0), 0.0)
        trust = jnp.where(own > 0, jnp.maximum(cosine, 0.0), 1.0)
        present = weights > 0
        distrusted = (present & (trust == 0)).sum() / jnp.maximum(present.sum(), 1)
        update = (1.0 - self.alpha) * product(shares(weights * trust), updates)
        return update, state, {"distrusted": distrusted}

    def tolerance(self, senders: int) -> int:
        return 0
