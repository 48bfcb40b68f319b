"""Loops that users write themselves, of the kinds that the project was asked for, on the smallest grid."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from dynamic_graph_fed_rl import (
    DynamicGraphEnv,
    FederatedActorCritic,
    FederatedHierarchy,
    FederatedOptimizer,
    GraphTransition,
)
from dynamic_graph_fed_rl.algorithms import GraphSAC, GraphTD3
from dynamic_graph_fed_rl.environments import PowerGridEnv
from dynamic_graph_fed_rl.models import MultiScaleTemporalGNN

SMALL = {"width": 4, "batch_size": 8, "window": 2}


def test_gossiping_agents_on_a_changing_network():
    env = DynamicGraphEnv(
        "power_grid",
        num_agents=2,
        time_varying_topology=True,
        edge_failure_rate=0.01,
        case="ieee14",
        training_decisions=6,
        radius=2,
    )
    federation = FederatedActorCritic(
        num_agents=2, communication="asynchronous_gossip", buffer_type="graph_temporal", aggregation_interval=4
    )
    dims = {"state_dim": env.node_feature_dim, "action_dim": env.action_dim, "edge_dim": env.edge_feature_dim}
    agents = [GraphTD3(**dims, gnn_type="static_gcn", buffer_size=100, **SMALL) for _ in range(2)]
    exchanges = 0
    for _ in range(2):
        state = env.reset()
        for step in range(env.max_steps):
            actions = {i: agent.select_action(env.get_local_view(i, radius=2)) for i, agent in enumerate(agents)}
            after, rewards, done, info = env.step(actions)
            for i, agent in enumerate(agents):
                pair = state.get_subgraph(i), after.get_subgraph(i)
                agent.buffer.add(GraphTransition(pair[0], actions[i], rewards[i], pair[1], info["topology_changed"]))
            if step % federation.aggregation_interval == 0:
                federation.aggregate_parameters(agents)
                exchanges += 1
            state = after
            if done:
                break
    # two episodes of six decisions, each with an extra row where it was cut off
    assert [len(agent.buffer) for agent in agents] == [14, 14] and exchanges == 4

    before = agents[0].get_parameters()
    assert np.isfinite(list(agents[0].update().values())).all()
    assert np.isfinite(list(agents[0].update().values())).all()
    moved = jax.tree.map(np.array_equal, before.actor, agents[0].get_parameters().actor)
    assert not all(jax.tree.leaves(moved))
    assert federation.gossip_round()["disagreement"] > 0


def test_levels_of_agents_on_a_grid_with_renewables():
    env = PowerGridEnv(
        grid_config="ieee_14_bus",
        renewable_penetration=0.3,
        weather_dynamics=True,
        demand_variation="realistic",
        num_agents=2,
        training_decisions=6,
        radius=2,
    )

    def create_agent(level: str, number: int) -> GraphSAC:
        return GraphSAC(actor_lr=3e-4, critic_lr=3e-4, gnn_type="static_gcn", planning_horizon=3, **SMALL)

    hierarchy = FederatedHierarchy(["transmission", "distribution"], [1, 1], "tree", create_agent)
    optimizer = FederatedOptimizer(algorithm="async_sgd", learning_rate_schedule="cosine", momentum=0.9, rounds=10)
    everyone = [agent for level in hierarchy.levels for agent in hierarchy.get_agents(level)]
    for _ in range(2):
        assert env.get_renewable_forecast(horizon=2).shape == (2,)
        state, done = env.reset(), False
        while not done:
            actions = {i: agent.select_action(env.get_local_view(i)) for i, agent in enumerate(everyone)}
            after, rewards, done, _ = env.step(actions)
            for i, agent in enumerate(everyone):
                agent.buffer.add(
                    GraphTransition(state.get_subgraph(i), actions[i], rewards[i], after.get_subgraph(i))
                )
            state = after
        for level in hierarchy.levels:
            for agent in hierarchy.get_agents(level):
                batch = agent.buffer.sample_temporal(batch_size=6, lookback=agent.planning_horizon)
                assert batch.rewards.shape == (3, 6)
                assert np.isfinite([agent.update_critic(batch), agent.update_actor(batch)]).all()
            report = hierarchy.aggregate_level(level, optimizer)
            assert report["active"] == {"transmission": 1, "distribution": 2}[level]
        assert env.evaluate_stability().max_line_loading > 0


def test_a_multi_scale_network_reads_sequences():
    """Its answer depends on what was seen first, and not on how a sequence is cut into calls."""
    env = DynamicGraphEnv("pendulum", num_agents=1)
    sequence = [env.reset().get_subgraph(0)]
    for _ in range(4):
        sequence.append(env.step({0: [0.5]})[0].get_subgraph(0))
    network = MultiScaleTemporalGNN(time_scales=[1, 2], hidden_dim=4)
    answer = network(sequence)
    assert answer.shape == (4,)
    np.testing.assert_array_equal(network.forward(sequence), answer)
    assert not np.allclose(network([*sequence[1:2], *sequence[1:]]), answer)
    with pytest.raises(ValueError, match=r"time_scales \[5, 1\]: must grow from 1"):
        MultiScaleTemporalGNN([5, 1])
    with pytest.raises(ValueError, match="graph_sequence: needs at least one graph"):
        network([])


def test_the_package_comes_without_jax():
    """Objects are imported when they are asked for, and what is not there is an attribute error."""
    script = (
        "import sys, dynamic_graph_fed_rl as package, dynamic_graph_fed_rl.algorithms as algorithms\n"
        "assert 'jax' not in sys.modules\n"
        "assert not hasattr(package, 'GraphTD4')\n"
        "from dynamic_graph_fed_rl.algorithms import GraphTD3\n"
        "assert GraphTD3.__name__ == 'GraphTD3' and 'jax' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
