"""Memory at several time scales, each with a graph attention and a recurrent unit of its own."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import Graph, disjoint
from dynamic_graph_fed_rl.models.attention import GATv2, heads_of
from dynamic_graph_fed_rl.models.layers import Affine
from dynamic_graph_fed_rl.models.memory import NodeMemory, present, starts_afresh
from dynamic_graph_fed_rl.models.recurrent import GRUCell


class Scale(eqx.Module):
    """What one time scale makes of a snapshot: node features through graph attention into its recurrent unit."""

    embed: Affine
    attention: GATv2
    cell: GRUCell

    def __init__(self, key: PRNGKeyArray, node_features: int, edge_features: int, width: int):
        keys = jax.random.split(key, 3)
        self.embed = Affine(keys[0], node_features, width)
        self.attention = GATv2(keys[1], width, edge_features)
        self.cell = GRUCell(keys[2], width, width)

    def __call__(
        self, nodes: Float[Array, "nodes features"], hidden: Float[Array, "nodes width"], graph: Graph
    ) -> Float[Array, "nodes width"]:
        seen = jnp.tanh(self.attention(jnp.tanh(self.embed(nodes)), graph))
        return self.cell(seen, hidden)


class MultiScaleState(eqx.Module):
    """Per node: its features when last seen, the decisions it has been there; and per scale what its unit holds, and
    the mean of the features since it last ticked."""

    latest: Float[Array, "*batch nodes features"]
    age: Int[Array, "*batch nodes"]
    hidden: Float[Array, "*batch nodes scales width"]
    waiting: Float[Array, "*batch nodes scales features"]


class MultiScaleMemory(NodeMemory):
    """Recurrent units that tick every 1, 5, 20 and 100 decisions, and attention over these scales, node by node.

    A slow unit takes few steps through a long time, so that gradients reach far back (clockwork recurrent network,
    Koutnik et al. 2014). All tick when a node appears; between two ticks the features are averaged, so that nothing
    is skipped. The node's fastest unit asks, the units of all scales answer (multi-head attention, Vaswani et al.
    2017); what is read is the node's features and the answer.
    """

    units: tuple[Scale, ...]
    query: Affine
    key: Affine
    value: Affine
    scales: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        node_features: int,
        edge_features: int,
        width: int,
        scales: tuple[int, ...] = (1, 5, 20, 100),
    ):
        keys = jax.random.split(key, len(scales) + 3)
        self.query = Affine(keys[0], width, width, gain=1.0)
        self.key = Affine(keys[1], width, width, gain=1.0)
        self.value = Affine(keys[2], width, width, gain=1.0)
        self.units = tuple(Scale(k, node_features, edge_features, width) for k in keys[3:])
        self.scales = scales

    @property
    def width(self) -> int:
        return self.query.bias.shape[-1]

    def features(self, node_features: int) -> int:
        return node_features + self.width

    def initial(self, observation: Observation) -> MultiScaleState:
        nodes = observation.graph.nodes
        shape, scales = nodes.shape[:-1], len(self.scales)
        return MultiScaleState(
            jnp.zeros_like(nodes),
            jnp.zeros(shape, jnp.int32),
            jnp.zeros((*shape, scales, self.width)),
            jnp.zeros((*shape, scales, nodes.shape[-1])),
        )

    def remember(self, memory: MultiScaleState, observation: Observation) -> MultiScaleState:
        nodes, fresh = present(observation.graph.nodes, observation), starts_afresh(observation)
        age = jnp.where(fresh, 0, memory.age)
        hidden = jnp.where(fresh[..., None, None], 0.0, memory.hidden)
        waiting = jnp.where(fresh[..., None, None], 0.0, memory.waiting)
        scales = jnp.asarray(self.scales)
        # decisions since the last tick, this one included; all tick at age 0
        since = (age[..., None] - 1) % scales + 1
        since = jnp.where(age[..., None] == 0, 1, since)[..., None]
        waiting = waiting + (nodes[..., None, :] - waiting) / since
        ticks = (age[..., None] % scales == 0)[..., None]

        graph = disjoint(observation.graph)
        rows = graph.nodes.shape[0]
        taken = [
            unit(waiting[..., i, :].reshape(rows, -1), hidden[..., i, :].reshape(rows, -1), graph)
            for i, unit in enumerate(self.units)
        ]
        hidden = jnp.where(ticks, jnp.stack(taken, axis=-2).reshape(hidden.shape), hidden)
        there = observation.graph.node_mask
        return MultiScaleState(
            nodes,
            age + there,
            jnp.where(there[..., None, None], hidden, 0.0),
            jnp.where(ticks, 0.0, waiting),
        )

    def attended(
        self, memory: MultiScaleState
    ) -> tuple[Float[Array, "*batch nodes heads scales"], Float[Array, "*batch nodes width"]]:
        """How much each head of a node attends to each scale (sums to 1), and the answer."""
        heads = heads_of(self.width)

        def divided(values: Float[Array, "*rows width"]) -> Float[Array, "*rows heads size"]:
            return values.reshape(*values.shape[:-1], heads, -1)

        query = divided(self.query(memory.hidden[..., 0, :]))
        key, value = divided(self.key(memory.hidden)), divided(self.value(memory.hidden))
        scores = jnp.einsum("...hd,...shd->...hs", query, key) / jnp.sqrt(self.width // heads)
        weights = jax.nn.softmax(scores, axis=-1)
        answer = jnp.einsum("...hs,...shd->...hd", weights, value)
        return weights, answer.reshape(*answer.shape[:-2], self.width)

    def read(self, memory: MultiScaleState) -> Float[Array, "*batch nodes remembered"]:
        return jnp.concatenate([memory.latest, self.attended(memory)[1]], axis=-1)
