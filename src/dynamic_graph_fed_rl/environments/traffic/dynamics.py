"""Traffic as spatial queues: cars drive a link in its free time, wait in the queue of their lane, and move on when
the signal, those that go first, and the room ahead allow it.

Cars are whole. There are no vehicles to sort and nothing is scattered: all sums are gathers over padded tables. The
spatial queue is that of Zhang, Nie and Qian (2013), "Modelling network flow with and without link interactions", here
by lane, so that a car that waits for its green holds up those behind it. There is no backward wave: room that a
leaving car makes is free at once.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, UInt

from dynamic_graph_fed_rl.environments.traffic.constants import DemandConstants, RoadConstants
from dynamic_graph_fed_rl.environments.traffic.network import PROTECTED, RED, YIELDING

_LONG_AGO_S = 60.0


class TrafficState(eqx.Module):
    """All that moves. Counts are whole numbers."""

    queue: Float[Array, " movements"]
    """Cars that wait at the stop line to make the movement."""
    vehicles: Float[Array, " links"]
    """On the link, those in queues included."""
    entry: Float[Array, " links"]
    """Cars that want to begin their trip on a link and find no room."""
    inflow: Float[Array, "steps links"]
    """Cars that entered in each of the last steps; the last row is the newest."""
    head: Int[Array, " lanes"]
    """Column of `lane_movements` in which the first car of the lane waits; -1: not drawn yet."""
    credit: Float[Array, " lanes"]
    """Cars that the lane may let go by now; less than 0 while its queue starts."""
    quiet_s: Float[Array, " movements"]
    """Since a car last made the movement."""
    phase: Int[Array, " signals"]
    target: Int[Array, " signals"]
    """Phase that follows the clearance; else the same as `phase`."""
    phase_s: Float[Array, " signals"]
    """Since it turned green."""
    clearing_s: Float[Array, " signals"]
    """Rest of the yellow before `target` turns green; 0 outside it."""
    cleared_s: Float[Array, " signals"]
    """Since the yellow began."""
    time_s: Float[Array, ""]


class Counts(eqx.Module):
    """What happened in a step or a decision."""

    queued_s: Float[Array, " movements"]
    """Seconds that cars spent in each queue."""
    outside_s: Float[Array, " links"]
    """Seconds that cars waited to enter each link."""
    slowed_s: Float[Array, ""]
    """Seconds that cars in motion lost against the speed limit."""
    wanted: Float[Array, ""]
    entered: Float[Array, ""]
    left: Float[Array, ""]


def empty_roads(roads: RoadConstants, signals: int) -> TrafficState:
    """No car anywhere, every signal in its first phase."""
    links, lanes, movements = roads.link_steps.shape[0], roads.lane_link.shape[0], roads.movement_lane.shape[0]
    still = jnp.zeros(signals)
    return TrafficState(
        queue=jnp.zeros(movements),
        vehicles=jnp.zeros(links),
        entry=jnp.zeros(links),
        inflow=jnp.zeros((roads.memory, links)),
        head=jnp.full(lanes, -1, jnp.int32),
        credit=jnp.ones(lanes),
        quiet_s=jnp.full(movements, _LONG_AGO_S),
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
    closed: Bool[Array, " links"],
    level: Float[Array, ""],
    steps: int,
) -> tuple[TrafficState, Counts]:
    """So many steps under the same orders and `level` times the demand; into a closed link nobody drives."""
    links = roads.link_steps.shape[0]
    window = jnp.clip((state.time_s // demand.window_s).astype(jnp.int32), 0, demand.rate_per_s.shape[0] - 1)
    now = jax.tree.map(lambda leaf: leaf[window], demand)
    now = eqx.tree_at(lambda d: d.rate_per_s, now, now.rate_per_s * level)
    # room for the rows to come, so that what a link receives is written in place
    log = jnp.concatenate([state.inflow, jnp.zeros((steps, links))])
    drawn = jax.random.bits(key, (steps, links + roads.lane_link.shape[0]), jnp.uint32)

    def one(
        carry: tuple[TrafficState, Array], row: tuple[Int[Array, ""], UInt[Array, " draws"]]
    ) -> tuple[tuple[TrafficState, Array], Counts]:
        state, log = carry
        i, bits = row
        due = (roads.memory + i - roads.link_steps) * links + jnp.arange(links)
        state, entered, counts = _step(roads, now, state, log.reshape(-1)[due], closed, bits[:links], bits[links:])
        log = jax.lax.dynamic_update_slice(log, entered[None], (roads.memory + i, jnp.zeros((), i.dtype)))
        return (state, log), counts

    blank = eqx.tree_at(lambda s: s.inflow, state, jnp.zeros((0, links)))
    (after, log), counts = jax.lax.scan(one, (blank, log), (jnp.arange(steps), drawn))
    after = eqx.tree_at(lambda s: s.inflow, after, log[steps:])
    return after, jax.tree.map(lambda leaf: leaf.sum(0), counts)


def _step(
    roads: RoadConstants,
    demand: DemandConstants,
    state: TrafficState,
    arriving: Float[Array, " links"],
    closed: Bool[Array, " links"],
    link_bits: UInt[Array, " links"],
    lane_bits: UInt[Array, " lanes"],
) -> tuple[TrafficState, Float[Array, " links"], Counts]:
    """One step: the state but for its log of inflows, the cars that entered each link, and what is counted."""
    dt_s = roads.dt_s
    # 20 bits decide on rare departures, 12 on turns
    departs = (link_bits >> 12).astype(jnp.float32) / 2**20
    turns = (link_bits & 0xFFF).astype(jnp.float32) / 2**12

    queue, ended = _arrive(roads, demand, state.queue, arriving, turns)
    level = _green(roads, state)
    level = jnp.where(closed[roads.movement_to], RED, level)
    room = jnp.where(closed, 0.0, roads.link_storage - state.vehicles)
    queue, head, credit, quiet, entered, gone = _serve(roads, state, queue, level, room, lane_bits)

    wanted = jnp.floor(demand.rate_per_s * dt_s + departs)
    entry = state.entry + wanted
    inserted = jnp.clip(jnp.minimum(entry, room - entered), 0.0, roads.link_lane_count * dt_s)
    entry = entry - inserted

    clearing = jnp.maximum(state.clearing_s - dt_s, 0.0)
    arrived = (state.clearing_s > 0) & (clearing <= 0)
    after = TrafficState(
        queue=queue,
        vehicles=state.vehicles + entered + inserted - gone - ended,
        entry=entry,
        inflow=state.inflow,
        head=head,
        credit=credit,
        quiet_s=quiet,
        phase=jnp.where(arrived, state.target, state.phase),
        target=state.target,
        phase_s=jnp.where(arrived, 0.0, state.phase_s + dt_s),
        clearing_s=clearing,
        cleared_s=state.cleared_s + dt_s,
        time_s=state.time_s + dt_s,
    )
    slowed = (after.vehicles.sum() - queue.sum()) * (1.0 - roads.conduct.cruise)
    counts = Counts(queue * dt_s, entry * dt_s, slowed * dt_s, wanted.sum(), inserted.sum(), ended.sum())
    return after, entered + inserted, counts


def _arrive(
    roads: RoadConstants,
    demand: DemandConstants,
    queue: Float[Array, " movements"],
    arriving: Float[Array, " links"],
    draw: Float[Array, " links"],
) -> tuple[Float[Array, " movements"], Float[Array, " links"]]:
    """Cars at the end of their link join a queue, or end their trip.

    Whole numbers in the mean ratios from one draw a link (systematic sampling): of n cars a turn gets those of the
    points draw, draw + 1, ... that fall into its share of [0, n]. They take the lane with the shortest queue.
    """
    many, offset = arriving[roads.turn_from], draw[roads.turn_from]
    turning = jnp.floor(many * demand.share_with + offset) - jnp.floor(many * demand.share_before + offset)
    ended = arriving - jnp.floor(arriving * demand.share_on + draw)
    lanes = roads.lane_link.shape[0]
    rank = roads.lane_movements.sum(queue) * lanes + jnp.arange(lanes)
    others = jnp.where(roads.movement_sibling_lanes.mask, rank[roads.movement_sibling_lanes.index], jnp.inf)
    shortest = rank[roads.movement_lane] <= others.min(-1)
    return queue + jnp.where(shortest, turning[roads.movement_turn], 0.0), ended


def _green(roads: RoadConstants, state: TrafficState) -> Int[Array, " movements"]:
    """0 red, 1 green that yields, 2 green.

    In the clearance what stays green in the next phase does. Of what loses it, cars still drive on at its beginning,
    and those that had to yield, which wait within the crossing by then, until its end.
    """
    rows = jnp.stack([state.phase, state.target], -1)[roads.movement_signal]
    level = jnp.take_along_axis(roads.movement_green, rows, axis=1)
    before, both = level[:, 0], level.min(1)
    clears = ((state.clearing_s > 0) & (state.cleared_s >= roads.conduct.yellow_use_s))[roads.movement_signal]
    return jnp.where(clears & (before != YIELDING), both, before)


def _serve(
    roads: RoadConstants,
    state: TrafficState,
    queue: Float[Array, " movements"],
    level: Int[Array, " movements"],
    room: Float[Array, " links"],
    lane_bits: UInt[Array, " lanes"],
) -> tuple[Array, Array, Array, Array, Array, Array]:
    """Lets the first cars of the lanes go: queues, heads, credits, pauses; cars into and out of each link."""
    conduct, dt_s = roads.conduct, roads.dt_s
    head, quiet = state.head, state.quiet_s
    credit = state.credit + conduct.saturation_per_s * dt_s
    entered, gone = jnp.zeros_like(room), jnp.zeros_like(room)
    sent_any = jnp.zeros(queue.shape, bool)
    columns = jnp.arange(roads.lane_movements.index.shape[1])
    for service in range(roads.services):
        waiting = roads.lane_movements.of(queue)
        count = waiting.sum(-1)
        draw = ((lane_bits >> (8 * (service % 4))) & 0xFF).astype(jnp.float32) / 2**8
        # the first car stays the first until it goes
        chosen = (waiting.cumsum(-1) <= (draw * count)[:, None]).sum(-1)
        head = jnp.where(count > 0, jnp.where(head < 0, chosen, head), -1)
        first = head[roads.movement_lane] == roads.movement_lane_place
        willing = first & (level > RED)
        # those that go first are in motion, or about to be
        pressing = (quiet < conduct.gap_s) | (willing & (level == PROTECTED) & (room[roads.movement_to] > 0))
        held = (roads.yielding_foes.of(pressing & (level > RED)).any(-1)) & (level[roads.yielding] == YIELDING)
        held = jnp.append(held, False)[roads.movement_yielding_place]
        ready = willing & ~held & (credit >= 1.0)[roads.movement_lane]

        asking = roads.link_incoming.of(ready)
        granted = asking & (asking.cumsum(-1) <= (room - entered)[:, None])
        sent = granted.reshape(-1)[roads.movement_incoming_place]
        queue = queue - sent
        left = roads.lane_movements.of(sent).any(-1)
        # a queue that stands at red needs time to start
        red = (head >= 0) & ~((columns == head[:, None]) & (roads.lane_movements.of(level) > RED)).any(-1)
        credit = jnp.where(red, 1.0 - conduct.saturation_per_s * conduct.lost_s, credit - left)
        head = jnp.where(left, -1, head)
        entered = entered + granted.sum(-1)
        gone = gone + roads.link_lanes.sum(left.astype(jnp.float32))
        sent_any = sent_any | sent
    # who could go and did not gains nothing by waiting
    credit = jnp.minimum(credit, 1.0)
    quiet = jnp.where(sent_any, 0.0, jnp.minimum(quiet + dt_s, _LONG_AGO_S))
    return queue, head, credit, quiet, entered, gone
