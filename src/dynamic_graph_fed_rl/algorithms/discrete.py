"""What methods that learn values of discrete choices share: networks, and exploration."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.build import build_memory
from dynamic_graph_fed_rl.models.memory import NodeMemory, remembered
from dynamic_graph_fed_rl.models.values import ChoiceValues, best


class ChoiceNetworks(eqx.Module):
    """What an agent remembers with, and its values of choices."""

    memory: NodeMemory
    values: ChoiceValues

    def __init__(
        self,
        key: PRNGKeyArray,
        spec: Spec,
        width: int,
        layers: int,
        encoder: str,
        memory: str | None,
        dueling: bool,
        layer_norm: bool,
    ):
        memory_key, value_key = jax.random.split(key)
        self.memory = build_memory(memory_key, spec, width, encoder, memory)
        features = self.memory.features(len(spec.node_features))
        self.values = ChoiceValues(value_key, features, spec, width, layers, encoder, dueling, layer_norm)

    def __call__(self, memory: PyTree, observation: Observation) -> Float[Array, "*batch slots choices"]:
        """Values given memory that includes this observation."""
        return self.values(remembered(self.memory, memory, observation), observation)


def epsilon_greedy(
    key: PRNGKeyArray,
    values: Float[Array, "*batch slots choices"],
    allowed: Bool[Array, "*batch slots choices"],
    epsilon: Float[Array, ""] | float,
) -> Int[Array, "*batch slots"]:
    """The best choice, or with probability `epsilon`, in each slot by itself, any allowed one."""
    explore_key, choice_key = jax.random.split(key)
    anything = jax.random.categorical(choice_key, jnp.where(allowed, 0.0, -jnp.inf))
    explores = jax.random.bernoulli(explore_key, epsilon, anything.shape)
    return jnp.where(explores, anything, best(values, allowed))


def decayed(
    first: Float[Array, ""], last: Float[Array, ""], share: Float[Array, ""], progress: Float[Array, "*runs"]
) -> Float[Array, "*runs"]:
    """Falls from `first` to `last` over a share of the run, whose progress goes from 0 to 1."""
    return first + (last - first) * jnp.minimum(progress / share, 1.0)
