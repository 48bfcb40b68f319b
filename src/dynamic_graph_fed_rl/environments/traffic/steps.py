"""Steps of the roads, in many worlds at once: the part of the dynamics that takes the time.

The last axis of all arrays here is that of the worlds, so that a gather copies whole rows; counts are 16 bits wide.
Movements stand in *places*: `[lanes, columns]`, the movements of a lane side by side, so that what happens within a
lane needs no gather at all.
"""

import functools
import operator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8, Int16, UInt8, UInt32

from dynamic_graph_fed_rl.environments.traffic.constants import DemandConstants, RoadConstants
from dynamic_graph_fed_rl.environments.traffic.layout import apart, columns, rows
from dynamic_graph_fed_rl.environments.traffic.network import PROTECTED, RED, YIELDING

COUNT = jnp.int16
MIXER = np.uint32(0x9E3779B9)
"""2^32 over the golden ratio, odd: in a word times it the high bits depend on all bits of the word."""
NOBODY, STRANGER = np.int8(-1), np.int8(-2)
"""First of a lane: not drawn yet, and one that wants into the lane beside, which is full."""
_DARK_SHARE = 0.25
"""Of the saturation flow, what a lane passes at a dark signal: two roads of one lane a side carry 1,900 cars an hour
over an all-way stop (Hebert 1963, as in table 10-5 of the Highway Capacity Manual of 1985), a quarter from each."""


class Traffic(eqx.Module):
    """What moves within a decision; see `dynamics.TrafficState`."""

    queue: Int16[Array, "lanes columns worlds"]
    quiet: Int16[Array, "lanes columns worlds"]
    """Steps since a car last made the movement."""
    vehicles: Int16[Array, "links worlds"]
    entry: Int16[Array, "links worlds"]
    head: Int8[Array, "lanes worlds"]
    luck: UInt8[Array, "lanes worlds"]
    credit: Float[Array, "lanes worlds"]
    waited_s: Float[Array, "lanes worlds"]
    phase: Int[Array, "signals worlds"]
    phase_s: Float[Array, "signals worlds"]
    clearing_s: Float[Array, "signals worlds"]
    cleared_s: Float[Array, "signals worlds"]


class Orders(eqx.Module):
    """What stays the same during a decision."""

    target: Int[Array, "signals *worlds"]
    closed: Bool[Array, "links *worlds"]
    dark: Bool[Array, "signals *worlds"]
    capacity: Float[Array, "links *worlds"]
    """Share of the saturation flow."""
    demand: DemandConstants
    """Of the window."""
    seed: UInt32[Array, "words *worlds"]


class Sums(eqx.Module):
    """What is counted, over all steps of a decision."""

    queue: Int[Array, "lanes worlds"]
    outside: Int[Array, "links worlds"]
    vehicles: Int[Array, "links worlds"]
    wanted: Int[Array, "links worlds"]


def drawn(seed: UInt32[Array, "words worlds"], step: Int[Array, ""], count: int) -> UInt32[Array, "draws worlds"]:
    """So many random words for a step: its counter through a mixing function of two rounds, `lowbias32` of Wellons
    (2018, "Prospecting for hash functions"), to which each world's two words of seed are added on the way. A quarter
    of the time of JAX's own generator, which is made for more than turning cars."""
    x = (step * count + jnp.arange(count)).astype(jnp.uint32)[:, None] * MIXER + seed[0]
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D) ^ seed[1]
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def steps(
    roads: RoadConstants,
    traffic: Traffic,
    orders: Orders,
    due: Int16[Array, "steps links worlds"],
    running: Bool[Array, ""],
) -> tuple[Traffic, Int16[Array, "steps links worlds"], Sums]:
    """As many steps as there are rows in `due`, the cars that reach the end of their link in each of them, of those
    that are under way already; and in each step the cars that came onto each link, from other links or from outside.
    `running`: see `clock`."""
    dark = rows(orders.dark, roads.place_signal) & roads.place_controlled[..., None]
    levels, saturation_per_s = _levels(roads, traffic.phase, orders, dark), _saturation(roads, orders, dark)
    nothing = lambda like: jnp.zeros(like.shape, jnp.int32)  # noqa: E731
    none = Sums(*(nothing(like) for like in (traffic.head, traffic.entry, traffic.vehicles, traffic.entry)))
    links = roads.link_steps.shape[0]

    def one(carry: tuple[Traffic, Array, Sums], i: Array) -> tuple[tuple[Traffic, Array, Sums], None]:
        traffic, received, sums = carry
        words = drawn(orders.seed, i, links + roads.lane_link.shape[0])
        # on the shortest links cars arrive in the decision in which they came
        came = i - roads.link_steps
        quick = rows(received.reshape(-1, received.shape[-1]), jnp.maximum(came, 0) * links + jnp.arange(links))
        arriving = due[i] + jnp.where((came >= 0)[:, None], quick, jnp.zeros((), COUNT))
        traffic, wanted, now = _step(roads, traffic, orders, levels, saturation_per_s, arriving, words, running)
        counted = Sums(traffic.queue.sum(1, dtype=COUNT), traffic.entry, traffic.vehicles, wanted)
        return (traffic, received.at[i].set(now), jax.tree.map(jnp.add, sums, counted)), None

    return jax.lax.scan(one, (traffic, jnp.zeros_like(due), none), jnp.arange(due.shape[0]))[0]


def _step(
    roads: RoadConstants,
    traffic: Traffic,
    orders: Orders,
    levels: tuple[Array, ...],
    saturation_per_s: Float[Array, "lanes worlds"],
    arriving: Int16[Array, "links worlds"],
    words: UInt32[Array, "draws worlds"],
    running: Bool[Array, ""],
) -> tuple[Traffic, Int16[Array, "links worlds"], Int16[Array, "links worlds"]]:
    """The next state; cars that wanted to enter now, and that came onto each link."""
    links, none = roads.link_steps.shape[0], jnp.zeros((), COUNT)
    dt_s, demand = roads.dt_s, orders.demand
    # 20 bits decide on rare departures, 12 on turns
    departs = (words[:links] >> 12).astype(jnp.float32) / 2**20
    turns = (words[:links] & 0xFFF).astype(jnp.float32) / 2**12

    queue, ended = _arrive(roads, demand, traffic.queue, arriving, turns, running)
    level = _green(roads, traffic, orders, levels)
    room = jnp.where(orders.closed, none, roads.link_storage.astype(COUNT)[:, None] - traffic.vehicles)
    queue, head, luck, credit, waited_s, quiet, entered, gone = _serve(
        roads, demand, traffic, queue, level, room, saturation_per_s, words[links:], running
    )

    wanted = jnp.floor(demand.rate_per_s * dt_s + departs).astype(COUNT)
    entry = traffic.entry + wanted
    most = jnp.floor(roads.link_lane_count * dt_s).astype(COUNT)[:, None]
    inserted = jnp.clip(jnp.minimum(entry, room - entered), none, most)
    entry = entry - inserted

    clearing = jnp.maximum(traffic.clearing_s - dt_s, 0.0)
    arrived = (traffic.clearing_s > 0) & (clearing <= 0)
    vehicles = traffic.vehicles + entered + inserted - gone - ended
    after = Traffic(
        queue=queue,
        quiet=quiet,
        vehicles=vehicles,
        entry=entry,
        head=head,
        luck=luck,
        credit=credit,
        waited_s=waited_s,
        phase=jnp.where(arrived, orders.target, traffic.phase),
        phase_s=jnp.where(arrived, 0.0, traffic.phase_s + dt_s),
        clearing_s=clearing,
        cleared_s=traffic.cleared_s + dt_s,
    )
    return after, wanted, entered + inserted


def _arrive(
    roads: RoadConstants,
    demand: DemandConstants,
    queue: Int16[Array, "lanes columns worlds"],
    arriving: Int16[Array, "links worlds"],
    draw: Float[Array, "links worlds"],
    running: Bool[Array, ""],
) -> tuple[Int16[Array, "lanes columns worlds"], Int16[Array, "links worlds"]]:
    """Cars at the end of their link join a queue, or end their trip.

    Whole numbers in the mean ratios from one draw a link (systematic sampling): of n cars a turn gets those of the
    points draw, draw + 1, ... that fall into its share of [0, n]. They take the lane whose queue is the shortest
    for the share of the turn's cars that want it, so that each gets its share, and those that are free to choose
    even out what the others leave.
    """
    none = jnp.zeros((), COUNT)
    upto = apart(running, _turning, roads, demand, arriving, draw)
    chosen = apart(running, _choosing, roads, demand, queue)
    ended = arriving - jnp.floor(arriving.astype(jnp.float32) * demand.share_on + draw).astype(COUNT)
    before = jnp.where(roads.place_turn_first[..., None], none, rows(upto, roads.place_turn_before))
    takes = roads.place_used[..., None] & (~roads.place_choice_any[..., None] | rows(chosen, roads.place_choice))
    return queue + jnp.where(takes, rows(upto, roads.place_turn) - before, none), ended


def _turning(
    roads: RoadConstants,
    demand: DemandConstants,
    arriving: Int16[Array, "links worlds"],
    draw: Float[Array, "links worlds"],
) -> Int16[Array, "turns worlds"]:
    """Cars that make a turn or one of those before it on their link."""
    many, offset = rows(arriving, roads.turn_from).astype(jnp.float32), rows(draw, roads.turn_from)
    return jnp.floor(many * demand.share_with + offset).astype(COUNT)


def _choosing(
    roads: RoadConstants, demand: DemandConstants, queue: Int16[Array, "lanes columns worlds"]
) -> Bool[Array, "choices worlds"]:
    """Whether each movement is the one to take of those for the same turn."""
    length = queue.sum(1, dtype=COUNT)
    worth = []
    for j, movement in enumerate(roads.choices.index.T):
        share = demand.lane_share[:, j]
        cars = rows(length, rows(roads.movement_lane, movement)).astype(jnp.float32) + 1.0
        worth.append(jnp.where(share > 0, cars / share, jnp.inf))
    best = jnp.argmin(jnp.stack(worth), axis=0)
    return jnp.concatenate([best == j for j in range(len(worth))])


def _levels(
    roads: RoadConstants,
    phase: Int[Array, "signals worlds"],
    orders: Orders,
    dark: Bool[Array, "lanes columns worlds"],
) -> tuple[Array, ...]:
    """0 red, 1 green that yields, 2 green: in the phase, at the end of its clearance, and in the phase after it.

    In the clearance what stays green in the next phase does. Of what loses it, cars still drive on at its beginning,
    and those that had to yield, which wait within the crossing by then, until its end.
    """

    def level(phase: Array) -> Array:
        here = rows(phase, roads.place_signal)
        shown = jnp.zeros(here.shape, jnp.int8)
        for k in range(roads.place_green.shape[-1]):
            shown = jnp.where(here == k, roads.place_green[..., k, None], shown)
        return shown

    before, after = level(phase), level(orders.target)
    cleared = jnp.where(before != YIELDING, jnp.minimum(before, after), before)
    red, free = jnp.int8(RED), jnp.int8(PROTECTED)
    closed = rows(orders.closed, roads.place_to) | ~roads.place_used[..., None]
    before, cleared, after = (
        jnp.where(closed, red, jnp.where(dark, free, shown)) for shown in (before, cleared, after)
    )
    return before, cleared, after


def _saturation(
    roads: RoadConstants, orders: Orders, dark: Bool[Array, "lanes columns worlds"]
) -> Float[Array, "lanes worlds"]:
    """Flow that each lane passes."""
    share = jnp.where(dark.any(1), _DARK_SHARE, 1.0)
    return roads.conduct.saturation_per_s * share * rows(orders.capacity, roads.lane_link)


def _green(
    roads: RoadConstants, traffic: Traffic, orders: Orders, levels: tuple[Array, ...]
) -> Int8[Array, "lanes columns worlds"]:
    """Which of the levels holds now."""
    clears = (traffic.clearing_s > 0) & (traffic.cleared_s >= roads.conduct.yellow_use_s)
    stage = jnp.where(traffic.phase == orders.target, jnp.int8(2), clears.astype(jnp.int8))
    here = rows(stage, roads.place_signal)
    before, cleared, after = levels
    return jnp.where(here == 0, before, jnp.where(here == 1, cleared, after))


def _serve(
    roads: RoadConstants,
    demand: DemandConstants,
    traffic: Traffic,
    queue: Int16[Array, "lanes columns worlds"],
    level: Int8[Array, "lanes columns worlds"],
    room: Int16[Array, "links worlds"],
    saturation_per_s: Float[Array, "lanes worlds"],
    words: UInt32[Array, "lanes worlds"],
    running: Bool[Array, ""],
) -> tuple[Array, Array, Array, Array, Array, Array, Array, Array]:
    """Lets the first cars of the lanes go: queues, heads, their luck, credits, time given way, pauses; cars into and
    out of each link."""
    conduct, dt_s, none = roads.conduct, roads.dt_s, jnp.zeros((), COUNT)
    head, credit = traffic.head, traffic.credit + saturation_per_s * dt_s
    waited_s, luck = traffic.waited_s, traffic.luck
    recent, spare = traffic.quiet * dt_s < conduct.gap_s, room > 0
    entered, gone, sent_any = jnp.zeros_like(room), jnp.zeros_like(room), jnp.zeros(queue.shape, bool)
    queue, level = apart(running, lambda *both: both, queue, level)
    for service in range(roads.services):
        draw = (words >> (8 * (service % 4))).astype(jnp.uint8)
        strangers = apart(running, _strangers, roads, queue)
        before, head = head, apart(running, _first, queue, head, draw, strangers)
        willing = apart(running, _willing, level, head)
        if roads.short_from.size:
            fresh = ((words * MIXER) >> (8 * (3 - service % 4))).astype(jnp.uint8)
            luck = jnp.where(before == NOBODY, fresh, luck)
            blocked = apart(running, _blocked, roads, demand, queue, luck)
            willing = apart(running, _unblocked, roads, willing, blocked)
        press = apart(running, _pressing, roads, level, willing, recent, spare)
        held = apart(running, _held, roads, press)
        waits = apart(running, _waits, roads, level, willing, held)
        pushes = apart(running, _pushes, roads, waits, waited_s)
        pushed = apart(running, _pushed, roads, pushes)
        ready = apart(running, _ready, roads, willing, waits, pushes, pushed, credit)
        granted, into = apart(running, _granted, roads, ready, room - entered)
        sent, left = apart(running, _sent, roads, granted)
        queue = queue - sent.astype(COUNT)
        # a queue that stands at red needs time to start
        red = (head != NOBODY) & ~willing.any(1)
        credit = jnp.where(red, 1.0 - saturation_per_s * conduct.lost_s, credit - left.astype(jnp.float32))
        waited_s = jnp.where(left, 0.0, waited_s + jnp.where(waits.any(1), dt_s / roads.services, 0.0))
        # where the lane beside moves, so does who wants into it
        moved = functools.reduce(operator.or_, columns(roads.lane_beside, left)) & (head == STRANGER)
        head = jnp.where(left | moved, NOBODY, head)
        entered = entered + into
        for lane in columns(roads.link_lanes, left):
            gone = gone + lane.astype(COUNT)
        sent_any = sent_any | sent
    # who could go and did not gains nothing by waiting
    credit = jnp.minimum(credit, 1.0)
    quiet = jnp.where(sent_any, none, jnp.minimum(traffic.quiet + COUNT(1), roads.long_ago.astype(COUNT)))
    return queue, head, luck, credit, waited_s, quiet, entered, gone


def _strangers(roads: RoadConstants, queue: Int16[Array, "lanes columns worlds"]) -> Float[Array, "lanes worlds"]:
    """Cars in each lane that found no room in the one beside it, which they want into."""
    over = jnp.maximum(queue.sum(1, dtype=COUNT) - roads.lane_storage[:, None], 0.0)
    over = over / jnp.maximum(roads.lane_beside.mask.sum(-1), 1)[:, None]
    return functools.reduce(operator.add, columns(roads.lane_beside, over))


def _first(
    queue: Int16[Array, "lanes columns worlds"],
    head: Int8[Array, "lanes worlds"],
    draw: UInt8[Array, "lanes worlds"],
    strangers: Float[Array, "lanes worlds"],
) -> Int8[Array, "lanes worlds"]:
    """Column in which the first car of each lane waits, or `STRANGER`; it stays the first until it goes."""
    count = queue.sum(1, dtype=COUNT)
    most = draw.astype(jnp.float32) / 2**8 * (count.astype(jnp.float32) + strangers)
    passed, drawn_head = jnp.zeros_like(count), jnp.zeros_like(head)
    for j in range(queue.shape[1]):
        passed = passed + queue[:, j]
        drawn_head = drawn_head + (passed.astype(jnp.float32) <= most).astype(jnp.int8)
    drawn_head = jnp.where(drawn_head < queue.shape[1], drawn_head, STRANGER)
    anew = (head == NOBODY) | ((head == STRANGER) & (strangers <= 0))
    return jnp.where(count > 0, jnp.where(anew, drawn_head, head), NOBODY)


def _willing(
    level: Int8[Array, "lanes columns worlds"], head: Int8[Array, "lanes worlds"]
) -> Bool[Array, "lanes columns worlds"]:
    """First cars whose movement is green."""
    return (head[:, None] == jnp.arange(level.shape[1], dtype=jnp.int8)[:, None]) & (level > RED)


def _blocked(
    roads: RoadConstants,
    demand: DemandConstants,
    queue: Int16[Array, "lanes columns worlds"],
    luck: UInt8[Array, "lanes worlds"],
) -> Bool[Array, "short worlds"]:
    """Movements onto short links whose first car wants a lane there that is full; one more, which is not so."""
    full = queue.sum(1, dtype=COUNT) >= roads.lane_storage[:, None]
    own = rows(luck, roads.short_from).astype(jnp.float32) / 2**8
    blocked = jnp.zeros(own.shape, bool)
    for lane, there in zip(roads.short_ahead.index.T, roads.short_ahead.mask.T, strict=True):
        wants = (rows(demand.lane_from, lane) <= own) & (own < rows(demand.lane_upto, lane))
        blocked = blocked | (wants & rows(full, lane) & there[:, None])
    return jnp.concatenate([blocked, jnp.zeros((1, blocked.shape[1]), bool)])


def _unblocked(
    roads: RoadConstants, willing: Bool[Array, "lanes columns worlds"], blocked: Bool[Array, "short worlds"]
) -> Bool[Array, "lanes columns worlds"]:
    """Those of them that no full lane ahead holds back."""
    return willing & ~rows(blocked, roads.place_short)


def _pressing(
    roads: RoadConstants,
    level: Int8[Array, "lanes columns worlds"],
    willing: Bool[Array, "lanes columns worlds"],
    recent: Bool[Array, "lanes columns worlds"],
    spare: Bool[Array, "links worlds"],
) -> Bool[Array, "places worlds"]:
    """Movements that others must yield to: those in motion or about to be."""
    press = recent | (willing & (level == PROTECTED) & rows(spare, roads.place_to))
    return (press & (level > RED)).reshape(-1, level.shape[-1])


def _held(roads: RoadConstants, press: Bool[Array, "places worlds"]) -> Bool[Array, "yielding worlds"]:
    """Movements that must wait for one that goes first, where they yield."""
    return functools.reduce(operator.or_, columns(roads.yielding_foes, press))


def _waits(
    roads: RoadConstants,
    level: Int8[Array, "lanes columns worlds"],
    willing: Bool[Array, "lanes columns worlds"],
    held: Bool[Array, "yielding worlds"],
) -> Bool[Array, "lanes columns worlds"]:
    """First cars that give way."""
    return willing & (level == YIELDING) & roads.place_yields[..., None] & rows(held, roads.place_yielding)


def _pushes(
    roads: RoadConstants, waits: Bool[Array, "lanes columns worlds"], waited_s: Float[Array, "lanes worlds"]
) -> Bool[Array, "lanes columns worlds"]:
    """Cars that have given way for too long: they go before all others."""
    return waits & (waited_s >= roads.conduct.patience_s)[:, None]


def _pushed(roads: RoadConstants, pushes: Bool[Array, "lanes columns worlds"]) -> Bool[Array, "links worlds"]:
    """Links that such cars lead onto."""
    return functools.reduce(operator.or_, columns(roads.link_incoming, pushes.reshape(-1, pushes.shape[-1])))


def _ready(
    roads: RoadConstants,
    willing: Bool[Array, "lanes columns worlds"],
    waits: Bool[Array, "lanes columns worlds"],
    pushes: Bool[Array, "lanes columns worlds"],
    pushed: Bool[Array, "links worlds"],
    credit: Float[Array, "lanes worlds"],
) -> Bool[Array, "places worlds"]:
    """Cars that would go if there is room: onto links that some push onto those, else all that need not wait."""
    goes = jnp.where(rows(pushed, roads.place_to), pushes, willing & ~waits)
    return (goes & (credit >= 1.0)[:, None]).reshape(-1, waits.shape[-1])


def _granted(
    roads: RoadConstants, ready: Bool[Array, "places worlds"], room: Int16[Array, "links worlds"]
) -> tuple[Bool[Array, "incoming worlds"], Int16[Array, "links worlds"]]:
    """Who of those that lead onto a link may go, the first ones of its table as far as the room does; how many."""
    asked, granted = jnp.zeros_like(room), []
    for asks in columns(roads.link_incoming, ready):
        asked = asked + asks.astype(COUNT)
        granted.append(asks & (asked <= room))
    return jnp.concatenate(granted), jnp.minimum(asked, jnp.maximum(room, COUNT(0)))


def _sent(
    roads: RoadConstants, granted: Bool[Array, "incoming worlds"]
) -> tuple[Bool[Array, "lanes columns worlds"], Bool[Array, "lanes worlds"]]:
    """Which movements a car makes now, and which lanes one leaves."""
    sent = rows(granted, roads.place_incoming) & roads.place_used[..., None]
    return sent, sent.any(1)
