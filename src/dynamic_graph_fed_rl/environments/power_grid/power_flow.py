"""Power flow for many worlds at once: fast-decoupled AC, DC, N-1 screen, islands.

All functions act on one world and are meant for `jax.vmap`; every large matrix is a constant of the grid, so
that a batch of worlds shares one matrix product. Outages are low-rank corrections of the constant factors,
held in a fixed number of slots (`outages.py`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.power_grid.admittance import (
    branch_admittances,
    dc_susceptance,
    neighbours,
    operating_point,
)
from dynamic_graph_fed_rl.environments.power_grid.loops import while_few
from dynamic_graph_fed_rl.environments.power_grid.network import Case
from dynamic_graph_fed_rl.environments.power_grid.newton import bus_admittance
from dynamic_graph_fed_rl.environments.power_grid.outages import (
    OutageFactors,
    SlotEnds,
    apply_small,
    branch_currents,
    branch_powers,
    eliminate,
    rectangular,
)
from dynamic_graph_fed_rl.environments.power_grid.sensitivities import (
    angle_sensitivities,
    voltage_sensitivities,
)

_EXACT = jax.lax.Precision.HIGHEST
# Voltages outside this band and angle steps above this one do not occur in a solvable case; the bounds keep a
# diverging iteration finite so that its residual can report it.
_V_BOUNDS_PU = (0.2, 2.0)
_MAX_ANGLE_STEP = 1.5
_RADIAL_MARGIN = 20.0


class Solution(eqx.Module):
    """An AC power flow. Angles [rad]; powers [p.u.]."""

    theta: Float[Array, "buses"]
    """At dead buses whatever the iteration left, as the start of a later reconnection."""
    v: Float[Array, "buses"]
    """Zero at dead buses."""
    p_slack_pu: Float[Array, ""]
    """Total power the participating buses add to their schedule."""
    residual_pu: Float[Array, ""]
    """Largest active mismatch at a live bus or reactive mismatch at a live PQ bus."""
    diverged: Bool[Array, ""]


class PowerFlow(eqx.Module):
    """The constants of a grid and the methods on them. Build with `power_flow(case)`.

    `N` buses, `L` branches in the order of the case; powers and voltages in per unit, angles in radians.
    Branches out of service in the case are never used; buses outside `live` (the case's largest connected
    network) are always dead.
    """

    base_mva: float = eqx.field(static=True)
    reference: int = eqx.field(static=True)
    """Bus whose angle stays what it was at the start."""
    divergence_pu: float = eqx.field(static=True)
    """Residual above which a solution counts as diverged."""
    singular: float = eqx.field(static=True)
    """Pivot, relative to its column before elimination, below which an outage splits the grid."""
    branch_from: Int[Array, "branches"]
    branch_to: Int[Array, "branches"]
    closed: Bool[Array, "branches"]
    live: Bool[Array, "buses"]
    regulated: Bool[Array, "buses"]
    """Buses whose voltage is held: PV and reference."""
    neighbour: Int[Array, "buses degree"]
    neighbour_branch: Int[Array, "buses degree"]
    """Padded with L."""
    conductance: Float[Array, "buses buses_x2"]
    """`[Re Y^T, Im Y^T]`."""
    ends: Float[Array, "branches 8"]
    """Real and imaginary parts of yff, yft, ytf, ytt."""
    angle_inverse: Float[Array, "buses buses"]
    ptdf: Float[Array, "branches buses"]
    transfer: Float[Array, "branches branches"]
    kept: Float[Array, "branches"]
    susceptance: Float[Array, "branches"]
    shift_flow: Float[Array, "branches"]
    """DC flow that a branch's phase shift drives through it at equal angles."""
    voltage_inverse: Float[Array, "buses buses"]
    voltage_ends: Float[Array, "branches 2 2"]
    voltage_scale: Float[Array, "branches 2"]
    voltage_transfer: Float[Array, "branches_x2 branches_x2"]
    voltage_kept: Float[Array, "branches_x2"]

    def live_buses(self, status: Bool[Array, "branches"]) -> Bool[Array, "buses"]:
        """Buses of the largest connected network of the branches in service, `[N]`.

        Of networks of equal size the one holding the lowest bus index lives.
        """
        n = self.live.shape[0]
        open_ended = jnp.append(status & self.closed, False)[self.neighbour_branch]
        own = jnp.arange(n, dtype=jnp.int32)

        def relax(carry):
            label, _ = carry
            lowest = jnp.min(jnp.where(open_ended, label[self.neighbour], n), axis=1)
            lowest = jnp.minimum(label, lowest)
            lowest = lowest[lowest]
            return lowest, jnp.any(lowest != label)

        label, _ = jax.lax.while_loop(lambda carry: carry[1], relax, (own, jnp.array(True)))
        size = jnp.sum((label[None, :] == own[:, None]) & self.live[None, :], axis=1)
        return (label == jnp.argmax(size)) & self.live

    def outage_factors(self, branch: Int[Array, "slots"], active: Bool[Array, "slots"]) -> OutageFactors:
        """Corrections of both factor matrices for K outage slots, computed once per topology change.

        `branch [K]` rows, distinct where `active [K]`; the rows of inactive slots do not matter.
        """
        active = active & self.closed[branch]
        both = (2 * branch[:, None] + jnp.arange(2)).reshape(-1)
        active_both = jnp.repeat(active, 2)
        return OutageFactors(
            branch=branch,
            active=active,
            angle=eliminate(self.transfer[branch][:, branch], self.kept[branch], active, self.singular),
            voltage=eliminate(
                self.voltage_transfer[both][:, both], self.voltage_kept[both], active_both, self.singular
            ),
        )

    def no_outages(self, slots: int) -> OutageFactors:
        return self.outage_factors(jnp.zeros(slots, dtype=jnp.int32), jnp.zeros(slots, dtype=bool))

    def ac(
        self,
        generation_p: Float[Array, "buses"],
        load_p: Float[Array, "buses"],
        load_q: Float[Array, "buses"],
        v_set: Float[Array, "buses"],
        outages: OutageFactors,
        live: Bool[Array, "buses"],
        participation: Float[Array, "buses"],
        theta: Float[Array, "buses"],
        v: Float[Array, "buses"],
        iterations: int = 4,
        tolerance_pu: float = 0.0,
    ) -> Solution:
        """Fast-decoupled (XB) AC power flow from the start `theta, v`: at most `iterations`, fewer once the
        residual is within the tolerance.

        All `[N]` in p.u. and rad. `v_set` counts at regulated buses only. `load_q` is net of reactive
        generation at the other buses. The imbalance, losses included, is shared over the live buses in
        proportion to `participation` (>= 0; one-hot at the reference is the single slack of textbooks). Buses
        not `live` are left out: no mismatch, zero voltage. The start need not be valid at buses that were dead.
        """
        live = live & self.live
        share = _shares(live, participation)
        scheduled, demanded = generation_p - load_p, -load_q
        free = live & ~self.regulated
        slots = SlotEnds(self, outages)
        v = jnp.where(v > 0.0, v, 1.0)
        v = jnp.where(self.regulated, v_set, v)

        def mismatch(theta, v):
            p, q = self._injections(theta, v, slots)
            active = jnp.where(live, p - scheduled, 0.0)
            slack = jnp.sum(active)
            return active - share * slack, jnp.where(free, q - demanded, 0.0), slack

        def residual(active, reactive):
            worst = jnp.maximum(jnp.max(jnp.abs(active)), jnp.max(jnp.abs(reactive)))
            # a batched maximum on CPU drops what is not a number; a sum keeps it
            return jnp.where(jnp.isfinite(jnp.sum(active) + jnp.sum(reactive)), worst, jnp.inf)

        def unfinished(carry):
            _, _, active, reactive, _, done = carry
            return (residual(active, reactive) > tolerance_pu) & (done < iterations)

        def iterate(carry):
            theta, v, active, _, _, done = carry
            step = self._solve_angle(active / v, slots, outages)
            theta = theta - jnp.clip(step, -_MAX_ANGLE_STEP, _MAX_ANGLE_STEP)
            _, reactive, _ = mismatch(theta, v)
            step = self._solve_voltage(reactive / v, slots, outages)
            v = jnp.clip(v - step, *_V_BOUNDS_PU)
            return theta, v, *mismatch(theta, v), done + 1

        start = (theta, v, *mismatch(theta, v), jnp.zeros((), dtype=jnp.int32))
        theta, v, active, reactive, slack, _ = while_few(unfinished, iterate, start)
        worst = residual(active, reactive)
        return Solution(theta, jnp.where(live, v, 0.0), slack, worst, worst > self.divergence_pu)

    def dc(
        self,
        injection_p: Float[Array, "buses"],
        outages: OutageFactors,
        live: Bool[Array, "buses"],
        participation: Float[Array, "buses"],
    ) -> Float[Array, "branches"]:
        """DC flows from the from to the to bus `[L]` p.u. of net injections `[N]` p.u.

        The imbalance of the live buses is shared in proportion to `participation`.
        """
        live = live & self.live
        injection = jnp.where(live, injection_p, 0.0)
        injection = injection - _shares(live, participation) * jnp.sum(injection)
        status = self.status(outages) & live[self.branch_from] & live[self.branch_to]
        # A shifter drives its flow and takes it out at its ends, as an injection would.
        shift = jnp.where(status, self.shift_flow, 0.0)
        injection = injection.at[self.branch_from].add(-shift).at[self.branch_to].add(shift)
        flow = self._ptdf_flow(injection)
        moved = jnp.matmul(outages.angle, flow[outages.branch], precision=_EXACT)
        ends = self.branch_from[outages.branch], self.branch_to[outages.branch]
        injection = injection.at[ends[0]].add(moved).at[ends[1]].add(-moved)
        return jnp.where(status, self._ptdf_flow(injection) + shift, 0.0)

    def dc_change(self, injection_p: Float[Array, "buses"], outages: OutageFactors) -> Float[Array, "branches"]:
        """Change of the DC flows `[L]` that a change of injections `[N]` brings, both p.u.

        An imbalance is met at the reference. Branches that are out are not zeroed.
        """
        angle = self._solve_angle(injection_p, SlotEnds(self, outages), outages)
        return self.susceptance * (angle[self.branch_from] - angle[self.branch_to])

    def injection_sensitivity(
        self, weights: Float[Array, "rows branches"], outages: OutageFactors
    ) -> Float[Array, "rows buses"]:
        """Derivative of each row's weighted sum of DC flows by each bus's injection, met at the reference.

        The transposed use of the factors of `ac`: no PTDF of the changed grid is formed. Weights of branches
        that are out must be 0.
        """
        slots = SlotEnds(self, outages)

        def one(row):
            moved = row * self.susceptance
            spread = jnp.zeros_like(self.angle_inverse[0])
            spread = spread.at[self.branch_from].add(moved).at[self.branch_to].add(-moved)
            return self._solve_angle(spread, slots, outages)

        return jax.vmap(one)(weights)

    def injections(
        self, theta: Float[Array, "buses"], v: Float[Array, "buses"], outages: OutageFactors
    ) -> tuple[Float[Array, "buses"], Float[Array, "buses"]]:
        """Active and reactive power [p.u.] that flows from each bus into its branches and shunts."""
        return self._injections(theta, v, SlotEnds(self, outages))

    def status(self, outages: OutageFactors) -> Bool[Array, "branches"]:
        """Branches in service `[L]`."""
        rows = jnp.arange(self.closed.shape[0])
        out = jnp.any((rows[:, None] == outages.branch) & outages.active, axis=1)
        return self.closed & ~out

    def branch_flows(
        self,
        theta: Float[Array, "buses"],
        v: Float[Array, "buses"],
        status: Bool[Array, "branches"],
    ) -> tuple[Float[Array, "branches"], ...]:
        """`p_from, q_from, p_to, q_to` [p.u.], powers entering each branch `[L]`; zero where not in service.

        With zero voltage at dead buses (as `ac` returns it) flows at a dead bus are zero too. The losses of
        the grid's branches are `sum(p_from + p_to)`.
        """
        voltage = rectangular(theta, v)
        at_from, at_to = voltage[:, self.branch_from], voltage[:, self.branch_to]
        energised = (jnp.sum(at_from**2, axis=0) > 0.0) & (jnp.sum(at_to**2, axis=0) > 0.0)
        on = status & self.closed & energised
        flows = branch_powers(branch_currents(self.ends, at_from, at_to), at_from, at_to)
        p_from, q_from, p_to, q_to = (jnp.where(on, flow, 0.0) for flow in flows)
        return p_from, q_from, p_to, q_to

    def lodf(self, outages: OutageFactors) -> tuple[Float[Array, "branches branches"], Bool[Array, "branches"]]:
        """Line outage distribution factors `[L, L]` with K branches already out, and which are radial `[L]`.

        Column k holds the share of branch k's flow that each branch takes over when k is lost, -1 for k
        itself. Columns of radial branches and of branches not in service are zero.
        """
        columns = self.transfer[:, outages.branch]
        carried = jnp.matmul(outages.angle, self.transfer[outages.branch], precision=_EXACT)
        # Slot by slot, so that nothing of size [L, L] is stored for every world.
        transfer, kept = self.transfer, self.kept
        for k in range(outages.branch.shape[0]):
            transfer = transfer + columns[:, k, None] * carried[k]
            kept = kept - columns[:, k] * carried[k]
        status = self.status(outages)
        # `kept` is now a difference of near equals where a branch has become radial.
        vanished = jnp.abs(kept) <= _RADIAL_MARGIN * self.singular * jnp.abs(self.kept)
        radial = status & (vanished | (self.kept == 0.0))
        usable = status & ~radial
        factors = jnp.where(usable & status[:, None], transfer / jnp.where(usable, kept, 1.0), 0.0)
        own = jnp.eye(status.shape[0], dtype=bool)
        return jnp.where(own, jnp.where(usable, -1.0, 0.0), factors), radial

    def n_minus_1_loading(
        self, flow: Float[Array, "branches"], rating: Float[Array, "branches"], outages: OutageFactors
    ) -> Float[Array, "branches"]:
        """Worst loading (1 = rating) of any rated branch after the loss of each branch `[L]`.

        `flow` and `rating` [p.u. or MW, alike], rating 0 = none. Zero for branches not in service and for
        radial ones, whose loss cuts buses off (see `lodf`).
        """
        factors, radial = self.lodf(outages)
        after = flow[:, None] + factors * flow[None, :]
        loading = jnp.abs(after) / jnp.where(rating > 0.0, rating, jnp.inf)[:, None]
        return jnp.where(self.status(outages) & ~radial, jnp.max(loading, axis=0), 0.0)

    def _ptdf_flow(self, injection):
        return jnp.matmul(injection, self.ptdf.T, precision=_EXACT)

    def _injections(self, theta, v, slots):
        e, f = voltage = rectangular(theta, v)
        n = e.shape[0]
        product = jnp.matmul(voltage, self.conductance, precision=_EXACT)
        real = product[0, :n] - product[1, n:]
        imaginary = product[1, :n] + product[0, n:]
        # The dense matrix still holds the branches that are out: take their currents back.
        at_from_re, at_from_im, at_to_re, at_to_im = slots.currents(voltage)
        real = slots.spread(real, -at_from_re, -at_to_re)
        imaginary = slots.spread(imaginary, -at_from_im, -at_to_im)
        return e * real + f * imaginary, f * real - e * imaginary

    def _solve_angle(self, mismatch, slots, outages):
        first = jnp.matmul(mismatch, self.angle_inverse, precision=_EXACT)
        flow = slots.susceptance * (first[slots.branch_from] - first[slots.branch_to])
        moved = apply_small(outages.angle, flow)
        return jnp.matmul(slots.spread(mismatch, moved, -moved), self.angle_inverse, precision=_EXACT)

    def _solve_voltage(self, mismatch, slots, outages):
        first = jnp.matmul(mismatch, self.voltage_inverse, precision=_EXACT)
        pair = jnp.stack([first[slots.branch_from], first[slots.branch_to]], axis=-1)
        drawn = slots.voltage_scale * jnp.sum(slots.voltage_ends * pair[:, None, :], axis=-1)
        moved = apply_small(outages.voltage, drawn.reshape(-1)).reshape(-1, 2)
        back = jnp.sum(moved[:, :, None] * slots.voltage_ends, axis=1)
        return jnp.matmul(slots.spread(mismatch, back[:, 0], back[:, 1]), self.voltage_inverse, precision=_EXACT)


def _shares(live, participation):
    """Participation normalised over the live buses; equal shares where none of them takes part."""
    share = jnp.where(live, participation, 0.0)
    share = jnp.where(jnp.sum(share) > 0.0, share, live.astype(share.dtype))
    return share / jnp.sum(share)


def power_flow(case: Case, dtype=jnp.float32, divergence_pu: float = 1e-2) -> PowerFlow:
    """Precompute a grid's constants in f64 and store them as `dtype` (f64 needs `jax.enable_x64`).

    Raises:
        ValueError: no generator in service in the case's largest connected network.
    """
    point = operating_point(case)
    if point.reference < 0:
        raise ValueError(
            f"case '{case.name}': no generator in service among the {int(case.live.sum())} connected buses; "
            "at least one is needed as reference"
        )
    angle = angle_sensitivities(case, point.reference)
    voltage = voltage_sensitivities(case, point.regulated)
    admittance = bus_admittance(case).toarray().T
    complex_ends = branch_admittances(case)
    neighbour, neighbour_branch = neighbours(case)
    susceptance = dc_susceptance(case)

    def real(values: np.ndarray) -> Array:
        return jnp.asarray(values, dtype=dtype)

    return PowerFlow(
        base_mva=case.base_mva,
        reference=point.reference,
        divergence_pu=divergence_pu,
        singular=1e-10 if dtype == jnp.float64 else 5e-6,
        branch_from=jnp.asarray(case.branch_from, dtype=jnp.int32),
        branch_to=jnp.asarray(case.branch_to, dtype=jnp.int32),
        closed=jnp.asarray(case.closed),
        live=jnp.asarray(case.live),
        regulated=jnp.asarray(point.regulated),
        neighbour=jnp.asarray(neighbour, dtype=jnp.int32),
        neighbour_branch=jnp.asarray(neighbour_branch, dtype=jnp.int32),
        conductance=real(np.concatenate([np.real(admittance), np.imag(admittance)], axis=1)),
        ends=real(np.stack([np.real(complex_ends), np.imag(complex_ends)], axis=-1).reshape(-1, 8)),
        angle_inverse=real(angle.inverse),
        ptdf=real(angle.ptdf),
        transfer=real(angle.transfer),
        kept=real(angle.kept),
        susceptance=real(susceptance),
        shift_flow=real(-susceptance * np.deg2rad(case.shift_degree)),
        voltage_inverse=real(voltage.inverse),
        voltage_ends=real(voltage.ends),
        voltage_scale=real(voltage.scale),
        voltage_transfer=real(voltage.transfer),
        voltage_kept=real(voltage.kept),
    )
