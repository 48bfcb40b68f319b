"""Newton's method for the AC power flow: the accurate reference. NumPy and SciPy sparse, f64.

Tinney and Hart, "Power flow solution by Newton's method", IEEE Trans. PAS-86(11), 1967; the partial
derivatives are those of MATPOWER Technical Note 2, section 3.
"""

import warnings
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Complex
from scipy import sparse
from scipy.sparse.linalg import MatrixRankWarning, spsolve

from dynamic_graph_fed_rl.environments.power_grid.admittance import (
    OperatingPoint,
    branch_admittances,
    operating_point,
    shunt_admittance,
)
from dynamic_graph_fed_rl.environments.power_grid.network import Case


@dataclass(frozen=True, eq=False)
class NewtonSolution:
    """Voltages are zero outside the live network. If not converged, the iterate of least mismatch."""

    voltage: Complex[np.ndarray, "buses"]
    converged: bool
    iterations: int
    max_mismatch_pu: float
    worst_bus: int
    """Index of the bus with the largest mismatch."""


def newton(
    case: Case,
    point: OperatingPoint | None = None,
    flat: bool = False,
    tolerance_pu: float = 1e-10,
    max_iterations: int = 20,
) -> NewtonSolution:
    """Solve the live network of a case with one slack bus, from the case's voltages or a flat start.

    `point` replaces what the case's own operating point asks for. Without a generator in the live network
    nothing is solved: all voltages are zero and `converged` is false.
    """
    point = point if point is not None else operating_point(case)
    live = np.flatnonzero(case.live)
    if point.reference < 0:
        return NewtonSolution(np.zeros(case.buses, dtype=np.complex128), False, 0, 0.0, int(live[0]))
    angle_rows = live[live != point.reference]
    magnitude_rows = live[~point.regulated[live]]
    angle_step = len(angle_rows)
    y = bus_admittance(case)
    wanted = point.generation_p_pu - point.load_p_pu + 1j * (point.generation_q_pu - point.load_q_pu)
    stored = np.where(case.vm_pu > 0.0, case.vm_pu, 1.0)
    magnitude = np.where(point.regulated, point.v_set_pu, 1.0 if flat else stored)
    angle = np.deg2rad(case.va_degree[point.reference] if flat else case.va_degree)
    magnitude, angle = np.where(case.live, magnitude, 0.0), np.where(case.live, angle, 0.0)

    # A mismatch cannot be computed more finely than the largest admittance allows.
    tolerance = max(tolerance_pu, float(np.finfo(np.float64).eps * np.abs(y.data).max()))
    rows = np.concatenate([angle_rows, magnitude_rows])
    best = NewtonSolution(magnitude * np.exp(1j * angle), False, 0, np.inf, point.reference)
    iteration = 0
    for iteration in range(max_iterations + 1):
        voltage = magnitude * np.exp(1j * angle)
        mismatch = voltage * np.conj(y @ voltage) - wanted
        residual = np.concatenate([mismatch.real[angle_rows], mismatch.imag[magnitude_rows]])
        largest = float(np.max(np.abs(residual), initial=0.0))
        if largest < best.max_mismatch_pu:
            worst = int(rows[np.argmax(np.abs(residual))]) if len(rows) else point.reference
            best = NewtonSolution(voltage, largest < tolerance, iteration, largest, worst)
        if best.converged or not np.isfinite(largest):
            break
        step = _step(y, voltage, angle_rows, magnitude_rows, residual)
        if step is None:
            break
        angle[angle_rows] += step[:angle_step]
        magnitude[magnitude_rows] += step[angle_step:]
    return replace(best, iterations=iteration)


def bus_admittance(case: Case) -> sparse.csr_array:
    """Bus admittance matrix [buses, buses] of the in-service branches and shunts [p.u.]."""
    ends, n = (case.branch_from, case.branch_to), case.buses
    values = branch_admittances(case)
    rows = np.concatenate([ends[0], ends[0], ends[1], ends[1]])
    columns = np.concatenate([ends[0], ends[1], ends[0], ends[1]])
    branches = sparse.coo_array((values.T.reshape(-1), (rows, columns)), shape=(n, n))
    return sparse.csr_array(branches + sparse.diags_array(shunt_admittance(case)))


def _step(y, voltage, angle_rows, magnitude_rows, residual) -> np.ndarray | None:
    current = sparse.diags_array(y @ voltage)
    diagonal = sparse.diags_array(voltage)
    safe = np.where(np.abs(voltage) > 0.0, np.abs(voltage), 1.0)
    direction = sparse.diags_array(voltage / safe)
    by_angle = (1j * diagonal @ (current - y @ diagonal).conj()).tocsr()
    by_magnitude = (diagonal @ (y @ direction).conj() + current.conj() @ direction).tocsr()
    jacobian = sparse.bmat(
        [
            [by_angle.real[angle_rows][:, angle_rows], by_magnitude.real[angle_rows][:, magnitude_rows]],
            [
                by_angle.imag[magnitude_rows][:, angle_rows],
                by_magnitude.imag[magnitude_rows][:, magnitude_rows],
            ],
        ],
        format="csc",
    )
    with warnings.catch_warnings():
        # A singular matrix shows in the step, which the caller handles.
        warnings.simplefilter("ignore", MatrixRankWarning)
        step = np.asarray(spsolve(jacobian, -residual))
    return step if np.isfinite(step).all() else None
