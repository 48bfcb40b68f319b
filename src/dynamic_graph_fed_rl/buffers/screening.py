"""Which experience is worth keeping beside what is kept already."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynamic_graph_fed_rl.environments.base import Observation


class Screen(eqx.Module):
    """A rule over what was seen, as vectors: `compared` of those that are kept are drawn to compare with."""

    threshold: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    compared: int = eqx.field(static=True)

    @abc.abstractmethod
    def passes(self, known: Float[Array, "known size"], fresh: Float[Array, "fresh size"]) -> Bool[Array, " fresh"]:
        """Whether each of the fresh ones is to be kept."""


class MeanDistance(Screen):
    """The mean Euclidean distance to those drawn must reach the threshold.

    Hardly ever fails: what is drawn at random lies far from almost anything, so that the mean says little about
    whether there is something like it already.
    """

    def passes(self, known: Float[Array, "known size"], fresh: Float[Array, "fresh size"]) -> Bool[Array, " fresh"]:
        return _distances(known, fresh).mean(1) >= self.threshold


class Nearest(Screen):
    """The Euclidean distance to the nearest of those drawn must reach the threshold."""

    def passes(self, known: Float[Array, "known size"], fresh: Float[Array, "fresh size"]) -> Bool[Array, " fresh"]:
        return _distances(known, fresh).min(1) >= self.threshold


SCREENS: dict[str, type[Screen]] = {"mean-distance": MeanDistance, "nearest": Nearest}


def described(observation: Observation) -> Float[Array, "*batch size"]:
    """What is seen as one vector: the features of all nodes that are there, and of the graph."""
    graph = observation.graph
    nodes = jnp.where(graph.node_mask[..., None], graph.nodes, 0.0)
    return jnp.concatenate([nodes.reshape(*nodes.shape[:-2], -1), graph.globals], axis=-1)


def _distances(known: Float[Array, "known size"], fresh: Float[Array, "fresh size"]) -> Float[Array, "fresh known"]:
    return jax.lax.map(lambda one: jnp.sqrt(((known - one) ** 2).sum(-1)), fresh, batch_size=64)
