"""Values of actions on graphs of any size."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph, masked_mean
from dynamic_graph_fed_rl.models.build import build_encoder
from dynamic_graph_fed_rl.models.layers import Affine, LayerNorm, Perceptron
from dynamic_graph_fed_rl.models.message_passing import Encoder
from dynamic_graph_fed_rl.models.slots import SlotNetwork, at_nodes, at_slots


class ActionCritic(eqx.Module):
    """Q of a continuous action in every slot.

    Each slot's features and action reach the node that owns it before messages are passed. The value is a head on
    the mean embedding plus the mean over slots of a head on what each slot sees and does: means, so that it does
    not depend on the size of the graph, and a term a slot, so that what one of fifty does is not lost in the mean.
    """

    embed: Affine
    encoder: Encoder
    norm: LayerNorm
    whole: Perceptron
    slot: Perceptron

    def __init__(self, key: PRNGKeyArray, node_features: int, spec: Spec, width: int, layers: int, encoder: str):
        keys = jax.random.split(key, 4)
        slot_inputs = len(spec.slot_features) + spec.action_size
        self.embed = Affine(keys[0], slot_inputs, width)
        self.encoder = build_encoder(keys[1], node_features + width, spec, width, layers, encoder)
        self.norm = LayerNorm(width)
        self.whole = Perceptron(keys[2], (width + len(spec.global_features), width, 1))
        self.slot = Perceptron(keys[3], (width + slot_inputs, width, 1))

    def __call__(
        self, graph: Graph, observation: Observation, action: Float[Array, "*batch slots size"]
    ) -> Float[Array, "*batch"]:
        usable = observation.action_mask
        given = jnp.concatenate([observation.slots, action], axis=-1)
        acted = jnp.concatenate([graph.nodes, at_nodes(jnp.tanh(self.embed(given)), observation, usable)], axis=-1)
        hidden = self.norm(self.encoder(eqx.tree_at(lambda g: g.nodes, graph, acted)))
        pooled = jnp.concatenate([masked_mean(hidden, graph.node_mask), graph.globals], axis=-1)
        each = self.slot(jnp.concatenate([at_slots(hidden, graph, observation), action], axis=-1))
        return (self.whole(pooled) + masked_mean(each, usable))[..., 0]


class QuadraticCritic(eqx.Module):
    """Q of a continuous action in every slot, a parabola of every number of it that opens downwards.

    The normalised advantage function (Gu et al. 2016, equation 2) with a diagonal matrix, around no action at all:
    the mean over slots of `v + slope . x - curvature . x^2 / 2`, with `x` the action in units of `reach`, the size
    of the actions that are tried. Slopes begin near 0: doing nothing is best until the rewards say otherwise, and
    an actor that follows a critic which knows nothing yet stays where it is.
    """

    slots: SlotNetwork
    size: int = eqx.field(static=True)
    reach: float = eqx.field(static=True)

    def __init__(
        self, key: PRNGKeyArray, node_features: int, spec: Spec, width: int, layers: int, encoder: str, reach: float
    ):
        keys, outputs = jax.random.split(key), 1 + 2 * spec.action_size
        self.slots = SlotNetwork(keys, node_features, spec, outputs, width, layers, encoder)
        self.size, self.reach = spec.action_size, reach

    def __call__(
        self, graph: Graph, observation: Observation, action: Float[Array, "*batch slots size"]
    ) -> Float[Array, "*batch"]:
        value, slope, bend = jnp.split(self.slots(graph, observation), (1, 1 + self.size), axis=-1)
        x = action / self.reach
        parabola = (slope * x - 0.5 * jax.nn.softplus(bend) * x**2).sum(-1, keepdims=True)
        return masked_mean(value + parabola, observation.action_mask)[..., 0]
