from types import SimpleNamespace

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest
from small_city import ROUTES, net_xml, write

from dynamic_graph_fed_rl.environments.traffic.constants import road_constants
from dynamic_graph_fed_rl.environments.traffic.demand import read_demand
from dynamic_graph_fed_rl.environments.traffic.dynamics import Conditions, empty_roads
from dynamic_graph_fed_rl.environments.traffic.joining import read_network
from dynamic_graph_fed_rl.environments.traffic.network import Demand
from dynamic_graph_fed_rl.environments.traffic.rules import (
    Actuated,
    LongestQueue,
    MaxPressure,
    Program,
    SelfOrganising,
    SummedPressure,
    critical_loads,
    lane_flow_per_s,
    plan_phases,
    webster,
)
from dynamic_graph_fed_rl.environments.traffic.sensing import sense, signal_constants


@pytest.fixture(scope="module")
def crossing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossing")
    network = read_network(write(folder, "small.net.xml", net_xml()))
    demand = read_demand(network, write(folder, "a.rou.xml", ROUTES), 0.0, 900.0)
    roads = road_constants(network)
    calm = sense(roads, empty_roads(roads, 1), Conditions.normal(network.links, 1))
    return SimpleNamespace(network=network, demand=demand, signals=signal_constants(network), calm=calm)


def seen(crossing, lane_queue=(0.0,) * 5, **changes):
    """A look at the crossing; lanes are two from the west, then one of the south, the east and the north."""
    look = eqx.tree_at(lambda s: s.lane_queue, crossing.calm, jnp.asarray(lane_queue, jnp.float32))
    for name, value in changes.items():
        like = getattr(look, name)
        look = eqx.tree_at(lambda s, n=name: getattr(s, n), look, jnp.broadcast_to(jnp.asarray(value), like.shape))
    return look


def test_a_plan_wants_what_a_program_run_second_by_second_shows():
    rng = np.random.default_rng(0)
    green, clearance, offset = rng.integers(3, 9, (4, 3)), rng.integers(1, 4, (4, 3)), rng.integers(0, 20, 4)
    green[0, 2] = clearance[0, 2] = 0
    plan = Program(*(jnp.asarray(x, jnp.float32) for x in (green, clearance, offset)))
    wanted = np.asarray(plan_phases(plan, jnp.arange(100.0)))
    for s in range(4):
        # in each clearance the next phase is wanted already
        used = [k for k in range(3) if green[s, k]]
        course = [
            k for i, k in enumerate(used) for k in [k] * green[s, k] + [used[(i + 1) % len(used)]] * clearance[s, k]
        ]
        expected = [course[(t - offset[s]) % len(course)] for t in range(100)]
        np.testing.assert_array_equal(wanted[:, s], expected)


def test_longest_queue_and_max_pressure_serve_who_waits(crossing):
    for rule in (LongestQueue(crossing.signals), MaxPressure(crossing.signals)):
        for queue, phase in (((0, 0, 4, 0, 0), 1), ((3, 0, 0, 0, 0), 0)):
            wanted, _ = rule.wanted(rule.initial(), seen(crossing, queue, phase=1 - phase))
            assert wanted == phase
        # who has nothing to choose by stays
        assert rule.wanted(rule.initial(), seen(crossing, phase=1))[0] == 1


def test_a_full_link_ahead_takes_nothing_from_other_movements(crossing):
    """The positive part is taken movement by movement: summed over the phase, the east's queue would hide that cars
    wait for the north."""
    look = seen(crossing, (0, 6, 1, 9, 0), phase=1)
    assert MaxPressure(crossing.signals).wanted(None, look)[0] == 0
    score = SummedPressure(crossing.signals).score(look)
    # west: 0 - 9 and 6 - 9 to the east, 6 to the north; south: 1 - 9 and 1
    np.testing.assert_allclose(score, [[-6, -7]])
    np.testing.assert_allclose(MaxPressure(crossing.signals).score(look), [[6, 1]])


def test_an_actuated_green_goes_on_while_cars_come(crossing):
    rule = Actuated(crossing.signals)
    west = jnp.zeros(4).at[0].set(1.0)
    assert rule.wanted(None, seen(crossing, phase=0, phase_s=10.0, link_near=west))[0] == 0
    assert rule.wanted(None, seen(crossing, phase=0, phase_s=10.0))[0] == 1
    assert rule.wanted(None, seen(crossing, phase=0, phase_s=50.0, link_near=west))[0] == 1
    # after the last phase comes the first
    assert rule.wanted(None, seen(crossing, phase=1, phase_s=10.0, link_near=west))[0] == 0


def test_sotl_adds_up_waiting_times_the_time_of_red(crossing):
    rule = SelfOrganising(crossing.signals, threshold=30.0)
    memory, phases = rule.initial(), []
    for t in range(0, 30, 5):
        wanted, memory = rule.wanted(memory, seen(crossing, (0, 0, 2, 0, 0), phase=0, time_s=float(t)))
        phases.append(int(wanted[0]))
    # 2 cars for 15 s
    assert phases == [0, 0, 0, 1, 1, 1]


def test_lane_flows_follow_cars_through_the_network(crossing):
    network, demand = crossing.network, crossing.demand
    flow = lane_flow_per_s(network, demand) * 900.0
    # of two from the west one goes on to the east on either lane; of two from the south one ends there
    np.testing.assert_allclose(flow, [0.5, 1.5, 1.0, 0.0, 0.0])


def test_websters_plan_is_the_formulas(crossing):
    network = crossing.network
    rate = np.array([[0.12, 0.1, 0.0, 0.0]])
    ratio = np.zeros((1, len(network.turn_from)))
    for start, end in (("west0", "east"), ("south", "north")):
        a, b = network.link_of_edge[start], network.link_of_edge[end]
        ratio[0, np.flatnonzero((network.turn_from == a) & (network.turn_to == b))] = 1.0
    demand = Demand(0.0, 900.0, rate, ratio)
    conduct = network.conduct
    y = np.array([0.06, 0.1]) / conduct.saturation_per_s
    assert critical_loads(network, demand) == pytest.approx(y.sum())
    lost = 2 * (3.0 + conduct.lost_s - conduct.yellow_use_s)
    cycle = (1.5 * lost + 5.0) / (1.0 - y.sum())
    green = np.maximum((cycle - lost) * y / y.sum(), 5.0)
    # with 3 s of clearance each takes whole seconds, or whole decisions of 5 s
    np.testing.assert_allclose(webster(network, demand, decision_s=1.0).green_s, [np.round(green)])
    np.testing.assert_allclose(webster(network, demand).green_s, [5.0 * np.round((green + 3.0) / 5.0) - 3.0])
