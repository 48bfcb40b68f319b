"""One power flow of one case, reported: what `dgfrl power-flow` prints. f64 throughout."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import sparse
from scipy.sparse.linalg import spsolve

from dynamic_graph_fed_rl.environments.power_grid.admittance import (
    branch_power,
    dc_susceptance,
    operating_point,
)
from dynamic_graph_fed_rl.environments.power_grid.network import Case
from dynamic_graph_fed_rl.environments.power_grid.newton import NewtonSolution, newton

Mode = Literal["newton", "ac", "dc"]

_FAST_DECOUPLED_TOLERANCE_PU = 1e-8
_FAST_DECOUPLED_ROUNDS = 15
_ITERATIONS_A_ROUND = 4


def solve(case: Case, mode: Mode = "newton", outages: Sequence[int] = ()) -> dict[str, Any]:
    """Solve a case with branches out (1-based rows of the file) and one slack at its reference bus.

    `newton` is the accurate reference, `ac` the fast-decoupled kernel that the environments use, `dc` the
    linear approximation (voltages 1 p.u., no losses). The largest network that stays connected is solved; a
    bus outside it has `vm_pu` 0 and `va_degree` None. Returns the keys `converged, iterations,
    max_mismatch_pu, largest_mismatch_bus, losses_mw, buses, branches` with plain numbers, never NaN.

    Raises:
        ValueError: unknown mode, or an outage that is not a branch row.
    """
    for row in outages:
        if not 1 <= row <= case.branches:
            raise ValueError(
                f"outage {row}: case '{case.name}' has no such branch row; rows are 1 to {case.branches}"
            )
    on = case.branch_on.copy()
    on[[row - 1 for row in outages]] = False
    reduced = replace(case, branch_on=on)
    if mode == "dc":
        return _solve_dc(reduced)
    if mode == "newton":
        solution = newton(reduced)
        if not solution.converged:
            solution = min(solution, newton(reduced, flat=True), key=lambda s: s.max_mismatch_pu)
    elif mode == "ac":
        solution = _fast_decoupled(case, reduced)
    else:
        raise ValueError(f"mode '{mode}': unknown; known: newton, ac, dc")
    at_from, at_to = branch_power(reduced, solution.voltage)
    return _result(reduced, solution, at_from, at_to)


def _fast_decoupled(case: Case, reduced: Case) -> NewtonSolution:
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from dynamic_graph_fed_rl.environments.power_grid.power_flow import power_flow

    point = operating_point(reduced)
    if point.reference < 0:
        return newton(reduced)
    # Slots correct the factors of the case's own largest network; where another outlives it, build on that.
    base = reduced if np.any(reduced.live & ~case.live) else case
    with jax.enable_x64(True):
        grid = power_flow(base, dtype=jnp.float64)
        removed = np.flatnonzero(base.branch_on & ~reduced.branch_on)
        load_q = point.load_q_pu - np.where(point.regulated, 0.0, point.generation_q_pu)
        one_slack = (np.arange(case.buses) == point.reference).astype(np.float64)
        asked = (point.generation_p_pu, point.load_p_pu, load_q, point.v_set_pu)

        @eqx.filter_jit
        def run(grid, theta, v):
            factors = grid.outage_factors(jnp.asarray(removed), jnp.ones(len(removed), dtype=bool))
            live = jnp.asarray(reduced.live)
            solution = grid.ac(
                *map(jnp.asarray, asked),
                factors,
                live,
                jnp.asarray(one_slack),
                theta,
                v,
                iterations=_ITERATIONS_A_ROUND,
            )
            return solution, grid.injections(solution.theta, solution.v, factors)

        theta, v = jnp.asarray(np.deg2rad(case.va_degree)), jnp.asarray(case.vm_pu)
        iterations = 0
        for _ in range(_FAST_DECOUPLED_ROUNDS):
            solution, injections = run(grid, theta, v)
            theta, v, iterations = solution.theta, solution.v, iterations + _ITERATIONS_A_ROUND
            if solution.residual_pu < _FAST_DECOUPLED_TOLERANCE_PU:
                break
        magnitude, angle, largest = np.asarray(v), np.asarray(theta), float(solution.residual_pu)
        p, q = (np.asarray(values) for values in injections)
    angle = angle - angle[point.reference] + np.deg2rad(case.va_degree[point.reference])
    free = reduced.live & (np.arange(case.buses) != point.reference)
    mismatch_p = np.where(free, p - point.generation_p_pu + point.load_p_pu, 0.0)
    mismatch_q = np.where(reduced.live & ~point.regulated, q + load_q, 0.0)
    worst = int(np.argmax(np.maximum(np.abs(mismatch_p), np.abs(mismatch_q))))
    converged = largest < _FAST_DECOUPLED_TOLERANCE_PU
    return NewtonSolution(magnitude * np.exp(1j * angle), converged, iterations, largest, worst)


def _solve_dc(case: Case) -> dict[str, Any]:
    point, susceptance = operating_point(case), dc_susceptance(case)
    rows, n = np.arange(case.branches), case.buses
    signs = np.concatenate([np.ones(case.branches), -np.ones(case.branches)])
    where = (np.concatenate([rows, rows]), np.concatenate([case.branch_from, case.branch_to]))
    ends = sparse.csr_array(sparse.coo_array((signs, where), shape=(case.branches, n)))
    shift = susceptance * np.deg2rad(case.shift_degree)
    injection = point.generation_p_pu - point.load_p_pu - case.shunt_g_mw / case.base_mva + ends.T @ shift
    reference = max(point.reference, 0)
    angle = np.where(case.live, np.deg2rad(case.va_degree[reference]), 0.0)
    free = np.flatnonzero(case.live & (np.arange(n) != reference))
    matrix = sparse.csr_array(ends.T @ sparse.diags_array(susceptance) @ ends)
    if point.reference >= 0 and len(free):
        wanted = (injection - matrix @ angle)[free]
        angle[free] += np.atleast_1d(np.asarray(spsolve(matrix[free][:, free].tocsc(), wanted)))
    voltage = case.live * np.exp(1j * angle)
    joined = case.live[case.branch_from] & case.live[case.branch_to]
    flow = np.where(joined, susceptance * (ends @ angle) - shift, 0.0)
    residual = np.abs((matrix @ angle - injection)[free])
    largest = float(np.max(residual, initial=0.0))
    worst = int(free[np.argmax(residual)]) if len(free) else reference
    solution = NewtonSolution(voltage, point.reference >= 0 and largest < 1e-6, 1, largest, worst)
    return _result(case, solution, flow + 0j, -flow + 0j)


def _result(case: Case, solution: NewtonSolution, at_from: np.ndarray, at_to: np.ndarray) -> dict[str, Any]:
    at_from, at_to = at_from * case.base_mva, at_to * case.base_mva
    apparent = np.maximum(np.abs(at_from), np.abs(at_to))
    number = case.bus_number.tolist()
    magnitude, angle = np.abs(solution.voltage), np.rad2deg(np.angle(solution.voltage))
    return {
        "converged": bool(solution.converged),
        "iterations": int(solution.iterations),
        "max_mismatch_pu": float(solution.max_mismatch_pu),
        "largest_mismatch_bus": number[solution.worst_bus],
        "losses_mw": float(np.sum(np.real(at_from + at_to))),
        "buses": [
            {
                "bus": number[bus],
                "vm_pu": float(magnitude[bus]),
                "va_degree": float(angle[bus]) if magnitude[bus] > 0.0 else None,
            }
            for bus in range(case.buses)
        ],
        "branches": [
            {
                "from_bus": number[case.branch_from[row]],
                "to_bus": number[case.branch_to[row]],
                "p_from_mw": float(at_from[row].real),
                "q_from_mvar": float(at_from[row].imag),
                "p_to_mw": float(at_to[row].real),
                "q_to_mvar": float(at_to[row].imag),
                "loading_percent": (
                    float(100.0 * apparent[row] / case.rate_mva[row]) if case.rate_mva[row] > 0.0 else None
                ),
            }
            for row in range(case.branches)
        ],
    }


def render(result: dict[str, Any], console: Console | None = None) -> None:
    """Print what `solve` returned as tables, the summary last."""
    console = console or Console()
    buses = Table("bus", "voltage p.u.", "angle deg", title="Buses")
    for bus in result["buses"]:
        angle = bus["va_degree"]
        buses.add_row(str(bus["bus"]), f"{bus['vm_pu']:.4f}", "no supply" if angle is None else f"{angle:.3f}")
    branches = Table(
        "row", "from", "to", "P from MW", "Q from MVAr", "P to MW", "Q to MVAr", "loading %", title="Branches"
    )
    for table in (buses, branches):
        for column in table.columns:
            column.justify = "right"
    for row, branch in enumerate(result["branches"], start=1):
        powers = (f"{branch[key]:.2f}" for key in ("p_from_mw", "q_from_mvar", "p_to_mw", "q_to_mvar"))
        loading = branch["loading_percent"]
        branches.add_row(
            str(row),
            str(branch["from_bus"]),
            str(branch["to_bus"]),
            *powers,
            "" if loading is None else f"{loading:.1f}",
            style="red" if loading is not None and loading > 100.0 else None,
        )
    console.print(buses, branches)
    mismatch = f"{result['max_mismatch_pu']:.1e} p.u."
    if result["converged"]:
        console.print(f"Converged in {result['iterations']} iterations, largest mismatch {mismatch}")
    else:
        console.print(
            f"[bold red]Not converged[/] after {result['iterations']} iterations: "
            f"largest mismatch {mismatch} at bus {result['largest_mismatch_bus']}"
        )
    console.print(f"Losses {result['losses_mw']:.2f} MW")
    dark = [str(bus["bus"]) for bus in result["buses"] if bus["va_degree"] is None]
    if dark:
        console.print(f"Without supply: {len(dark)} buses ({', '.join(dark)})")
    rated = [
        (branch["loading_percent"], row, branch)
        for row, branch in enumerate(result["branches"], start=1)
        if branch["loading_percent"] is not None
    ]
    if rated:
        loading, row, branch = max(rated, key=lambda entry: entry[0])
        console.print(f"Worst loading {loading:.1f} % on branch {row} ({branch['from_bus']} to {branch['to_bus']})")
