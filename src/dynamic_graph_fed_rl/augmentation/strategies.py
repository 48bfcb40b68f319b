"""Pure functions from what was observed to what worse sensors would have shown.

They change what is seen and never what can be done: action masks, owners of slots, episode starts and births stay.
Observations have any batch axes; where time matters, it is the first of them.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dynamic_graph_fed_rl.augmentation.settings import STRATEGIES
from dynamic_graph_fed_rl.environments.base import Observation

Probability = float | Float[Array, ""]


def edge_dropout(
    key: PRNGKeyArray,
    observation: Observation,
    probability: Probability,
    critical_column: int | None = None,
    critical_threshold: Probability = 0.9,
) -> Observation:
    """Directed edges fall silent, each on its own: features 0, mask False.

    An edge whose feature in `critical_column` is above `critical_threshold` in magnitude never does.
    """
    graph = observation.graph
    silent = jax.random.bernoulli(key, probability, graph.edge_mask.shape)
    if critical_column is not None:
        silent &= jnp.abs(graph.edges[..., critical_column]) <= critical_threshold
    return eqx.tree_at(
        lambda one: (one.graph.edges, one.graph.edge_mask),
        observation,
        (jnp.where(silent[..., None], 0.0, graph.edges), graph.edge_mask & ~silent),
    )


def node_dropout(key: PRNGKeyArray, observation: Observation, probability: Probability) -> Observation:
    """Nodes fall silent, each on its own: their features and those of the slots they own are 0.

    They stay part of the graph, for it is known that they are there.
    """
    graph = observation.graph
    silent = jax.random.bernoulli(key, probability, graph.node_mask.shape)
    # a slot of the graph as a whole has no node to fall silent with it
    owners = jnp.concatenate([silent, jnp.zeros_like(silent, shape=(*silent.shape[:-1], 1))], axis=-1)
    slots = jnp.take_along_axis(owners, observation.slot_owner, axis=-1)
    return eqx.tree_at(
        lambda one: (one.graph.nodes, one.slots),
        observation,
        (
            jnp.where(silent[..., None], 0.0, graph.nodes),
            jnp.where(slots[..., None], 0.0, observation.slots),
        ),
    )


def node_feature_noise(
    key: PRNGKeyArray, observation: Observation, probability: Probability, noise: Probability
) -> Observation:
    """Normal noise on all features of some nodes, each on its own.

    Its standard deviation is `noise` times that of the feature over all nodes that are there in the batch, so that
    what is the same for all stays as it is.
    """
    graph = observation.graph
    choose_key, draw_key = jax.random.split(key)
    noisy = jax.random.bernoulli(choose_key, probability, graph.node_mask.shape) & graph.node_mask
    deviation = noise * _spread(graph.nodes, graph.node_mask) * jax.random.normal(draw_key, graph.nodes.shape)
    nodes = jnp.where(noisy[..., None], graph.nodes + deviation, graph.nodes)
    return eqx.tree_at(lambda one: one.graph.nodes, observation, nodes)


def temporal_shift(key: PRNGKeyArray, observation: Observation, probability: Probability) -> Observation:
    """Some observations `[T, ...]` are late, each on its own: every feature is that of the row before.

    Not so at the start of an episode, nor in the slot of a node just born or of an edge that was not there before.
    """
    late = jax.random.bernoulli(key, probability, observation.first.shape) & ~observation.first
    # the first row has none before it and stays as it is
    before = jax.tree.map(lambda leaf: jnp.concatenate([leaf[:1], leaf[:-1]]), observation)
    now, then = observation.graph, before.graph
    same_edge = then.edge_mask & (then.senders == now.senders) & (then.receivers == now.receivers)
    same_node = then.node_mask & ~observation.births
    same_slot = before.slot_owner == observation.slot_owner

    def delayed(same: Bool[Array, "*rows"], old: Array, new: Array) -> Array:
        return jnp.where((late[..., None] & same)[..., None], old, new)

    return eqx.tree_at(
        lambda one: (one.graph.nodes, one.graph.edges, one.graph.globals, one.slots),
        observation,
        (
            delayed(same_node, then.nodes, now.nodes),
            delayed(same_edge, then.edges, now.edges),
            jnp.where(late[..., None], then.globals, now.globals),
            delayed(same_slot, before.slots, observation.slots),
        ),
    )


def augmented(
    key: PRNGKeyArray,
    observation: Observation,
    strategies: Sequence[str],
    probability: Probability = 0.1,
    noise: Probability = 0.1,
    critical_column: int | None = None,
    critical_threshold: Probability = 0.9,
) -> Observation:
    """Observations `[T, ...]` after the named strategies, in the order of `STRATEGIES`.

    A strategy draws the same whichever others there are.
    """
    apply = {
        "temporal_shift": lambda one, seen: temporal_shift(one, seen, probability),
        "node_feature_noise": lambda one, seen: node_feature_noise(one, seen, probability, noise),
        "node_dropout": lambda one, seen: node_dropout(one, seen, probability),
        "edge_dropout": lambda one, seen: edge_dropout(one, seen, probability, critical_column, critical_threshold),
    }
    for i, name in enumerate(STRATEGIES):
        if name in strategies:
            observation = apply[name](jax.random.fold_in(key, i), observation)
    return observation


def _spread(
    values: Float[Array, "*batch nodes features"], mask: Bool[Array, "*batch nodes"]
) -> Float[Array, " features"]:
    """Standard deviation of each feature over all nodes that are there."""
    rows = jnp.where(mask[..., None], values, 0.0).reshape(-1, values.shape[-1])
    there = mask.reshape(-1, 1)
    count = jnp.maximum(there.sum(), 1)
    centred = jnp.where(there, rows - rows.sum(0) / count, 0.0)
    return jnp.sqrt((centred**2).sum(0) / count)
