"""Targets that values of actions are fitted to; the maths that off-policy algorithms share."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree


class Steps(NamedTuple):
    """For each row: the discounted rewards of the decisions taken from it, the row to bootstrap from and with which
    factor (0: not at all), and whether it teaches anything."""

    gain: Float[Array, "rows windows"]
    successor: Int[Array, "rows windows"]
    factor: Float[Array, "rows windows"]
    counts: Bool[Array, "rows windows"]


def n_step(
    reward: Float[Array, "T windows"],
    terminated: Bool[Array, "T windows"],
    truncated: Bool[Array, "T windows"],
    valid: Bool[Array, "T windows"],
    steps: int,
    discount: Float[Array, ""] | float,
) -> Steps:
    """Up to `steps` rewards from each of the first `T - steps` rows (Sutton and Barto 2018, equation 7.4).

    A row's successor is the next one. At a termination the sum ends and nothing follows. At a truncation it ends
    before the truncated decision, whose successor is not stored, and bootstraps from the row of that decision; a
    row that is itself truncated teaches nothing.
    """
    rows = reward.shape[0] - steps
    gain, factor = jnp.zeros_like(reward[:rows]), jnp.ones_like(reward[:rows])
    successor = jnp.broadcast_to(jnp.arange(rows)[:, None], gain.shape)
    open_ = jnp.ones(gain.shape, bool)
    for k in range(steps):
        part = slice(k, k + rows)
        taken = open_ & valid[part] & ~truncated[part]
        gain = gain + jnp.where(taken, factor * reward[part], 0.0)
        successor = successor + taken
        factor = jnp.where(taken, factor * discount, factor)
        factor = jnp.where(taken & terminated[part], 0.0, factor)
        open_ = taken & ~terminated[part]
    return Steps(gain, successor, factor, successor > jnp.arange(rows)[:, None])


def rows_at(tree: PyTree, index: Int[Array, "rows windows"]) -> PyTree:
    """The rows `index` of leaves `[T, windows, ...]`, each window its own."""

    def take(leaf: Array) -> Array:
        return jax.vmap(lambda column, at: column[at], in_axes=(1, 1), out_axes=1)(leaf, index)

    return jax.tree.map(take, tree)
