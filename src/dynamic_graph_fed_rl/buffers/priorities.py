"""Drawing in proportion to priorities."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

PRIORITIES = ("uniform", "td-error", "topology-change")

# so that what was predicted exactly is still drawn now and then
SMALLEST_ERROR = 1e-6


class Priorities(eqx.Module):
    """One positive number a row, 0 for rows that are not to be drawn, and the largest that was ever given."""

    values: Float[Array, "rows worlds"]
    largest: Float[Array, ""]


class Drawn(NamedTuple):
    """Rows and worlds, each with the probability that it had."""

    row: Int[Array, " count"]
    world: Int[Array, " count"]
    probability: Float[Array, " count"]


def draw(key: PRNGKeyArray, values: Float[Array, "rows worlds"], count: int) -> Drawn:
    """`count` independent draws in proportion to `values`, by inverting the cumulative distribution: first the row,
    then the world in it, as one float32 sum over all of them could not tell single rows apart.

    Where the sums round badly, one draw in millions may have probability 0.
    """
    rows, worlds = values.shape
    cumulative = jnp.cumsum(values.sum(1))
    row_key, world_key = jax.random.split(key)
    height = jax.random.uniform(row_key, (count,)) * cumulative[-1]
    row = jnp.minimum(jnp.searchsorted(cumulative, height, side="right"), rows - 1)
    within = jnp.cumsum(values[row], axis=1)
    height = jax.random.uniform(world_key, (count,)) * within[:, -1]
    world = jnp.minimum((within <= height[:, None]).sum(1), worlds - 1)
    return Drawn(row, world, values[row, world] / jnp.maximum(cumulative[-1], jnp.finfo(jnp.float32).tiny))


def importance_weights(
    probability: Float[Array, " count"], candidates: Int[Array, ""], correction: float
) -> Float[Array, " count"]:
    """`(N p)^-correction` over its largest (Schaul et al. 2016, section 3.4); 0 where nothing could be drawn."""
    possible = probability > 0
    weight = jnp.where(possible, (candidates * jnp.where(possible, probability, 1.0)) ** -correction, 0.0)
    return weight / jnp.maximum(weight.max(), jnp.finfo(jnp.float32).tiny)
