"""Who exchanges with whom: row-stochastic mixing weights `W[receiver, sender]`, drawn anew every round."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray


class Overlay(eqx.Module):
    """Mixing weights of a federation of `agents`; a row belongs to the receiver and sums to 1."""

    agents: int = eqx.field(static=True)

    @abc.abstractmethod
    def weights(self, key: PRNGKeyArray) -> Float[Array, "agents agents"]: ...


class Complete(Overlay):
    """Everybody hears everybody, equally."""

    def weights(self, key: PRNGKeyArray) -> Float[Array, "agents agents"]:
        return jnp.full((self.agents, self.agents), 1.0 / self.agents)


class Ring(Overlay):
    """Each agent hears itself and its two neighbours, a third each (a half each for two agents)."""

    def weights(self, key: PRNGKeyArray) -> Float[Array, "agents agents"]:
        own = jnp.eye(self.agents)
        heard = jnp.minimum(own + jnp.roll(own, 1, axis=1) + jnp.roll(own, -1, axis=1), 1.0)
        return heard / heard.sum(1, keepdims=True)


class RandomPairs(Overlay):
    """Each agent hears itself and `degree` others, drawn anew every round.

    The agents are put on a circle in random order and each hears the next `degree`: every agent is heard as
    often as it hears, so the weights are doubly stochastic and the mean is kept.
    """

    degree: int = eqx.field(static=True, default=2)

    def weights(self, key: PRNGKeyArray) -> Float[Array, "agents agents"]:
        place = jax.random.permutation(key, self.agents)
        distance = (place[None, :] - place[:, None]) % self.agents
        heard = distance <= min(self.degree, self.agents - 1)
        return heard / heard.sum(1, keepdims=True)


OVERLAYS = {"complete": Complete, "ring": Ring, "random": RandomPairs}


def present(weights: Float[Array, "agents agents"], active: Bool[Array, " agents"]) -> Float[Array, "agents agents"]:
    """Weights among the active only: what an absent sender would have had stays with the receiver."""
    both = active[:, None] & active[None, :]
    kept = jnp.where(both, weights, 0.0)
    return kept + jnp.diag(1.0 - kept.sum(1))
