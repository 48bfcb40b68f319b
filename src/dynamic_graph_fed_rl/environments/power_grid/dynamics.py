"""The physics of a grid's world step: protection, islands, distributed slack and power flow.

Pure functions of one world, meant for `vmap`. What few worlds of a batch need, such as outage factors after a
switching, runs in `while_few`, so that the others do not pay for it.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.power_grid.loops import while_few
from dynamic_graph_fed_rl.environments.power_grid.power_flow import OutageFactors, PowerFlow

# the AC solver's convergence in f32, whose floor is 3e-5 p.u.; 0.05 MW on a base of 100 MVA
_TOLERANCE_PU = 5e-4
_ITERATIONS = 16
_CASCADE_ROUNDS = 3
# loss of more than this share of the load is a blackout
_BLACKOUT_SHARE = 0.5


class GridConstants(eqx.Module):
    """What a step needs to know of the network besides its power flow; powers in MW, U units, N buses, L lines."""

    flow: PowerFlow
    unit_bus: Int[Array, " units"]
    p_min_mw: Float[Array, " units"]
    load_mw: Float[Array, " buses"]
    load_mvar: Float[Array, " buses"]
    injection_mvar: Float[Array, " buses"]
    """Reactive generation at buses whose voltage is not held."""
    voltage_set_pu: Float[Array, " buses"]
    resistance: Float[Array, " lines"]
    """[p.u.]"""
    reactance: Float[Array, " lines"]
    """[p.u.]"""
    rating_mva: Float[Array, " lines"]
    """Infinite where there is none."""
    trip_loading: Float[Array, ""]
    trip_after_steps: Int[Array, ""]
    instant_trip_loading: Float[Array, ""]
    max_outages: int = eqx.field(static=True)


class Network(eqx.Module):
    """Electrical state of one world.

    **Fields:** `closed` lines in service; `repair_steps` until a failed line returns, 0 where none failed;
    `overload_steps` spent above the trip loading; `outages` and `live` the factors and the main island that
    follow from `closed`; voltage [p.u.] (0 at dead buses), angle [rad] and how much both changed in the last step,
    from which the next solution is extrapolated; power at the from end [MW, MVAr], apparent power of the worse
    end, `loading` (1 is the rating); unit outputs after the slack, served load a bus, losses and slack [MW];
    `dark` after a blackout.
    """

    closed: Bool[Array, " lines"]
    repair_steps: Int[Array, " lines"]
    overload_steps: Int[Array, " lines"]
    outages: OutageFactors
    live: Bool[Array, " buses"]
    voltage: Float[Array, " buses"]
    angle: Float[Array, " buses"]
    voltage_change: Float[Array, " buses"]
    angle_change: Float[Array, " buses"]
    p_from_mw: Float[Array, " lines"]
    q_from_mvar: Float[Array, " lines"]
    apparent_mva: Float[Array, " lines"]
    loading: Float[Array, " lines"]
    generation_mw: Float[Array, " units"]
    served_mw: Float[Array, " buses"]
    losses_mw: Float[Array, ""]
    slack_mw: Float[Array, ""]
    residual_pu: Float[Array, ""]
    dark: Bool[Array, ""]


class Injections(eqx.Module):
    """What is asked of a world in one step: set-points and possible outputs [MW], demand over nominal, and the
    share of each bus's load to shed."""

    set_point_mw: Float[Array, " units"]
    p_max_mw: Float[Array, " units"]
    level: Float[Array, " buses"]
    shed: Float[Array, " buses"]


def intact(grid: GridConstants) -> Network:
    """All lines of the case in service, a flat start, nothing solved yet."""
    flow = grid.flow
    lines, units = flow.closed.shape[0], grid.unit_bus.shape[0]
    none, zero = jnp.zeros(lines, jnp.int32), jnp.zeros(())
    idle = jnp.zeros(lines)
    return Network(
        closed=flow.closed,
        repair_steps=none,
        overload_steps=none,
        outages=flow.no_outages(grid.max_outages),
        live=flow.live,
        voltage=jnp.where(flow.live, grid.voltage_set_pu, 0.0),
        angle=jnp.zeros_like(grid.voltage_set_pu),
        voltage_change=jnp.zeros_like(grid.voltage_set_pu),
        angle_change=jnp.zeros_like(grid.voltage_set_pu),
        p_from_mw=idle,
        q_from_mvar=idle,
        apparent_mva=idle,
        loading=idle,
        generation_mw=jnp.zeros(units),
        served_mw=jnp.zeros_like(grid.load_mw),
        losses_mw=zero,
        slack_mw=zero,
        residual_pu=zero,
        dark=jnp.zeros((), bool),
    )


def weathered(
    grid: GridConstants,
    network: Network,
    faults: Bool[Array, " lines"],
    repair_steps: Int[Array, ""],
    elapsed_steps: int,
) -> Network:
    """The lines at the start of a decision: those repaired return, those struck fail for `repair_steps`."""
    due = (network.repair_steps > 0) & (network.repair_steps <= elapsed_steps)
    # two slots stay free for trips, so that chance alone never ends an episode
    room = grid.max_outages - 2 - (~network.closed & ~due & grid.flow.closed).sum()
    candidates = network.closed & faults
    struck = candidates & (jnp.cumsum(candidates) <= room)
    waiting = jnp.maximum(network.repair_steps - elapsed_steps, 0)
    closed = (network.closed | due) & ~struck
    network = _switched(network, closed, jnp.where(struck, repair_steps, waiting))
    return _refactored(grid, network, (due | struck).any())


def world_step(grid: GridConstants, network: Network, asked: Injections, repair_steps: Int[Array, ""]) -> Network:
    """Advance one step: lines overloaded for too long trip, the power flow follows, and any cascade it sets off.

    Tripped lines return after `repair_steps`.
    """

    def due(carry: tuple[Network, Array, Array]) -> Bool[Array, ""]:
        _, tripping, rounds = carry
        return (rounds == 0) | tripping.any()

    def trip_and_solve(carry: tuple[Network, Array, Array]) -> tuple[Network, Array, Array]:
        network, tripping, rounds = carry
        waiting = jnp.where(tripping, repair_steps, network.repair_steps)
        network = _switched(network, network.closed & ~tripping, waiting)
        network = _solved(grid, _refactored(grid, network, tripping.any()), asked)
        instant = network.closed & (network.loading > grid.instant_trip_loading)
        return network, instant & (rounds < _CASCADE_ROUNDS), rounds + 1

    overloaded = network.closed & (network.overload_steps >= grid.trip_after_steps)
    start = (network, overloaded, jnp.zeros((), jnp.int32))
    network, _, _ = jax.lax.while_loop(due, trip_and_solve, start)
    above = network.loading > grid.trip_loading
    return eqx.tree_at(lambda n: n.overload_steps, network, jnp.where(above, network.overload_steps + 1, 0))


def _switched(network: Network, closed: Bool[Array, " lines"], repair_steps: Int[Array, " lines"]) -> Network:
    return eqx.tree_at(lambda n: (n.closed, n.repair_steps), network, (closed, repair_steps))


def _refactored(grid: GridConstants, network: Network, changed: Bool[Array, ""]) -> Network:
    """Outage factors and main island of the present lines, if any of them changed."""
    flow = grid.flow

    def refactor(carry: tuple[Bool[Array, ""], OutageFactors, Array]) -> tuple[Bool[Array, ""], OutageFactors, Array]:
        out = flow.closed & ~network.closed
        slots = jnp.nonzero(out, size=grid.max_outages, fill_value=0)[0]
        outages = flow.outage_factors(slots, jnp.arange(grid.max_outages) < out.sum())
        # the elimination drops a slot exactly where an outage splits the grid
        splits = (outages.active & (jnp.diagonal(outages.angle) == 0.0)).any()
        _, live = jax.lax.while_loop(
            lambda carry: carry[0],
            lambda _: (jnp.asarray(False), flow.live_buses(network.closed)),
            (splits, flow.live),
        )
        return jnp.asarray(False), outages, live

    _, outages, live = while_few(lambda carry: carry[0], refactor, (changed, network.outages, network.live))
    # after a switching there is nothing to extrapolate from
    steady = jnp.where(changed, 0.0, 1.0)
    return eqx.tree_at(
        lambda n: (n.outages, n.live, n.voltage_change, n.angle_change),
        network,
        (outages, live, steady * network.voltage_change, steady * network.angle_change),
    )


def _solved(grid: GridConstants, network: Network, asked: Injections) -> Network:
    """The power flow of the present lines; the imbalance is shared by headroom, what is beyond it is shed."""
    flow, base = grid.flow, grid.flow.base_mva
    buses = grid.load_mw.shape[0]
    running = network.live[grid.unit_bus]
    set_point = jnp.where(running, jnp.clip(asked.set_point_mw, 0.0, asked.p_max_mw), 0.0)
    wanted = asked.level * (1.0 - asked.shed)
    load = jnp.where(network.live, grid.load_mw * wanted, 0.0)
    missing = load.sum() + network.losses_mw - set_point.sum()
    up = jnp.where(running, jnp.maximum(asked.p_max_mw - set_point, 0.0), 0.0)
    down = jnp.where(running, jnp.maximum(set_point - grid.p_min_mw, 0.0), 0.0)
    # automatic under-frequency shedding: what no unit can make up is taken from all loads alike
    short = jnp.clip((missing - up.sum()) / jnp.maximum(load.sum(), 1e-6), 0.0, 1.0)
    load = load * (1.0 - short)
    headroom = jnp.where(missing > 0, up, down)
    per_unit = jnp.stack([set_point, headroom], axis=-1) / base
    scheduled, share = jax.ops.segment_sum(per_unit, grid.unit_bus, buses).T
    solution = flow.ac(
        scheduled,
        load / base,
        (grid.load_mvar * wanted * (1.0 - short) - grid.injection_mvar) / base,
        grid.voltage_set_pu,
        network.outages,
        network.live,
        share,
        network.angle + network.angle_change,
        network.voltage + network.voltage_change,
        _ITERATIONS,
        _TOLERANCE_PU,
    )
    demanded = (grid.load_mw * asked.level).sum()
    lost = 1.0 - load.sum() / jnp.maximum(demanded, 1e-6)
    lines_out = (flow.closed & ~network.closed).sum()
    dark = network.dark | solution.diverged | (lines_out > grid.max_outages) | (lost > _BLACKOUT_SHARE)
    flows = flow.branch_flows(solution.theta, solution.v, network.closed)
    p_from, q_from, p_to, q_to = (base * part for part in flows)
    apparent = jnp.sqrt(jnp.maximum(p_from**2 + q_from**2, p_to**2 + q_to**2))
    slack = solution.p_slack_pu * base

    def unless_dark(value: Array) -> Array:
        return jnp.where(dark, 0.0, value)

    was_live = network.voltage > 0
    return Network(
        closed=network.closed,
        repair_steps=network.repair_steps,
        overload_steps=network.overload_steps,
        outages=network.outages,
        live=network.live & ~dark,
        voltage=unless_dark(solution.v),
        angle=unless_dark(solution.theta),
        voltage_change=unless_dark(jnp.where(was_live & network.live, solution.v - network.voltage, 0.0)),
        angle_change=unless_dark(solution.theta - network.angle),
        p_from_mw=unless_dark(p_from),
        q_from_mvar=unless_dark(q_from),
        apparent_mva=unless_dark(apparent),
        loading=unless_dark(apparent / grid.rating_mva),
        generation_mw=unless_dark(set_point + headroom / jnp.maximum(headroom.sum(), 1e-6) * slack),
        served_mw=unless_dark(load),
        losses_mw=unless_dark((p_from + p_to).sum()),
        slack_mw=unless_dark(slack),
        residual_pu=unless_dark(solution.residual_pu),
        dark=dark,
    )
