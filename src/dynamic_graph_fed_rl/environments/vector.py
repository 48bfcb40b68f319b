"""What single-agent environments with a vector to see and one slot to act in have in common."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Controller, Observation
from dynamic_graph_fed_rl.graph import vector_graph


def observe(features: Float[Array, " features"], choices: int | None, first: Bool[Array, ""]) -> Observation:
    """One agent that sees the vector as a graph of one node and may take any of the choices, or (None) give any
    number in [-1, 1]; leaves `[1, ...]`."""
    per_world = Observation(
        graph=vector_graph(features),
        slots=jnp.zeros((1, 0)),
        slot_owner=jnp.zeros((1,), jnp.int32),
        action_mask=jnp.ones((1,) if choices is None else (1, choices), bool),
        first=first,
        births=jnp.zeros((1,), bool),
    )
    return jax.tree.map(lambda leaf: leaf[None], per_world)


class Uniform(Controller):
    """Random every time."""

    size: int = eqx.field(static=True, default=1)

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        shape = observation.slot_owner.shape
        if _continuous(observation):
            return jax.random.uniform(key, (*shape, self.size), minval=-1.0, maxval=1.0), None
        return jax.random.randint(key, shape, 0, observation.action_mask.shape[-1]), None


class Idle(Controller):
    """Always the first choice, or 0."""

    size: int = eqx.field(static=True, default=1)

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        shape = observation.slot_owner.shape
        return (jnp.zeros((*shape, self.size)) if _continuous(observation) else jnp.zeros(shape, jnp.int32)), None


def _continuous(observation: Observation) -> bool:
    return observation.action_mask.ndim == observation.first.ndim + 1
