"""What needs no SUMO is tested always, an episode in SUMO where it is installed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from small_city import ROUTES, net_xml, write

from dynamic_graph_fed_rl.environments.traffic.joining import read_network
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
    message = "SUMO failed in 'start'" if installed else "libsumo is not installed: pip install eclipse-sumo libsumo"
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
