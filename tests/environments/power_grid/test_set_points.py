"""Actions and set-points: each the inverse of the other; slots and actuators likewise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_graph_fed_rl.environments.power_grid.set_points import (
    actions,
    ramped,
    set_points,
    shed_action,
    shed_share,
    slot_layout,
)
from dynamic_graph_fed_rl.environments.power_grid.state import Outlook, Units

FLEET = 8
SPAN = jnp.asarray(5.0)
dispatch = jax.jit(Units.dispatch)


def fleet(seed: int) -> tuple[Units, Outlook]:
    """Quadratic, linear and free units, some at a limit of the schedule; the schedule meets one price."""
    rng = np.random.default_rng(seed)
    wind = np.arange(FLEET) == 0
    p_max = rng.uniform(50, 400, FLEET)
    p_min = np.where(wind, 0.0, rng.uniform(0, 0.3, FLEET) * p_max)
    c2 = np.where(wind | (np.arange(FLEET) == 1), 0.0, rng.uniform(0.005, 0.1, FLEET))
    c1 = np.where(wind, 0.0, rng.uniform(10, 40, FLEET))
    available = p_max * np.where(wind, rng.uniform(0.1, 0.9, FLEET), 1.0)

    def real(values) -> jax.Array:
        return jnp.asarray(values, jnp.float32)

    units = Units(
        bus=jnp.arange(FLEET, dtype=jnp.int32),
        p_max_mw=real(p_max),
        p_min_mw=real(p_min),
        cost_c2=real(c2),
        cost_c1=real(c1),
        cost_c0=jnp.zeros(FLEET),
        ramp_mw_per_min=real(0.02 * p_max),
        co2_t_per_mwh=jnp.zeros(FLEET),
        wind=jnp.asarray(wind),
        solar=jnp.zeros(FLEET, bool),
    )
    demand = jnp.asarray(rng.uniform(1.05 * np.minimum(p_min, available).sum(), 0.95 * available.sum()), jnp.float32)
    schedule, price = dispatch(units, demand, real(available))
    level = jnp.ones(FLEET)
    return units, Outlook(level, real(available), level, real(available), schedule, price)


to_mw, to_action = jax.jit(set_points), jax.jit(actions)
to_mw_many = jax.jit(jax.vmap(set_points, (0, None, None, None)))
few = settings(max_examples=30)


@few
@given(st.integers(0, 10_000))
def test_the_action_for_a_set_point_gives_that_set_point(seed):
    units, outlook = fleet(seed)
    lower = np.minimum(units.p_min_mw, outlook.available_mw)
    part = np.random.default_rng(seed).uniform(0, 1, FLEET)
    target = jnp.asarray(lower + part * (outlook.available_mw - lower), jnp.float32)
    action = to_action(target, units, outlook, SPAN)
    assert (jnp.abs(action) <= 1 + 1e-6).all()
    np.testing.assert_allclose(to_mw(action, units, outlook, SPAN), target, atol=0.1)


@few
@given(st.integers(0, 10_000))
def test_zero_is_the_schedule_and_the_ends_are_the_limits(seed):
    units, outlook = fleet(seed)
    lower = np.minimum(units.p_min_mw, outlook.available_mw)
    for action, expected, tolerance in (
        (0.0, outlook.schedule_mw, 0.02),
        (1.0, outlook.available_mw, 1e-3),
        (-1.0, lower, 1e-3),
    ):
        asked = to_mw(jnp.full(FLEET, action), units, outlook, SPAN)
        np.testing.assert_allclose(asked, expected, atol=tolerance)
    assert (to_action(outlook.schedule_mw, units, outlook, SPAN) == 0).all()


@few
@given(st.integers(0, 10_000))
def test_more_action_is_never_less_output(seed):
    units, outlook = fleet(seed)
    steps = jnp.linspace(-1.0, 1.0, 81)
    output = to_mw_many(jnp.repeat(steps[:, None], FLEET, axis=1), units, outlook, SPAN)
    assert (np.diff(output, axis=0) >= -1e-2).all()
    assert (output <= outlook.available_mw + 1e-3).all()


def test_the_inner_half_moves_units_as_a_price_would():
    units, outlook = fleet(3)
    up = to_mw(jnp.full(FLEET, 0.25), units, outlook, SPAN)
    marginal = units.cost_c1 + 2 * units.cost_c2 * up
    lower = np.minimum(units.p_min_mw, outlook.available_mw)
    free = (up > lower + 1) & (up < outlook.available_mw - 1) & (units.cost_c2 > 0)
    free &= (outlook.schedule_mw > lower + 1) & (outlook.schedule_mw < outlook.available_mw - 1)
    assert free.any()
    np.testing.assert_allclose(np.asarray(marginal)[free], float(outlook.price + 0.5 * SPAN), rtol=2e-3)


@few
@given(st.integers(0, 10_000), st.sampled_from([0.5, 5.0, 60.0]))
def test_ramps_are_kept(seed, minutes):
    units, _ = fleet(seed)
    rng = np.random.default_rng(seed)
    now, target = (jnp.asarray(rng.uniform(0, 400, FLEET), jnp.float32) for _ in range(2))
    reached = ramped(target, now, units, minutes)
    reach = np.asarray(units.ramp_mw_per_min) * minutes
    assert (np.abs(reached - now) <= reach + 1e-3).all()
    near = np.abs(target - now) <= reach
    np.testing.assert_allclose(np.asarray(reached)[near], np.asarray(target)[near], atol=1e-3)


@given(st.floats(0, 1))
def test_shedding_there_and_back(part):
    most = jnp.asarray(0.2)
    share = jnp.asarray([part * 0.2], jnp.float32)
    np.testing.assert_allclose(shed_share(shed_action(share, most), most), share, atol=1e-6)


def test_nothing_is_shed_in_the_lower_three_quarters_of_the_range():
    share = shed_share(jnp.asarray([-1.0, 0.0, 0.5, 0.75, 1.0]), jnp.asarray(0.2))
    np.testing.assert_allclose(share, [0, 0, 0, 0.1, 0.2], atol=1e-6)
    assert shed_action(jnp.zeros(2), jnp.asarray(0.2)).tolist() == [0, 0]


@settings(max_examples=10)  # every example has shapes of its own
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_every_actuator_has_one_slot_of_its_own_region(seed, agents):
    rng = np.random.default_rng(seed)
    region = rng.permutation(np.concatenate([np.arange(agents), rng.integers(0, agents, 10)]))
    unit_bus, shed_bus = rng.integers(0, len(region), 5), rng.choice(len(region), 6, replace=False)
    layout = slot_layout(region, unit_bus, shed_bus)
    bus = np.concatenate([unit_bus, shed_bus])
    mask, actuator = np.asarray(layout.mask), np.asarray(layout.actuator)
    assert sorted(actuator[mask]) == list(range(11))
    for agent in range(agents):
        mine = actuator[agent][mask[agent]]
        assert (region[bus[mine]] == agent).all()
        # units first, each kind in its order
        assert (np.diff(mine) > 0).all()
    values = jnp.asarray(rng.normal(size=11), jnp.float32)
    spread = layout.spread(values)
    assert (np.asarray(spread)[~mask] == 0).all()
    np.testing.assert_array_equal(layout.gather(spread[..., None]), values)


@pytest.mark.parametrize("agents", [1, 3])
def test_what_padding_slots_hold_reaches_no_actuator(agents):
    region = np.arange(6) % agents
    layout = slot_layout(region, np.array([0, 1, 2]), np.array([0, 3]))
    noise = jnp.where(layout.mask, 0.0, 9.0)
    assert (layout.gather(noise[..., None]) == 0).all()
