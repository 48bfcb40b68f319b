"""What single-agent environments with a vector to see and one discrete slot to act in have in common."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Controller, Observation
from dynamic_graph_fed_rl.graph import vector_graph


def observe(features: Float[Array, " features"], choices: int, first: Bool[Array, ""]) -> Observation:
    """One agent that sees the vector as a graph of one node and may take any of the choices; leaves `[1, ...]`."""
    per_world = Observation(
        graph=vector_graph(features),
        slots=jnp.zeros((1, 0)),
        slot_owner=jnp.zeros((1,), jnp.int32),
        action_mask=jnp.ones((1, choices), bool),
        first=first,
        births=jnp.zeros((1,), bool),
    )
    return jax.tree.map(lambda leaf: leaf[None], per_world)


class Uniform(Controller):
    """A random choice every time."""

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        choices = observation.action_mask.shape[-1]
        return jax.random.randint(key, observation.first.shape + (1,), 0, choices), None


class Idle(Controller):
    """Always the first choice."""

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        return jnp.zeros(observation.first.shape + (1,), jnp.int32), None
