"""The contract of an aggregator, and the operations that the rules share."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


class Aggregator(eqx.Module):
    """`init` and one pure rule over stacked updates `[K, P]`.

    An absent agent has weight 0 and whatever it sent is ignored; if all weights are 0 the update is 0. Values must
    be finite: a federation takes out the rows that are not, before the rule.
    """

    sees_single_updates: ClassVar[bool] = True
    """False: the rule needs only the weighted sum of the updates, so it may stand behind secure aggregation."""

    def init(self, size: int) -> PyTree:
        """The rule's memory for updates of `size` numbers; None if it has none."""
        return None

    @abc.abstractmethod
    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        """The update to add to `base` (what the receiver holds), the new memory, and scalars worth recording."""

    @abc.abstractmethod
    def tolerance(self, senders: int) -> int:
        """Most Byzantine senders among so many that the rule's theory bears."""


def minority(senders: int) -> int:
    """The most that are fewer than half."""
    return max(senders - 1, 0) // 2


def shares(weights: Float[Array, " K"]) -> Float[Array, " K"]:
    """Weights scaled to sum to 1; all 0 if nobody has any."""
    total = weights.sum()
    return jnp.where(total > 0, weights / jnp.where(total > 0, total, 1.0), 0.0)


def product(left: Float[Array, "*rows K"], right: Float[Array, "K *columns"]) -> Float[Array, "..."]:
    """Matrix product in full float32 on every device: the way to sum over agents.

    As `shares @ updates` it is many times faster on CPU than a reduction over the rows.
    """
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def clip_factors(lengths: Float[Array, " K"], radius: float | Float[Array, ""]) -> Float[Array, " K"]:
    """What vectors of these lengths must be multiplied by so that none is longer than `radius`; at most 1."""
    inside = lengths <= radius
    return jnp.where(inside, 1.0, radius / jnp.where(inside, 1.0, lengths))
