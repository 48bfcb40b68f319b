"""Augmentation as an object, for people who write their own loop."""

from collections.abc import Sequence
from typing import overload

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from dynamic_graph_fed_rl.augmentation.settings import check_augmentation
from dynamic_graph_fed_rl.augmentation.strategies import Probability, augmented
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import Graph


class GraphAugmenter:
    """Draws anew at every call, from a seed.

    **Arguments:** `strategies` names of `STRATEGIES`; `augmentation_probability` that an edge or a node is silent, a
    node noisy, a graph late; `noise` in spreads of a feature; `critical_edge_column` the edge feature that says how
    critical an edge is (on the grid 0, the flow over the rating).
    """

    def __init__(
        self,
        strategies: Sequence[str],
        augmentation_probability: float = 0.1,
        noise: float = 0.1,
        critical_edge_column: int = 0,
        seed: int = 0,
    ):
        check_augmentation(strategies, augmentation_probability, noise)
        self.strategies = tuple(strategies)
        self.augmentation_probability = augmentation_probability
        self.noise = noise
        self.critical_edge_column = critical_edge_column
        self._key = jax.random.key(seed)

    @overload
    def augment_sequence(
        self, graphs: Graph, preserve_critical_edges: bool = True, critical_edge_threshold: float = 0.9
    ) -> Graph: ...

    @overload
    def augment_sequence(
        self, graphs: Sequence[Graph], preserve_critical_edges: bool = True, critical_edge_threshold: float = 0.9
    ) -> list[Graph]: ...

    def augment_sequence(
        self,
        graphs: Graph | Sequence[Graph],
        preserve_critical_edges: bool = True,
        critical_edge_threshold: float = 0.9,
    ) -> Graph | list[Graph]:
        """Graphs of consecutive decisions of one episode, as a list or as one graph whose first axis is time.

        Edges whose feature in `critical_edge_column` is above the threshold in magnitude stay, unless
        `preserve_critical_edges` is False.

        Raises:
            ValueError: no graphs, or without an axis for time, or without the feature.
        """
        stacked = graphs if isinstance(graphs, Graph) else _stacked(graphs)
        if stacked.node_mask.ndim < 2:
            raise ValueError("graphs: one graph without an axis for time; give a list, even of one")
        column = self._column(stacked) if preserve_critical_edges else None
        self._key, key = jax.random.split(self._key)
        result = _augment(
            key, stacked, self.strategies, jnp.asarray(self.augmentation_probability), jnp.asarray(self.noise),
            column, jnp.asarray(critical_edge_threshold),
        )  # fmt: skip
        if isinstance(graphs, Graph):
            return result
        return [jax.tree.map(lambda leaf, i=i: leaf[i], result) for i in range(len(graphs))]

    def _column(self, graph: Graph) -> int | None:
        if "edge_dropout" not in self.strategies:
            return None
        features = graph.edges.shape[-1]
        if not 0 <= self.critical_edge_column < features:
            raise ValueError(
                f"critical_edge_column {self.critical_edge_column}: edges have {features} features, counted from 0; "
                "choose one of them, or preserve_critical_edges=False"
            )
        return self.critical_edge_column


def _stacked(graphs: Sequence[Graph]) -> Graph:
    if not graphs:
        raise ValueError("graphs: none to augment")
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *graphs)


@eqx.filter_jit
def _augment(
    key: PRNGKeyArray,
    graph: Graph,
    strategies: tuple[str, ...],
    probability: Probability,
    noise: Probability,
    critical_column: int | None,
    critical_threshold: Probability,
) -> Graph:
    batch = graph.node_mask.shape[:-1]
    # a graph alone has no slots and belongs to one episode
    observation = Observation(
        graph=graph,
        slots=jnp.zeros((*batch, 0, 0)),
        slot_owner=jnp.zeros((*batch, 0), jnp.int32),
        action_mask=jnp.zeros((*batch, 0), bool),
        first=jnp.zeros(batch, bool),
        births=jnp.zeros(graph.node_mask.shape, bool),
    )
    seen = augmented(key, observation, strategies, probability, noise, critical_column, critical_threshold)
    return seen.graph
