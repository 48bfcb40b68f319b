"""The multi-scale temporal network as an object that reads sequences of graphs."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.algorithms.on_policy import unroll
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import masked_mean
from dynamic_graph_fed_rl.models.multi_scale import MultiScaleMemory
from dynamic_graph_fed_rl.objects.graphs import Subgraph


@eqx.filter_jit
def _fresh(key: PRNGKeyArray, nodes: int, edges: int, width: int, scales: tuple[int, ...]) -> MultiScaleMemory:
    return MultiScaleMemory(key, nodes, edges, width, scales)


@eqx.filter_jit
def _answers(memory: MultiScaleMemory, rows: Observation) -> Float[Array, "length width"]:
    start = memory.initial(jax.tree.map(lambda leaf: leaf[0], rows))
    return masked_mean(memory.attended(unroll(memory, start, rows))[1], rows.graph.node_mask)


class MultiScaleTemporalGNN:
    """A recurrent unit and graph attention at each time scale, and attention over the scales (`MultiScaleMemory`).

    As a policy's memory it is `gnn_type="temporal_attention"`; here it reads whole sequences. Parameters are made
    for the first one.

    **Arguments:** `time_scales` in decisions, the fastest first; `hidden_dim` the width of each unit.

    Raises:
        ValueError: time scales that do not grow from 1.
    """

    def __init__(self, time_scales: Sequence[int] = (1, 5, 20, 100), hidden_dim: int = 128, seed: int = 0):
        scales = tuple(time_scales)
        if not scales or scales[0] != 1 or list(scales) != sorted(set(scales)):
            raise ValueError(f"time_scales {list(scales)}: must grow from 1, such as [1, 5, 20, 100]")
        self.time_scales, self.hidden_dim = scales, hidden_dim
        self._key = jax.random.key(seed)
        self.network: MultiScaleMemory | None = None

    def __call__(self, graph_sequence: Sequence[Subgraph]) -> Float[Array, " width"]:
        """The mean over the nodes of what attention over the scales answers after the last graph.

        Raises:
            ValueError: an empty sequence.
        """
        if not graph_sequence:
            raise ValueError("graph_sequence: needs at least one graph")
        rows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(graph.observation for graph in graph_sequence))
        if self.network is None:
            sizes = rows.graph.nodes.shape[-1], rows.graph.edges.shape[-1], self.hidden_dim
            self.network = _fresh(self._key, *sizes, self.time_scales)
        return _answers(self.network, rows)[-1]

    forward = __call__
