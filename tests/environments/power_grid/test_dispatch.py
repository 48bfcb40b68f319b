"""Economic dispatch against PYPOWER's interior point, HiGHS and duality."""

import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.sparse import csr_matrix, diags

from dynamic_graph_fed_rl.environments.power_grid.dispatch import dc_opf, merit_order, redistribute
from dynamic_graph_fed_rl.environments.power_grid.network import load_case

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pypower.api import case118, ppoption, rundcopf
    from pypower.qps_pips import qps_pips

FLEET = 9
WORLDS = 16
CASE = load_case("ieee118")

merit_order_jit = jax.jit(merit_order)
redistribute_jit = jax.jit(redistribute)
dc_opf_worlds = jax.jit(jax.vmap(dc_opf))


class Instance(NamedTuple):
    """The arguments of `dc_opf`, float64 NumPy."""

    demand: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    c2: np.ndarray
    c1: np.ndarray
    sensitivities: np.ndarray
    base_flow: np.ndarray
    limit: np.ndarray
    overload_price: np.ndarray

    def generation_cost(self, p):
        return float(np.sum(self.c2 * p**2 + self.c1 * p))

    def overload(self, p):
        return np.maximum(np.abs(self.sensitivities @ p + self.base_flow) - self.limit, 0.0)

    def cost(self, p):
        return self.generation_cost(p) + float(self.overload_price * self.overload(p).sum())


def ptdf(on):
    """Refactorised for the lines in service, reference at the case's first bus."""
    incidence = np.zeros((len(on), CASE.buses))
    lines = np.arange(len(on))
    incidence[lines, CASE.branch_from] = 1.0
    incidence[lines, CASE.branch_to] = -1.0
    susceptance = on / (CASE.x * CASE.tap)
    laplacian = incidence.T @ (susceptance[:, None] * incidence)
    if np.linalg.matrix_rank(laplacian) < CASE.buses - 1:
        return None
    angles = np.zeros((CASE.buses, CASE.buses))
    angles[1:, 1:] = np.linalg.inv(laplacian[1:, 1:])
    return susceptance[:, None] * (incidence @ angles)


def random_instance(seed):
    """118 buses with outages, wind and sun, sometimes ramp limits, linear costs or tight ratings."""
    rng = np.random.default_rng(seed)
    factors = None
    while factors is None:
        on = np.ones(len(CASE.branch_from))
        on[rng.choice(len(on), rng.integers(0, 4), replace=False)] = 0.0
        factors = ptdf(on)
    load = CASE.load_p_mw * rng.uniform(0.5, 1.1) * (1 + 0.15 * rng.standard_normal(CASE.buses))
    lower, upper = CASE.gen_p_min_mw.copy(), CASE.gen_p_max_mw.copy()
    c2, c1 = CASE.cost_c2.copy(), CASE.cost_c1.copy()
    renewable = rng.choice(len(upper), 12, replace=False)
    c2[renewable] = c1[renewable] = 0.0
    upper[renewable] *= rng.uniform(0, 1, 12)
    if seed % 2:
        now = np.clip(upper * (load.sum() / upper.sum() + 0.2 * rng.standard_normal(len(upper))), lower, upper)
        reach = CASE.gen_p_max_mw * rng.uniform(0.02, 0.2)
        lower, upper = np.maximum(lower, now - reach), np.minimum(upper, now + reach)
    if seed % 3 == 0:
        upper[rng.integers(len(upper))] = 0.0
        lower = np.minimum(lower, upper)
    if seed % 4 == 0:
        c2[:] = 0.0
        c1 += rng.uniform(0, 20, len(c1))
    limit = np.where(on > 0, CASE.rate_mva, np.inf) * (1.0 if seed % 3 == 2 else rng.uniform(0.4, 0.95))
    return Instance(
        demand=np.clip(load.sum(), lower.sum() + 1, upper.sum() - 1),
        lower=lower,
        upper=upper,
        c2=c2,
        c1=c1,
        sensitivities=factors[:, CASE.gen_bus],
        base_flow=-factors @ load,
        limit=limit,
        overload_price=np.array([100.0, 1000.0, 10000.0][seed % 3]),
    )


def quadratic_program(instance):
    """The cheapest dispatch by PYPOWER's interior point, one overload variable a rated line."""
    rated = np.isfinite(instance.limit)
    rows, base, limit = instance.sensitivities[rated], instance.base_flow[rated], instance.limit[rated]
    generators, lines = len(instance.lower), len(limit)
    balance = np.concatenate([np.ones(generators), np.zeros(lines)])
    constraints = np.vstack([balance, np.hstack([rows, -np.eye(lines)]), np.hstack([rows, np.eye(lines)])])
    unbounded = np.full(lines, np.inf)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, _, converged, _, _ = qps_pips(
            csr_matrix(diags(np.concatenate([2 * instance.c2, np.zeros(lines)]))),
            np.concatenate([instance.c1, np.full(lines, instance.overload_price)]),
            csr_matrix(constraints),
            np.concatenate([[instance.demand], -unbounded, -limit - base]),
            np.concatenate([[instance.demand], limit - base, unbounded]),
            np.concatenate([instance.lower, np.zeros(lines)]),
            np.concatenate([instance.upper, unbounded]),
            None,
            {"verbose": 0, "max_it": 300, "feastol": 1e-8, "gradtol": 1e-8, "comptol": 1e-8},
        )
    assert converged
    return np.asarray(x)[:generators]


def solve_worlds(instances, dtype=np.float32):
    # Always as many worlds, so that each precision is compiled once.
    filled = instances + [instances[0]] * (WORLDS - len(instances))
    stacked = (np.stack(field).astype(dtype) for field in zip(*filled, strict=True))
    solved = dc_opf_worlds(*map(jnp.asarray, stacked))
    return tuple(np.asarray(out, np.float64)[: len(instances)] for out in solved)


@pytest.fixture(scope="module")
def random_worlds():
    instances = [random_instance(seed) for seed in range(WORLDS)]
    return instances, solve_worlds(instances)


def random_fleet(seed, share_of_steps):
    rng = np.random.default_rng(seed)
    lower = rng.uniform(0, 100, FLEET) * (rng.random(FLEET) < 0.5)
    upper = lower + rng.uniform(0, 800, FLEET) * (rng.random(FLEET) < 0.9)
    c2 = rng.uniform(0.005, 2.5, FLEET) * (rng.random(FLEET) >= share_of_steps)
    c1 = rng.choice([0.0, 20.0, 20.0, 40.0, 73.5], FLEET)
    demand = lower.sum() + rng.random() * (upper.sum() - lower.sum())
    return demand, lower, upper, c2, c1


def single(*arrays):
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


@pytest.mark.parametrize(("x64", "tolerance"), [(True, 1e-2), (False, 0.5)])
def test_merit_order_of_the_118_bus_fleet_costs_what_matpower_says(x64, tolerance):
    with jax.enable_x64(x64):
        arrays = (CASE.gen_p_min_mw, CASE.gen_p_max_mw, CASE.cost_c2, CASE.cost_c1)
        p, price = merit_order_jit(jnp.asarray(4242.0), *map(jnp.asarray, arrays))
        p = np.asarray(p, np.float64)
        assert np.sum(CASE.cost_c2 * p**2 + CASE.cost_c1 * p) == pytest.approx(125947.88, abs=tolerance)
        assert p.sum() == pytest.approx(4242, abs=1e-3)
        inside = (p > CASE.gen_p_min_mw + 1e-3) & (p < CASE.gen_p_max_mw - 1e-3)
        marginal = (2 * CASE.cost_c2 * p + CASE.cost_c1)[inside]
        np.testing.assert_allclose(marginal, float(price), rtol=1e-4)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.4, 1.0]))
def test_merit_order_is_the_least_cost(seed, share_of_steps):
    demand, lower, upper, c2, c1 = (np.float32(a).astype(float) for a in random_fleet(seed, share_of_steps))
    p, _ = merit_order_jit(*single(demand, lower, upper, c2, c1))
    p = np.asarray(p, np.float64)
    assert abs(p.sum() - demand) < 1e-3
    assert np.all(p >= lower) and np.all(p <= upper)
    if share_of_steps == 1.0:
        best = linprog(c1, A_eq=np.ones((1, FLEET)), b_eq=[demand], bounds=np.stack([lower, upper], axis=1)).fun
    else:
        # Exact: supply is piecewise linear in the price between the sorted corners of the units' curves.
        corners = np.unique(np.concatenate([2 * c2 * lower + c1, 2 * c2 * upper + c1]))
        slope = np.where(c2 > 0, 2 * c2, 1.0)

        def supply(price, side):
            step = np.where(price > c1 if side == "before" else price >= c1, upper, lower)
            return np.clip(np.where(c2 > 0, (price - c1) / slope, step), lower, upper)

        points = np.stack([supply(corner, side) for corner in corners for side in ("before", "after")])
        totals = points.sum(axis=1)
        exact = np.array([np.interp(demand, totals, column) for column in points.T])
        best = np.sum(c2 * exact**2 + c1 * exact)
    assert np.sum(c2 * p**2 + c1 * p) == pytest.approx(best, rel=2e-5, abs=0.1)


def test_equal_steps_are_loaded_pro_rata():
    p, price = merit_order(*single(260.0, np.zeros(4), [100.0, 300.0, 60.0, 50.0], np.zeros(4), [20, 20, 0, 40]))
    np.testing.assert_allclose(p, [50.0, 150.0, 60.0, 0.0], atol=1e-3)
    assert float(price) == pytest.approx(20.0, abs=1e-3)


@pytest.mark.parametrize("kind", ["redistribute", "merit_order", "dc_opf"])
@pytest.mark.parametrize("beyond", [-100.0, 100.0])
def test_what_the_ranges_cannot_reach_gives_the_nearest_limits(kind, beyond):
    instance = random_instance(5)
    target = instance.lower if beyond < 0 else instance.upper
    instance = instance._replace(demand=target.sum() + beyond)
    demand, lower, upper, c2, c1 = single(*instance[:5])
    if kind == "redistribute":
        p = redistribute(0.5 * (lower + upper), lower, upper, demand)
    elif kind == "merit_order":
        p, _ = merit_order(demand, lower, upper, c2, c1)
    else:
        p = solve_worlds([instance])[0][0]
    np.testing.assert_allclose(p, target, atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31))
def test_redistribution_is_exact_and_proportional_to_headroom(seed):
    rng = np.random.default_rng(seed)
    target, lower, upper, _, _ = random_fleet(seed, 0.0)
    proposal = lower + rng.uniform(-0.2, 1.2, FLEET) * (upper - lower)
    out = np.asarray(redistribute_jit(*single(proposal, lower, upper, target)), np.float64)
    assert abs(out.sum() - target) < 1e-3
    assert np.all(out >= np.float32(lower)) and np.all(out <= np.float32(upper))
    clipped = np.clip(proposal, lower, upper)
    headroom = upper - clipped if target > clipped.sum() else clipped - lower
    expected = clipped + (target - clipped.sum()) * headroom / max(headroom.sum(), 1e-9)
    np.testing.assert_allclose(out, expected, atol=2e-3)


def test_float32_totals_are_exact_for_a_large_fleet():
    rng = np.random.default_rng(0)
    upper = rng.uniform(0, 800, 300)
    target = np.float32(0.7 * upper.sum())
    out = redistribute(*single(rng.uniform(0, 1, 300) * upper, np.zeros(300), upper, target))
    assert abs(np.asarray(out, np.float64).sum() - float(target)) < 1e-3


def test_dc_opf_reaches_the_optimum_of_an_outside_solver(random_worlds):
    instances, (dispatch, _, _) = random_worlds
    for instance, p in zip(instances, dispatch, strict=True):
        best = quadratic_program(instance)
        assert instance.cost(p) == pytest.approx(instance.cost(best), rel=1e-4)
        assert np.max((instance.overload(p) - instance.overload(best)) / instance.limit) < 5e-3
        assert abs(p.sum() - instance.demand) < 1e-3
        assert np.all(p >= np.float32(instance.lower)) and np.all(p <= np.float32(instance.upper))


def test_the_instances_press_against_lines(random_worlds):
    instances, (_, _, congestion) = random_worlds
    assert np.mean(np.any(np.abs(congestion) > 0.1, axis=1)) > 0.5
    assert any(np.any(np.abs(c) > 0.9 * i.overload_price) for i, c in zip(instances, congestion, strict=True))


def test_prices_prove_the_dispatch_optimal(random_worlds):
    """Strong duality: the Lagrangian bound at the returned prices is the returned cost."""
    instances, (dispatch, prices, congestions) = random_worlds
    for instance, p, price, congestion in zip(instances, dispatch, prices, congestions, strict=True):
        assert np.all(np.abs(congestion) <= instance.overload_price * (1 + 1e-5))
        assert np.all(congestion[np.isinf(instance.limit)] == 0)
        local = price - instance.sensitivities.T @ congestion
        slope = np.where(instance.c2 > 0, 2 * instance.c2, 1.0)
        step = np.where(local > instance.c1, instance.upper, instance.lower)
        answer = np.where(instance.c2 > 0, (local - instance.c1) / slope, step)
        answer = np.clip(answer, instance.lower, instance.upper)
        rated = np.isfinite(instance.limit)
        bound = (
            instance.generation_cost(answer)
            + price * instance.demand
            - local @ answer
            + congestion @ instance.base_flow
            - np.abs(congestion[rated]) @ instance.limit[rated]
        )
        assert bound == pytest.approx(instance.cost(p), rel=1e-3)


def test_dc_opf_agrees_with_rundcopf_on_the_rated_118_bus_case():
    tables = case118()
    tables["branch"][:, 5] = CASE.rate_mva
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = rundcopf(tables, ppoption(VERBOSE=0, OUT_ALL=0))
    assert reference["success"]
    factors = ptdf(np.ones(len(CASE.branch_from)))
    instance = Instance(
        demand=CASE.load_p_mw.sum(),
        lower=CASE.gen_p_min_mw,
        upper=CASE.gen_p_max_mw,
        c2=CASE.cost_c2,
        c1=CASE.cost_c1,
        sensitivities=factors[:, CASE.gen_bus],
        base_flow=-factors @ CASE.load_p_mw,
        limit=CASE.rate_mva,
        overload_price=np.array(1e4),
    )
    with jax.enable_x64(True):
        dispatch, price, congestion = solve_worlds([instance], np.float64)
    assert instance.cost(dispatch[0]) == pytest.approx(reference["f"], rel=1e-7)
    np.testing.assert_allclose(dispatch[0], reference["gen"][:, 1], atol=1e-2)
    local = price[0] - instance.sensitivities.T @ congestion[0]
    np.testing.assert_allclose(local, reference["bus"][CASE.gen_bus, 13], rtol=1e-5)
    assert np.ptp(local) > 0.5


def test_locational_prices_are_the_slope_of_the_cost():
    instance = random_instance(19)
    generators = [0, 11, 25, 40]
    worlds = [instance]
    for generator in generators:
        for extra in (-1.0, 1.0):
            flow = instance.base_flow - extra * instance.sensitivities[:, generator]
            worlds.append(instance._replace(demand=instance.demand + extra, base_flow=flow))
    with jax.enable_x64(True):
        dispatch, price, congestion = solve_worlds(worlds, np.float64)
    costs = [world.cost(p) for world, p in zip(worlds, dispatch, strict=True)]
    local = price[0] - instance.sensitivities.T @ congestion[0]
    slopes = [(costs[2 + 2 * i] - costs[1 + 2 * i]) / 2 for i in range(len(generators))]
    assert np.any(np.abs(congestion[0]) > 1.0)
    np.testing.assert_allclose(local[generators], slopes, rtol=5e-3)


def test_without_limits_dc_opf_is_merit_order():
    instance = random_instance(2)
    instance = instance._replace(limit=np.full(len(instance.limit), np.inf))
    dispatch, price, congestion = solve_worlds([instance])
    cheapest, marginal = merit_order(*single(*instance[:5]))
    np.testing.assert_allclose(dispatch[0], cheapest, atol=0.5)
    assert price[0] == pytest.approx(float(marginal), rel=1e-3)
    assert np.all(congestion == 0)


def test_degenerate_worlds_stay_finite():
    base = random_instance(7)
    fixed = 0.5 * (base.lower + base.upper)
    worlds = [
        base._replace(lower=fixed, upper=fixed, demand=fixed.sum()),
        base._replace(limit=np.zeros(len(base.limit))),
        base._replace(overload_price=np.array(1e-3)),
        base._replace(overload_price=np.array(1e6), limit=0.1 * base.limit),
        base._replace(c2=np.zeros(len(base.c2)), c1=np.zeros(len(base.c1))),
        base._replace(demand=np.array(0.0), lower=np.zeros(len(base.lower))),
        base._replace(sensitivities=np.zeros(base.sensitivities.shape)),
    ]
    dispatch, prices, congestion = solve_worlds(worlds)
    assert np.all(np.isfinite(dispatch)) and np.all(np.isfinite(prices)) and np.all(np.isfinite(congestion))
    for world, p in zip(worlds, dispatch, strict=True):
        assert abs(p.sum() - world.demand) < 1e-3
