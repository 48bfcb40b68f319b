"""Memories and encoders from their names."""

from functools import partial

from jaxtyping import PRNGKeyArray

from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.attention import GATv2, TransformerConvolution
from dynamic_graph_fed_rl.models.convolution import GraphConvolution
from dynamic_graph_fed_rl.models.memory import LeakyBank, NodeMemory, NoMemory
from dynamic_graph_fed_rl.models.message_passing import Encoder, GatedMean, Residual
from dynamic_graph_fed_rl.models.multi_scale import MultiScaleMemory
from dynamic_graph_fed_rl.models.recurrent import GRUCell, MinGRUCell, Recurrent
from dynamic_graph_fed_rl.models.registry import ENCODERS
from dynamic_graph_fed_rl.models.tgn import TGNMemory

_LAYERS = {
    "gated-mean": GatedMean,
    "gcn": partial(Residual, convolution=GraphConvolution),
    "gatv2": partial(Residual, convolution=GATv2),
    "transformer": partial(Residual, convolution=TransformerConvolution),
}


def build_memory(
    key: PRNGKeyArray, spec: Spec, width: int, encoder: str = "edge-gated", memory: str | None = None
) -> NodeMemory:
    """What nodes remember: `memory`, a name in `registry.MEMORIES`, or without one that of the encoder.

    `width` is that of what a learned memory holds.
    """
    nodes, edges = len(spec.node_features), len(spec.edge_features)
    builders = {
        "none": NoMemory,
        "leaky": LeakyBank,
        "gru": lambda: Recurrent(GRUCell(key, nodes, width), width),
        "mingru": lambda: Recurrent(MinGRUCell(key, nodes, width), width),
        "tgn": lambda: TGNMemory(key, nodes, edges, width),
        "multi-scale": lambda: MultiScaleMemory(key, nodes, edges, width),
    }
    return builders[ENCODERS[encoder].memory if memory is None else memory]()


def build_encoder(
    key: PRNGKeyArray,
    features: int,
    spec: Spec,
    width: int,
    layers: int,
    encoder: str = "edge-gated",
    layer_norm: bool = False,
) -> Encoder:
    """Node embeddings from `features` remembered numbers a node, by the layers of `encoder` in `ENCODERS`."""
    return Encoder(
        key,
        features,
        len(spec.edge_features),
        len(spec.global_features),
        width,
        layers,
        _LAYERS[ENCODERS[encoder].layer],
        layer_norm,
    )
