"""Power-flow kernels against PYPOWER, Newton's method and refactorised networks."""

import functools
import json
import warnings
from dataclasses import replace
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_graph_fed_rl.environments.power_grid.admittance import operating_point
from dynamic_graph_fed_rl.environments.power_grid.network import SHIPPED_CASES, load_case
from dynamic_graph_fed_rl.environments.power_grid.newton import newton
from dynamic_graph_fed_rl.environments.power_grid.power_flow import power_flow
from dynamic_graph_fed_rl.environments.power_grid.sensitivities import angle_sensitivities
from dynamic_graph_fed_rl.environments.power_grid.study import render, solve

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pypower.api import ppoption, rundcpf, runpf

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_grid.m"
SLOTS = 6


def pypower_case(case):
    bus = np.zeros((case.buses, 13))
    columns = (
        case.bus_number,
        case.bus_type,
        case.load_p_mw,
        case.load_q_mvar,
        case.shunt_g_mw,
        case.shunt_b_mvar,
    )
    bus[:, :6] = np.stack(columns, axis=1)
    bus[:, 6:10] = np.stack([np.ones(case.buses), case.vm_pu, case.va_degree, case.base_kv], axis=1)
    gen = np.zeros((case.generators, 21))
    gen[:, :3] = np.stack([case.bus_number[case.gen_bus], case.gen_p_mw, case.gen_q_mvar], axis=1)
    gen[:, 3:5] = [9999.0, -9999.0]
    gen[:, 5], gen[:, 6], gen[:, 7] = case.gen_vm_pu, case.base_mva, case.gen_on
    branch = np.zeros((case.branches, 13))
    branch[:, 0], branch[:, 1] = case.bus_number[case.branch_from], case.bus_number[case.branch_to]
    branch[:, 2:5] = np.stack([case.r, case.x, case.b], axis=1)
    branch[:, 8:11] = np.stack([case.tap, case.shift_degree, case.branch_on], axis=1)
    return {"version": "2", "baseMVA": case.base_mva, "bus": bus, "gen": gen, "branch": branch}


def pypower(case, run=runpf):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result, converged = run(pypower_case(case), ppoption(VERBOSE=0, OUT_ALL=0, PF_TOL=1e-11))
    assert converged
    return result


def without(case, rows):
    on = case.branch_on.copy()
    on[list(rows)] = False
    return replace(case, branch_on=on)


def slots(sets):
    branch, active = np.zeros((len(sets), SLOTS), dtype=np.int32), np.zeros((len(sets), SLOTS), dtype=bool)
    for world, rows in enumerate(sets):
        branch[world, : len(rows)] = rows
        active[world, : len(rows)] = True
    return jnp.asarray(branch), jnp.asarray(active)


@eqx.filter_jit
def solve_outages(grid, generation_p, load_p, load_q, v_set, participation, theta, v, branch, active, iterations):
    def one(branch, active):
        factors = grid.outage_factors(branch, active)
        live = grid.live_buses(grid.status(factors))
        solution = grid.ac(
            generation_p, load_p, load_q, v_set, factors, live, participation, theta, v, iterations=iterations
        )
        flows = grid.branch_flows(solution.theta, solution.v, grid.status(factors))
        return solution, live, flows

    return jax.vmap(one)(branch, active)


def arguments(case, dtype, participation=None):
    """What `solve_outages` needs to start from the solved case, with a single slack unless told otherwise."""
    point, solved = operating_point(case), newton(case)
    load_q = point.load_q_pu - np.where(point.regulated, 0.0, point.generation_q_pu)
    share = np.eye(case.buses)[point.reference] if participation is None else participation
    start = np.angle(solved.voltage), np.abs(solved.voltage)
    values = (point.generation_p_pu, point.load_p_pu, load_q, point.v_set_pu, share, *start)
    return tuple(jnp.asarray(value, dtype=dtype) for value in values)


def differences(solution, live, references):
    """Largest voltage [p.u.] and angle [degrees] differences over all worlds."""
    expected = np.stack([reference.voltage for reference in references])
    v, theta, live = np.asarray(solution.v), np.asarray(solution.theta), np.asarray(live)
    angle = np.where(live, theta - np.angle(expected), 0.0)
    return np.abs(v - np.abs(expected)).max(), np.rad2deg(np.abs(angle).max())


@pytest.fixture(scope="module")
def outages():
    """All single outages of ieee118 that leave it connected, and random multiple ones that may not."""
    case, random = load_case("ieee118"), np.random.default_rng(0)
    singles = [[row] for row in range(case.branches)]
    several = [list(random.choice(case.branches, size, replace=False)) for size in (2, 3) for _ in range(40)]
    solved = [(rows, without(case, rows)) for rows in singles + several]
    return [(rows, reduced, newton(reduced)) for rows, reduced in solved]


@pytest.mark.parametrize("name", [*SHIPPED_CASES, EXAMPLE])
def test_newton_and_fast_decoupled_equal_pypower(name):
    case = load_case(name)
    reference = pypower(case)
    for mode in ("newton", "ac"):
        result = solve(case, mode)
        assert result["converged"]
        vm, va = (np.array([bus[key] for bus in result["buses"]]) for key in ("vm_pu", "va_degree"))
        np.testing.assert_allclose(vm, reference["bus"][:, 7], atol=1e-8, rtol=0)
        np.testing.assert_allclose(np.deg2rad(va), np.deg2rad(reference["bus"][:, 8]), atol=1e-8, rtol=0)
        keys = ("p_from_mw", "q_from_mvar", "p_to_mw", "q_to_mvar")
        flows = np.array([[branch[key] for key in keys] for branch in result["branches"]])
        np.testing.assert_allclose(flows, reference["branch"][:, 13:17], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [*SHIPPED_CASES, EXAMPLE])
def test_dc_equals_pypower(name):
    case = load_case(name)
    reference = pypower(case, rundcpf)
    result = solve(case, "dc")
    flow = np.array([branch["p_from_mw"] for branch in result["branches"]])
    angle = np.array([bus["va_degree"] for bus in result["buses"]])
    np.testing.assert_allclose(flow, reference["branch"][:, 13], atol=1e-6)
    np.testing.assert_allclose(angle, reference["bus"][:, 8], atol=1e-6)


def test_single_outages_of_ieee118_in_single_precision(outages):
    connected = [(rows, solved) for rows, reduced, solved in outages if len(rows) == 1 and reduced.live.all()]
    assert len(connected) == 177
    case = load_case("ieee118")
    branch, active = slots([rows for rows, _ in connected])
    grid = power_flow(case)
    solution, live, _ = solve_outages(grid, *arguments(case, jnp.float32), branch, active, 12)
    assert solution.v.dtype == jnp.float32 and live.all() and not solution.diverged.any()
    voltage, angle = differences(solution, live, [solved for _, solved in connected])
    assert voltage < 1e-5 and angle < 1e-2
    assert solution.residual_pu.max() < 2e-4


@pytest.mark.parametrize(("double", "voltage_bound", "angle_bound"), [(False, 1e-5, 1e-2), (True, 1e-8, 1e-6)])
def test_multiple_outages_and_islands(outages, double, voltage_bound, angle_bound):
    case = load_case("ieee118")
    chosen = [entry for entry in outages if len(entry[0]) > 1 or not entry[1].live.all()]
    split = [not reduced.live.all() for _, reduced, _ in chosen]
    assert sum(split) > 12 and all(solved.converged for _, _, solved in chosen)
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        grid = power_flow(case, dtype=dtype)
        branch, active = slots([rows for rows, _, _ in chosen])
        solution, live, flows = solve_outages(grid, *arguments(case, dtype), branch, active, 20)
        np.testing.assert_array_equal(live, [reduced.live for _, reduced, _ in chosen])
        voltage, angle = differences(solution, live, [solved for _, _, solved in chosen])
        assert voltage < voltage_bound and angle < angle_bound
        dead_end = ~np.asarray(live)[:, case.branch_from] | ~np.asarray(live)[:, case.branch_to]
        assert all(np.all(np.where(dead_end, np.asarray(flow), 0.0) == 0.0) for flow in flows)


def test_island_that_takes_the_reference_along():
    # Bus 10, the reference of the example, loses both its lines; the angle of another bus must take over.
    case = load_case(EXAMPLE)
    expected, result = solve(case, "newton", (1, 4)), solve(case, "ac", (1, 4))
    assert expected["converged"] and result["converged"]
    assert result["buses"][0] == {"bus": 10, "vm_pu": 0.0, "va_degree": None}
    for wanted, found in zip(expected["buses"][1:], result["buses"][1:], strict=True):
        assert found["vm_pu"] == pytest.approx(wanted["vm_pu"], abs=1e-8)
        assert found["va_degree"] == pytest.approx(wanted["va_degree"], abs=1e-6)


def test_distributed_slack_balances_and_shares(outages):
    case, point = load_case("ieee118"), operating_point(load_case("ieee118"))
    share = np.bincount(case.gen_bus, weights=case.gen_p_max_mw, minlength=case.buses)
    with jax.enable_x64(True):
        grid = power_flow(case, dtype=jnp.float64)
        branch, active = slots([[], [6], outages[-1][0]])
        values = arguments(case, jnp.float64, share)
        solution, live, flows = solve_outages(grid, *values, branch, active, 20)
        assert solution.residual_pu.max() < 1e-10
        for world in range(3):
            alive = np.asarray(live[world])
            taken = alive * share / (alive * share).sum() * float(solution.p_slack_pu[world])
            supplied = np.where(alive, point.generation_p_pu - point.load_p_pu, 0.0) + taken
            losses = float(jnp.sum(flows[0][world] + flows[2][world]))
            assert supplied.sum() == pytest.approx(losses, abs=1e-9)
            # And at every bus: what is supplied leaves through its branches.
            leaving = np.bincount(case.branch_from, weights=flows[0][world], minlength=case.buses)
            leaving += np.bincount(case.branch_to, weights=flows[2][world], minlength=case.buses)
            np.testing.assert_allclose(supplied, leaving, atol=1e-9)


def test_dead_bus_restarts_and_extremes_stay_finite():
    case = load_case("ieee14")
    grid, values = power_flow(case), list(arguments(case, jnp.float32))
    branch, active = slots([[]])
    values[6] = jnp.zeros(case.buses)
    solution, _, _ = solve_outages(grid, *values, branch, active, 8)
    assert not solution.diverged[0]
    np.testing.assert_allclose(solution.v[0], np.abs(newton(case).voltage), atol=1e-5)
    values[1] = values[1] * 50.0
    solution, _, flows = solve_outages(grid, *values, branch, active, 8)
    assert solution.diverged[0]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((solution, flows)))


def test_batched_equals_looped():
    case = load_case("ieee30")
    grid, values = power_flow(case), arguments(case, jnp.float32)
    sets = [[], [3], [3, 7, 20]]
    together = solve_outages(grid, *values, *slots(sets), 4)[0]
    for world, rows in enumerate(sets):
        alone = solve_outages(grid, *values, *slots([rows]), 4)[0]
        np.testing.assert_allclose(together.v[world], alone.v[0], atol=1e-6)
        np.testing.assert_allclose(together.theta[world], alone.theta[0], atol=1e-5)


def test_lodf_equals_refactorised_network():
    case, point = load_case("ieee118"), operating_point(load_case("ieee118"))
    injection = point.generation_p_pu - point.load_p_pu
    injection[point.reference] -= injection.sum()
    with jax.enable_x64(True):
        grid = power_flow(case, dtype=jnp.float64)
        for already in ([], [7, 40]):
            assert without(case, already).live.all()
            branch, active = slots([already])
            factors = grid.outage_factors(branch[0], active[0])
            share = jnp.eye(case.buses)[point.reference]
            flow = np.asarray(dc(grid, jnp.asarray(injection), factors, grid.live, share))
            np.testing.assert_allclose(flow, dc_flow(without(case, already), injection, point), atol=1e-10)
            lodf, radial = (np.asarray(values) for values in grid.lodf(factors))
            rating = np.where(np.arange(case.branches) % 3 > 0, case.rate_mva / case.base_mva, 0.0)
            worst = np.asarray(grid.n_minus_1_loading(jnp.asarray(flow), jnp.asarray(rating), factors))
            for lost in range(case.branches):
                reduced = without(case, [*already, lost])
                if lost in already or not reduced.live.all():
                    assert lost in already or radial[lost]
                    assert worst[lost] == 0.0 and not lodf[:, lost].any()
                    continue
                expected = dc_flow(reduced, injection, point)
                np.testing.assert_allclose(flow + lodf[:, lost] * flow[lost], expected, atol=1e-10)
                loading = np.abs(expected[rating > 0] / rating[rating > 0]).max()
                assert worst[lost] == pytest.approx(loading, abs=1e-9)


def dc_flow(case, injection, point):
    """Flows of a network of which nothing is dead, its matrix built and solved anew."""
    weight = np.where(case.branch_on, 1.0 / (case.x * case.tap), 0.0)
    matrix = np.zeros((case.buses, case.buses))
    for a, b in ((case.branch_from, case.branch_to), (case.branch_to, case.branch_from)):
        np.add.at(matrix, (a, a), weight)
        np.add.at(matrix, (a, b), -weight)
    free = np.arange(case.buses) != point.reference
    angle = np.zeros(case.buses)
    angle[free] = np.linalg.solve(matrix[np.ix_(free, free)], injection[free])
    return weight * (angle[case.branch_from] - angle[case.branch_to])


def test_ptdf_moves_power_from_bus_to_reference():
    case, point = load_case("ieee57"), operating_point(load_case("ieee57"))
    ptdf = angle_sensitivities(case, point.reference).ptdf
    # The flows that 1 MW injected at bus n causes start with 1 MW at n and end with it at the reference.
    leaving = np.zeros((case.buses, case.buses))
    np.add.at(leaving, case.branch_from, ptdf)
    np.add.at(leaving, case.branch_to, -ptdf)
    expected = np.eye(case.buses)
    expected[point.reference] -= 1.0
    np.testing.assert_allclose(leaving, expected, atol=1e-10)


def test_radial_flags_after_outages_in_single_precision(outages):
    case = load_case("ieee118")
    flags = eqx.filter_jit(lambda grid, branch, active: grid.lodf(grid.outage_factors(branch, active))[1])
    chosen = [rows for rows, _, _ in outages[-15:]]
    radial = jax.vmap(functools.partial(flags, power_flow(case)))(*slots(chosen))
    for world, rows in enumerate(chosen):
        alive = without(case, rows).live
        for lost in np.setdiff1d(np.flatnonzero(alive[case.branch_from]), rows):
            splits = without(case, [*rows, lost]).live.sum() < alive.sum()
            assert bool(radial[world, lost]) == splits, (rows, lost)


def test_dc_with_phase_shifters_and_islands():
    case = load_case(EXAMPLE)
    case = replace(case, shift_degree=np.array([0, 3.0, 0, 0, 0, 0, -5.0, 0, 0]))
    point = operating_point(case)
    injection = point.generation_p_pu - point.load_p_pu
    with jax.enable_x64(True):
        grid = power_flow(case, dtype=jnp.float64)
        share = jnp.eye(case.buses)[point.reference]
        for rows in ([], [1], [8], [8, 6]):
            branch, active = slots([rows])
            factors = grid.outage_factors(branch[0], active[0])
            live = grid.live_buses(grid.status(factors))
            flow = dc(grid, jnp.asarray(injection), factors, live, share) * case.base_mva
            expected = solve(case, "dc", [row + 1 for row in rows])
            np.testing.assert_allclose(flow, [b["p_from_mw"] for b in expected["branches"]], atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=41, max_size=41))
def test_live_buses_are_the_largest_network(open_branches):
    case = load_case("ieee30")
    reduced = replace(case, branch_on=np.array(open_branches))
    live = live_buses(GRID_30(), jnp.asarray(open_branches))
    np.testing.assert_array_equal(live, reduced.live)


dc = eqx.filter_jit(lambda grid, *arguments: grid.dc(*arguments))
live_buses = eqx.filter_jit(lambda grid, status: grid.live_buses(status))
GRID_30 = functools.cache(lambda: power_flow(load_case("ieee30")))


def test_study_reports_plain_numbers(capsys):
    case = load_case(EXAMPLE)
    for mode in ("newton", "ac", "dc"):
        result = solve(case, mode, (9,))
        json.dumps(result, allow_nan=False)
        assert result["buses"][6] == {"bus": 70, "vm_pu": 0.0, "va_degree": None}
        assert result["branches"][8]["p_from_mw"] == result["branches"][4]["p_to_mw"] == 0.0
        demand = sum(branch["p_from_mw"] + branch["p_to_mw"] for branch in result["branches"])
        assert result["losses_mw"] == pytest.approx(demand)
    unrated = replace(case, rate_mva=np.zeros(case.branches))
    assert solve(unrated)["branches"][0]["loading_percent"] is None
    render(result)
    printed = capsys.readouterr().out
    assert "Without supply: 1 buses (70)" in printed and "Worst loading" in printed


@pytest.mark.parametrize("mode", ["newton", "ac"])
def test_study_says_where_it_does_not_converge(mode, capsys):
    case = load_case("ieee14")
    result = solve(replace(case, load_p_mw=case.load_p_mw * 20), mode)
    json.dumps(result, allow_nan=False)
    assert not result["converged"] and result["max_mismatch_pu"] > 0.1
    render(result)
    assert f"at bus {result['largest_mismatch_bus']}" in " ".join(capsys.readouterr().out.split())


def test_study_refuses_unknown_branch_rows():
    with pytest.raises(ValueError, match="outage 21.*rows are 1 to 20"):
        solve(load_case("ieee14"), outages=(3, 21))
    with pytest.raises(ValueError, match="outage 0"):
        solve(load_case("ieee14"), outages=(0,))


def test_power_flow_without_generator_is_refused():
    case = load_case("ieee14")
    dark = replace(case, gen_on=np.zeros(case.generators, dtype=bool))
    with pytest.raises(ValueError, match="no generator in service"):
        power_flow(dark)
    assert not solve(dark)["converged"]
