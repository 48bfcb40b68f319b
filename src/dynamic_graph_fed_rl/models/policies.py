"""The graph actor-critic: one network for any number of nodes, edges and action slots."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph, masked_mean
from dynamic_graph_fed_rl.models.build import build_memory
from dynamic_graph_fed_rl.models.distributions import Categorical, Gaussian
from dynamic_graph_fed_rl.models.layers import Affine, Perceptron
from dynamic_graph_fed_rl.models.memory import NodeMemory, remembered
from dynamic_graph_fed_rl.models.slots import SlotNetwork


class GraphCritic(eqx.Module):
    """State value from the masked means of node and edge embeddings and the graph's globals."""

    nodes: Affine
    edges: Affine
    head: Perceptron
    direct: Affine

    def __init__(self, key: PRNGKeyArray, node_features: int, spec: Spec, width: int):
        keys = jax.random.split(key, 3)
        self.nodes = Affine(keys[0], node_features, width)
        self.edges = Affine(keys[1], len(spec.edge_features), width)
        self.head = Perceptron(keys[2], (2 * width + len(spec.global_features), width, 1))
        self.direct = Affine(keys[2], len(spec.global_features), 1, gain=0.0)

    def __call__(self, graph: Graph) -> Float[Array, "*batch"]:
        pooled = [
            masked_mean(jnp.tanh(self.nodes(graph.nodes)), graph.node_mask),
            masked_mean(jnp.tanh(self.edges(graph.edges)), graph.edge_mask),
            graph.globals,
        ]
        return (self.head(jnp.concatenate(pooled, axis=-1)) + self.direct(graph.globals))[..., 0]


class GraphActorCritic(eqx.Module):
    """Policy and value over graphs with memory.

    The actor reads, for each slot, the embedding of the node that owns it (or the mean of all, for a slot of the
    graph as a whole) and the slot's own features. Its parameters do not depend on the size of the graph, so agents
    with unlike regions can share them.
    """

    memory: NodeMemory
    actor: SlotNetwork
    log_std: Float[Array, " size"]
    critic: GraphCritic
    discrete: bool = eqx.field(static=True)
    edge_features: tuple[str, ...] = eqx.field(static=True)
    """Names of what it reads of an edge."""

    def __init__(
        self,
        key: PRNGKeyArray,
        spec: Spec,
        width: int = 32,
        layers: int = 2,
        initial_std: float = 0.3,
        encoder: str = "edge-gated",
        memory: str | None = None,
    ):
        encoder_key, actor_key, critic_key = jax.random.split(key, 3)
        # of its own, so that a learned memory does not move what the others start from
        memory_key = jax.random.fold_in(key, 3)
        self.memory = build_memory(memory_key, spec, width, encoder, memory)
        remembered = self.memory.features(len(spec.node_features))
        keys = jnp.stack([encoder_key, actor_key])
        self.actor = SlotNetwork(keys, remembered, spec, spec.action_size, width, layers, encoder)
        # choices have none: what is learned does not depend on how many there are
        sizes = 0 if spec.action == "discrete" else spec.action_size
        self.log_std = jnp.full((sizes,), math.log(initial_std), jnp.float32)
        self.critic = GraphCritic(critic_key, remembered, spec, width)
        self.discrete = spec.action == "discrete"
        self.edge_features = tuple(column.name for column in spec.edge_features)

    def initial_memory(self, observation: Observation) -> PyTree:
        return self.memory.initial(observation)

    def remember(self, memory: PyTree, observation: Observation) -> PyTree:
        return self.memory.remember(memory, observation)

    def actions(self, memory: PyTree, observation: Observation) -> Gaussian | Categorical:
        """The distribution over every slot's action, given memory that includes this observation."""
        head = self.actor(remembered(self.memory, memory, observation), observation)
        if self.discrete:
            return Categorical(head, observation.action_mask)
        return Gaussian(head, jnp.broadcast_to(self.log_std, head.shape))

    def value(self, memory: PyTree, observation: Observation) -> Float[Array, "*batch"]:
        return self.critic(remembered(self.memory, memory, observation))
