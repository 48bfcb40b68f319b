"""Traffic as spatial queues: cars drive a link in its free time, wait in the queue of their lane, and move on when
the signal, those that go first, and the room ahead allow it.

Cars are whole. There are no vehicles to sort and nothing is scattered: all sums are gathers over padded tables. The
spatial queue is that of Zhang, Nie and Qian (2013), "Modelling network flow with and without link interactions", here
by lane, so that a car that waits for its green holds up those behind it. There is no backward wave: room that a
leaving car makes is free at once.
"""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, UInt8

from dynamic_graph_fed_rl.environments.traffic.arrivals import Coming, due, later, nobody
from dynamic_graph_fed_rl.environments.traffic.constants import LONG_AGO_S, DemandConstants, RoadConstants
from dynamic_graph_fed_rl.environments.traffic.layout import apart, clock, columns, rows
from dynamic_graph_fed_rl.environments.traffic.steps import COUNT, Orders, Traffic
from dynamic_graph_fed_rl.environments.traffic.steps import steps as run_steps
from dynamic_graph_fed_rl.environments.worlds import stored


class TrafficState(eqx.Module):
    """All that moves. Counts are whole numbers."""

    queue: Float[Array, "movements *worlds"]
    """Cars that wait at the stop line to make the movement."""
    vehicles: Float[Array, "links *worlds"]
    """On the link, those in queues included."""
    entry: Float[Array, "links *worlds"]
    """Cars that want to begin their trip on a link and find no room."""
    coming: Coming
    """Cars that are to reach the end of their link; see `arrivals`."""
    head: Int[Array, "lanes *worlds"]
    """Column of `lane_movements` in which the first car of the lane waits; -1: not drawn yet, -2: one that wants into
    the lane beside, which is full."""
    luck: UInt8[Array, "lanes *worlds"]
    """Drawn for the first car: in 256ths of the cars there, which lane it will want on a short link ahead."""
    credit: Float[Array, "lanes *worlds"]
    """Cars that the lane may let go by now; less than 0 while its queue starts."""
    waited_s: Float[Array, "lanes *worlds"]
    """That its first car has given way to others."""
    quiet_s: Float[Array, "movements *worlds"]
    """Since a car last made the movement."""
    phase: Int[Array, "signals *worlds"]
    target: Int[Array, "signals *worlds"]
    """Phase that follows the clearance; else the same as `phase`."""
    phase_s: Float[Array, "signals *worlds"]
    """Since it turned green."""
    clearing_s: Float[Array, "signals *worlds"]
    """Rest of the yellow before `target` turns green; 0 outside it."""
    cleared_s: Float[Array, "signals *worlds"]
    """Since the yellow began."""
    time_s: Float[Array, "*worlds"]


class Conditions(eqx.Module):
    """What is not as it should be, during a decision."""

    closed: Bool[Array, "*batch links"]
    """Nobody drives in; who is on the link may leave it."""
    since_s: Float[Array, "*batch links"]
    """Since the link last closed or opened."""
    capacity: Float[Array, "*batch links"]
    """Share of the saturation flow that its lanes pass at its end."""
    dark: Bool[Array, "*batch signals"]
    """All movements may go, as at an all-way stop, each lane at a quarter of its flow."""
    working: Bool[Array, "*batch links"]
    """Detectors of the link."""

    @staticmethod
    def normal(links: int, signals: int) -> "Conditions":
        every = jnp.ones(links, bool)
        return Conditions(~every, jnp.full(links, jnp.inf), jnp.ones(links), jnp.zeros(signals, bool), every)


class Counts(eqx.Module):
    """What happened in a step or a decision."""

    queued_s: Float[Array, "links *worlds"]
    """Seconds that cars spent in the queues of each link."""
    outside_s: Float[Array, "links *worlds"]
    """Seconds that cars waited to enter each link."""
    slowed_s: Float[Array, "*worlds"]
    """Seconds that cars in motion lost against the speed limit."""
    wanted: Float[Array, "*worlds"]
    entered: Float[Array, "*worlds"]
    left: Float[Array, "*worlds"]


def empty_roads(roads: RoadConstants, signals: int) -> TrafficState:
    """No car anywhere, every signal in its first phase."""
    links, lanes, movements = roads.link_steps.shape[0], roads.lane_link.shape[0], roads.movement_lane.shape[0]
    still = jnp.zeros(signals)
    return TrafficState(
        queue=jnp.zeros(movements),
        vehicles=jnp.zeros(links),
        entry=jnp.zeros(links),
        coming=nobody(roads.steps_left),
        head=jnp.full(lanes, -1, jnp.int32),
        luck=jnp.zeros(lanes, jnp.uint8),
        credit=jnp.ones(lanes),
        waited_s=jnp.zeros(lanes),
        quiet_s=jnp.full(movements, LONG_AGO_S),
        phase=jnp.zeros(signals, jnp.int32),
        target=jnp.zeros(signals, jnp.int32),
        phase_s=still,
        clearing_s=still,
        cleared_s=still,
        time_s=jnp.zeros(()),
    )


def switched(
    state: TrafficState, wanted: Int[Array, " signals"], clearance_s: Float[Array, " signals"]
) -> TrafficState:
    """Signals whose phase is not the wanted one begin to clear; who clears already goes on with it."""
    begins = (wanted != state.phase) & (state.clearing_s <= 0)
    return eqx.tree_at(
        lambda s: (s.target, s.clearing_s, s.cleared_s),
        state,
        (
            jnp.where(begins, wanted, state.target),
            jnp.where(begins, clearance_s, state.clearing_s),
            jnp.where(begins, 0.0, state.cleared_s),
        ),
    )


def advance(
    roads: RoadConstants,
    demand: DemandConstants,
    state: TrafficState,
    key: PRNGKeyArray,
    conditions: Conditions,
    level: Float[Array, ""],
    steps: int,
) -> tuple[TrafficState, Counts]:
    """So many steps under the same orders and conditions, and `level` times the demand."""
    window = jnp.clip((state.time_s // demand.window_s).astype(jnp.int32), 0, demand.rate_per_s.shape[0] - 1)
    now = jax.tree.map(lambda leaf: leaf[window], demand)
    orders = Orders(
        target=state.target,
        closed=conditions.closed,
        dark=conditions.dark,
        capacity=conditions.capacity,
        demand=eqx.tree_at(lambda d: d.rate_per_s, now, now.rate_per_s * level),
        seed=jax.random.key_data(key)[:2],
    )
    blank = eqx.tree_at(lambda s: s.coming, state, ())
    after, received, counts = _one(roads, blank, orders, due(state.coming, steps))
    after = eqx.tree_at(lambda s: s.coming, after, later(roads.steps_left, state.coming, received))
    return after, counts


@jax.custom_batching.custom_vmap
def _one(roads: RoadConstants, *args: PyTree) -> PyTree:
    """`_moved` in one world; under `vmap` in all at once."""
    wide = jax.tree.map(lambda leaf: leaf[..., None], args)
    return jax.tree.map(lambda leaf: leaf[..., 0], _moved(roads, *wide))


@_one.def_vmap
def _all_at_once(size: int, batched: list[PyTree], roads: RoadConstants, *args: PyTree) -> tuple[PyTree, PyTree]:
    if any(jax.tree.leaves(batched[0])):
        # worlds whose roads differ
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched))
        result = jax.vmap(_one.fun, axes, axis_size=size)(roads, *args)
    else:

        def turned(*args: PyTree) -> PyTree:
            last = lambda is_batched, leaf: jnp.moveaxis(leaf if is_batched else jnp.stack([leaf] * size), 0, -1)  # noqa: E731
            return jax.tree.map(lambda *both: stored(last(*both)), tuple(batched[1:]), args)

        wide = apart(clock(args[0].time_s), turned, *args)
        last = _moved(roads, *wide)
        first = lambda: jax.tree.map(lambda leaf: stored(jnp.moveaxis(leaf, -1, 0)), last)  # noqa: E731
        result = apart(clock(wide[0].time_s), first)
    return result, jax.tree.map(lambda _: True, result)


def _moved(
    roads: RoadConstants, state: TrafficState, orders: Orders, soon: UInt8[Array, "steps ordered worlds"]
) -> tuple[TrafficState, Array, Counts]:
    """The state but for what is coming, the cars that each link received in each step, in the order of `soon`, and
    what is counted."""
    used, dt_s = roads.place_used[..., None], roads.dt_s
    places = lambda leaf: jnp.where(used, rows(leaf, roads.lane_movements.index), jnp.zeros((), COUNT))  # noqa: E731
    movements = lambda leaf: rows(leaf.reshape(-1, leaf.shape[-1]), roads.movement_place)  # noqa: E731
    real = lambda leaf: leaf.astype(jnp.float32)  # noqa: E731
    traffic = Traffic(
        queue=places(state.queue.astype(COUNT)),
        quiet=places(jnp.round(state.quiet_s / dt_s).astype(COUNT)),
        vehicles=state.vehicles.astype(COUNT),
        entry=state.entry.astype(COUNT),
        head=state.head.astype(jnp.int8),
        luck=state.luck,
        credit=state.credit,
        waited_s=state.waited_s,
        phase=state.phase,
        phase_s=state.phase_s,
        clearing_s=state.clearing_s,
        cleared_s=state.cleared_s,
    )
    begun = traffic
    arriving = soon.at[:, roads.link_rank].get(mode="promise_in_bounds").astype(COUNT)
    traffic, received, sums = run_steps(roads, traffic, orders, arriving, clock(state.time_s))
    after = dataclasses.replace(
        state,
        queue=real(movements(traffic.queue)),
        vehicles=real(traffic.vehicles),
        entry=real(traffic.entry),
        head=traffic.head.astype(jnp.int32),
        luck=traffic.luck,
        credit=traffic.credit,
        waited_s=traffic.waited_s,
        quiet_s=real(movements(traffic.quiet)) * dt_s,
        phase=traffic.phase,
        phase_s=traffic.phase_s,
        clearing_s=traffic.clearing_s,
        cleared_s=traffic.cleared_s,
        time_s=state.time_s + soon.shape[0] * dt_s,
    )
    queued = sum(columns(roads.link_lanes, sums.queue))
    total = lambda leaf: leaf.sum(0, dtype=jnp.int32)  # noqa: E731
    wanted = total(sums.wanted)
    entered = wanted + total(begun.entry) - total(traffic.entry)
    left = entered + total(begun.vehicles) - total(traffic.vehicles)
    counts = Counts(
        queued_s=real(queued) * dt_s,
        outside_s=real(sums.outside) * dt_s,
        slowed_s=real(total(sums.vehicles - queued)) * (1.0 - roads.conduct.cruise) * dt_s,
        wanted=real(wanted),
        entered=real(entered),
        left=real(left),
    )
    ordered = received.astype(jnp.uint8).at[:, roads.links_ordered].get(mode="promise_in_bounds")
    return after, ordered, counts


def turned_away(roads: RoadConstants, state: TrafficState, instead: Int[Array, " movements"]) -> TrafficState:
    """Cars that wait for a movement wait for the one that stands `instead` of it, on the same link, from now on."""
    own = jnp.arange(instead.shape[0])
    queue = jax.ops.segment_sum(state.queue, instead, num_segments=instead.shape[0])
    first = jnp.take_along_axis(roads.lane_movements.index, jnp.maximum(state.head, 0)[:, None], axis=1)[:, 0]
    head = jnp.where((instead == own)[first], state.head, -1)
    return eqx.tree_at(lambda s: (s.queue, s.head), state, (queue, head))
