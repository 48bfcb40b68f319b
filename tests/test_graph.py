"""Graphs and local views against networkx and NumPy."""

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.graph import (
    Graph,
    disjoint,
    local_views,
    masked_mean,
    padded_rows,
    segment_mean,
    vector_graph,
)


def both_ways(network: nx.Graph) -> tuple[np.ndarray, np.ndarray]:
    ends = np.array(network.edges, dtype=np.int32).reshape(-1, 2)
    return np.concatenate([ends[:, 0], ends[:, 1]]), np.concatenate([ends[:, 1], ends[:, 0]])


def random_network(seed: int, nodes: int, agents: int) -> tuple[nx.Graph, np.ndarray]:
    network = nx.gnm_random_graph(nodes, 2 * nodes, seed=seed)
    rng = np.random.default_rng(seed)
    # every agent owns at least one node
    region = np.concatenate([np.arange(agents), rng.integers(0, agents, nodes - agents)])
    return network, rng.permutation(region)


@given(st.integers(0, 10_000), st.integers(5, 20), st.integers(1, 5), st.integers(0, 3))
def test_a_view_is_the_region_and_what_lies_within_the_radius(seed, nodes, agents, radius):
    network, region = random_network(seed, nodes, agents)
    senders, receivers = both_ways(network)
    views = local_views(region, senders, receivers, radius)
    for agent in range(agents):
        owned = set(np.flatnonzero(region == agent))
        distance = nx.multi_source_dijkstra_path_length(network, owned)
        expected = {node for node, hops in distance.items() if hops <= radius}
        seen = views.node_index[agent][views.node_mask[agent]]
        assert set(seen) == expected
        assert len(seen) == len(expected)
        # owned nodes lead, in ascending order, whatever the halo
        assert list(seen[: len(owned)]) == sorted(owned)
        assert views.owned[agent].sum() == len(owned)
        assert views.owned[agent][: len(owned)].all()
        # the view's edges are those of the induced subgraph, and their local ends name the global ones
        kept = views.edge_mask[agent]
        index = views.edge_index[agent][kept]
        inside = [e for e in range(len(senders)) if {senders[e], receivers[e]} <= expected]
        assert sorted(index) == inside
        np.testing.assert_array_equal(views.node_index[agent][views.senders[agent][kept]], senders[index])
        np.testing.assert_array_equal(views.node_index[agent][views.receivers[agent][kept]], receivers[index])


def test_padding_of_views_is_masked_and_has_valid_indices():
    network, region = nx.star_graph(6), np.array([0, 0, 0, 0, 0, 1, 2])
    views = local_views(region, *both_ways(network), radius=0)
    assert views.node_mask.sum(1).tolist() == [5, 1, 1]
    assert views.edge_mask.sum(1).tolist() == [8, 0, 0]
    assert not (views.owned & ~views.node_mask).any()
    for index, bound in ((views.senders, 5), (views.receivers, 5), (views.node_index, 7)):
        assert ((index >= 0) & (index < bound)).all()
    assert (views.node_index[~views.node_mask] == 0).all()


def test_a_negative_radius_is_refused():
    with pytest.raises(ValueError, match="radius -1"):
        local_views(np.zeros(3, int), np.array([0, 1]), np.array([1, 2]), radius=-1)


def test_padded_rows_of_nothing():
    index, mask = padded_rows([np.array([], int), np.array([4, 2])])
    assert index.tolist() == [[0, 0], [4, 2]]
    assert mask.tolist() == [[False, False], [True, True]]


def test_disjoint_keeps_every_edge_within_its_own_graph():
    rng = np.random.default_rng(0)
    batch, nodes, edges = (2, 3), 4, 5
    senders = rng.integers(0, nodes, (*batch, edges)).astype(np.int32)
    receivers = rng.integers(0, nodes, (*batch, edges)).astype(np.int32)
    graph = Graph(
        nodes=jnp.asarray(rng.normal(size=(*batch, nodes, 2)), jnp.float32),
        edges=jnp.asarray(rng.normal(size=(*batch, edges, 3)), jnp.float32),
        senders=jnp.asarray(senders),
        receivers=jnp.asarray(receivers),
        node_mask=jnp.asarray(rng.random((*batch, nodes)) < 0.5),
        edge_mask=jnp.asarray(rng.random((*batch, edges)) < 0.5),
        globals=jnp.asarray(rng.normal(size=(*batch, 1)), jnp.float32),
    )
    flat = disjoint(graph)
    assert flat.globals.shape == (6, 1)
    for g, (i, j) in enumerate(np.ndindex(*batch)):
        for e in range(edges):
            row = g * edges + e
            for ends, of_one in ((flat.senders, senders), (flat.receivers, receivers)):
                np.testing.assert_array_equal(flat.nodes[ends[row]], graph.nodes[i, j, of_one[i, j, e]])
            np.testing.assert_array_equal(flat.edges[row], graph.edges[i, j, e])
            assert flat.edge_mask[row] == graph.edge_mask[i, j, e]
    np.testing.assert_array_equal(flat.node_mask, graph.node_mask.reshape(-1))


@pytest.mark.parametrize(("edges", "count"), [(0, 3), (1, 1), (12, 5)])
@pytest.mark.parametrize("seed", range(4))
def test_segment_mean_against_numpy(edges, count, seed):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(edges, 3)).astype(np.float32)
    segments, mask = rng.integers(0, count, edges), rng.random(edges) < 0.7
    expected = np.zeros((count, 3), np.float32)
    for segment in range(count):
        rows = values[(segments == segment) & mask]
        if len(rows):
            expected[segment] = rows.mean(0)
    result = segment_mean(jnp.asarray(values), jnp.asarray(segments), jnp.asarray(mask), count)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_masked_mean_ignores_what_is_masked_and_is_zero_where_nothing_is_left():
    values = jnp.asarray([[[1.0], [3.0], [1e30]], [[5.0], [6.0], [7.0]]])
    mask = jnp.asarray([[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(masked_mean(values, mask), [[2.0], [0.0]])


def test_a_vector_is_a_graph_of_one_node_through_a_batch():
    graph = jax.vmap(vector_graph)(jnp.arange(6.0).reshape(3, 2))
    assert graph.nodes.shape == (3, 1, 2)
    assert graph.node_mask.all()
    assert graph.edges.shape == (3, 0, 0)
    assert disjoint(graph).nodes.shape == (3, 2)
