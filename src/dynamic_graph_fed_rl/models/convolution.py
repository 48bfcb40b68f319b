"""The plain graph convolution, for comparison."""

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.layers import Affine


class GraphConvolution(eqx.Module):
    """Neighbours and the node itself, summed with weights `1 / sqrt(degree * degree)` of both ends.

    Kipf and Welling 2017, equation 2. The degree of a node counts its incoming live edges and itself. Edge features
    are not read.
    """

    message: Affine

    def __init__(self, key: PRNGKeyArray, width: int, edge_features: int):
        self.message = Affine(key, width, width)

    def __call__(self, nodes: Float[Array, "nodes width"], graph: Graph) -> Float[Array, "nodes width"]:
        count, alive = nodes.shape[0], graph.edge_mask.astype(nodes.dtype)
        share = jax.lax.rsqrt(1.0 + jax.ops.segment_sum(alive, graph.receivers, count))[:, None]
        message = share * (nodes @ self.message.weight)
        summed = message + jax.ops.segment_sum(message[graph.senders] * alive[:, None], graph.receivers, count)
        return share * summed + self.message.bias
