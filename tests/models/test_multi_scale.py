"""Memory at several time scales: who ticks when, what waits meanwhile, and attention that is over the scales."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.multi_scale import MultiScaleMemory, MultiScaleState

SCALES, WIDTH, FEATURES, NODES, STEPS = (1, 2, 5), 8, 2, 3, 12


@pytest.fixture(scope="module")
def memory() -> MultiScaleMemory:
    return MultiScaleMemory(jax.random.key(0), FEATURES, 0, WIDTH, SCALES)


def observation(nodes: np.ndarray, first: bool) -> Observation:
    return Observation(
        graph=Graph(
            nodes=jnp.asarray(nodes, jnp.float32),
            edges=jnp.zeros((2, 0)),
            senders=jnp.asarray([0, 1], jnp.int32),
            receivers=jnp.asarray([1, 0], jnp.int32),
            node_mask=jnp.ones(NODES, bool),
            edge_mask=jnp.ones(2, bool),
            globals=jnp.zeros(0),
        ),
        slots=jnp.zeros((1, 0)),
        slot_owner=jnp.zeros(1, jnp.int32),
        action_mask=jnp.ones(1, bool),
        first=jnp.asarray(first),
        births=jnp.zeros(NODES, bool),
    )


def test_a_scale_ticks_at_its_rate_on_the_mean_of_what_it_saw_since(memory):
    values = np.random.default_rng(0).normal(size=(STEPS, NODES, FEATURES)).astype(np.float32)
    graph = observation(values[0], True).graph
    state, remember = memory.initial(observation(values[0], True)), eqx.filter_jit(memory.remember)
    for t in range(STEPS):
        before, state = state, remember(state, observation(values[t], t == 0))
        for i, scale in enumerate(SCALES):
            if t % scale:
                np.testing.assert_array_equal(state.hidden[:, i], before.hidden[:, i])
                since = values[t - (t - 1) % scale : t + 1]
                np.testing.assert_allclose(state.waiting[:, i], since.mean(0), atol=1e-6)
            else:
                seen = jnp.asarray(values[max(t - scale + 1, 0) : t + 1].mean(0))
                expected = memory.units[i](seen, before.hidden[:, i], replace(graph, nodes=seen))
                np.testing.assert_allclose(state.hidden[:, i], expected, atol=1e-5)
                np.testing.assert_array_equal(state.waiting[:, i], 0)


def test_attention_is_over_the_scales_of_each_node(memory):
    """Against NumPy: multi-head attention, the fastest unit's query over the keys and values of all."""
    rng = np.random.default_rng(1)
    hidden = rng.normal(size=(NODES, len(SCALES), WIDTH))
    empty = jnp.zeros((NODES, len(SCALES), FEATURES))
    state = MultiScaleState(empty[:, 0], jnp.ones(NODES, jnp.int32), jnp.asarray(hidden, jnp.float32), empty)
    weights, answer = memory.attended(state)

    def apply(layer, x):
        return x @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias, np.float64)

    heads, size = weights.shape[1], WIDTH // weights.shape[1]
    query, key, value = (
        apply(layer, hidden).reshape(NODES, len(SCALES), heads, size)
        for layer in (memory.query, memory.key, memory.value)
    )
    for node in range(NODES):
        for head in range(heads):
            share = softmax(key[node, :, head] @ query[node, 0, head] / np.sqrt(size))
            np.testing.assert_allclose(weights[node, head], share, atol=1e-5)
            expected = share @ value[node, :, head]
            np.testing.assert_allclose(answer[node, head * size : (head + 1) * size], expected, atol=1e-5)
    assert weights.shape == (NODES, heads, len(SCALES))
    assert float(weights.std(-1).max()) > 0.01
