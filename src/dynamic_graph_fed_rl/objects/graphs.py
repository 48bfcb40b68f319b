"""What agents see and what they keep of it, as plain objects: NumPy arrays on the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph


@dataclass(frozen=True, eq=False)
class Subgraph:
    """What one agent sees at one time: its region and a halo around it; leaves without batch axes.

    `terminated` and `truncated` say whether the episode ended with it, by itself or by a time limit.
    """

    observation: Observation
    spec: Spec
    terminated: bool = False
    truncated: bool = False

    @property
    def graph(self) -> Graph:
        return self.observation.graph

    @property
    def nodes(self) -> Any:
        """Features, `[N, F]`; rows where `graph.node_mask` is False are padding."""
        return self.graph.nodes

    @property
    def edges(self) -> Any:
        """Features, `[E, D]`, of the edges from `graph.senders` to `graph.receivers`."""
        return self.graph.edges

    @property
    def global_features(self) -> Any:
        """`[G]`"""
        return self.graph.globals

    @property
    def action_shape(self) -> tuple[int, ...]:
        """`(S, D)` of continuous actions, `(S,)` of discrete ones."""
        return (self.spec.slots, self.spec.action_size) if self.spec.action == "continuous" else (self.spec.slots,)

    def is_same(self, other: "Subgraph") -> bool:
        """Whether both show the same, but for where episodes begin."""
        if self is other:
            return True
        mine, theirs = (_without_ends(one.observation) for one in (self, other))
        return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))


def _without_ends(observation: Observation) -> list[Any]:
    graph = jax.tree.leaves(observation.graph)
    return [*graph, observation.slots, observation.slot_owner, observation.action_mask, observation.births]


@dataclass(frozen=True, eq=False)
class GraphState:
    """What all agents see at one time; leaves `[A, ...]`."""

    observation: Observation
    spec: Spec
    terminated: Sequence[bool]
    truncated: Sequence[bool]

    @cached_property
    def _subgraphs(self) -> list[Subgraph]:
        def one(agent: int) -> Subgraph:
            seen = jax.tree.map(lambda leaf: leaf[agent], self.observation)
            return Subgraph(seen, self.spec, bool(self.terminated[agent]), bool(self.truncated[agent]))

        return [one(agent) for agent in range(len(self.terminated))]

    def get_subgraph(self, agent_id: int) -> Subgraph:
        """What one agent sees.

        Raises:
            ValueError: there is no such agent.
        """
        if not 0 <= agent_id < len(self._subgraphs):
            raise ValueError(f"agent {agent_id}: there are {len(self._subgraphs)}, counted from 0")
        return self._subgraphs[agent_id]


@dataclass(frozen=True, eq=False)
class GraphTransition:
    """One decision of one agent.

    Whether the episode ended with it is read from `graph_t1`, unless `terminated` or `truncated` say otherwise.
    `topology_changed` is there for its reader: a buffer sees for itself what has changed.
    """

    graph_t: Subgraph
    action: Any
    reward: float
    graph_t1: Subgraph
    topology_changed: bool = False
    terminated: bool | None = None
    truncated: bool | None = None

    @property
    def ends(self) -> tuple[bool, bool]:
        """Terminated, truncated."""
        terminated = self.graph_t1.terminated if self.terminated is None else self.terminated
        truncated = self.graph_t1.truncated if self.truncated is None else self.truncated
        return bool(terminated), bool(truncated) and not terminated

    @property
    def shaped_action(self) -> np.ndarray:
        """The action as its slots have it.

        Raises:
            ValueError: it has another number of entries.
        """
        return as_action(self.action, self.graph_t)


def columns(spec: Spec) -> tuple[Any, ...]:
    """What parameters are made for: the features of graphs and slots, and the actions."""
    features = spec.node_features, spec.edge_features, spec.global_features, spec.slot_features
    return spec.action, spec.action_size, *features


def sizes(spec: Spec) -> tuple[int, int, int]:
    """What experience and memory are made for: nodes, edges, slots."""
    return spec.nodes, spec.edges, spec.slots


def as_action(action: Any, seen: Subgraph) -> np.ndarray:
    """An action in the shape and type of a subgraph's slots.

    Raises:
        ValueError: it has another number of entries.
    """
    values = np.asarray(action, np.float32 if seen.spec.action == "continuous" else np.int32)
    if values.size != int(np.prod(seen.action_shape)):
        raise ValueError(f"action of shape {list(values.shape)}: must be {list(seen.action_shape)}")
    return values.reshape(seen.action_shape)
