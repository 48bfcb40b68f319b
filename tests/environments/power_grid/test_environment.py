"""The grid as a game: physics against outside oracles in every world, and what an action of zero means.

One compiled reset and one compiled step serve all tests here: scenarios, rates and prices are data.
"""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.power_grid import build
from dynamic_graph_fed_rl.environments.power_grid.baselines import BASELINES
from dynamic_graph_fed_rl.environments.power_grid.environment import PowerGrid
from dynamic_graph_fed_rl.environments.power_grid.fleet import build_fleet
from dynamic_graph_fed_rl.environments.power_grid.network import load_case
from dynamic_graph_fed_rl.environments.power_grid.newton import newton
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings

WORLDS, AGENTS = 8, 2
CASE = load_case("ieee14")
CALM = PowerGridSettings(case="ieee14", scenarios=("normal",), line_failure_rate=0.0)
STORM = replace(CALM, scenarios=("peak",), line_failure_rate=0.05)


@eqx.filter_jit
def begin(environment: PowerGrid, keys):
    return jax.vmap(environment.reset)(keys)


@eqx.filter_jit
def advance(environment: PowerGrid, keys, state, action):
    return jax.vmap(environment.step)(keys, state, action)


def grid(settings: PowerGridSettings) -> PowerGrid:
    return build.build_grid(settings, AGENTS, training=False)


def no_action(environment: PowerGrid) -> jax.Array:
    return jnp.zeros((WORLDS, environment.spec.agents, environment.spec.slots, 1))


def random_action(environment: PowerGrid, seed: int) -> jax.Array:
    shape = no_action(environment).shape
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def play(environment: PowerGrid, decisions: int, act=no_action, seed: int = 0):
    """States and transitions of every decision, `[T, B, ...]`; the first state is the one before the first."""
    state, _ = begin(environment, jax.random.split(jax.random.key(seed), WORLDS))
    states, transitions = [state], []
    for t in range(decisions):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed + 1), t), WORLDS)
        state, transition = advance(environment, keys, state, act(environment))
        states.append(state)
        transitions.append(transition)
    return tuple(jax.tree.map(lambda *leaves: np.stack(leaves), *rows) for rows in (states, transitions))


@pytest.fixture(scope="module")
def calm():
    return play(grid(CALM), 40)


@pytest.fixture(scope="module")
def storm():
    environment = grid(STORM)
    seeds = iter(range(1000))
    return play(environment, 60, lambda e: random_action(e, next(seeds)))


# --- physics -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weather", ["calm", "storm"])
def test_generation_covers_load_losses_and_shunts(request, weather):
    states, _ = request.getfixturevalue(weather)
    network = states.network
    shunts = (CASE.shunt_g_mw * network.voltage**2).sum(-1)
    imbalance = network.generation_mw.sum(-1) - network.served_mw.sum(-1) - network.losses_mw - shunts
    # the solver stops at 0.03 MW a bus and the slack takes up the sum
    assert np.abs(imbalance).max() < 0.05


def test_a_storm_is_one(storm):
    """Otherwise the tests below would pass on nothing."""
    network = storm[0].network
    out = CASE.closed & ~network.closed
    assert out.any(-1).mean() > 0.3
    assert (~network.live).any() and network.live.any()
    assert (network.loading > 1).any()


def test_a_line_that_is_out_carries_nothing(storm):
    network = storm[0].network
    for flow in (network.p_from_mw, network.q_from_mvar, network.loading):
        assert (flow[~network.closed] == 0).all()


def test_the_largest_island_lives_and_the_rest_is_unserved(storm):
    states, transitions = storm
    network = states.network
    checked = 0
    for t, b in zip(*np.nonzero((~network.live).any(-1) & ~network.dark), strict=True):
        lines = np.flatnonzero(network.closed[t, b])
        topology = nx.Graph(zip(CASE.branch_from[lines], CASE.branch_to[lines], strict=True))
        topology.add_nodes_from(range(CASE.buses))
        largest = max(nx.connected_components(topology), key=len)
        assert set(np.flatnonzero(network.live[t, b])) == largest
        checked += 1
    assert checked > 0
    for dead in (network.voltage, network.served_mw):
        assert (dead[~network.live] == 0).all()
    unit_bus = CASE.gen_bus[build_fleet(CASE, CALM.renewable_share).row]
    assert (network.generation_mw[~network.live[..., unit_bus]] == 0).all()
    # what is cut off is charged
    demand = (CASE.load_p_mw * states.level).sum(-1)
    missing = demand - network.served_mw.sum(-1)
    cut_off = (~network.live & (CASE.load_p_mw > 0)).any(-1)
    assert (missing[cut_off] > 0).all()
    assert (transitions.cost[..., 2][cut_off[1:]] > 0).all()


def test_currents_heat_lines_no_less_than_their_active_power(storm):
    network = storm[0].network
    rated = CASE.rate_mva > 0
    at_from = np.hypot(network.p_from_mw, network.q_from_mvar)[..., rated]
    assert (network.loading[..., rated] >= at_from / CASE.rate_mva[rated] - 1e-4).all()


@pytest.mark.parametrize("world", range(3))
def test_after_many_warm_starts_in_f32_the_state_is_newtons_in_f64(calm, world):
    states, _ = calm
    network = states.network
    row = build_fleet(CASE, CALM.renewable_share).row
    for t in (0, 20, 40):
        level, generation = states.level[t, world].astype(np.float64), CASE.gen_p_mw.copy()
        generation[row] = network.generation_mw[t, world]
        solved = newton(
            replace(
                CASE,
                gen_p_mw=generation,
                load_p_mw=network.served_mw[t, world].astype(np.float64),
                load_q_mvar=CASE.load_q_mvar * level,
            )
        )
        assert solved.converged
        np.testing.assert_allclose(network.voltage[t, world], np.abs(solved.voltage), atol=1e-4)
        angle = np.angle(solved.voltage)
        ours = network.angle[t, world]
        np.testing.assert_allclose(ours - ours[0], angle - angle[0], atol=1e-3)


def renumbered(case):
    """Buses 1, 7 and 8 change places: the reference, a transformer's star point and a generator on a branch of its
    own. None has load, so that the weather, drawn load by load, stays the same."""
    order = np.arange(case.buses)
    order[[0, 6, 7]] = [6, 7, 0]
    place = np.argsort(order)
    of_buses = (
        "bus_number", "bus_type", "load_p_mw", "load_q_mvar", "shunt_g_mw", "shunt_b_mvar", "vm_pu", "va_degree",
        "base_kv",
    )  # fmt: skip
    moved = {name: getattr(case, name)[order] for name in of_buses}
    ends = {name: place[getattr(case, name)] for name in ("gen_bus", "branch_from", "branch_to")}
    return replace(case, **moved, **ends), order


def test_the_numbering_of_buses_is_of_no_consequence(monkeypatch):
    case, order = renumbered(CASE)
    assert (CASE.load_p_mw[[0, 6, 7]] == 0).all()
    plain = play(grid(STORM), 20)
    monkeypatch.setattr(build, "load_case", lambda name: case)
    other = play(grid(STORM), 20)
    np.testing.assert_array_equal(other[0].network.closed, plain[0].network.closed)
    np.testing.assert_array_equal(other[0].network.live, plain[0].network.live[..., order])
    np.testing.assert_allclose(other[0].network.p_from_mw, plain[0].network.p_from_mw, atol=0.2)
    np.testing.assert_allclose(other[0].network.voltage, plain[0].network.voltage[..., order], atol=1e-3)
    np.testing.assert_allclose(other[1].reward, plain[1].reward, atol=1e-3)
    dollars = [run[1].info["metrics"]["total_dollars"] for run in (plain, other)]
    np.testing.assert_allclose(*dollars, rtol=1e-3)


# --- the game ------------------------------------------------------------------------------------------------------


def test_zero_follows_the_merit_order_schedule_as_ramps_allow(calm):
    environment = grid(CALM)
    states, transitions = calm
    before = jax.tree.map(lambda leaf: leaf[:-1], states)
    schedule = before.outlook.schedule_mw
    np.testing.assert_allclose(transitions.info["wanted_mw"], schedule, atol=0.05)
    reach = np.asarray(environment.units.ramp_mw_per_min) * environment.minutes
    expected = np.clip(schedule, before.set_point_mw - reach, before.set_point_mw + reach)
    np.testing.assert_allclose(transitions.info["applied_mw"], expected, atol=0.05)
    # and that is nearly always what a unit reaches
    assert np.isclose(expected, schedule, atol=0.05).mean() > 0.9
    assert (transitions.info["requested"] == 0).all()


def test_the_merit_order_operator_acts_with_zero():
    environment = grid(STORM)
    state, observation = begin(environment, jax.random.split(jax.random.key(0), WORLDS))
    observation = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), observation)
    action, _ = eqx.filter_jit(BASELINES["merit-order"](environment).act)(jax.random.key(1), None, state, observation)
    assert action.shape == (AGENTS, WORLDS, environment.spec.slots, 1)
    assert (action == 0).all()


def test_a_day_begins_dispatched_and_whole(calm):
    first = jax.tree.map(lambda leaf: leaf[0], calm[0])
    assert first.network.closed[:, CASE.closed].all() and first.network.live.all()
    demand = (CASE.load_p_mw * first.level).sum(-1)
    np.testing.assert_allclose(first.network.served_mw.sum(-1), demand, rtol=1e-5)
    # hardly anything is left to the slack
    assert np.abs(first.network.slack_mw).max() < 0.5
    assert (first.minute == 0).all()


def test_full_shedding_gives_up_its_share_and_no_more():
    environment = grid(CALM)
    layout = environment.layout
    units = environment.units.bus.shape[0]
    of_loads = (layout.mask & (layout.actuator >= units))[None, ..., None]
    states, transitions = play(environment, 2, lambda e: no_action(e) + of_loads.astype(jnp.float32))
    demand = CASE.load_p_mw * states.level[-1]
    np.testing.assert_allclose(states.network.served_mw[-1], demand * (1 - 0.2), rtol=1e-4, atol=1e-3)
    assert (transitions.cost[..., 2] > 0).all()


def test_while_the_grid_stands_every_step_pays_and_after_a_blackout_none(storm):
    states, transitions = storm
    standing = ~states.network.dark[1:]
    assert (transitions.reward[standing] > 0).all()
    assert (transitions.reward <= 1).all()
    np.testing.assert_array_equal(
        transitions.terminated, np.broadcast_to(~standing[..., None], transitions.terminated.shape)
    )


def test_a_blackout_ends_everything_and_is_charged_to_the_end(calm):
    """Lines that trip at a twentieth of their rating take the whole grid down in the first step."""
    states, transitions = play(grid(replace(CALM, instant_trip_loading=0.05)), 40)
    assert states.network.dark[1:].all() and transitions.terminated.all() and not transitions.truncated.any()
    assert (transitions.reward[1:] == 0).all()
    for gone in (states.network.voltage, states.network.generation_mw, states.network.loading):
        assert (gone[1:] == 0).all()
    metrics = transitions.info["metrics"]
    np.testing.assert_allclose(metrics["total_served_mwh"][1:], 0, atol=1e-4)
    np.testing.assert_allclose(
        metrics["total_dollars"][1:], CALM.unserved_price * metrics["total_demand_mwh"][1:], rtol=1e-5
    )
    # surviving beats ending
    assert transitions.reward.sum(0).max() < 0.05 * calm[1].reward.sum(0).min()


def test_every_agent_gets_the_same_reward_and_costs(storm):
    transitions = storm[1]
    for values in (transitions.reward[..., None], transitions.cost):
        assert (values == values[:, :, :1]).all()
    assert (transitions.cost >= 0).all()
    assert (transitions.cost[..., 0] > 0).any()


def test_controllers_meet_the_same_weather_and_the_same_faults():
    """Trips, which follow from what controllers do, are switched off."""
    environment = grid(replace(STORM, trip_loading=1e6, instant_trip_loading=1e6))
    idle, _ = play(environment, 30)
    seeds = iter(range(1000))
    wild, _ = play(environment, 30, lambda e: random_action(e, next(seeds)))
    for name in ("weather", "level", "available_mw", "minute", "kind"):
        for a, b in zip(jax.tree.leaves(getattr(idle, name)), jax.tree.leaves(getattr(wild, name)), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(idle.network.closed, wild.network.closed)
    np.testing.assert_array_equal(idle.network.repair_steps, wild.network.repair_steps)
    assert not idle.network.closed[..., CASE.closed].all()
    # the controllers themselves did differ
    assert np.abs(idle.network.p_from_mw - wild.network.p_from_mw).max() > 1


def test_an_overloaded_line_trips_after_its_time_and_comes_back():
    """Any loading above 1 % runs the counter; trips are limited, so the grid falls apart within a few steps."""
    patient = grid(replace(CALM, trip_loading=0.01, trip_after_steps=7))
    states, _ = play(patient, 2)
    assert states.network.closed[1][:, CASE.closed].all()
    assert not states.network.closed[2][:, CASE.closed].all(1).any()
    faults, _ = play(grid(replace(CALM, line_failure_rate=0.05)), 60)
    out = CASE.closed & ~faults.network.closed
    assert (out[:-1] & ~out[1:]).any()


def test_kinds_of_day_are_mixed_and_their_loads_differ():
    environment = grid(replace(CALM, scenarios=("normal", "peak", "outages"), line_failure_rate=None))
    reset = eqx.filter_jit(lambda e, keys: jax.vmap(lambda key: e.reset(key)[0].kind.load_high)(keys))
    highs = reset(environment, jax.random.split(jax.random.key(0), 24))
    assert len(np.unique(highs)) == 3
