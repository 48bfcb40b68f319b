"""What a graph network must not depend on: padding, the order of nodes and edges, dead edges, the batch."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.policies import GraphActorCritic
from dynamic_graph_fed_rl.models.registry import ENCODERS

NODES, EDGES, SLOTS, WORLDS = 5, 8, 4, 3
SPEC = Spec(
    agents=1,
    nodes=NODES,
    edges=EDGES,
    slots=SLOTS,
    action="continuous",
    action_size=2,
    node_features=tuple(Column(f"node_{i}") for i in range(3)),
    edge_features=tuple(Column(f"edge_{i}") for i in range(2)),
    global_features=(Column("all"),),
    slot_features=(Column("slot"),),
)


def random_observation(seed: int) -> Observation:
    """Some nodes and edges masked; the last slot belongs to the graph as a whole."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(WORLDS, *shape)), jnp.float32)

    node_mask = np.ones((WORLDS, NODES), bool)
    node_mask[1, -1] = False
    ends = rng.integers(0, NODES - 1, (2, WORLDS, EDGES)).astype(np.int32)
    owner = np.concatenate([rng.integers(0, NODES - 1, (WORLDS, SLOTS - 1)), np.full((WORLDS, 1), NODES)], axis=1)
    return Observation(
        graph=Graph(
            nodes=normal(NODES, 3),
            edges=normal(EDGES, 2),
            senders=jnp.asarray(ends[0]),
            receivers=jnp.asarray(ends[1]),
            node_mask=jnp.asarray(node_mask),
            edge_mask=jnp.asarray(rng.random((WORLDS, EDGES)) < 0.8),
            globals=normal(1),
        ),
        slots=normal(SLOTS, 1),
        slot_owner=jnp.asarray(owner, jnp.int32),
        action_mask=jnp.ones((WORLDS, SLOTS), bool),
        first=jnp.ones(WORLDS, bool),
        births=jnp.zeros((WORLDS, NODES), bool),
    )


@eqx.filter_jit
def answers(network: GraphActorCritic, observation: Observation) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Node embeddings, action means and values after three observations of an episode."""
    memory = network.remember(network.initial_memory(observation), observation)
    for size in (-0.5, 0.8):
        later = eqx.tree_at(
            lambda o: (o.graph.nodes, o.first),
            observation,
            (size * observation.graph.nodes, jnp.zeros_like(observation.first)),
        )
        memory = network.remember(memory, later)
    graph = eqx.tree_at(lambda g: g.nodes, observation.graph, network.memory.read(memory))
    embedding, mode = network.actor.encoder(graph), network.actions(memory, observation).mode()
    return embedding, mode, network.value(memory, observation)


def assert_same(left: tuple, right: tuple) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def network(request) -> GraphActorCritic:
    encoder = getattr(request, "param", "edge-gated")
    network = GraphActorCritic(jax.random.key(0), SPEC, width=8, layers=2, encoder=encoder)
    # the actor's small last layer would hide differences
    return eqx.tree_at(lambda n: n.actor.head.layers[-1].weight, network, replace_fn=lambda w: 100.0 * w)


@pytest.mark.parametrize("network", ENCODERS, indirect=True)
@pytest.mark.parametrize("seed", [0, 1])
def test_padding_changes_nothing(network, seed):
    observation = random_observation(seed)
    graph, extra_nodes, extra_edges = observation.graph, 3, 2

    def pad(leaf: jax.Array, count: int, value: float) -> jax.Array:
        width = [(0, 0)] * leaf.ndim
        width[1] = (0, count)
        return jnp.pad(leaf, width, constant_values=value)

    owner = jnp.where(observation.slot_owner == NODES, NODES + extra_nodes, observation.slot_owner)
    padded = Observation(
        graph=Graph(
            # what padding holds must not matter either
            nodes=pad(graph.nodes, extra_nodes, 7.0),
            edges=pad(graph.edges, extra_edges, -7.0),
            senders=pad(graph.senders, extra_edges, 0),
            receivers=pad(graph.receivers, extra_edges, 0),
            node_mask=pad(graph.node_mask, extra_nodes, False),
            edge_mask=pad(graph.edge_mask, extra_edges, False),
            globals=graph.globals,
        ),
        slots=observation.slots,
        slot_owner=owner,
        action_mask=observation.action_mask,
        first=observation.first,
        births=pad(observation.births, extra_nodes, False),
    )
    embedding, action, value = answers(network, padded)
    assert (embedding[:, NODES:] == 0).all()
    assert_same((embedding[:, :NODES], action, value), answers(network, observation))


@pytest.mark.parametrize("network", ENCODERS, indirect=True)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_order_of_nodes_and_edges_changes_nothing(network, seed):
    observation = random_observation(seed)
    graph, rng = observation.graph, np.random.default_rng(seed + 100)
    nodes, edges = rng.permutation(NODES), rng.permutation(EDGES)
    place = np.append(np.argsort(nodes), NODES)
    renumbered = Observation(
        graph=Graph(
            nodes=graph.nodes[:, nodes],
            edges=graph.edges[:, edges],
            senders=jnp.asarray(place, jnp.int32)[graph.senders[:, edges]],
            receivers=jnp.asarray(place, jnp.int32)[graph.receivers[:, edges]],
            node_mask=graph.node_mask[:, nodes],
            edge_mask=graph.edge_mask[:, edges],
            globals=graph.globals,
        ),
        slots=observation.slots,
        slot_owner=jnp.asarray(place, jnp.int32)[observation.slot_owner],
        action_mask=observation.action_mask,
        first=observation.first,
        births=observation.births[:, nodes],
    )
    embedding, action, value = answers(network, observation)
    assert_same(answers(network, renumbered), (embedding[:, nodes], action, value))


def test_slots_are_treated_alike(network):
    observation = random_observation(0)
    order = np.array([3, 1, 0, 2])
    shuffled = replace(observation, slots=observation.slots[:, order], slot_owner=observation.slot_owner[:, order])
    embedding, action, value = answers(network, observation)
    assert_same(answers(network, shuffled), (embedding, action[:, order], value))


def test_a_dead_edge_carries_nothing(network):
    observation = random_observation(0)
    graph = observation.graph
    dead = graph.edge_mask.at[:, 0].set(False)
    quiet = replace(observation, graph=replace(graph, edge_mask=dead))
    loud = replace(observation, graph=replace(graph, edge_mask=dead, edges=graph.edges.at[:, 0].set(50.0)))
    assert_same(answers(network, quiet), answers(network, loud))
    alive = replace(observation, graph=replace(graph, edge_mask=graph.edge_mask.at[:, 0].set(True)))
    assert np.abs(answers(network, quiet)[0] - answers(network, alive)[0]).max() > 1e-3


def test_worlds_of_a_batch_do_not_meet(network):
    observation = random_observation(0)
    one = jax.tree.map(lambda leaf: leaf[1:2], observation)
    assert_same(answers(network, one), tuple(part[1:2] for part in answers(network, observation)))


def test_messages_reach_as_far_as_there_are_layers(network):
    """On a path 0 - 1 - 2 - 3 - 4 two layers bring node 0's news to node 2 and no further."""
    one = jax.tree.map(lambda leaf: leaf[:1], random_observation(0))
    senders = jnp.asarray([[0, 1, 2, 3, 1, 2, 3, 4]], jnp.int32)
    receivers = jnp.asarray([[1, 2, 3, 4, 0, 1, 2, 3]], jnp.int32)
    graph = replace(
        one.graph, senders=senders, receivers=receivers, edge_mask=jnp.ones((1, EDGES), bool),
        node_mask=jnp.ones((1, NODES), bool),
    )  # fmt: skip
    before = answers(network, replace(one, graph=graph))[0]
    after = answers(network, replace(one, graph=replace(graph, nodes=graph.nodes.at[0, 0].add(1.0))))[0]
    moved = np.abs(before - after).max(-1)[0]
    assert (moved[:3] > 1e-5).all()
    assert (moved[3:] == 0).all()


def test_discrete_actions_respect_the_mask():
    spec = replace(SPEC, action="discrete", action_size=3)
    network = GraphActorCritic(jax.random.key(0), spec, width=8, layers=1)
    observation = random_observation(0)
    mask = jnp.zeros((WORLDS, SLOTS, 3), bool).at[..., 1].set(True)
    observation = replace(observation, action_mask=mask)
    memory = network.remember(network.initial_memory(observation), observation)
    assert (network.actions(memory, observation).sample(jax.random.key(1)) == 1).all()
