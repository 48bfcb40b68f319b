"""Whole days on the IEEE 118-bus grid: what today's rules earn, and what a flat view shows of it.

One compiled program plays every baseline in every scenario: which one acts is data.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.power_grid.baselines import BASELINES
from dynamic_graph_fed_rl.environments.power_grid.build import build_grid
from dynamic_graph_fed_rl.environments.power_grid.network import REFERENCE, load_case, sheddable_load_buses
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds

SEEDS, AGENTS = 6, 4
CASE = load_case("ieee118")
RULES = ("do-nothing", "proportional", "merit-order", "ptdf-redispatch", "random")
RANKED = RULES[:-1]
FLAT = build_grid(PowerGridSettings(observation="flat"), AGENTS, training=False)


class Chosen(Controller):
    """One of several controllers, by number."""

    controllers: tuple[Controller, ...]
    number: jax.Array

    def initial_memory(self, state, observation):
        return tuple(one.initial_memory(state, observation) for one in self.controllers)

    def act(self, key, memory, state, observation):
        branches = [
            lambda one=one, kept=kept: one.act(key, kept, state, observation)[0]
            for one, kept in zip(self.controllers, memory, strict=True)
        ]
        return jax.lax.switch(self.number, branches), memory


@eqx.filter_jit
def play(environment, controller, view, seed):
    """A day in every world: metrics, the undiscounted return, and the flat vector at every decision."""
    worlds = Worlds(environment, SEEDS)
    keys = jax.random.split(jax.random.key(seed), SEEDS)

    def at(index):
        return jax.vmap(jax.random.fold_in, (0, None))(keys, index)

    state, observation = worlds.begin(at(0))
    memory = controller.initial_memory(state, observation)

    def decide(carry, index):
        state, observation = carry
        action, _ = controller.act(jax.random.fold_in(keys[0], -index), memory, state, observation)
        state, transition = worlds.advance(at(index), state, action)
        flat = jax.vmap(lambda one: view.vector(environment, one))(state)
        return (state, transition.observation), (transition.info["metrics"], transition.reward[0], flat)

    decisions = jnp.arange(1, environment.episode_decisions + 1)
    _, (metrics, reward, flat) = jax.lax.scan(decide, (state, observation), decisions)
    totals = jax.tree.map(lambda leaf: leaf.sum(0), metrics)
    return environment.episode_metrics(totals), reward.sum(0), flat


def day(name: str, seed: int = 0, **settings):
    grid = build_grid(PowerGridSettings(**settings), AGENTS, training=False)
    # the N-1 screen is costly and changes neither cost nor return
    environment = replace(grid, screen_n_minus_1=False)
    rules = tuple(BASELINES[rule](environment) for rule in RULES)
    chosen = Chosen(rules, jnp.asarray(RULES.index(name)))
    return jax.tree.map(np.asarray, play(environment, chosen, FLAT.view, seed))


@pytest.fixture(scope="module")
def days():
    return {
        scenario: {name: day(name, scenarios=(scenario,)) for name in RANKED}
        for scenario in ("normal", "peak", "outages")
    }


@pytest.fixture(scope="module")
def peak(days):
    return days["peak"]


def test_doing_nothing_survives_an_ordinary_day(days):
    metrics, _, _ = days["normal"]["do-nothing"]
    steps = FLAT.episode_decisions * FLAT.decision_interval
    assert steps == 1440
    assert (metrics["survival_steps"] == steps).all()
    assert (metrics["unserved_mwh"] < 1e-3 * 1440 / 60 * CASE.load_p_mw.sum()).all()


def figures(rules):
    """Mean operating cost and mean return of each rule."""
    return {name: (metrics["operating_cost"].mean(), earned.mean()) for name, (metrics, earned, _) in rules.items()}


def test_the_return_ranks_the_rules_as_operating_cost_does_at_peak(peak):
    by_cost = sorted(figures(peak).items(), key=lambda item: item[1][0])
    by_return = sorted(figures(peak).items(), key=lambda item: -item[1][1])
    assert by_cost == by_return


@pytest.mark.parametrize("scenario", ["normal", "peak", "outages"])
def test_what_costs_clearly_less_earns_more(days, scenario):
    """Costs that differ by more than 2 %; the reward's cost part saturates, so it need not see less than that."""
    compared = 0
    for cheap, earns_more in figures(days[scenario]).values():
        for dear, earns_less in figures(days[scenario]).values():
            if dear > 1.02 * cheap:
                assert earns_more > earns_less
                compared += 1
    assert compared >= 3


def test_rules_that_see_the_network_are_worth_their_trouble(peak):
    """Redispatch overloads less than the schedule it starts from."""
    blind, seeing = (peak[name][0] for name in ("merit-order", "ptdf-redispatch"))
    assert seeing["overload_mvah"].mean() < blind["overload_mvah"].mean()
    assert seeing["operating_cost"].mean() < blind["operating_cost"].mean()


def test_metrics_of_a_day_are_consistent(peak):
    for metrics, earned, _ in peak.values():
        assert all(np.isfinite(values).all() for values in metrics.values())
        assert (metrics["cost_per_mwh_served"] >= metrics["operating_cost"] - 1e-3).all()
        assert (metrics["unserved_mwh"] >= -1e-2).all()
        assert ((earned > 0) & (earned <= FLAT.episode_decisions)).all()
    # energy is the same for all: weather does not depend on who controls
    levels = [flat[..., -92:-1] for _, _, flat in peak.values()]
    for other in levels[1:]:
        np.testing.assert_array_equal(levels[0], other)


# --- the flat view -------------------------------------------------------------------------------------------------


def test_the_flat_view_has_618_numbers_for_every_agent():
    spec = FLAT.spec
    assert (spec.nodes, spec.edges, len(spec.node_features)) == (1, 0, 618)
    _, observation = jax.eval_shape(FLAT.reset, jax.random.key(0))
    assert observation.graph.nodes.shape == (AGENTS, 1, 618)
    assert observation.slots.shape == (AGENTS, spec.slots, 0)


def constant_columns() -> set[str]:
    """What cannot move while no line fails: voltages that units hold, the reference's angle, the balances of buses
    with neither load nor unit, and the frequency, which is not modelled."""
    held = set(CASE.gen_bus[CASE.gen_on])
    empty = set(range(CASE.buses)) - held
    reference = int(np.flatnonzero(CASE.bus_type == REFERENCE)[0])
    names = {f"voltage_deviation_{bus}" for bus in held} | {f"angle_{reference}", "frequency_deviation_0"}
    names |= {f"active_injection_{bus}" for bus in empty if CASE.load_p_mw[bus] == 0}
    names |= {f"reactive_injection_{bus}" for bus in empty if CASE.load_q_mvar[bus] == 0}
    return names


def test_which_flat_columns_stay_constant():
    """Random actions over six peak days without faults or trips move every other column."""
    _, _, flat = day("random", scenarios=("peak",), line_failure_rate=0.0, trip_loading=1e6, instant_trip_loading=1e6)
    assert flat.shape == (FLAT.episode_decisions, SEEDS, 618)
    names = np.array([column.name for column in FLAT.spec.node_features])
    span = np.ptp(flat.astype(np.float64), axis=(0, 1))
    assert set(names[span < 2e-3]) == constant_columns()
    assert sheddable_load_buses(CASE).shape == (91,)
