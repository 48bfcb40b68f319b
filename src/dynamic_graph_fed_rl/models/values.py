"""Values of discrete choices, a slot at a time, and what an agent's choices in all its slots are worth together."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph, masked_mean
from dynamic_graph_fed_rl.models.slots import SlotNetwork


class ChoiceValues(eqx.Module):
    """Q of each choice of every slot; with `dueling` the sum of a value of the slot and advantages of its choices."""

    network: SlotNetwork
    dueling: bool = eqx.field(static=True)

    def __init__(
        self,
        key: PRNGKeyArray,
        node_features: int,
        spec: Spec,
        width: int,
        layers: int,
        encoder: str,
        dueling: bool = False,
        layer_norm: bool = False,
    ):
        # choices that are scored alike have a part each in the value of their slot
        outputs = spec.action_size * (1 + dueling) if spec.choice_features else spec.action_size + dueling
        keys = jax.random.split(key)
        self.network = SlotNetwork(keys, node_features, spec, outputs, width, layers, encoder, layer_norm=layer_norm)
        self.dueling = dueling

    def __call__(self, graph: Graph, observation: Observation) -> Float[Array, "*batch slots choices"]:
        numbers = self.network(graph, observation)
        if not self.dueling:
            return numbers
        allowed = observation.action_mask
        if not self.network.choice_features:
            return duel(numbers[..., 0], numbers[..., 1:], allowed)
        value, advantage = numbers[..., ::2], numbers[..., 1::2]
        return duel(masked_mean(value[..., None], allowed)[..., 0], advantage, allowed)


def duel(
    value: Float[Array, "*batch slots"],
    advantage: Float[Array, "*batch slots choices"],
    allowed: Bool[Array, "*batch slots choices"],
) -> Float[Array, "*batch slots choices"]:
    """`V + A - mean A` (Wang et al. 2016, equation 9), the mean over the allowed choices: what may not be chosen
    does not move what may."""
    count = jnp.maximum(allowed.sum(-1, keepdims=True), 1)
    mean = jnp.where(allowed, advantage, 0.0).sum(-1, keepdims=True) / count
    return value[..., None] + advantage - mean


def best(
    values: Float[Array, "*batch slots choices"], allowed: Bool[Array, "*batch slots choices"]
) -> Int[Array, "*batch slots"]:
    """The allowed choice of highest value in every slot; 0 where there is none (padding)."""
    return jnp.argmax(jnp.where(allowed, values, -jnp.inf), axis=-1)


def together(
    values: Float[Array, "*batch slots choices"],
    choice: Int[Array, "*batch slots"],
    allowed: Bool[Array, "*batch slots choices"],
) -> Float[Array, "*batch"]:
    """Value of an agent's choices: the mean over its usable slots of the values chosen.

    Value decomposition (Sunehag et al. 2018, equation 3) with a mean in place of the sum, so that it does not grow
    with the graph. As it rises with every slot's value, the best choices together are those of the slots.
    """
    chosen = jnp.take_along_axis(values, choice[..., None], axis=-1)
    return masked_mean(chosen, allowed.any(-1))[..., 0]
