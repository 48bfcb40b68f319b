"""Screens against NumPy, and at the very threshold."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.buffers.screening import SCREENS, MeanDistance, Nearest, described
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.graph import Graph

# more than the screens look at in one go
FRESH, KNOWN, SIZE = 100, 32, 5


@pytest.mark.parametrize(("name", "over_known"), [("mean-distance", np.mean), ("nearest", np.min)])
def test_keeps_what_lies_far_enough(name, over_known) -> None:
    rng = np.random.default_rng(0)
    known, fresh = rng.normal(size=(KNOWN, SIZE)), rng.normal(size=(FRESH, SIZE))
    distance = over_known(np.linalg.norm(fresh[:, None] - known[None], axis=-1), axis=1)
    threshold = float(np.sort(distance)[40:42].mean())
    screen = SCREENS[name](threshold, KNOWN)
    passes = screen.passes(jnp.asarray(known, jnp.float32), jnp.asarray(fresh, jnp.float32))
    np.testing.assert_array_equal(passes, distance >= threshold)
    assert int(passes.sum()) == FRESH - 41


@pytest.mark.parametrize("screen", [MeanDistance, Nearest])
def test_what_lies_just_at_the_threshold_passes(screen) -> None:
    known, fresh = jnp.zeros((1, 2)), jnp.asarray([[3.0, 4.0]])
    assert bool(screen(5.0, 1).passes(known, fresh)[0])
    assert not bool(screen(np.nextafter(np.float32(5), np.float32(6)), 1).passes(known, fresh)[0])


def test_the_mean_does_not_see_a_copy_which_the_nearest_does() -> None:
    known = jnp.asarray(np.random.default_rng(1).normal(size=(KNOWN, SIZE)), jnp.float32)
    assert bool(MeanDistance(0.15, KNOWN).passes(known, known).all())
    assert not bool(Nearest(0.15, KNOWN).passes(known, known).any())


def test_what_is_seen_is_the_nodes_that_are_there_and_the_graphs_own_features() -> None:
    spec = Spec(1, 3, 0, 1, "discrete", 2, (Column("a"), Column("b")), global_features=(Column("c"),))
    blank = Observation.blank(spec, 2)
    nodes = jnp.arange(12.0).reshape(2, 3, 2) + 1
    there = jnp.asarray([[True, False, True], [True, True, True]])
    graph: Graph = blank.graph
    values = {name: getattr(graph, name) for name in ("edges", "senders", "receivers", "edge_mask")}
    seen = Graph(nodes=nodes, node_mask=there, globals=jnp.asarray([[7.0], [8.0]]), **values)
    parts = {name: getattr(blank, name) for name in ("slots", "slot_owner", "action_mask", "first", "births")}
    expected = [[1, 2, 0, 0, 5, 6, 7], [7, 8, 9, 10, 11, 12, 8]]
    np.testing.assert_array_equal(described(Observation(graph=seen, **parts)), expected)
