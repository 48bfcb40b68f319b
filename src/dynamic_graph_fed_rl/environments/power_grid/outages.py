"""Branches that are out, as corrections of a grid's constant factors.

Each outage is a rank-one change of B' and a rank-two change of B''; K slots are eliminated against each other
once per topology change (Sherman-Morrison-Woodbury; Alsac, Stott and Tinney, "Sparsity-oriented compensation
methods for modified network solutions", IEEE Trans. PAS-102(5), 1983).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class OutageFactors(eqx.Module):
    """What `ac` and `dc` need to know about K outage slots; changes only when the topology does."""

    branch: Int[Array, "slots"]
    active: Bool[Array, "slots"]
    angle: Float[Array, "slots slots"]
    """Inverse of the elimination matrix of B'; zero rows for unused slots and for branches whose removal
    splits the grid."""
    voltage: Float[Array, "slots_x2 slots_x2"]
    """The same for B'', two rows a slot."""


class SlotEnds:
    """The outaged branches of one world of a `power_flow.PowerFlow`, gathered once per solve."""

    def __init__(self, grid, outages: OutageFactors):
        branch, active = outages.branch, outages.active
        self.branch_from, self.branch_to = grid.branch_from[branch], grid.branch_to[branch]
        self.ends = jnp.where(active[:, None], grid.ends[branch], 0.0)
        self.susceptance = grid.susceptance[branch]
        self.voltage_ends, self.voltage_scale = grid.voltage_ends[branch], grid.voltage_scale[branch]

    def currents(self, voltage):
        return branch_currents(self.ends, voltage[:, self.branch_from], voltage[:, self.branch_to])

    def spread(self, values, at_from, at_to):
        return values.at[self.branch_from].add(at_from).at[self.branch_to].add(at_to)


def rectangular(theta, v):
    """Real and imaginary parts of the voltages `[2, N]`."""
    return jnp.stack([v * jnp.cos(theta), v * jnp.sin(theta)])


def branch_currents(ends, at_from, at_to):
    """Real and imaginary currents into each branch at its two ends, of the voltages `[2, branches]` there."""
    gff, bff, gft, bft, gtf, btf, gtt, btt = (ends[:, column] for column in range(8))
    (ef, ff), (et, ft) = at_from, at_to
    return (
        gff * ef - bff * ff + gft * et - bft * ft,
        gff * ff + bff * ef + gft * ft + bft * et,
        gtf * ef - btf * ff + gtt * et - btt * ft,
        gtf * ff + btf * ef + gtt * ft + btt * et,
    )


def branch_powers(currents, at_from, at_to):
    from_re, from_im, to_re, to_im = currents
    (ef, ff), (et, ft) = at_from, at_to
    return (
        ef * from_re + ff * from_im,
        ff * from_re - ef * from_im,
        et * to_re + ft * to_im,
        ft * to_re - et * to_im,
    )


def apply_small(matrix, vector):
    # As a sum: a batch of small products is faster so than as a batched matrix product.
    return jnp.sum(matrix * vector, axis=-1)


def eliminate(transfer, kept, active, singular):
    """Inverse of `I - transfer` over the active slots by Gauss-Jordan elimination, slot after slot.

    A slot whose pivot vanishes (the branches before it leave it the only connection) is dropped: its row and
    column are zero in the result, as they are for inactive slots.
    """
    if not kept.shape[0]:
        return transfer
    identity = jnp.eye(kept.shape[0], dtype=kept.dtype)
    used = active[:, None] & active[None, :]
    matrix = jnp.where(used, jnp.where(identity > 0.0, kept, -transfer), identity)

    def pivot_on(k, carry):
        matrix, inverse, usable = carry
        pivot = matrix[k, k]
        regular = (kept[k] != 0.0) & (jnp.abs(pivot) > singular * jnp.abs(kept[k]))
        scale = jnp.where(regular, 1.0 / jnp.where(regular, pivot, 1.0), 0.0)
        row, inverse_row = matrix[k] * scale, inverse[k] * scale
        column = jnp.where(regular, matrix[:, k], 0.0).at[k].set(0.0)
        return (
            (matrix - column[:, None] * row).at[k].set(row),
            (inverse - column[:, None] * inverse_row).at[k].set(inverse_row),
            usable.at[k].set(usable[k] & regular),
        )

    _, inverse, usable = jax.lax.fori_loop(0, kept.shape[0], pivot_on, (matrix, identity, active))
    return jnp.where(usable[:, None] & usable[None, :], inverse, 0.0)
