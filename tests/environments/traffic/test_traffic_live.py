"""What needs no SUMO is tested always, an episode in SUMO where it is installed."""

import importlib.util
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_city import ROUTES, net_xml, write

from dynamic_graph_fed_rl.environments.traffic.demand import sumo_binary
from dynamic_graph_fed_rl.environments.traffic.joining import read_network
from dynamic_graph_fed_rl.environments.traffic.sumo_closures import Barriers
from dynamic_graph_fed_rl.environments.traffic.sumo_process import SumoProcess, SumoSettings

installed = importlib.util.find_spec("libsumo") is not None


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("live")
    net, routes = write(folder, "small.net.xml", net_xml()), write(folder, "a.rou.xml", ROUTES)
    return SumoSettings(net, routes, 0.0, duration_s=30.0)


def test_a_sumo_that_cannot_start_says_why_and_is_gone(settings):
    network = read_network(settings.net)
    broken = SumoSettings(Path("/nowhere.net.xml"), settings.routes, 0.0)
    message = "SUMO failed in 'start'" if installed else r"libsumo is not installed: pip install .*\[sumo\]"
    with pytest.raises(RuntimeError, match=message):
        SumoProcess(network, broken)


@pytest.mark.skipif(not installed, reason="needs libsumo, of the extra 'sumo'")
def test_a_sumo_that_dies_does_not_hang(settings):
    from dynamic_graph_fed_rl.environments.traffic.study import installed as installed_network

    network, _, sumo = installed_network("cologne1")
    with SumoProcess(network, sumo) as world:
        world.advance(np.zeros((1, network.signals), int), 5)
        world._process.kill()
        with pytest.raises(RuntimeError, match="SUMO (has )?ended"):
            world.advance(np.zeros((1, network.signals), int), 5)


@pytest.mark.skipif(not installed, reason="needs libsumo, of the extra 'sumo'")
def test_nobody_drives_onto_a_closed_link_and_no_car_is_lost(settings):
    from dynamic_graph_fed_rl.environments.traffic.live import sensed
    from dynamic_graph_fed_rl.environments.traffic.study import installed as installed_network

    network, _, sumo = installed_network("cologne8")
    link = network.link_of_edge["-186623965#16"]
    closed = replace(sumo, duration_s=420.0, closures=((link, 100.0, 300.0),))
    with SumoProcess(network, closed) as world:
        looks = [world.look]
        looks += [world.advance(None, 5) for _ in range(84)]
        told = [bool(sensed(look).closed[link]) for look in looks]
        outcome = world.finish()
    # told from the moment on, and until it opens again
    assert [look.time_s for look, shut in zip(looks, told, strict=True) if shut] == list(np.arange(105.0, 301.0, 5.0))
    assert [float(look.since_s[link]) for look in looks[21:24]] == [5.0, 10.0, 15.0]
    cars = np.array([look.link_vehicles[link] for look in looks])
    assert cars[:20].max() > 0 and cars[64:].max() > 0
    # a few start on the link itself
    assert cars[30:60].max() <= 2
    # those who were on the crossing
    assert outcome.let_in <= 5
    assert outcome.led_around > 10 and outcome.removed == 0
    assert len(outcome.standing) == 85
    assert outcome.p95_delay_s >= np.median(outcome.delay_s)


@pytest.mark.skipif(not installed, reason="needs libsumo, of the extra 'sumo'")
def test_orders_switch_sumos_signals_with_yellow_and_minimum_green(settings):
    from dynamic_graph_fed_rl.environments.traffic.study import installed as installed_network

    network, _, sumo = installed_network("cologne1")
    with SumoProcess(network, sumo) as world:
        look = world.advance(np.zeros((1, 1), int), 6)
        assert look.phase == 0 and look.phase_s == 6 and look.time_s == 6
        look = world.advance(np.ones((1, 1), int), 2)
        assert (look.phase, look.target, look.clearing_s) == (0, 1, 1)
        look = world.advance(np.ones((1, 1), int), 1)
        assert (look.phase, look.clearing_s, look.phase_s) == (1, 0, 0)
        # too early to leave
        look = world.advance(np.zeros((1, 1), int), 3)
        assert look.phase == look.target == 1
        with pytest.raises(RuntimeError, match="has no phase 9"):
            world.advance(np.full((1, 1), 9), 1)


FORK = """<nodes>
  <node id="a" x="0" y="0"/><node id="b" x="60" y="0"/><node id="c" x="160" y="40"/><node id="d" x="160" y="-40"/>
  <node id="e" x="260" y="0"/><node id="f" x="360" y="0"/>
</nodes>"""
ROADS = """<edges>
  <edge id="ab" from="a" to="b" numLanes="2"/><edge id="bc" from="b" to="c"/><edge id="bd" from="b" to="d"/>
  <edge id="ce" from="c" to="e"/><edge id="de" from="d" to="e"/><edge id="ef" from="e" to="f"/>
</edges>"""
# the right lane goes to d, the left one to c
LANES = """<connections>
  <connection from="ab" to="bd" fromLane="0" toLane="0"/><connection from="ab" to="bc" fromLane="1" toLane="0"/>
</connections>"""


@pytest.mark.skipif(not installed, reason="needs libsumo, of the extra 'sumo'")
@pytest.mark.parametrize("led_around", [True, False])
def test_who_was_led_around_too_late_misses_the_turn(settings, tmp_path, led_around):
    import libsumo

    net, routes = tmp_path / "fork.net.xml", tmp_path / "one.rou.xml"
    files = {"node-files": FORK, "edge-files": ROADS, "connection-files": LANES}
    words = []
    for option, text in files.items():
        (tmp_path / f"{option}.xml").write_text(text)
        words += [f"--{option}", str(tmp_path / f"{option}.xml")]
    subprocess.run([sumo_binary("netconvert"), *words, "-o", str(net)], check=True, capture_output=True)
    routes.write_text(
        '<routes><vehicle id="car" depart="0" departLane="0"><route edges="ab bc ce ef"/></vehicle></routes>'
    )
    barriers = Barriers(libsumo, read_network(settings.net), (), 1.0, 0)
    libsumo.start(["sumo", "-n", str(net), "-r", str(routes), "--time-to-teleport", "-1", "--no-step-log"])
    try:
        for second in range(120):
            barriers.tick(float(second))
            libsumo.simulationStep()
            if second == 0:
                # it may not change lanes, as on a road shorter than a car
                libsumo.vehicle.setLaneChangeMode("car", 0)
                barriers.led_around |= {"car"} if led_around else set()
        left = libsumo.vehicle.getIDCount() == 0
    finally:
        libsumo.close()
    # others are let alone: why they stand is SUMO's own business
    assert left == led_around
