"""Evaluation with sensors that fail."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.augmentation.strategies import edge_dropout, node_dropout
from dynamic_graph_fed_rl.environments.base import Controller, Observation


class DroppedSensors(Controller):
    """A controller that sees every node and every directed edge only with a chance of `1 - probability`, drawn
    anew at every decision, critical or not. It remembers what it saw."""

    controller: Controller
    probability: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def initial_memory(self, state: PyTree, observation: Observation) -> PyTree:
        return self.controller.initial_memory(state, observation)

    def act(self, key: PRNGKeyArray, memory: PyTree, state: PyTree, observation: Observation) -> tuple[Array, PyTree]:
        node_key, edge_key, act_key = jax.random.split(key, 3)
        seen = node_dropout(node_key, observation, self.probability)
        seen = edge_dropout(edge_key, seen, self.probability)
        return self.controller.act(act_key, memory, state, seen)
