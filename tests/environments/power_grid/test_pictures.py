"""The report's day and map hold what the states they were recorded from hold."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.power_grid.build import build
from dynamic_graph_fed_rl.environments.power_grid.network import load_case
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.evaluation.network_plots import NetworkMap, Timeline


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    settings = PowerGridSettings(case="ieee14", scenarios=("normal", "outages"), episode_decisions=3)
    domain = build(settings, agents=2)
    environment = domain.scenarios["outages"]
    first, _ = jax.jit(jax.vmap(environment.reset, out_axes=(0, 1)))(jax.random.split(jax.random.key(0), 2))
    played = []

    def play(controller, where):
        """Three decisions; a line goes out in the second, and the policy's loading peaks there."""
        assert eqx.tree_equal(where, environment)
        played.append(controller)
        for decision in (1, 2, 3):
            network = first.network
            loading = jnp.full_like(network.loading, 0.1 * decision).at[:, 4].set(0.9 if decision == 2 else 0.2)
            closed = network.closed.at[:, 6].set(decision == 1)
            changed = eqx.tree_at(lambda n: (n.loading, n.closed), network, (loading, closed))
            minute = first.minute + 5.0 * decision
            state = eqx.tree_at(lambda s: (s.network, s.minute), first, (changed, minute))
            yield state, {"total_dollars": jnp.asarray([100.0 * decision, 9e9])}

    folder = tmp_path_factory.mktemp("report")
    policy = domain.baselines["do-nothing"](environment)
    domain.illustrate(folder, policy, play)
    return folder, first, played, policy


def test_the_day(drawn) -> None:
    folder, first, played, policy = drawn
    assert played[0] is policy and len(played) == 3
    day = Timeline.load(folder / "day.npz")
    assert np.allclose(day.hours, [0.0, 5 / 60, 10 / 60])
    for name in ("policy", "merit-order", "ptdf-redispatch"):
        assert np.allclose(day.series[f"{name}/loading"], [20.0, 90.0, 30.0], atol=1e-4)
        # 100 $ in 5 minutes are 1.2 thousand $/h
        assert np.allclose(day.series[f"{name}/cost"], [1.2, 2.4, 3.6])
    voltage = np.asarray(first.network.voltage[0])
    assert np.allclose(day.series["policy/voltage"][0], [voltage.min(), voltage.mean(), voltage.max()])
    case = load_case("ieee14")
    assert np.allclose(day.series["shared/demand"], (case.load_p_mw * first.level[0]).sum(), rtol=1e-5)
    ends = case.bus_number[case.branch_from[6]], case.bus_number[case.branch_to[6]]
    assert day.events == {f"line {ends[0]}-{ends[1]} out": pytest.approx(5 / 60)}
    assert "outages" in day.title


def test_the_map_is_of_the_highest_loading(drawn) -> None:
    folder, first, *_ = drawn
    drawn_map = NetworkMap.load(folder / "map.npz")
    case = load_case("ieee14")
    assert drawn_map.edge_loading_percent[4] == pytest.approx(90.0)
    assert not drawn_map.edge_in_service[6] and drawn_map.edge_in_service.sum() == case.branches - 1
    assert np.allclose(drawn_map.node_demand, first.network.served_mw[0])
    assert set(np.flatnonzero(drawn_map.node_is_source)) == set(case.gen_bus)
    assert set(drawn_map.region) == {0, 1} and "00:05" in drawn_map.title
