import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.traffic.baselines import RuleController
from dynamic_graph_fed_rl.environments.traffic.build import build
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings
from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys
from dynamic_graph_fed_rl.evaluation.held_out import episodes_of
from dynamic_graph_fed_rl.evaluation.network_plots import NetworkMap, Timeline, draw_network, draw_timeline

SETTINGS = TrafficSettings(network="city", signals=7, duration_s=900.0, scenarios=("normal", "incidents"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of max pressure in the place of the policy."""
    folder = tmp_path_factory.mktemp("pictures")
    domain = build(SETTINGS, 3)
    policy = domain.baselines["max-pressure"](domain.scenarios["incidents"])
    assert isinstance(policy, RuleController) and domain.illustrate is not None
    domain.illustrate(folder, policy, episodes_of(domain, evaluation_keys(0, 1)))
    return folder, Timeline.load(folder / "day.npz"), NetworkMap.load(folder / "map.npz")


def test_the_hour_is_that_of_the_incidents_and_each_controller_has_its_own(pictures):
    _, hour, _ = pictures
    assert "'incidents'" in hour.title
    np.testing.assert_array_equal(hour.series["policy/standing"], hour.series["max-pressure/standing"])
    assert (hour.series["fixed-time/standing"] != hour.series["policy/standing"]).any()
    assert np.allclose(np.diff(hour.hours) * 3600.0, 5.0, atol=1e-2) and len(hour.hours) == 180
    assert any(text.endswith(" closed") for text in hour.events)


def test_the_map_shows_the_moment_when_most_cars_stand(pictures):
    _, hour, shown = pictures
    standing = hour.series["policy/standing"] + hour.series["policy/outside"]
    at = int(standing.argmax())
    assert shown.node_demand.sum() == pytest.approx(hour.series["policy/standing"][at])
    assert shown.node_is_source.sum() == 7 and set(shown.region) == {0, 1, 2}
    closed_then = [text for text, when in hour.events.items() if text.endswith("closed") and when <= hour.hours[at]]
    open_then = [text for text, when in hour.events.items() if text.endswith("open") and when <= hour.hours[at]]
    # a road is shut if one of its directions is
    assert bool((~shown.edge_in_service).any()) == (len(closed_then) > len(open_then))


def test_both_can_be_drawn(pictures):
    folder, hour, shown = pictures
    draw_timeline(folder / "day.png", hour)
    draw_network(folder / "map.png", shown)
    assert min((folder / name).stat().st_size for name in ("day.png", "map.png")) > 20_000
