from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from small_city import ROUTES, net_xml, write

from dynamic_graph_fed_rl.environments.traffic.conducts import CONDUCTS, read_city
from dynamic_graph_fed_rl.environments.traffic.demand import AHEAD_M, lanes_wanted, vehicle_space_m
from dynamic_graph_fed_rl.environments.traffic.generate import generated


def furthest_m(network, way, movement):
    """From the end of the first link until a change of lanes, over every sequence of lanes that starts so."""
    best = 0.0
    for lanes in product(*(np.flatnonzero(network.lane_link == link).tolist() for link in way[1:])):
        if lanes[0] not in network.movement_lands[movement]:
            continue
        metres = 0.0
        for i, lane in enumerate(lanes):
            if i == len(lanes) - 1:
                metres = np.inf
                break
            metres += network.link_length_m[way[i + 1]]
            goes = (network.movement_lane == lane) & (network.movement_to == way[i + 2])
            if not any(lanes[i + 1] in network.movement_lands[m] for m in np.flatnonzero(goes)):
                break
        best = max(best, metres)
    return best


def test_drivers_take_the_lanes_that_lead_furthest():
    network, _ = generated("grid", 9, 0.4, 900.0, seed=0)
    # short blocks, and every lane leads into the one lane of its own side
    network = replace(
        network,
        link_length_m=np.full(network.links, 60.0),
        movement_lands=tuple(
            (2 * int(to) + int(lane) % 2,)
            for lane, to in zip(network.movement_lane, network.movement_to, strict=True)
        ),
    )
    rng, unequal = np.random.default_rng(0), 0
    for _ in range(40):
        way = [int(rng.integers(network.links))]
        while len(way) < 5 and (ahead := network.turn_to[network.turn_from == way[-1]]).size:
            way.append(int(rng.choice(ahead)))
        if len(set(way)) < 4:
            continue
        wanted = lanes_wanted(network, tuple(way))
        members = network.movements_of_turn[way[0], way[1]]
        reach = np.array([furthest_m(network, way, m) for m in members])
        best = reach >= min(reach.max(), AHEAD_M)
        np.testing.assert_allclose([wanted.get(m, 0.0) for m in members], best / best.sum())
        unequal += not best.all()
    assert unequal >= 3


def test_a_city_is_read_with_the_space_of_its_cars_and_its_conduct(tmp_path):
    short = '<vType id="short" length="4.3" minGap="1.5"/>'
    text = ROUTES.replace("<routes>", "<routes>" + short).replace("<vehicle ", '<vehicle type="short" ')
    routes = write(tmp_path, "a.rou.xml", text)
    assert vehicle_space_m(routes) == pytest.approx(5.8)
    network, demand = read_city(write(tmp_path, "cologne8.net.xml", net_xml()), routes, 0.0, 1800.0)
    # 100 m of one lane and 10 m of two
    assert network.link_storage[network.link_of_edge["west0"]] == 120 // 5.8
    assert network.conduct == CONDUCTS["cologne8"]
    share = demand.lane_share
    assert share is not None
    total = np.array([np.bincount(network.movement_turn, row) for row in share])
    np.testing.assert_allclose(total, 1.0)
