"""From node embeddings to action slots and back."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph, masked_mean
from dynamic_graph_fed_rl.models.build import build_encoder
from dynamic_graph_fed_rl.models.layers import Affine, Perceptron
from dynamic_graph_fed_rl.models.message_passing import Encoder


def at_slots(
    hidden: Float[Array, "*batch nodes width"], graph: Graph, observation: Observation
) -> Float[Array, "*batch slots features"]:
    """For each slot the embedding of the node that owns it (the mean of all, where that is the graph as a whole)
    and the slot's own features."""
    whole = masked_mean(hidden, graph.node_mask)
    candidates = jnp.concatenate([hidden, whole[..., None, :]], axis=-2)
    owner = jnp.take_along_axis(candidates, observation.slot_owner[..., None], axis=-2)
    return jnp.concatenate([owner, observation.slots], axis=-1)


def at_nodes(
    values: Float[Array, "*batch slots width"], observation: Observation, usable: Array
) -> Float[Array, "*batch nodes width"]:
    """For each node the mean over its usable slots, plus that over the slots of the graph as a whole."""
    capacity = observation.graph.nodes.shape[-2]
    owned = jax.nn.one_hot(observation.slot_owner, capacity + 1, axis=-2) * usable[..., None, :]
    mean = (owned @ values) / jnp.maximum(owned.sum(-1, keepdims=True), 1.0)
    return mean[..., :capacity, :] + mean[..., capacity:, :]


class SlotNetwork(eqx.Module):
    """Numbers for each slot: an encoder, a head on what a slot sees, and a linear map from the slot's own features
    straight to the result ("wide and deep", Cheng et al. 2016), so that linear rules are found early.

    Where the spec says what is known of each choice, one head and one map serve all choices, each of which sees the
    embedding and its own features: the numbers are those of the first choice, of the second, and so on, `outputs` in
    all. What is learned for one choice then holds for all, in any order, and where there are more or fewer of them.
    """

    encoder: Encoder
    head: Perceptron
    direct: Affine
    choice_features: int = eqx.field(static=True)
    """Of each choice; 0 where slots are scored as a whole."""

    def __init__(
        self,
        keys: Key[Array, " both"],
        node_features: int,
        spec: Spec,
        outputs: int,
        width: int,
        layers: int,
        encoder: str,
        last_gain: float = 0.01,
        layer_norm: bool = False,
    ):
        encoder_key, head_key = keys
        self.choice_features = len(spec.choice_features)
        features, each = len(spec.slot_features), outputs
        if self.choice_features:
            features, each = self.choice_features, outputs // spec.action_size
        self.encoder = build_encoder(encoder_key, node_features, spec, width, layers, encoder, layer_norm)
        self.head = Perceptron(head_key, (width + features, width, each), last_gain, layer_norm)
        self.direct = Affine(head_key, features, each, gain=0.0)

    def __call__(self, graph: Graph, observation: Observation) -> Float[Array, "*batch slots outputs"]:
        seen, own = at_slots(self.encoder(graph), graph, observation), observation.slots
        if not self.choice_features:
            return self.head(seen) + self.direct(own)
        owner = seen[..., None, : seen.shape[-1] - own.shape[-1]]
        own = own.reshape(*own.shape[:-1], -1, self.choice_features)
        owner = jnp.broadcast_to(owner, (*own.shape[:-1], owner.shape[-1]))
        numbers = self.head(jnp.concatenate([owner, own], axis=-1)) + self.direct(own)
        return numbers.reshape(*numbers.shape[:-2], -1)
