"""Arrays of many worlds, their axis last: rows of them, and parts of a program that the compiler must not merge."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamic_graph_fed_rl.environments.traffic.constants import Table


def rows(values: Array, index: Int[Array, "*shape"]) -> Array:
    """The rows of `values` at `index`, which lies within."""
    return values.at[index].get(mode="promise_in_bounds")


def columns(table: Table, values: Array) -> list[Array]:
    """For each column of the table the rows that it names; False, or 0, where it names none."""
    none = jnp.zeros((), values.dtype)
    named = zip(table.index.T, table.mask.T, strict=True)
    return [jnp.where(there[:, None], rows(values, i), none) for i, there in named]


def clock(time_s: Float[Array, "*worlds"]) -> Bool[Array, ""]:
    """True, which the compiler does not know."""
    return (time_s >= 0).any()


def apart(running: Bool[Array, ""], part: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`part(*args)`, which the compiler for CPUs is kept from merging with what comes after it.

    It would write a gather and whatever made the gathered rows into one loop, and so make each row anew wherever it
    is gathered: twice the time for a whole step. It cannot look into the branch of a condition that it does not know.
    """

    def empty(*args: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part, *args))

    return jax.lax.platform_dependent(
        *args, cpu=lambda *args: jax.lax.cond(running, part, empty, *args), default=part
    )


def made_once(part: Callable[..., PyTree], time_s: Float[Array, ""], *args: PyTree) -> PyTree:
    """`apart`, for one world and under `vmap`."""

    @jax.custom_batching.custom_vmap
    def one(time_s: Float[Array, ""], *args: PyTree) -> PyTree:
        return part(*args)

    @one.def_vmap
    def all_at_once(size: int, batched: list[PyTree], time_s: Float[Array, " worlds"], *args: PyTree) -> tuple:
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched[1:]))
        result = apart(clock(time_s), jax.vmap(part, axes, axis_size=size), *args)
        return result, jax.tree.map(lambda _: True, result)

    return one(time_s, *args)
