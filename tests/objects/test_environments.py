"""Environments as objects: what they show is what the pure core does."""

import numpy as np
import pytest

from dynamic_graph_fed_rl import DynamicGraphEnv
from dynamic_graph_fed_rl.environments import PowerGridEnv


def test_pendulums_pay_what_the_textbook_says():
    env = DynamicGraphEnv("pendulum", num_agents=2, time_limit=3)
    assert (env.node_feature_dim, env.edge_feature_dim, env.action_dim, env.max_steps) == (3, 0, 1, 3)
    before = env.reset()
    for step in range(3):
        after, rewards, done, info = env.step({0: np.array([[0.5]]), 1: [-1.0]})
        for agent, push in enumerate((0.5, -1.0)):
            cosine, sine, speed = before.get_subgraph(agent).nodes[0]
            expected = -(np.arctan2(sine, cosine) ** 2 + 0.1 * speed**2 + 0.001 * (2 * push) ** 2)
            assert rewards[agent] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert not info["topology_changed"] and done == (step == 2)
        before = after
    ends = [before.get_subgraph(agent) for agent in range(2)]
    assert [(one.terminated, one.truncated) for one in ends] == [(False, True)] * 2
    with pytest.raises(ValueError, match=r"over; call reset\(\)"):
        env.step({0: [0.0], 1: [0.0]})
    assert env.reset().get_subgraph(0).nodes[0, 0] != ends[0].nodes[0, 0]


def test_worlds_that_are_stepped_together_end_together():
    env = DynamicGraphEnv("cartpole", num_agents=2)
    state, done, steps = env.reset(), False, 0
    while not done:
        # the first is driven off, the second is balanced by a rule
        _, _, angle, spin = state.get_subgraph(1).nodes[0]
        state, _, done, info = env.step({0: 1, 1: int(angle + 0.5 * spin > 0)})
        steps += 1
    assert 5 < steps < 30
    assert info["terminated"] == {0: True, 1: False} and info["truncated"] == {0: False, 1: True}


def test_episodes_follow_from_the_seed():
    first, again, other = (DynamicGraphEnv("pendulum", num_agents=1, seed=seed) for seed in (0, 0, 1))
    seen = [[env.reset().get_subgraph(0).nodes for _ in range(2)] for env in (first, again, other)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[0][0], seen[0][1]) and not np.array_equal(seen[0], seen[2])


@pytest.mark.parametrize(
    "arguments, message, error",
    [
        ({"scenario": "telecom_backbone"}, "'telecom_backbone': arrives with a later", NotImplementedError),
        ({"scenario": "rush_hour_dynamics", "num_signals": 5}, "'num_signals': unknown", ValueError),
        ({"scenario": "power_gird"}, "environment 'power-gird': unknown; known: power-grid", ValueError),
        ({"scenario": "pendulum", "edge_failure_rate": 0.1}, "edge_failure_rate 0.1: no edge of", ValueError),
        ({"edge_failure_rate": 0.1, "time_varying_topology": False}, "needs time_varying_topology=True", ValueError),
        ({"scenario": "pendulum", "num_intersections": 5}, "'num_intersections': unknown", ValueError),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, message, error):
    with pytest.raises(error, match=message):
        DynamicGraphEnv(**arguments)


def test_a_citys_rush_hour_has_as_many_intersections_and_closed_roads_as_asked_for():
    env = DynamicGraphEnv(
        scenario="rush_hour_dynamics", num_intersections=12, time_varying_topology=True, edge_failure_rate=0.05
    )
    state = env.reset()
    assert env.name == "traffic" and env.num_agents == 12 and env.radius == 2
    nodes = [state.get_subgraph(agent).nodes for agent in range(12)]
    own = [int(seen[:, 0].sum()) for seen in nodes]
    # each has its own signal and sees others
    assert own == [1] * 12 and max(len(seen) for seen in nodes) > 4
    names = [column.name for column in env.spec.edge_features]
    opened = np.concatenate([state.get_subgraph(agent).edges[:, names.index("open")] for agent in range(12)])
    assert 0 < (opened == 0).sum() < len(opened) / 2
    after, rewards, _, _ = env.step({agent: [0] for agent in range(12)})
    assert len(rewards) == 12 and all(np.isfinite(list(rewards.values())))


def test_actions_and_agents_are_checked():
    env = DynamicGraphEnv("pendulum", num_agents=2)
    with pytest.raises(ValueError, match=r"actions of agents \[0\]: must be of all 2"):
        env.step({0: [0.0]})
    with pytest.raises(ValueError, match=r"action of shape \[2\]: must be \[1, 1\]"):
        env.step({0: [0.0, 0.0], 1: [0.0]})
    with pytest.raises(ValueError, match="agent 2: there are 2"):
        env.get_local_view(2, radius=1)


def test_arguments_of_a_grid_are_checked():
    with pytest.raises(ValueError, match="weather_dynamics False"):
        PowerGridEnv(weather_dynamics=False)
    with pytest.raises(ValueError, match="'ieee119'"):
        PowerGridEnv("ieee_119_bus")


@pytest.fixture(scope="module")
def grid() -> PowerGridEnv:
    return PowerGridEnv("ieee_14_bus", 0.3, num_agents=3, edge_failure_rate=0.2, training_decisions=8, radius=1)


def test_topology_changes_are_those_of_the_edges_seen(grid):
    """Over some episodes with many faults, against the masks themselves."""
    told, expected = [], []
    for _ in range(4):
        state, done = grid.reset(), False
        while not done:
            after, _, done, info = grid.step({agent: np.zeros((grid.spec.slots, 1)) for agent in range(3)})
            masks = [(one.observation.graph.edge_mask, one.observation.graph.node_mask) for one in (state, after)]
            expected.append(any(not np.array_equal(*pair) for pair in zip(*masks, strict=True)))
            told.append(info["topology_changed"])
            state = after
    assert told == expected and any(told) and not all(told)


def test_a_radius_is_the_environments(grid):
    assert grid.get_local_view(1, radius=1) is grid.state.get_subgraph(1)
    with pytest.raises(ValueError, match="radius 2: this environment shows 1; make it with radius=2"):
        grid.get_local_view(1, radius=2)


def test_forecast_begins_with_what_agents_are_told(grid):
    """An hour ahead it is the outlook of the state, summed over the farms."""
    grid.reset()
    pure, state = grid._grid()
    farms = np.asarray(pure.units.farm)
    forecast = grid.get_renewable_forecast(horizon=3)
    assert forecast.shape == (3,)
    assert forecast[0] == pytest.approx(np.asarray(state.outlook.available_hour_mw)[farms].sum(), rel=1e-5)
    assert (forecast >= 0).all() and (forecast <= np.asarray(pure.units.p_max_mw)[farms].sum()).all()


def test_stability_is_that_of_the_network(grid):
    grid.reset()
    pure, state = grid._grid()
    measured = grid.evaluate_stability()
    assert measured.max_line_loading == pytest.approx(float(np.max(state.network.loading)))
    assert 0.9 < measured.min_voltage_pu <= measured.max_voltage_pu < 1.1
    # a fresh day: the grid is whole and everything is served
    assert (measured.lines_out, measured.buses_out, measured.blackout) == (0, 0, False)
    demand = float((np.asarray(pure.grid.load_mw) * np.asarray(state.level)).sum())
    assert measured.unserved_mw < 1e-3 * demand and 0 < measured.losses_mw < 0.1 * demand
    with pytest.raises(NotImplementedError, match="frequency_nadir: frequency is not simulated yet"):
        _ = measured.frequency_nadir
