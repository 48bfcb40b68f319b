"""How a row of experience is made small: 16-bit halves for numbers, one bit for each truth.

Halves are float16 bits in uint16 arrays. Stored as a 16-bit float type, every write into the ring would convert,
and so touch, the whole of it on a CPU.
"""

from dataclasses import dataclass
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped, UInt8, UInt16, UInt32

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.graph import Graph

LARGEST_HALF = float(np.finfo(np.float16).max)


def to_halves(values: Float[Array, "*shape"]) -> UInt16[Array, "*shape"]:
    """Bits of the nearest float16, clipped to its finite range of +-65504: 11 bits of precision."""
    halves = jnp.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(jnp.float16)
    return jax.lax.bitcast_convert_type(halves, jnp.uint16)


def from_halves(halves: UInt16[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jax.lax.bitcast_convert_type(halves, jnp.float16).astype(jnp.float32)


def shrunk(leaf: Array) -> Array:
    """A leaf of any kind, floats as halves."""
    return to_halves(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def restored(leaf: Array, dtype: str) -> Array:
    """What `shrunk` made of a leaf of type `dtype`, as it was."""
    return from_halves(leaf).astype(dtype) if jnp.issubdtype(jnp.dtype(dtype), jnp.floating) else leaf


def topology_id(graph: Graph) -> UInt32[Array, "*batch"]:
    """A number for which nodes and edges are there: the sum, modulo 2^32, of a random word for each of them.

    As in Zobrist hashing (1970), two topologies share a number with probability 2^-32.
    """
    present = jnp.concatenate([graph.node_mask, graph.edge_mask], axis=-1)
    words = np.random.default_rng(0).integers(1 << 32, size=present.shape[-1], dtype=np.uint32)
    return jnp.where(present, words, jnp.uint32(0)).sum(-1, dtype=jnp.uint32)


class Statics(eqx.Module):
    """What is the same in every row: columns that do not change, and how nodes, edges and slots hang together."""

    nodes: Float[Array, "nodes _"]
    edges: Float[Array, "edges _"]
    globals: Float[Array, "1 _"]
    slots: Float[Array, "slots _"]
    senders: Shaped[Array, " edges"]
    receivers: Shaped[Array, " edges"]
    slot_owner: Shaped[Array, " slots"]


class Flags(NamedTuple):
    """Truths of a row: `transition` is False where it only holds the observation after an episode's end."""

    first: Bool[Array, "*rows"]
    terminated: Bool[Array, "*rows"]
    truncated: Bool[Array, "*rows"]
    transition: Bool[Array, "*rows"]


@dataclass(frozen=True)
class Layout:
    """Where what of a row lies in its `halves` (dynamic columns, then the action) and in its `bits` (flags, then
    masks)."""

    spec: Spec

    @property
    def halves(self) -> int:
        """16-bit numbers a row."""
        return sum(items * sum(flags) for items, flags in self._blocks()) + self._action_numbers()

    @property
    def bits(self) -> int:
        """Bytes of bits a row."""
        return 1 + sum(self._mask_bytes())

    def pack_numbers(self, observation: Observation, action: Array) -> UInt16[Array, "*rows halves"]:
        lead = observation.first.shape
        dynamic = [
            values[..., np.flatnonzero(flags)].reshape(*lead, -1)
            for values, (_, flags) in zip(_numbers(observation), self._blocks(), strict=True)
        ]
        action = action.reshape(*lead, -1)
        chosen = to_halves(action) if self.spec.action == "continuous" else action.astype(jnp.uint16)
        return jnp.concatenate([to_halves(jnp.concatenate(dynamic, axis=-1)), chosen], axis=-1)

    def pack_truths(self, observation: Observation, flags: Flags) -> UInt8[Array, "*rows bytes"]:
        lead = observation.first.shape
        truths = jnp.stack(flags, axis=-1), *(mask.reshape(*lead, -1) for mask in _masks(observation))
        return jnp.concatenate([jnp.packbits(one, axis=-1) for one in truths], axis=-1)

    def flags(self, bits: UInt8[Array, "*rows bytes"]) -> Flags:
        return Flags(*((bits[..., 0] >> (7 - i)) % 2 == 1 for i in range(len(Flags._fields))))

    def unpack(
        self, halves: UInt16[Array, "*rows halves"], bits: UInt8[Array, "*rows bytes"], statics: Statics
    ) -> tuple[Observation, Array]:
        """Observation and action of packed rows."""
        lead, spec = bits.shape[:-1], self.spec
        # each mask in bytes of its own: unpacked together and cut apart afterwards, it takes several times as long
        _, *pieces = jnp.split(bits, 1 + np.cumsum([0, *self._mask_bytes()[:-1]]), axis=-1)
        node_mask, births, edge_mask, action_mask = (
            jnp.unpackbits(piece, axis=-1, count=size).astype(bool)
            for piece, size in zip(pieces, self._mask_sizes(), strict=True)
        )
        if spec.action == "discrete":
            action_mask = action_mask.reshape(*lead, spec.slots, spec.action_size)
        usable = action_mask if spec.action == "continuous" else action_mask.any(-1)

        # rounded back in one go, before anything is cut out: the other way round, each piece is gathered for itself
        values, blocks, start = from_halves(halves), [], 0
        # what is away shows zeros: dynamic columns hold them already, an edge out of service shows what it is
        shown = (
            jnp.where(node_mask[..., None], statics.nodes, 0.0),
            statics.edges,
            statics.globals,
            jnp.where(usable[..., None], statics.slots, 0.0),
        )
        for (items, flags), static in zip(self._blocks(), shown, strict=True):
            width = items * sum(flags)
            dynamic = values[..., start : start + width].reshape(*lead, items, sum(flags))
            blocks.append(_join(dynamic, static, flags))
            start += width
        nodes, edges, whole, slots = blocks
        if spec.action == "continuous":
            action = values[..., start:].reshape(*lead, spec.slots, spec.action_size)
        else:
            action = halves[..., start:].astype(jnp.int32)

        def repeated(index: Array) -> Array:
            return jnp.broadcast_to(index, (*lead, *index.shape))

        graph = Graph(
            nodes=nodes,
            edges=edges,
            senders=repeated(statics.senders),
            receivers=repeated(statics.receivers),
            node_mask=node_mask,
            edge_mask=edge_mask,
            globals=whole[..., 0, :],
        )
        return Observation(
            graph=graph,
            slots=slots,
            slot_owner=repeated(statics.slot_owner),
            action_mask=action_mask,
            first=self.flags(bits).first,
            births=births,
        ), action

    def blank_statics(self) -> Statics:
        spec = self.spec
        nodes, edges, whole, slots = (jnp.zeros((items, len(flags) - sum(flags))) for items, flags in self._blocks())
        ends = jnp.zeros(spec.edges, jnp.int32)
        return Statics(nodes, edges, whole, slots, ends, ends, jnp.zeros(spec.slots, jnp.int32))

    def statics(self, observation: Observation, known: Statics) -> Statics:
        """From rows `[T, B, ...]`: a static column shows what it is where its node, edge or slot is there, so each
        is read from the first such row; what is in none of them stays as known."""
        usable = observation.action_mask
        usable = usable if self.spec.action == "continuous" else usable.any(-1)
        graph = observation.graph
        there = (graph.node_mask, graph.edge_mask, jnp.ones((*observation.first.shape, 1), bool), usable)
        before = (known.nodes, known.edges, known.globals, known.slots)
        columns = []
        for values, (_, flags), mask, old in zip(_numbers(observation), self._blocks(), there, before, strict=True):
            if old.size:
                rows = values[..., np.flatnonzero(~np.asarray(flags))].reshape(-1, *old.shape)
                old = _first_seen(rows, mask.reshape(-1, mask.shape[-1]), old)
            columns.append(old)
        nodes, edges, whole, slots = columns
        hung = graph.senders[0, 0], graph.receivers[0, 0], observation.slot_owner[0, 0]
        return Statics(nodes, edges, whole, slots, *hung)

    def _blocks(self) -> tuple[tuple[int, tuple[bool, ...]], ...]:
        """Items of each block of numbers, and which of their columns are dynamic."""
        spec = self.spec
        return (
            (spec.nodes, _dynamic(spec.node_features)),
            (spec.edges, _dynamic(spec.edge_features)),
            (1, _dynamic(spec.global_features)),
            (spec.slots, _dynamic(spec.slot_features)),
        )

    def _action_numbers(self) -> int:
        return self.spec.slots * (self.spec.action_size if self.spec.action == "continuous" else 1)

    def _mask_sizes(self) -> tuple[int, ...]:
        spec = self.spec
        choices = spec.action_size if spec.action == "discrete" else 1
        return spec.nodes, spec.nodes, spec.edges, spec.slots * choices

    def _mask_bytes(self) -> tuple[int, ...]:
        return tuple(-(-size // 8) for size in self._mask_sizes())


def _dynamic(columns: tuple[Column, ...]) -> tuple[bool, ...]:
    return tuple(column.dynamic for column in columns)


def _numbers(observation: Observation) -> tuple[Array, ...]:
    graph = observation.graph
    return graph.nodes, graph.edges, graph.globals[..., None, :], observation.slots


def _masks(observation: Observation) -> tuple[Array, ...]:
    graph = observation.graph
    return graph.node_mask, observation.births, graph.edge_mask, observation.action_mask


def _first_seen(
    rows: Float[Array, "rows items columns"], mask: Bool[Array, "rows items"], known: Float[Array, "items columns"]
) -> Float[Array, "items columns"]:
    first = rows[mask.argmax(0), jnp.arange(mask.shape[1])]
    return jnp.where(mask.any(0)[:, None], first, known)


def _join(
    dynamic: Float[Array, "*rows items _"], static: Float[Array, "*_ items _"], flags: tuple[bool, ...]
) -> Float[Array, "*rows items columns"]:
    """Columns back in the order of the spec, in which `flags` tells dynamic from static."""
    if all(flags):
        return dynamic
    static = jnp.broadcast_to(static, (*dynamic.shape[:-1], static.shape[-1]))
    # runs of one kind, so that no column is copied alone
    edges = [0, *(np.flatnonzero(np.diff(flags)) + 1), len(flags)]
    pieces = []
    for start, stop in zip(edges, edges[1:], strict=False):
        before = sum(flag == flags[start] for flag in flags[:start])
        pieces.append((dynamic if flags[start] else static)[..., before : before + stop - start])
    return jnp.concatenate(pieces, axis=-1)
