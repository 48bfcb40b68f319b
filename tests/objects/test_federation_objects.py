"""Federations of objects against averages by NumPy."""

import equinox as eqx
import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from dynamic_graph_fed_rl import DynamicGraphEnv, FederatedActorCritic, FederatedHierarchy, FederatedOptimizer
from dynamic_graph_fed_rl.algorithms import GraphPPO


@pytest.fixture(scope="module")
def cartpole():
    return DynamicGraphEnv("cartpole", num_agents=1)


def made(env, seed):
    return GraphPPO.for_environment(env, width=2, gnn_type="static_gcn", seed=seed)


def vectors(agents) -> np.ndarray:
    return np.stack([ravel_pytree(agent.get_parameters())[0] for agent in agents])


def moved(agent, by):
    agent.set_parameters(jax.tree.map(lambda leaf: leaf + by, agent.get_parameters()))


def test_a_server_averages(cartpole):
    agents = [made(cartpole, seed) for seed in range(3)]
    expected, optimisers = vectors(agents).mean(0), [agent.learner.optimiser for agent in agents]
    federation = FederatedActorCritic(3, "server", aggregation_interval=7)
    report = federation.aggregate_parameters(agents)
    np.testing.assert_allclose(vectors(agents), np.tile(expected, (3, 1)), rtol=1e-5, atol=1e-6)
    assert federation.aggregation_interval == 7
    # up and down, four bytes a number
    assert report["bytes"] == 2 * 3 * 4 * expected.size
    assert all(eqx.tree_equal(a.learner.optimiser, before) for a, before in zip(agents, optimisers, strict=True))


def test_gossip_keeps_the_mean_and_closes_in(cartpole):
    agents = [made(cartpole, seed) for seed in range(4)]
    before = vectors(agents)
    federation = FederatedActorCritic(4, "asynchronous_gossip", "graph_temporal", overlay="ring")
    with pytest.raises(ValueError, match=r"call aggregate_parameters\(agents\) first"):
        federation.gossip_round()
    first, second = federation.aggregate_parameters(agents), federation.gossip_round()
    assert 0 < second["disagreement"] < first["disagreement"]
    np.testing.assert_allclose(vectors(agents).mean(0), before.mean(0), rtol=1e-4, atol=1e-6)


def test_what_is_shared_can_be_chosen(cartpole):
    agents = [made(cartpole, seed) for seed in range(2)]
    heads = [agent.get_parameters().actor.head for agent in agents]
    FederatedActorCritic(2, "server", share="trunk").aggregate_parameters(agents)
    after = [agent.get_parameters() for agent in agents]
    assert eqx.tree_equal(after[0].actor.encoder, after[1].actor.encoder)
    assert all(eqx.tree_equal(one.actor.head, head) for one, head in zip(after, heads, strict=True))


def test_levels_average_with_those_above(cartpole):
    tree = FederatedHierarchy(
        ["transmission", "distribution"], [2, 5], "tree", lambda level, i: made(cartpole, 10 * len(level) + i)
    )
    top, bottom = tree.get_agents("transmission"), tree.get_agents("distribution")
    assert tree.superiors("distribution") == [0, 0, 0, 1, 1]
    above, below = vectors(top), vectors(bottom)
    groups = [np.vstack([above[:1], below[:3]]).mean(0), np.vstack([above[1:], below[3:]]).mean(0)]
    tree.aggregate_level("distribution")
    np.testing.assert_allclose(vectors(top), groups, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vectors(bottom), [groups[0]] * 3 + [groups[1]] * 2, rtol=1e-4, atol=1e-6)
    tree.aggregate_level("transmission")
    np.testing.assert_allclose(vectors(top), [np.mean(groups, 0)] * 2, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(vectors(bottom[:1])[0], groups[0], rtol=1e-4, atol=1e-6)


def test_an_optimizer_keeps_its_momentum(cartpole):
    """Two aggregations of a level against the recursion by hand: v = m v + update, w = w + rate v."""
    momentum, rate = 0.5, 0.25
    tree = FederatedHierarchy(["all"], [2], create_agent=lambda level, i: made(cartpole, 0))
    optimizer = FederatedOptimizer("async_sgd", momentum=momentum, learning_rate=rate)
    agents = tree.get_agents("all")
    tree.aggregate_level("all", optimizer)
    weights = vectors(agents)[0]
    velocity = np.zeros_like(weights)
    for by in (0.2, -0.1):
        moved(agents[0], by)
        tree.aggregate_level("all", optimizer)
        velocity = momentum * velocity + by / 2
        weights = weights + rate * velocity
        np.testing.assert_allclose(vectors(agents), [weights] * 2, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="level 'all': began with"):
        tree.aggregate_level("all", FederatedOptimizer())


def test_an_optimizer_stands_for_settings():
    assert FederatedOptimizer("async_sgd", "cosine", 0.9, rounds=10).settings() == {
        "server_optimiser": "momentum",
        "server_momentum": 0.9,
        "server_learning_rate": pytest.approx(0.1),
        "server_rate_schedule": "cosine",
        "schedule": "asynchronous",
    }


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FederatedOptimizer("async_sgd", "cosine", 0.9), "'cosine': needs rounds"),
        (lambda: FederatedOptimizer("rmsprop"), "algorithm 'rmsprop': unknown; known: sgd"),
        (lambda: FederatedOptimizer(momentum=1.0), "momentum 1.0: must be a share below 1"),
        (lambda: FederatedActorCritic(2, "carrier_pigeon"), "communication 'carrier_pigeon': unknown; known: async"),
        (lambda: FederatedActorCritic(2, buffer_type="list"), "buffer_type 'list': unknown; known: graph_temporal"),
        (lambda: FederatedActorCritic(2, ovrelay="ring"), "setting of a federation 'ovrelay': unknown"),
        (lambda: FederatedHierarchy(["a", "b"], [1]), "need a name of its own and at least 1 agent"),
        (lambda: FederatedHierarchy(["a"], [1], "star"), "communication_topology 'star': unknown; known: tree"),
        (lambda: FederatedHierarchy(["a"], [1]).get_agents("b"), "level 'b': unknown; known: a"),
        (lambda: FederatedHierarchy(["a"], [1]).get_agents("a"), r"needs create_agent\(level, number\)"),
    ],
)
def test_what_cannot_be_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_who_takes_part_is_checked(cartpole):
    federation = FederatedActorCritic(2, "server")
    with pytest.raises(ValueError, match="1 agents: this federation is of 2"):
        federation.aggregate_parameters([made(cartpole, 0)])
    with pytest.raises(ValueError, match="GraphPPO: has seen no graph yet"):
        federation.aggregate_parameters([made(cartpole, 0), GraphPPO()])
    wide = GraphPPO.for_environment(cartpole, width=4, gnn_type="static_gcn")
    with pytest.raises(ValueError, match="share: groups differ in"):
        federation.aggregate_parameters([made(cartpole, 0), wide])
