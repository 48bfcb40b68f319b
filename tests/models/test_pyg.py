"""Layers and memory against PyTorch Geometric's on the same weights, from `fixtures/make_pyg_fixtures.py`."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.attention import GATv2, TransformerConvolution
from dynamic_graph_fed_rl.models.convolution import GraphConvolution
from dynamic_graph_fed_rl.models.layers import Affine
from dynamic_graph_fed_rl.models.tgn import TGNMemory

PYG = {name: value for name, value in np.load(Path(__file__).parent / "fixtures" / "pyg.npz").items()}
KEY = jax.random.key(0)


def array(name: str) -> jax.Array:
    return jnp.asarray(PYG[name], jnp.float32)


def affine(weight: str, *biases: str) -> Affine:
    """Theirs are transposed; where they have several biases for one sum, or none, ours is the sum."""
    matrix = array(weight).T
    made = Affine(KEY, *matrix.shape)
    bias = sum((array(name) for name in biases), jnp.zeros(matrix.shape[1]))
    return eqx.tree_at(lambda a: (a.weight, a.bias), made, (matrix, bias))


def gatv2() -> GATv2:
    parts = (
        affine("gatv2.lin_l.weight", "gatv2.lin_l.bias"),
        affine("gatv2.lin_r.weight", "gatv2.lin_r.bias"),
        affine("gatv2.lin_edge.weight"),
        affine("gatv2.res.weight", "gatv2.bias"),
        array("gatv2.att")[0],
    )
    return eqx.tree_at(lambda g: (g.sender, g.receiver, g.edge, g.own, g.attention), GATv2(KEY, 8, 3), parts)


def transformer() -> TransformerConvolution:
    names = ("query", "key", "value", "skip")
    parts = [affine(f"transformer.lin_{name}.weight", f"transformer.lin_{name}.bias") for name in names]
    where = lambda t: (t.query, t.key, t.value, t.own, t.edge)  # noqa: E731
    return eqx.tree_at(where, TransformerConvolution(KEY, 8, 3), (*parts, affine("transformer.lin_edge.weight")))


def gcn() -> GraphConvolution:
    return eqx.tree_at(lambda c: c.message, GraphConvolution(KEY, 8, 3), affine("gcn.lin.weight", "gcn.bias"))


@pytest.mark.parametrize("make", [gatv2, transformer, gcn])
def test_layer(make):
    """Theirs sees the live edges only, ours two dead ones besides."""
    edges, dead = array("edges"), 2
    graph = Graph(
        nodes=array("nodes"),
        edges=jnp.concatenate([edges, jnp.full((dead, edges.shape[1]), 9.0)]),
        senders=jnp.pad(jnp.asarray(PYG["senders"], jnp.int32), (0, dead)),
        receivers=jnp.pad(jnp.asarray(PYG["receivers"], jnp.int32), (0, dead)),
        node_mask=jnp.ones(6, bool),
        edge_mask=jnp.arange(len(edges) + dead) < len(edges),
        globals=jnp.zeros((1, 0)),
    )
    np.testing.assert_allclose(make()(graph.nodes, graph), PYG[f"{make.__name__}.result"], atol=1e-5)


def test_tgn_memory():
    """Snapshots in which nobody meets two others at once; then the last message is the only one.

    Their events have no direction: each is a pair of directed edges here. One node shows the same from the second
    snapshot to the fifth, so that in the sixth its message carries a longer time.
    """
    nodes, pairs = PYG["tgn.nodes"], PYG["tgn.pairs"]
    width = PYG["tgn.result"].shape[-1]
    memory = eqx.tree_at(
        lambda m: (m.cell.inputs, m.cell.hidden, m.time),
        TGNMemory(KEY, nodes.shape[-1], PYG["tgn.edges"].shape[-1], width),
        (
            affine("tgn.gru.weight_ih", "tgn.gru.bias_ih"),
            affine("tgn.gru.weight_hh", "tgn.gru.bias_hh"),
            affine("tgn.time_enc.lin.weight", "tgn.time_enc.lin.bias"),
        ),
    )
    state = None
    for t in range(len(nodes)):
        one, other = jnp.asarray(np.maximum(pairs[t], 0), jnp.int32).T
        observation = Observation(
            graph=Graph(
                nodes=jnp.asarray(nodes[t], jnp.float32),
                edges=jnp.tile(array("tgn.edges")[t], (2, 1)),
                senders=jnp.concatenate([one, other]),
                receivers=jnp.concatenate([other, one]),
                node_mask=jnp.ones(nodes.shape[1], bool),
                edge_mask=jnp.tile(jnp.asarray(pairs[t, :, 0] >= 0), 2),
                globals=jnp.zeros(0),
            ),
            slots=jnp.zeros((1, 0)),
            slot_owner=jnp.zeros(1, jnp.int32),
            action_mask=jnp.ones(1, bool),
            first=jnp.asarray(t == 0),
            births=jnp.zeros(nodes.shape[1], bool),
        )
        state = memory.remember(memory.initial(observation) if state is None else state, observation)
        np.testing.assert_allclose(state.hidden, PYG["tgn.result"][t], atol=1e-5, err_msg=f"snapshot {t}")
    np.testing.assert_array_equal(state.idle, [0, 0, 0, 0, 1, 0])
