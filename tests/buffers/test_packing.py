"""Halves, bits and topology numbers, and that rows are given back as they were."""

import itertools
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_rows import EDGES, KINDS, NODES, random_rows, spec_of

from dynamic_graph_fed_rl.buffers.packing import LARGEST_HALF, Flags, Layout, from_halves, to_halves, topology_id


def test_halves_round_once_and_stay_finite():
    values = np.random.default_rng(0).normal(size=1000).astype(np.float32) * 100
    np.testing.assert_array_equal(from_halves(to_halves(jnp.asarray(values))), values.astype(np.float16))
    wild = from_halves(to_halves(jnp.asarray([1e9, -jnp.inf, jnp.inf, 65519.0])))
    np.testing.assert_array_equal(wild, [LARGEST_HALF, -LARGEST_HALF, LARGEST_HALF, LARGEST_HALF])
    # what is not a number is not to be hidden
    assert np.isnan(from_halves(to_halves(jnp.asarray([jnp.nan]))))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_come_back_as_they_were(kind):
    layout = Layout(spec_of(kind))
    observation, action = random_rows(layout.spec, (6, 2), 1)
    rng = np.random.default_rng(2)
    flags = Flags(observation.first, *(jnp.asarray(rng.random((6, 2)) < 0.5) for _ in range(3)))
    halves, bits = layout.pack_numbers(observation, action), layout.pack_truths(observation, flags)
    assert halves.shape[-1] == layout.halves == 5 * 3 + 7 * 2 + 3 + (6 if kind == "continuous" else 3)
    assert bits.shape[-1] == layout.bits == 1 + 1 + 1 + 1 + (1 if kind == "continuous" else 2)
    statics = layout.statics(observation, layout.blank_statics())
    # every node and slot is there in some row
    assert np.asarray(statics.nodes).all() and np.asarray(statics.slots).all()
    seen, done = layout.unpack(halves, bits, statics)
    for (path, got), wanted in zip(
        jax.tree_util.tree_leaves_with_path((seen, done)), jax.tree.leaves((observation, action)), strict=True
    ):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted, err_msg=jax.tree_util.keystr(path))
    for got, wanted in zip(layout.flags(bits), flags, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_what_never_changes_is_remembered_while_its_node_is_away():
    layout = Layout(spec_of("continuous"))
    both = random_rows(layout.spec, (4, 2), 3)[0]
    nowhere = jnp.zeros_like(both.graph.nodes), jnp.zeros_like(both.graph.node_mask)
    away = eqx.tree_at(lambda one: (one.graph.nodes, one.graph.node_mask), both, nowhere)
    known = layout.statics(both, layout.blank_statics())
    np.testing.assert_array_equal(layout.statics(away, known).nodes, known.nodes)
    assert not np.asarray(layout.statics(away, layout.blank_statics()).nodes).any()


def test_every_topology_has_its_own_number():
    graph = random_rows(spec_of("continuous"), (), 4)[0].graph
    masks = np.array(list(itertools.product([False, True], repeat=NODES + EDGES)))

    def number(mask):
        return topology_id(replace(graph, node_mask=mask[:NODES], edge_mask=mask[NODES:]))

    assert len(np.unique(jax.vmap(number)(jnp.asarray(masks)))) == len(masks)
