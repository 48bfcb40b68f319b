"""From a case to the numbers every power-flow method starts from. NumPy only, f64, per unit.

Branch model: MATPOWER User's Manual, section 3.2 (pi section behind an ideal phase-shifting transformer at
the from end).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Complex, Float, Int

from dynamic_graph_fed_rl.environments.power_grid.network import PV, REFERENCE, Case


def branch_admittances(case: Case, with_shift: bool = True) -> Complex[np.ndarray, "branches 4"]:
    """`yff, yft, ytf, ytt` of every branch [p.u.], zero for branches out of service."""
    series = np.zeros(case.branches, dtype=np.complex128)
    series[case.closed] = 1.0 / (case.r[case.closed] + 1j * case.x[case.closed])
    charging = np.where(case.closed, 0.5j * case.b, 0.0)
    angle = np.deg2rad(case.shift_degree) if with_shift else np.zeros(case.branches)
    tap = case.tap * np.exp(1j * angle)
    both = series + charging
    return np.stack([both / case.tap**2, -series / np.conj(tap), -series / tap, both], axis=1)


def shunt_admittance(case: Case) -> Complex[np.ndarray, "buses"]:
    return (case.shunt_g_mw + 1j * case.shunt_b_mvar) / case.base_mva


def dc_susceptance(case: Case) -> Float[np.ndarray, "branches"]:
    """Susceptance of the DC approximation, `1 / (x tap)` [p.u.]; zero for branches out of service."""
    reactance = np.where(case.x == 0.0, np.hypot(case.r, case.x), case.x)
    susceptance = np.zeros(case.branches)
    susceptance[case.closed] = 1.0 / (reactance * case.tap)[case.closed]
    return susceptance


def incidence(case: Case) -> Float[np.ndarray, "branches buses"]:
    """+1 at the from bus, -1 at the to bus of every branch."""
    rows = np.arange(case.branches)
    matrix = np.zeros((case.branches, case.buses))
    matrix[rows, case.branch_from] = 1.0
    matrix[rows, case.branch_to] = -1.0
    return matrix


@dataclass(frozen=True, eq=False)
class OperatingPoint:
    """What a case asks of a power flow: roles of its buses and what is injected there [p.u.]."""

    reference: int
    """Index of the slack bus, or -1 where no live bus has a generator in service."""
    regulated: Bool[np.ndarray, "buses"]
    """PV buses and the reference: voltage held at `v_set_pu`."""
    generation_p_pu: Float[np.ndarray, "buses"]
    generation_q_pu: Float[np.ndarray, "buses"]
    load_p_pu: Float[np.ndarray, "buses"]
    load_q_pu: Float[np.ndarray, "buses"]
    v_set_pu: Float[np.ndarray, "buses"]
    """Set-point at regulated buses, the case's own magnitude elsewhere."""


def operating_point(case: Case) -> OperatingPoint:
    """Roles as MATPOWER assigns them, restricted to `case.live`.

    A PV or reference bus without a generator in service is a PQ bus. Without a live reference bus the first
    regulated bus takes its place, failing that the first live bus with a generator in service; a second
    reference bus is a PV bus. Where generators at one bus disagree on the set-point the last one counts.
    """
    on = np.flatnonzero(case.gen_on)
    generating = np.zeros(case.buses, dtype=bool)
    generating[case.gen_bus[on]] = True
    generating &= case.live
    regulated = generating & np.isin(case.bus_type, (PV, REFERENCE))
    candidates = np.concatenate(
        [np.flatnonzero(kind) for kind in (regulated & (case.bus_type == REFERENCE), regulated, generating)]
    )
    reference = int(candidates[0]) if len(candidates) else -1
    if reference >= 0:
        regulated[reference] = True
    v_set = case.vm_pu.astype(np.float64).copy()
    at_regulated = on[regulated[case.gen_bus[on]]]
    v_set[case.gen_bus[at_regulated]] = case.gen_vm_pu[at_regulated]

    def at_buses(values: np.ndarray) -> np.ndarray:
        return np.bincount(case.gen_bus[on], weights=values[on], minlength=case.buses) / case.base_mva

    return OperatingPoint(
        reference=reference,
        regulated=regulated,
        generation_p_pu=at_buses(case.gen_p_mw),
        generation_q_pu=at_buses(case.gen_q_mvar),
        load_p_pu=case.load_p_mw / case.base_mva,
        load_q_pu=case.load_q_mvar / case.base_mva,
        v_set_pu=v_set,
    )


def branch_power(
    case: Case, voltage: Complex[np.ndarray, "buses"]
) -> tuple[Complex[np.ndarray, "branches"], Complex[np.ndarray, "branches"]]:
    """Complex power entering every branch at its from and at its to end [p.u.]."""
    yff, yft, ytf, ytt = branch_admittances(case).T
    at_from, at_to = voltage[case.branch_from], voltage[case.branch_to]
    return at_from * np.conj(yff * at_from + yft * at_to), at_to * np.conj(ytf * at_from + ytt * at_to)


def neighbours(
    case: Case,
) -> tuple[Int[np.ndarray, "buses degree"], Int[np.ndarray, "buses degree"]]:
    """Other ends and rows of the branches at every bus, padded with bus 0 and row L."""
    ends = np.abs(incidence(case))
    degree = max(int(ends.sum(axis=0).max()), 1)
    neighbour = np.zeros((case.buses, degree), dtype=np.int64)
    branch = np.full((case.buses, degree), case.branches)
    for bus in range(case.buses):
        rows = np.flatnonzero(ends[:, bus])
        neighbour[bus, : len(rows)] = np.where(
            case.branch_from[rows] == bus, case.branch_to[rows], case.branch_from[rows]
        )
        branch[bus, : len(rows)] = rows
    return neighbour, branch
