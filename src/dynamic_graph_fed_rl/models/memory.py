"""What a node remembers between decisions: the contract, and the memories without parameters."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import Graph


class NodeMemory(eqx.Module):
    """A memory of its own for every node, of whatever batch of graphs.

    A node just born and all nodes of a new episode start afresh; the slot of a node that is not there is zero.
    """

    @abc.abstractmethod
    def features(self, node_features: int) -> int:
        """Width of `read`'s result."""

    @abc.abstractmethod
    def initial(self, observation: Observation) -> PyTree:
        """Memory before the first observation, shaped like the batch of `observation`."""

    @abc.abstractmethod
    def remember(self, memory: PyTree, observation: Observation) -> PyTree:
        """Take in one observation."""

    @abc.abstractmethod
    def read(self, memory: PyTree) -> Float[Array, "*batch nodes remembered"]: ...


def remembered(remembering: NodeMemory, memory: PyTree, observation: Observation) -> Graph:
    """The observed graph with what is remembered of each node in place of its features."""
    return eqx.tree_at(lambda graph: graph.nodes, observation.graph, remembering.read(memory))


def has_parameters(memory: NodeMemory) -> bool:
    """Whether the memory is learned, so that what it holds changes with every update."""
    return bool(jax.tree.leaves(memory))


def starts_afresh(observation: Observation) -> Bool[Array, "*batch nodes"]:
    """Nodes of which nothing earlier may be left: new episode, just born, or not there."""
    return observation.first[..., None] | observation.births | ~observation.graph.node_mask


def present(
    values: Float[Array, "*batch nodes width"], observation: Observation
) -> Float[Array, "*batch nodes width"]:
    """The values of nodes that are there; 0 in the slots of the others, whatever padding holds."""
    return jnp.where(observation.graph.node_mask[..., None], values, 0.0)


class NoMemory(NodeMemory):
    """The last observation, for comparison."""

    def features(self, node_features: int) -> int:
        return node_features

    def initial(self, observation: Observation) -> Float[Array, "*batch nodes features"]:
        return jnp.zeros_like(observation.graph.nodes)

    def remember(
        self, memory: Float[Array, "*before nodes features"], observation: Observation
    ) -> Float[Array, "*batch nodes features"]:
        return present(observation.graph.nodes, observation)

    def read(self, memory: Float[Array, "*batch nodes features"]) -> Float[Array, "*batch nodes features"]:
        return memory


class LeakyMemory(eqx.Module):
    """Per node: leaky averages of every feature at several time scales, and the number of steps they cover."""

    averages: Float[Array, "*batch nodes features scales"]
    steps: Int[Array, "*batch nodes"]


class LeakyBank(NodeMemory):
    """A linear memory of fixed time scales [decisions], bias-corrected as in Adam.

    It represents persistence (scale 1) and moving averages exactly, which learned recurrent memories do not
    (TGNv2, arXiv 2411.03596), has no parameters, and costs nothing to run backwards through.
    """

    scales: tuple[int, ...] = eqx.field(static=True, default=(1, 5, 20, 100))

    def features(self, node_features: int) -> int:
        return node_features * len(self.scales)

    def initial(self, observation: Observation) -> LeakyMemory:
        shape = observation.graph.nodes.shape
        return LeakyMemory(jnp.zeros((*shape, len(self.scales))), jnp.zeros(shape[:-1], jnp.int32))

    def remember(self, memory: LeakyMemory, observation: Observation) -> LeakyMemory:
        fresh = starts_afresh(observation)
        averages = jnp.where(fresh[..., None, None], 0.0, memory.averages)
        keep = 1.0 - 1.0 / jnp.asarray(self.scales, averages.dtype)
        nodes = present(observation.graph.nodes, observation)
        averages = keep * averages + (1.0 - keep) * nodes[..., None]
        steps = jnp.where(fresh, 0, memory.steps) + observation.graph.node_mask
        return LeakyMemory(averages, steps)

    def read(self, memory: LeakyMemory) -> Float[Array, "*batch nodes remembered"]:
        keep = 1.0 - 1.0 / jnp.asarray(self.scales, memory.averages.dtype)
        steps = memory.steps[..., None, None].astype(memory.averages.dtype)
        corrected = memory.averages / jnp.maximum(1.0 - keep**steps, 1e-6)
        return corrected.reshape(*corrected.shape[:-2], -1)
