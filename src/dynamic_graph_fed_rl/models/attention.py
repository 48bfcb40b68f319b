"""Attention over incoming edges: softmax by segments of one disjoint graph."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.layers import Affine

# few enough that a head of the default width of 32 has eight numbers
HEADS = 4


def heads_of(width: int) -> int:
    """Heads that a layer of this width is divided into: the most up to `HEADS` that divide it."""
    return max(heads for heads in range(1, HEADS + 1) if width % heads == 0)


def segment_softmax(
    scores: Float[Array, "edges heads"],
    segments: Int[Array, " edges"],
    mask: Bool[Array, " edges"],
    count: int,
) -> Float[Array, "edges heads"]:
    """Softmax over the unmasked edges of each segment; masked edges get 0."""
    scores = jnp.where(mask[:, None], scores, -jnp.inf)
    highest = jax.lax.stop_gradient(jax.ops.segment_max(scores, segments, count))
    # a segment without any edge has no highest score
    centred = scores - jnp.where(jnp.isfinite(highest), highest, 0.0)[segments]
    weights = jnp.exp(centred)
    total = jax.ops.segment_sum(weights, segments, count)
    return weights / jnp.maximum(total, 1e-16)[segments]


class GATv2(eqx.Module):
    """Graph attention whose score reads both ends and the edge together (Brody et al. 2022, equation 7).

    Multi-head, `a . leaky_relu(W_s s + W_r r + W_e e)`, slope 0.2; no self-loops, but a linear map of the node
    itself is added, so that a node without neighbours keeps its own features.
    """

    sender: Affine
    receiver: Affine
    edge: Affine
    own: Affine
    attention: Float[Array, "heads size"]

    def __init__(self, key: PRNGKeyArray, width: int, edge_features: int):
        keys = jax.random.split(key, 5)
        self.sender = Affine(keys[0], width, width)
        self.receiver = Affine(keys[1], width, width, gain=1.0)
        self.edge = Affine(keys[2], edge_features, width, gain=1.0)
        self.own = Affine(keys[3], width, width)
        shape = (heads_of(width), width // heads_of(width))
        self.attention = jax.nn.initializers.glorot_uniform()(keys[4], shape)

    def __call__(self, nodes: Float[Array, "nodes width"], graph: Graph) -> Float[Array, "nodes width"]:
        if not graph.senders.shape[0]:
            return self.own(nodes)
        count, heads = nodes.shape[0], self.attention.shape
        value = self.sender(nodes)[graph.senders]
        reading = jax.nn.leaky_relu(value + self.receiver(nodes)[graph.receivers] + self.edge(graph.edges), 0.2)
        scores = (reading.reshape(-1, *heads) * self.attention).sum(-1)
        weights = segment_softmax(scores, graph.receivers, graph.edge_mask, count)
        weighted = (value.reshape(-1, *heads) * weights[..., None]).reshape(value.shape)
        return self.own(nodes) + jax.ops.segment_sum(weighted, graph.receivers, count)


class TransformerConvolution(eqx.Module):
    """Scaled dot-product attention over neighbours, the edge added to key and value (Shi et al. 2021, equation 3).

    A linear map of the node itself is added.
    """

    query: Affine
    key: Affine
    value: Affine
    edge: Affine
    own: Affine
    heads: int = eqx.field(static=True)

    def __init__(self, key: PRNGKeyArray, width: int, edge_features: int):
        keys = jax.random.split(key, 5)
        self.query = Affine(keys[0], width, width, gain=1.0)
        self.key = Affine(keys[1], width, width, gain=1.0)
        self.value = Affine(keys[2], width, width)
        self.edge = Affine(keys[3], edge_features, width, gain=1.0)
        self.own = Affine(keys[4], width, width)
        self.heads = heads_of(width)

    def __call__(self, nodes: Float[Array, "nodes width"], graph: Graph) -> Float[Array, "nodes width"]:
        if not graph.senders.shape[0]:
            return self.own(nodes)
        count, size = nodes.shape[0], nodes.shape[1] // self.heads
        per_sender = jnp.concatenate([self.key(nodes), self.value(nodes)], axis=-1)[graph.senders]
        edge = self.edge(graph.edges)
        key, value = (part + edge for part in jnp.split(per_sender, 2, axis=-1))
        query = self.query(nodes)[graph.receivers]
        scores = (query * key).reshape(-1, self.heads, size).sum(-1) / jnp.sqrt(size)
        weights = segment_softmax(scores, graph.receivers, graph.edge_mask, count)
        weighted = (value.reshape(-1, self.heads, size) * weights[..., None]).reshape(value.shape)
        return self.own(nodes) + jax.ops.segment_sum(weighted, graph.receivers, count)
