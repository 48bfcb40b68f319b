"""The columns of the ring: what a row is kept as, how rows are written, and what is read from them."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped, UInt8, UInt16, UInt32

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.buffers.packing import Flags, Layout, Statics, topology_id
from dynamic_graph_fed_rl.environments.base import Observation


class Runs(eqx.Module):
    """For how many rows, this one included, an episode has lasted; and how long since it began or its topology
    changed."""

    topology: UInt32[Array, "*axes"]
    """The `topology_id` of the row."""
    episode: Int[Array, "*axes"]
    same_topology: Int[Array, "*axes"]

    @staticmethod
    def none(*shape: int) -> "Runs":
        return Runs(jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32))


class Rows(eqx.Module):
    """Rows in columns: `[worlds, rows]` in the ring, where the rows of a window then lie side by side and are read in
    half the time; `[rows, worlds]` before they are written."""

    halves: UInt16[Array, "*axes halves"]
    bits: UInt8[Array, "*axes bytes"]
    reward: Float[Array, "*axes"]
    runs: Runs


class Sample(eqx.Module):
    """K windows of L rows, time first.

    `valid` marks rows that belong to their window; others repeat a row that does. `weight` corrects for priorities,
    1 where there are none. `index` is the row and world that was drawn: a transition, the last row of a temporal
    window, the first of a window from `windows`. `memory` is what the agent remembered before the first row, only
    from `windows`.
    """

    observation: Observation  # leaves [L, K, ...]
    action: Shaped[Array, "length windows ..."]
    reward: Float[Array, "length windows"]
    terminated: Bool[Array, "length windows"]
    truncated: Bool[Array, "length windows"]
    valid: Bool[Array, "length windows"]
    topology: UInt32[Array, "length windows"]
    weight: Float[Array, " windows"]
    index: Int[Array, "windows 2"]
    memory: PyTree


def blank(layout: Layout, capacity: int, worlds: int) -> Rows:
    lead = (worlds, capacity)
    return Rows(
        halves=jnp.zeros((*lead, layout.halves), jnp.uint16),
        bits=jnp.zeros((*lead, layout.bits), jnp.uint8),
        reward=jnp.zeros(lead),
        runs=Runs.none(*lead),
    )


def pack(layout: Layout, experience: Experience, transition: Bool[Array, "T worlds"], newest: Runs) -> Rows:
    """Experience as rows that follow those of `newest`, leaves `[worlds]`."""
    observation, outcome = experience.observation, experience.transition
    flags = Flags(observation.first, outcome.terminated, outcome.truncated, transition)
    topology = topology_id(observation.graph)
    changed = topology != jnp.concatenate([newest.topology[None], topology[:-1]])
    return Rows(
        halves=layout.pack_numbers(observation, experience.action),
        bits=layout.pack_truths(observation, flags),
        reward=outcome.reward,
        runs=Runs(
            topology,
            _lengths(observation.first, newest.episode),
            _lengths(observation.first | changed, newest.same_topology),
        ),
    )


def _lengths(begins: Bool[Array, "T worlds"], before: Int[Array, " worlds"]) -> Int[Array, "T worlds"]:
    """Rows since the last beginning, this one included; the row before them, if there is one, was the `before`-th."""
    row = jnp.arange(begins.shape[0])[:, None]
    return row + 1 - jax.lax.cummax(jnp.where(begins, row, -before), axis=0)


def write(ring: PyTree, fresh: PyTree, at: Int[Array, ""], piece: int, axis: int) -> PyTree:
    """The ring with fresh rows `[T, ...]` from row `at` of its C on, in place, `piece` at a time: where that divides
    `at`, C and T, no piece wraps. Rows of the ring run along `axis`."""
    capacity = jax.tree.leaves(ring)[0].shape[axis]
    pieces = jax.tree.map(lambda leaf: leaf.reshape(-1, piece, *leaf.shape[1:]), fresh)

    def put(carry: tuple, one: PyTree) -> tuple[tuple, None]:
        ring, row = carry

        def into(old: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(old, jnp.moveaxis(new, 0, axis), row, axis)

        return (jax.tree.map(into, ring, one), (row + piece) % capacity), None

    return jax.lax.scan(put, (ring, at), pieces)[0][0]


def read(
    rows: Rows,
    layout: Layout,
    statics: Statics,
    row: Int[Array, "length windows"],
    index: Int[Array, "windows 2"],
    valid: Bool[Array, "length windows"],
    weight: Float[Array, " windows"],
    memory: PyTree,
) -> Sample:
    """The sample of windows made of the given rows, drawn by `index`."""
    halves, bits, reward, topology = (
        column[index[:, 1], row] for column in (rows.halves, rows.bits, rows.reward, rows.runs.topology)
    )
    observation, action = layout.unpack(halves, bits, statics)
    flags = layout.flags(bits)
    return Sample(
        observation=observation,
        action=action,
        reward=reward,
        terminated=flags.terminated,
        truncated=flags.truncated,
        valid=valid,
        topology=topology,
        weight=weight,
        index=index,
        memory=memory,
    )
