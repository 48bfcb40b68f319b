"""Every memory starts afresh when it must and frees its slots; the leaky bank against a NumPy loop."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.build import build_memory
from dynamic_graph_fed_rl.models.memory import LeakyBank, NodeMemory, has_parameters
from dynamic_graph_fed_rl.models.registry import ENCODERS, LAYERS, MEMORIES

WORLDS, NODES, FEATURES, STEPS = 2, 3, 2, 12


def observation(nodes: np.ndarray, first: np.ndarray, births: np.ndarray) -> Observation:
    worlds = nodes.shape[0]
    return Observation(
        graph=Graph(
            nodes=jnp.asarray(nodes, jnp.float32),
            edges=jnp.zeros((worlds, 0, 0)),
            senders=jnp.zeros((worlds, 0), jnp.int32),
            receivers=jnp.zeros((worlds, 0), jnp.int32),
            node_mask=jnp.ones((worlds, NODES), bool),
            edge_mask=jnp.zeros((worlds, 0), bool),
            globals=jnp.zeros((worlds, 0)),
        ),
        slots=jnp.zeros((worlds, 1, 0)),
        slot_owner=jnp.zeros((worlds, 1), jnp.int32),
        action_mask=jnp.ones((worlds, 1), bool),
        first=jnp.asarray(first),
        births=jnp.asarray(births),
    )


def expected_average(history: np.ndarray, scale: int) -> np.ndarray:
    """Exponentially weighted mean of `[steps, features]`, weights summing to one."""
    weights = (1 - 1 / scale) ** np.arange(len(history))[::-1].astype(np.float64)
    return (weights[:, None] * history).sum(0) / weights.sum()


def test_it_holds_normalised_leaky_means_since_the_birth_of_each_node():
    rng = np.random.default_rng(0)
    bank = LeakyBank()
    values = rng.normal(size=(STEPS, WORLDS, NODES, FEATURES)).astype(np.float32)
    first = np.zeros((STEPS, WORLDS), bool)
    first[0], first[7, 1] = True, True
    births = np.zeros((STEPS, WORLDS, NODES), bool)
    births[4, 0, 2] = births[9, 1, 0] = True
    rows = [observation(values[t], first[t], births[t]) for t in range(STEPS)]
    memory = bank.initial(rows[0])
    for t, row in enumerate(rows):
        memory = bank.remember(memory, row)
        read = np.asarray(bank.read(memory)).reshape(WORLDS, NODES, FEATURES, len(bank.scales))
        for world in range(WORLDS):
            for node in range(NODES):
                began = max(s for s in range(t + 1) if first[s, world] or births[s, world, node])
                history = values[began : t + 1, world, node].astype(np.float64)
                expected = np.stack([expected_average(history, scale) for scale in bank.scales], axis=-1)
                np.testing.assert_allclose(read[world, node], expected, rtol=2e-4, atol=2e-5)


def test_the_width_of_what_is_read_is_known_beforehand():
    bank = LeakyBank(scales=(1, 3))
    row = observation(np.ones((WORLDS, NODES, FEATURES)), np.ones(WORLDS, bool), np.zeros((WORLDS, NODES), bool))
    memory = bank.remember(bank.initial(row), row)
    assert bank.read(memory).shape == (WORLDS, NODES, bank.features(FEATURES))


def test_nothing_of_an_earlier_episode_is_left():
    bank = LeakyBank()
    none = np.zeros((WORLDS, NODES), bool)
    loud = observation(np.full((WORLDS, NODES, FEATURES), 1e6), np.ones(WORLDS, bool), none)
    calm = observation(np.ones((WORLDS, NODES, FEATURES)), np.ones(WORLDS, bool), none)
    memory = bank.initial(loud)
    for _ in range(5):
        memory = bank.remember(memory, eqx.tree_at(lambda o: o.first, loud, jnp.zeros(WORLDS, bool)))
    np.testing.assert_allclose(bank.read(bank.remember(memory, calm)), 1.0, rtol=1e-5)


SPEC = Spec(
    agents=1,
    nodes=NODES,
    edges=0,
    slots=1,
    action="continuous",
    action_size=1,
    node_features=tuple(Column(f"node_{i}") for i in range(FEATURES)),
)
NONE = np.zeros((WORLDS, NODES), bool)


def row(seed: int, first: bool = False, births: np.ndarray = NONE, here: np.ndarray = ~NONE) -> Observation:
    """Random features, also in the slots of nodes that are not there."""
    nodes = np.random.default_rng(seed).normal(size=(WORLDS, NODES, FEATURES))
    seen = observation(nodes, np.full(WORLDS, first), births)
    return replace(seen, graph=replace(seen.graph, node_mask=jnp.asarray(here)))


@eqx.filter_jit
def after(memory: NodeMemory, rows: list[Observation]):
    state = memory.initial(rows[0])
    for one in rows:
        state = memory.remember(state, one)
    return state, memory.read(state)


def assert_equal(left, right, where=np.s_[:]) -> None:
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a[where], b[where])


@pytest.fixture(scope="module", params=MEMORIES)
def memory(request) -> NodeMemory:
    return build_memory(jax.random.key(0), SPEC, 4, memory=request.param)


def test_a_new_episode_starts_afresh(memory):
    assert_equal(after(memory, [row(0, first=True), row(1), row(2, first=True)]), after(memory, [row(2, first=True)]))


def test_a_node_just_born_starts_afresh_and_the_others_go_on(memory):
    births = NONE.copy()
    births[1, 2] = True
    born = after(memory, [row(0, first=True), row(1), row(2, births=births)])
    assert_equal(born, after(memory, [row(2, first=True)]), np.s_[1, 2])
    assert_equal(born, after(memory, [row(0, first=True), row(1), row(2)]), np.s_[1, :2])


def test_the_slot_of_a_node_that_left_is_zero_until_it_comes_back(memory):
    away = ~NONE
    away[0, 1] = False
    history = [row(0, first=True), row(1), row(2, here=away)]
    for leaf in jax.tree.leaves(after(memory, history)):
        assert (leaf[0, 1] == 0).all()
        assert (leaf[1] != 0).any() or leaf.dtype == jnp.int32
    births = NONE.copy()
    births[0, 1] = True
    assert_equal(after(memory, [*history, row(3, births=births)]), after(memory, [row(3, first=True)]), np.s_[0, 1])


def test_every_memory_but_none_remembers(memory):
    """What was seen first matters to what is read after the third observation."""
    left, right = (after(memory, [row(seed, first=True), row(1), row(2)])[1] for seed in (0, 3))
    assert memory.features(FEATURES) == left.shape[-1]
    assert (np.abs(left - right).max() > 1e-3) == (memory.features(FEATURES) > FEATURES)


def test_every_encoder_is_made_of_what_is_registered():
    for entry in ENCODERS.values():
        assert entry.layer in LAYERS and entry.memory in MEMORIES
        memory = build_memory(jax.random.key(0), SPEC, 4, memory=entry.memory)
        assert has_parameters(memory) == (entry.memory not in ("none", "leaky"))
