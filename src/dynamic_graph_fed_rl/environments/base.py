"""The environment contract: what every Markov game on a network offers to a learner."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph


class Observation(eqx.Module):
    """What A agents see; per world `[A, ...]`, to a learner `[A, B, ...]`.

    `slot_owner` is the local node that an action slot belongs to, N for the graph as a whole. `action_mask` is
    `[A, S]` for continuous slots and `[A, S, K]` for discrete ones. `first` marks the first observation of an
    episode; `births` the nodes whose memory must start afresh.
    """

    graph: Graph
    slots: Float[Array, "*batch slots slot_features"]
    slot_owner: Int[Array, "*batch slots"]
    action_mask: Bool[Array, "*batch slots"] | Bool[Array, "*batch slots choices"]
    first: Bool[Array, "*batch"]
    births: Bool[Array, "*batch nodes"]

    @staticmethod
    def blank(spec: Spec, worlds: int) -> "Observation":
        """What one agent would see in so many worlds, all zeros: the shapes to make room for."""
        slots = (worlds, spec.slots)
        return Observation(
            graph=Graph(
                nodes=jnp.zeros((worlds, spec.nodes, len(spec.node_features))),
                edges=jnp.zeros((worlds, spec.edges, len(spec.edge_features))),
                senders=jnp.zeros((worlds, spec.edges), jnp.int32),
                receivers=jnp.zeros((worlds, spec.edges), jnp.int32),
                node_mask=jnp.zeros((worlds, spec.nodes), bool),
                edge_mask=jnp.zeros((worlds, spec.edges), bool),
                globals=jnp.zeros((worlds, len(spec.global_features))),
            ),
            slots=jnp.zeros((*slots, len(spec.slot_features))),
            slot_owner=jnp.zeros(slots, jnp.int32),
            action_mask=jnp.zeros(slots if spec.action == "continuous" else (*slots, spec.action_size), bool),
            first=jnp.zeros(worlds, bool),
            births=jnp.zeros((worlds, spec.nodes), bool),
        )


class Transition(eqx.Module):
    """The outcome of one decision. `observation` is the true successor, also where the episode ended.

    `info["metrics"]` holds what evaluation accumulates; further entries say what was done to each requested
    action (requested, clipped, applied).
    """

    observation: Observation
    reward: Float[Array, "*batch"]
    cost: Float[Array, "*batch costs"]
    terminated: Bool[Array, "*batch"]
    truncated: Bool[Array, "*batch"]
    info: dict[str, Any]


class Environment(eqx.Module):
    """A Markov game on a network: two pure functions over one world. `step` never resets."""

    @property
    @abc.abstractmethod
    def spec(self) -> Spec: ...

    @abc.abstractmethod
    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Observation]: ...

    @abc.abstractmethod
    def step(self, key: PRNGKeyArray, state: PyTree, action: Array) -> tuple[PyTree, Transition]: ...

    def episode_metrics(self, totals: dict[str, Array]) -> dict[str, Array]:
        """Figures of a whole episode from the sums of `info["metrics"]` over its decisions."""
        return totals


class Controller(eqx.Module):
    """Anything that acts in the environment's own action space.

    A baseline may read the true state; a learned policy is handed None. Works on batches of worlds: state
    leaves `[B, ...]`, observation and action leaves `[A, B, ...]`.
    """

    def plays_in(self, environment: Environment) -> Environment:
        """Where it acts when it is judged in this one: the same worlds and metrics, in another action space only if
        its actions are of that."""
        return environment

    @abc.abstractmethod
    def initial_memory(self, state: PyTree, observation: Observation) -> PyTree: ...

    @abc.abstractmethod
    def act(
        self, key: PRNGKeyArray, memory: PyTree, state: PyTree, observation: Observation
    ) -> tuple[Array, PyTree]: ...
