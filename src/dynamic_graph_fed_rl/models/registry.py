"""Every graph network by name: its message-passing layer and what its nodes remember. No jax import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """`layer` is a name in `LAYERS`; `memory`, one in `MEMORIES`, goes with it unless another is asked for."""

    help: str
    layer: str
    memory: str


LAYERS = {
    "gated-mean": "neighbours averaged through gates that read both ends and the edge (Bresson and Laurent 2017)",
    "gcn": "neighbours averaged with weights from node degrees; blind to edge features (Kipf and Welling 2017)",
    "gatv2": "neighbours weighted by attention that reads both ends and the edge (Brody et al. 2022)",
    "transformer": "neighbours weighted by scaled dot-product attention with edge features (Shi et al. 2021)",
}

MEMORIES = {
    "none": "the last observation only",
    "leaky": "leaky averages of every feature at time scales 1, 5, 20 and 100; no parameters",
    "gru": "gated recurrent unit a node (Cho et al. 2014)",
    "mingru": "recurrent unit whose gate reads the observation only (Feng et al. 2024)",
    "tgn": "temporal graph network: recurrent unit fed with messages along live edges (Rossi et al. 2020)",
    "multi-scale": "graph attention and a recurrent unit at each of four time scales, attention over the scales",
}

ENCODERS = {
    "edge-gated": Entry("edge-gated mean over leaky averages", "gated-mean", "leaky"),
    "gatv2": Entry("graph attention over leaky averages", "gatv2", "leaky"),
    "transformer": Entry("graph transformer over leaky averages", "transformer", "leaky"),
    "tgn": Entry("graph transformer over temporal graph network memory", "transformer", "tgn"),
    "gru": Entry("edge-gated mean over a gated recurrent unit a node", "gated-mean", "gru"),
    "mingru": Entry("edge-gated mean over a minimal recurrent unit a node", "gated-mean", "mingru"),
    "multi-scale": Entry("edge-gated mean over memory at four time scales", "gated-mean", "multi-scale"),
    "temporal_attention": Entry("graph attention over memory at four time scales", "gatv2", "multi-scale"),
    "static_gcn": Entry("graph convolution without memory", "gcn", "none"),
}
