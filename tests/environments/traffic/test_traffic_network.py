import importlib.util

import numpy as np
import pytest
from small_city import ROUTES, net_xml, write

from dynamic_graph_fed_rl.environments.traffic.demand import read_demand, routed
from dynamic_graph_fed_rl.environments.traffic.joining import read_network
from dynamic_graph_fed_rl.environments.traffic.network import (
    PROTECTED,
    RED,
    YIELDING,
    districts,
    roads_between_signals,
)
from dynamic_graph_fed_rl.environments.traffic.sumo_files import installed_files


@pytest.fixture
def crossing(tmp_path):
    return read_network(write(tmp_path, "small.net.xml", net_xml()))


def movement(network, start: str, end: str, lane: int) -> int:
    """The one from a link's lane, counted from the kerb."""
    link = network.link_of_edge[start]
    first = np.flatnonzero(network.lane_link == link)[lane]
    (found,) = np.flatnonzero((network.movement_lane == first) & (network.movement_to == network.link_of_edge[end]))
    return int(found)


def test_a_short_road_becomes_the_end_of_the_one_before_it(crossing):
    assert crossing.link_edges == (("west0", "west1"), ("south",), ("east",), ("north",))
    west = crossing.link_of_edge["west1"]
    assert west == crossing.link_of_edge["west0"]
    np.testing.assert_allclose(crossing.link_length_m, [110, 75, 300, 300])
    np.testing.assert_allclose(crossing.link_time_s * crossing.conduct.cruise, [11, 7.5, 30, 30])
    # 100 m of one lane and 10 m of two
    np.testing.assert_array_equal(crossing.link_storage, [16, 10, 40, 40])
    np.testing.assert_array_equal(crossing.link_lanes, [2, 1, 1, 1])
    assert crossing.lane_parts[0] == (("west0_0", 0.5), ("west1_0", 1.0))
    assert crossing.lane_parts[1] == (("west0_0", 0.5), ("west1_1", 1.0))


def test_phases_say_who_is_green_and_who_yields(crossing):
    assert crossing.signal_id == ("C",)
    assert crossing.phase_states == (("GGgrr", "rrrGG"),)
    straight, left = movement(crossing, "west0", "east", 0), movement(crossing, "west0", "north", 1)
    south = movement(crossing, "south", "north", 0)
    np.testing.assert_array_equal(crossing.movement_green[straight], [PROTECTED, RED])
    np.testing.assert_array_equal(crossing.movement_green[left], [YIELDING, RED])
    np.testing.assert_array_equal(crossing.movement_green[south], [RED, PROTECTED])
    assert crossing.movement_foes[left] == (south,)
    assert crossing.movement_foes[straight] == ()
    np.testing.assert_array_equal(crossing.program_s, [[30, 30]])
    np.testing.assert_array_equal(crossing.clearance_s, [[3, 3]])
    np.testing.assert_array_equal(crossing.offset_s, [5])
    np.testing.assert_array_equal(crossing.link_end, [0, 0, -1, -1])
    np.testing.assert_array_equal(crossing.link_origin, [-1, -1, 0, 0])


def test_a_packed_network_is_the_same(crossing, tmp_path):
    packed = read_network(write(tmp_path, "small.net.xml.gz", net_xml()))
    assert packed.name == crossing.name == "small"
    assert packed.link_edges == crossing.link_edges
    np.testing.assert_array_equal(packed.movement_green, crossing.movement_green)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (net_xml(signal=False), "has no traffic signal"),
        (
            net_xml(states=("GGgrr", "yyyrr", "rrrGr", "rrryr")),
            r"signal 'C': no phase is ever green from lane .*'south'",
        ),
        (net_xml(states=("GG", "rr")), r"signal 'C': state 'GG' has no place 2"),
        (net_xml(states=("yyyyy",)), "signal 'C': its program has no phase that is green"),
        (net_xml().replace("tlLogic", "other"), "signal 'C' controls connections but has no <tlLogic>"),
        ("<net></net>", "no edge that cars may use"),
        ("<net>", "not an XML file"),
    ],
)
def test_a_network_that_cannot_be_used_is_refused_by_name(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_network(write(tmp_path, "bad.net.xml", text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.net\.xml: no such file"):
        read_network(tmp_path / "nowhere.net.xml")


def test_demand_counts_departures_and_turns_by_window(crossing, tmp_path):
    demand = read_demand(crossing, write(tmp_path, "a.rou.xml", ROUTES), 0.0, 1800.0)
    west, south, east, north = range(4)
    np.testing.assert_allclose(demand.rate_per_s * 900.0, [[2, 2, 0, 0], [1, 0, 0, 0]])
    turn = {pair: i for i, pair in enumerate(zip(crossing.turn_from, crossing.turn_to, strict=True))}
    ratio = demand.turn_ratio
    assert ratio[0, turn[west, east]] == ratio[0, turn[west, north]] == 0.5
    assert (ratio[1, turn[west, east]], ratio[1, turn[west, north]]) == (1.0, 0.0)
    # one of two from the south ends its trip there; the second window has none and takes the whole time's
    np.testing.assert_allclose(ratio[:, turn[south, north]], [0.5, 0.5])
    np.testing.assert_allclose(ratio[:, turn[south, east]], 0.0)
    assert demand.vehicles == pytest.approx(5)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        (ROUTES.replace("south north", "south park"), "vehicle 'd' drives over edge 'park'.*must belong together"),
        (ROUTES.replace("south north", "east north"), "vehicle 'd' turns from link 'east' to link 'north'"),
        (ROUTES.replace('depart="', 'depart="90'), "no vehicle departs between 0 and 1800 s"),
        ("<routes><vehicle id='x' depart='1'/></routes>", "vehicle 'x' has no route"),
        ("<routes><trip id='x' depart='1' from='west0' to='east'/></routes>", "<trip id='x'> has no route"),
    ],
)
def test_demand_that_does_not_fit_is_refused_by_name(crossing, tmp_path, routes, message):
    with pytest.raises(ValueError, match=message):
        read_demand(crossing, write(tmp_path, "a.rou.xml", routes), 0.0, 1800.0)


def test_complete_routes_need_no_routing(tmp_path):
    routes = write(tmp_path, "a.rou.xml", ROUTES)
    assert routed(write(tmp_path, "small.net.xml", net_xml()), routes) == routes


def test_without_sumo_it_is_said_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("SUMO_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    trips = write(tmp_path, "t.rou.xml", "<routes><trip id='x' depart='1' from='west0' to='east'/></routes>")
    with pytest.raises(ValueError, match="duarouter is needed, but SUMO is not installed: pip install"):
        routed(write(tmp_path, "small.net.xml", net_xml()), trips)
    with pytest.raises(ValueError, match="sumo-rl, which is not installed"):
        installed_files("cologne8")
    with pytest.raises(ValueError, match="network 'gotham': unknown; known: cologne1"):
        installed_files("gotham")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_districts_are_of_like_size_and_lie_apart(count):
    position = np.random.default_rng(0).uniform(0, 1000, (23, 2))
    district = districts(position, count)
    size = np.bincount(district, minlength=count)
    assert size.min() >= 23 // count - 1 and size.max() <= -(-23 // count) + 1
    if count == 2:
        axis = np.ptp(position, axis=0).argmax()
        left, right = position[district == 0, axis], position[district == 1, axis]
        assert left.max() < right.min()


def test_more_districts_than_signals_are_refused():
    with pytest.raises(ValueError, match="4 districts asked for, but there are 3 signals"):
        districts(np.zeros((3, 2)), 4)


def test_one_signal_has_no_road_to_another(crossing):
    roads = roads_between_signals(crossing)
    assert len(roads.origin) == len(roads.end) == len(roads.links) == 0
