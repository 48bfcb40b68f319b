"""Where cars go while links are closed, against networkx."""

import networkx as nx
import numpy as np
import pytest
from small_city import ROUTES, net_xml, write

from dynamic_graph_fed_rl.environments.traffic.demand import read_demand
from dynamic_graph_fed_rl.environments.traffic.detours import closable, closed_demand, entering_flow, joint, mean_flow
from dynamic_graph_fed_rl.environments.traffic.generate import generated
from dynamic_graph_fed_rl.environments.traffic.joining import read_network
from dynamic_graph_fed_rl.environments.traffic.network import Demand
from dynamic_graph_fed_rl.environments.traffic.scenarios import kinds_of, stack_scenarios


@pytest.fixture(scope="module")
def town():
    network, demand = generated("city", 12, 0.6, 1800.0, seed=1)
    singles = closable(network, demand, 0.5, 8)
    rng = np.random.default_rng(0)
    return network, demand, singles + [joint(network, demand, singles, size, 0.5, rng) for size in (2, 3, 3)]


@pytest.fixture(scope="module")
def grid():
    return generated("grid", 16, 0.5, 900.0, seed=0)


def test_shares_of_turns_and_exits_add_up_and_none_leads_into_a_closed_link(town):
    network, demand, sets = town
    assert len(sets) == 11 and [len(one.links) for one in sets[-3:]] == [2, 3, 3]
    for one in sets:
        ratio = one.demand.turn_ratio
        assert (ratio >= 0).all()
        assert (ratio[:, np.isin(network.turn_to, one.links)] == 0).all()
        onward = np.array([np.bincount(network.turn_from, row, minlength=network.links) for row in ratio])
        assert onward.max() < 1 + 1e-6
        # cars neither vanish nor come from nowhere, and nobody is on a closed link any more
        flow = mean_flow(network, one.demand)
        np.testing.assert_allclose(one.demand.rate_per_s.sum(1), demand.rate_per_s.sum(1))
        ended = flow - np.bincount(network.turn_from, _turn_flow(network, one.demand), minlength=network.links)
        assert ended.min() > -1e-6
        assert ended.sum() == pytest.approx(demand.rate_per_s.mean(0).sum(), rel=1e-6)
        np.testing.assert_allclose(flow[list(one.links)], 0.0, atol=1e-9)


def _turn_flow(network, demand):
    """In the mean; the windows of a generated demand share their ratios."""
    return mean_flow(network, demand)[network.turn_from] * demand.turn_ratio[0]


def test_from_every_origin_cars_can_end_their_trip_whatever_set_is_closed(town):
    network, demand, sets = town
    for one in sets:
        ratio = one.demand.turn_ratio[0]
        graph = nx.DiGraph()
        graph.add_nodes_from(range(network.links))
        pairs = zip(network.turn_from.tolist(), network.turn_to.tolist(), ratio.tolist(), strict=True)
        graph.add_edges_from((a, b) for a, b, share in pairs if share > 0)
        onward = np.bincount(network.turn_from, ratio, minlength=network.links)
        graph.add_edges_from((link, "end") for link in np.flatnonzero(onward < 1 - 1e-6).tolist())
        leaves = nx.ancestors(graph, "end")
        begins = set(np.flatnonzero(one.demand.rate_per_s[0] > 0).tolist())
        # and so can those who are on the roads when they close
        assert begins | set(np.flatnonzero(mean_flow(network, demand) > 0).tolist()) <= leaves
        assert not begins & set(one.links)


def test_the_busiest_links_are_closed_first(town):
    network, demand, sets = town
    flow = entering_flow(network, demand)
    chosen = [flow[one.links[0]] for one in sets[:8]]
    assert chosen == sorted(chosen, reverse=True)


def along(network, way) -> Demand:
    """Cars on this way alone."""
    rate, ratio = np.zeros((1, network.links)), np.zeros((1, len(network.turn_from)))
    rate[0, way[0]] = 0.1
    for a, b in zip(way[:-1], way[1:], strict=True):
        ratio[0, np.flatnonzero((network.turn_from == a) & (network.turn_to == b))] = 1.0
    return Demand(0.0, 900.0, rate, ratio)


def quickest(network, closed, start, goal):
    graph = nx.DiGraph()
    for a, b in zip(network.turn_from.tolist(), network.turn_to.tolist(), strict=True):
        if closed not in (a, b):
            graph.add_edge(a, b, weight=network.link_time_s[b] + 10.0)
    return nx.shortest_path_length(graph, start, goal, "weight")


@pytest.mark.parametrize(("uptake", "turns_off"), [(0.0, 3), (1.0, 1)])
def test_who_finds_a_link_closed_takes_the_quickest_way_to_what_lies_behind_it(grid, uptake, turns_off):
    network, _ = grid
    ways = nx.DiGraph(zip(network.turn_from.tolist(), network.turn_to.tolist(), strict=True))
    inner = np.flatnonzero((network.link_origin >= 0) & (network.link_end >= 0))
    # a way of six links over the town
    way = next(
        path
        for start in inner
        for goal, path in nx.single_source_shortest_path(ways, int(start)).items()
        if len(path) == 6 and network.link_origin[goal] >= 0
    )
    closed = way[4]
    there = closed_demand(network, along(network, way), (closed,), uptake)
    flow = mean_flow(network, there)
    used = set(np.flatnonzero(flow > 1e-9).tolist())
    np.testing.assert_allclose(flow[list(used)], 0.1)
    assert closed not in used and set(way[: turns_off + 1]) <= used
    detour = used - set(way[: turns_off + 1])
    expected = quickest(network, closed, way[turns_off], way[5])
    assert sum(network.link_time_s[link] + 10.0 for link in detour) == pytest.approx(expected)


def test_links_that_follow_one_another_do_not_close_together(grid):
    network, demand = grid
    pair = int(network.turn_from[0]), int(network.turn_to[0])
    assert closed_demand(network, demand, pair, 0.5) is None


def test_cars_that_wait_for_a_closed_turn_are_given_another_from_their_link(town):
    network, _, sets = town
    for one in sets:
        instead = one.instead(network)
        shut = np.isin(network.movement_to, one.links)
        assert (instead[~shut] == np.flatnonzero(~shut)).all()
        assert (network.movement_from[instead] == network.movement_from).all()
        assert not np.isin(network.movement_to[instead[shut]], one.links).any() and shut.any()


def test_where_nothing_can_be_closed_scenarios_with_closures_are_refused(tmp_path):
    network = read_network(write(tmp_path, "small.net.xml", net_xml()))
    demand = read_demand(network, write(tmp_path, "a.rou.xml", ROUTES), 0.0, 900.0)
    with pytest.raises(ValueError, match="network 'small': no link can be closed without cutting somebody off"):
        stack_scenarios(network, demand, kinds_of(("incidents",), None, True), 0.5)
    with pytest.raises(ValueError, match="edge_failure_rate 0.9: 4 links .* no more than 0 were"):
        stack_scenarios(network, demand, kinds_of(("normal",), 0.9, True), 0.5)
