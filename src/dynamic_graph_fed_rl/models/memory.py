"""What a node remembers between decisions."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.base import Observation


class LeakyMemory(eqx.Module):
    """Per node: leaky averages of every feature at several time scales, and the number of steps they cover."""

    averages: Float[Array, "*batch nodes features scales"]
    steps: Int[Array, "*batch nodes"]


class LeakyBank(eqx.Module):
    """A linear memory of fixed time scales [decisions], bias-corrected as in Adam.

    It represents persistence (scale 1) and moving averages exactly, which learned recurrent memories do not
    (TGNv2, arXiv 2411.03596), has no parameters, and costs nothing to run backwards through.
    """

    scales: tuple[int, ...] = eqx.field(static=True, default=(1, 5, 20, 100))

    def features(self, node_features: int) -> int:
        """Width of `read`'s result."""
        return node_features * len(self.scales)

    def initial(self, observation: Observation) -> LeakyMemory:
        shape = observation.graph.nodes.shape
        return LeakyMemory(jnp.zeros((*shape, len(self.scales))), jnp.zeros(shape[:-1], jnp.int32))

    def remember(self, memory: LeakyMemory, observation: Observation) -> LeakyMemory:
        """Take in one observation; nodes just born, and all nodes of a new episode, start afresh."""
        fresh: Bool[Array, "*batch nodes"] = observation.first[..., None] | observation.births
        averages = jnp.where(fresh[..., None, None], 0.0, memory.averages)
        keep = 1.0 - 1.0 / jnp.asarray(self.scales, averages.dtype)
        averages = keep * averages + (1.0 - keep) * observation.graph.nodes[..., None]
        return LeakyMemory(averages, jnp.where(fresh, 0, memory.steps) + 1)

    def read(self, memory: LeakyMemory) -> Float[Array, "*batch nodes remembered"]:
        keep = 1.0 - 1.0 / jnp.asarray(self.scales, memory.averages.dtype)
        steps = memory.steps[..., None, None].astype(memory.averages.dtype)
        corrected = memory.averages / jnp.maximum(1.0 - keep**steps, 1e-6)
        return corrected.reshape(*corrected.shape[:-2], -1)
