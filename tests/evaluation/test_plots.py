"""What stands beside the pictures of a comparison."""

from dynamic_graph_fed_rl.environments.spec import Metric
from dynamic_graph_fed_rl.evaluation.plots import controllers_of, no_score_because, score_zero
from dynamic_graph_fed_rl.evaluation.statistics import summarise_scenario


def test_a_score_is_measured_from_the_domains_own_zero():
    delay = Metric("delay", "delay a car", "s")
    costs = {"policy": [20.0, 21.0], "fixed-time": [40.0, 41.0], "max-pressure": [25.0, 26.0]}
    entry = summarise_scenario({name: {"delay": v} for name, v in costs.items()}, "delay", worst="fixed-time")
    assert score_zero(entry) == "fixed-time" and entry["score"]["fixed-time"] == 0
    assert set(controllers_of(entry)) == set(costs)
    costs["max-pressure"] = [40.0, 40.8]
    entry = summarise_scenario({name: {"delay": v} for name, v in costs.items()}, "delay", worst="fixed-time")
    assert "(max-pressure) is only" in no_score_because(entry, delay)
    assert "better than fixed-time" in no_score_because(entry, delay)
