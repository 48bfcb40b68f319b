"""Message passing over padded, masked graphs, flattened over the batch into one disjoint graph."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.graph import Graph, disjoint, segment_mean
from dynamic_graph_fed_rl.models.layers import Affine, LayerNorm


class GatedMean(eqx.Module):
    """One edge-gated mean layer: neighbours are averaged, each weighted by a gate that reads both ends and the edge.

    After Bresson and Laurent (2017), with mean aggregation so that the size of a neighbourhood does not scale
    the activations. Projections are per node before the gather: a node has several edges, an edge two nodes.
    """

    own: Affine
    message: Affine
    gate_sender: Affine
    gate_receiver: Affine
    gate_edge: Affine
    norm: LayerNorm

    def __init__(self, key: PRNGKeyArray, width: int, edge_features: int):
        keys = jax.random.split(key, 5)
        self.own = Affine(keys[0], width, width)
        self.message = Affine(keys[1], width, width)
        self.gate_sender = Affine(keys[2], width, width, gain=1.0)
        self.gate_receiver = Affine(keys[3], width, width, gain=1.0)
        self.gate_edge = Affine(keys[4], edge_features, width, gain=1.0)
        self.norm = LayerNorm(width)

    def __call__(self, nodes: Float[Array, "nodes width"], graph: Graph) -> Float[Array, "nodes width"]:
        update = self.own(nodes)
        if graph.senders.shape[0]:
            per_sender = jnp.concatenate([self.gate_sender(nodes), self.message(nodes)], axis=-1)[graph.senders]
            gate_sender, message = jnp.split(per_sender, 2, axis=-1)
            gate = jax.nn.sigmoid(
                gate_sender + self.gate_receiver(nodes)[graph.receivers] + self.gate_edge(graph.edges)
            )
            update = update + segment_mean(gate * message, graph.receivers, graph.edge_mask, nodes.shape[0])
        return nodes + jnp.tanh(self.norm(update))


class Residual(eqx.Module):
    """A convolution's result, normalised and bounded, added to what went in; as `GatedMean` does it."""

    convolution: eqx.Module
    norm: LayerNorm

    def __init__(self, key: PRNGKeyArray, width: int, edge_features: int, convolution: Callable[..., eqx.Module]):
        self.convolution = convolution(key, width, edge_features)
        self.norm = LayerNorm(width)

    def __call__(self, nodes: Float[Array, "nodes width"], graph: Graph) -> Float[Array, "nodes width"]:
        return nodes + jnp.tanh(self.norm(self.convolution(nodes, graph)))  # type: ignore[operator]


class Encoder(eqx.Module):
    """Node features (and the graph's globals) to node embeddings by a stack of message-passing layers.

    `layer(key, width, edge_features)` makes one of them, `(nodes, graph) -> nodes` over a disjoint graph. They
    normalise what they add; `layer_norm` asks for the same of the embedding.
    """

    embed_node: Affine
    embed_globals: Affine
    layers: tuple[eqx.Module, ...]
    norm: LayerNorm | None

    def __init__(
        self,
        key: PRNGKeyArray,
        node_features: int,
        edge_features: int,
        global_features: int,
        width: int,
        layers: int,
        layer: Callable[..., eqx.Module] = GatedMean,
        layer_norm: bool = False,
    ):
        keys = jax.random.split(key, layers + 2)
        self.embed_node = Affine(keys[0], node_features, width)
        self.embed_globals = Affine(keys[1], global_features, width)
        self.layers = tuple(layer(k, width, edge_features) for k in keys[2:])
        self.norm = LayerNorm(width) if layer_norm else None

    def __call__(self, graph: Graph) -> Float[Array, "*batch nodes width"]:
        batch, capacity = graph.nodes.shape[:-2], graph.nodes.shape[-2]
        flat = disjoint(graph)
        shared = jnp.repeat(self.embed_globals(flat.globals), capacity, axis=0)
        embedded = self.embed_node(flat.nodes) + shared
        hidden = jnp.tanh(embedded if self.norm is None else self.norm(embedded))
        for layer in self.layers:
            hidden = layer(hidden, flat)  # type: ignore[operator]
        return (hidden * flat.node_mask[:, None]).reshape(*batch, capacity, -1)
