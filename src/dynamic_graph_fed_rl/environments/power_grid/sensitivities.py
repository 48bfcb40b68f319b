"""Linear sensitivities of a grid, computed once in f64 with NumPy.

PTDF and LODF: Wood, Wollenberg and Sheble, "Power Generation, Operation, and Control", 3rd ed., section 7.3
and appendix 7A. The voltage block is the B'' of the fast-decoupled power flow: Stott and Alsac, IEEE Trans.
PAS-93(3), 1974, with the choice of matrices of MATPOWER's XB scheme.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from dynamic_graph_fed_rl.environments.power_grid.admittance import (
    branch_admittances,
    dc_susceptance,
    incidence,
    shunt_admittance,
)
from dynamic_graph_fed_rl.environments.power_grid.network import Case

# 1 - (share of a branch's own flow that returns through it) below this is rounding error: a radial branch.
_RADIAL = 1e-9


@dataclass(frozen=True, eq=False)
class AngleSensitivities:
    """Response of angles and DC branch flows to injections balanced at the reference bus [p.u.]."""

    inverse: Float[np.ndarray, "buses buses"]
    """Inverse of the DC bus matrix B', zero in the reference's and in dead rows and columns."""
    ptdf: Float[np.ndarray, "branches buses"]
    transfer: Float[np.ndarray, "branches branches"]
    """Flow on a row's branch from 1 p.u. sent from the from to the to bus of a column's branch."""
    kept: Float[np.ndarray, "branches"]
    """`1 - transfer[l, l]`, exactly 0 for radial branches."""


def angle_sensitivities(case: Case, reference: int) -> AngleSensitivities:
    susceptance, ends = dc_susceptance(case), incidence(case)
    rows = np.flatnonzero(case.live & (np.arange(case.buses) != reference))
    reduced = ends[:, rows]
    inverse = _padded_inverse(reduced.T @ (susceptance[:, None] * reduced), rows, case.buses)
    ptdf = susceptance[:, None] * (ends @ inverse)
    transfer = ptdf @ ends.T
    kept = 1.0 - np.diag(transfer)
    kept[np.abs(kept) < _RADIAL] = 0.0
    return AngleSensitivities(inverse, ptdf, transfer, kept)


@dataclass(frozen=True, eq=False)
class VoltageSensitivities:
    """Response of voltage magnitudes at PQ buses to reactive mismatch, and what a branch adds to B''.

    A branch adds `sum_d scale[l, d] w w^T` to B'' where `w` holds `ends[l, d]` at its from and to bus.
    """

    inverse: Float[np.ndarray, "buses buses"]
    """Inverse of B'', zero in rows and columns of regulated and dead buses."""
    ends: Float[np.ndarray, "branches 2 2"]
    scale: Float[np.ndarray, "branches 2"]
    transfer: Float[np.ndarray, "branches_x2 branches_x2"]
    """`scale_i w_i^T inverse w_j` over the flattened (branch, d) pairs."""
    kept: Float[np.ndarray, "branches_x2"]
    """`1 - transfer[i, i]`, exactly 0 where the branch's removal makes B'' singular."""


def voltage_sensitivities(case: Case, regulated: Bool[np.ndarray, "buses"]) -> VoltageSensitivities:
    yff, yft, ytf, ytt = branch_admittances(case, with_shift=False).T
    blocks = -np.imag(np.stack([np.stack([yff, yft], axis=-1), np.stack([ytf, ytt], axis=-1)], axis=-2))
    scale, vectors = np.linalg.eigh(blocks)
    ends = np.swapaxes(vectors, 1, 2)
    # The stamps w of all (branch, d) pairs as rows of a matrix over the buses.
    stamps = np.zeros((case.branches, 2, case.buses))
    branch = np.arange(case.branches)
    stamps[branch, :, case.branch_from] = ends[:, :, 0]
    stamps[branch, :, case.branch_to] += ends[:, :, 1]
    stamps = stamps.reshape(2 * case.branches, case.buses)
    weight = scale.reshape(-1)
    full = stamps.T @ (weight[:, None] * stamps) - np.diag(np.imag(shunt_admittance(case)))
    rows = np.flatnonzero(case.live & ~regulated)
    inverse = _padded_inverse(full[np.ix_(rows, rows)], rows, case.buses)
    transfer = weight[:, None] * (stamps @ inverse @ stamps.T)
    kept = 1.0 - np.diag(transfer)
    kept[np.abs(kept) < _RADIAL] = 0.0
    return VoltageSensitivities(inverse, ends, scale, transfer, kept)


def _padded_inverse(matrix: np.ndarray, rows: np.ndarray, size: int) -> np.ndarray:
    padded = np.zeros((size, size))
    if len(rows):
        padded[np.ix_(rows, rows)] = np.linalg.inv(matrix)
    return padded
