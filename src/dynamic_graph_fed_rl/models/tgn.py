"""Memory of temporal graph networks: what a node remembers is moved by messages along live edges."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import disjoint, segment_mean
from dynamic_graph_fed_rl.models.layers import Affine
from dynamic_graph_fed_rl.models.memory import NodeMemory, present, starts_afresh
from dynamic_graph_fed_rl.models.recurrent import GRUCell


class TGNState(eqx.Module):
    """Per node: its features when last seen, its memory, and the decisions since messages last moved that."""

    latest: Float[Array, "*batch nodes features"]
    hidden: Float[Array, "*batch nodes width"]
    idle: Int[Array, "*batch nodes"]


class TGNMemory(NodeMemory):
    """Memory of a temporal graph network (Rossi et al. 2020, section 3.1) over snapshots of a graph.

    A live edge is an interaction at every decision. Its receiver gets the identity message: its own and the sender's
    memory, its own and the sender's features, the edge's features, and the encoded time since its memory last moved.
    The last message counts; those that arrive in one snapshot are averaged, so that the order of edges does not
    matter. A node without a live edge sends itself a message when its features have changed. Messages move the memory
    at once; the paper holds them back for a batch to train on predicting links, here the reward trains it.
    """

    cell: GRUCell
    time: Affine

    def __init__(self, key: PRNGKeyArray, node_features: int, edge_features: int, width: int):
        cell_key, time_key = jax.random.split(key)
        self.cell = GRUCell(cell_key, 3 * width + 2 * node_features + edge_features, width)
        self.time = Affine(time_key, 1, width)

    @property
    def width(self) -> int:
        return self.time.bias.shape[-1]

    def features(self, node_features: int) -> int:
        return node_features + self.width

    def initial(self, observation: Observation) -> TGNState:
        nodes = observation.graph.nodes
        shape = nodes.shape[:-1]
        return TGNState(jnp.zeros_like(nodes), jnp.zeros((*shape, self.width)), jnp.zeros(shape, jnp.int32))

    def remember(self, memory: TGNState, observation: Observation) -> TGNState:
        nodes, fresh = present(observation.graph.nodes, observation), starts_afresh(observation)
        hidden = jnp.where(fresh[..., None], 0.0, memory.hidden)
        idle = jnp.where(fresh, 0, memory.idle) + observation.graph.node_mask
        changed = fresh | (nodes != memory.latest).any(-1)

        graph = disjoint(observation.graph)
        own = jnp.concatenate([hidden, nodes], axis=-1).reshape(graph.nodes.shape[0], -1)
        sent = jnp.concatenate([own[graph.senders], graph.edges], axis=-1)
        heard = segment_mean(sent, graph.receivers, graph.edge_mask, own.shape[0])
        linked = jax.ops.segment_max(graph.edge_mask.astype(jnp.int32), graph.receivers, own.shape[0]) > 0
        to_itself = jnp.pad(own, ((0, 0), (0, graph.edges.shape[-1])))
        heard = jnp.where(linked[:, None], heard, to_itself).reshape(*nodes.shape[:-1], -1)
        linked = linked.reshape(changed.shape)

        split = jnp.split(heard, [self.width, self.width + nodes.shape[-1]], axis=-1)
        elapsed = jnp.cos(self.time(idle[..., None].astype(nodes.dtype)))
        message = jnp.concatenate([hidden, split[0], nodes, *split[1:], elapsed], axis=-1)
        moved = (linked | changed) & observation.graph.node_mask
        hidden = jnp.where(moved[..., None], self.cell(message, hidden), hidden)
        return TGNState(nodes, hidden, jnp.where(moved, 0, idle))

    def read(self, memory: TGNState) -> Float[Array, "*batch nodes remembered"]:
        return jnp.concatenate([memory.latest, memory.hidden], axis=-1)
