"""A road network and its demand as the arrays and index tables that the dynamics gather from."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int8

from dynamic_graph_fed_rl.environments.traffic.arrivals import Left, steps_left
from dynamic_graph_fed_rl.environments.traffic.network import YIELDING, Demand, Network
from dynamic_graph_fed_rl.graph import padded_rows

LONG_AGO_S = 60.0
SORTED_M = 50.0
"""Onto shorter links cars come in the lane that they need."""


class Table(eqx.Module):
    """Rows of indices of unequal length, padded under a mask."""

    index: Int[Array, "rows width"]
    mask: Bool[Array, "rows width"]

    def of(self, values: Array) -> Array:
        """`values` at the indices, 0 where there is none."""
        return jnp.where(self.mask, values[self.index], jnp.zeros((), values.dtype))

    def sum(self, values: Array) -> Array:
        return self.of(values).sum(-1)


def table(rows: list[np.ndarray]) -> Table:
    """At least one column wide, so that sums over nothing are 0."""
    index, mask = padded_rows(rows)
    if not index.shape[1]:
        index, mask = np.zeros((len(rows), 1), np.int32), np.zeros((len(rows), 1), bool)
    return Table(jnp.asarray(index), jnp.asarray(mask))


def table_of(owner: np.ndarray, count: int) -> Table:
    """For each of `count` owners the places at which it stands."""
    order = np.argsort(owner, kind="stable")
    return table(np.split(order, np.searchsorted(owner[order], np.arange(1, count))))


class Conducts(eqx.Module):
    """See `network.Conduct`."""

    saturation_per_s: Float[Array, ""]
    lost_s: Float[Array, ""]
    yellow_use_s: Float[Array, ""]
    gap_s: Float[Array, ""]
    patience_s: Float[Array, ""]
    cruise: Float[Array, ""]


class RoadConstants(eqx.Module):
    """A `Network` as arrays for the dynamics; built by `road_constants`."""

    dt_s: float = eqx.field(static=True)
    services: int = eqx.field(static=True)
    """Cars of one lane that may go in a step."""
    conduct: Conducts
    link_steps: Int[Array, " links"]
    links_ordered: Int[Array, " ordered"]
    """By the steps that they take."""
    link_rank: Int[Array, " links"]
    """Where each stands in `links_ordered`."""
    steps_left: Left
    """See `arrivals`."""
    link_storage: Float[Array, " links"]
    link_lane_count: Float[Array, " links"]
    link_lanes: Table
    lane_link: Int[Array, " lanes"]
    lane_storage: Float[Array, " lanes"]
    lane_beside: Table
    """Lanes next to it, where cars still change lanes on the link."""
    lane_movements: Table
    """Movements stand in places: rows and columns of this table."""
    movement_lane: Int[Array, " movements"]
    movement_place: Int[Array, " movements"]
    """In the flattened `[lanes, columns]`."""
    place_used: Bool[Array, "lanes columns"]
    place_to: Int[Array, "lanes columns"]
    place_signal: Int[Array, "lanes columns"]
    """0 where there is none: `place_green` is then the same in all phases."""
    place_controlled: Bool[Array, "lanes columns"]
    place_green: Int8[Array, "lanes columns phases"]
    place_turn: Int[Array, "lanes columns"]
    place_turn_before: Int[Array, "lanes columns"]
    """The turn of the same link whose share ends where that of `place_turn` begins."""
    place_turn_first: Bool[Array, "lanes columns"]
    """There is none."""
    place_choice: Int[Array, "lanes columns"]
    """In the flattened transpose of `choices`."""
    place_choice_any: Bool[Array, "lanes columns"]
    place_incoming: Int[Array, "lanes columns"]
    """In the flattened transpose of `link_incoming`."""
    place_yielding: Int[Array, "lanes columns"]
    """Row of `yielding_foes`."""
    place_yields: Bool[Array, "lanes columns"]
    """In some phase."""
    short_from: Int[Array, " short"]
    """Lanes of the movements onto links that are shorter than `SORTED_M` and have several lanes."""
    short_ahead: Table
    """The lanes of the link ahead of each."""
    place_short: Int[Array, "lanes columns"]
    """Row of `short_ahead`; where there is none, that behind the last."""
    turn_from: Int[Array, " turns"]
    choices: Table
    """The movements of each turn that may be made from several lanes."""
    link_incoming: Table
    """Places that lead onto each link."""
    yielding_foes: Table
    """For each movement that yields in some phase the places that go first."""
    long_ago: Int[Array, ""]
    """Steps after which it no longer matters when a movement was last made."""


class DemandConstants(eqx.Module):
    """A `Demand` as arrays; of turns the cumulated shares on their link, so that one draw decides for all."""

    window_s: float = eqx.field(static=True)
    rate_per_s: Float[Array, "windows links"]
    share_with: Float[Array, "windows turns"]
    """That of the turn and of all turns before it."""
    share_on: Float[Array, "windows links"]
    """Of the cars on a link that do not end there."""
    lane_from: Float[Array, "windows lanes"]
    lane_upto: Float[Array, "windows lanes"]
    """Of the cars on a link those from the one share up to the other want the lane."""
    lane_share: Float[Array, "windows choices width"]
    """Of the cars of a turn that want each of its lanes, laid out as `RoadConstants.choices`."""


def road_constants(network: Network, dt_s: float = 1.0) -> RoadConstants:
    """Tables for the dynamics at a step of `dt_s`."""
    real, whole = lambda x: jnp.asarray(x, jnp.float32), lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    conduct = network.conduct
    steps = np.maximum(np.round(network.link_time_s / dt_s), 1)
    ordered = np.argsort(steps, kind="stable")
    lanes = table_of(network.movement_lane, network.lanes)
    at, used = np.asarray(lanes.index), np.asarray(lanes.mask)
    place = network.movement_lane * at.shape[1] + _column(lanes, network.movements)

    def placed(values: np.ndarray) -> np.ndarray:
        """From movements to their places; zeros elsewhere."""
        return np.where(used.reshape(used.shape + (1,) * (values.ndim - 1)), values[at], 0)

    short = _onto_short(network)
    into = table_of(network.movement_to, network.links)
    yields = (network.movement_green == YIELDING).any(1)
    choices = _choices(network)
    chosen = np.asarray(choices.index)[np.asarray(choices.mask)]
    before = _turn_before(network)
    return RoadConstants(
        dt_s=dt_s,
        services=int(np.ceil(conduct.saturation_per_s * dt_s)),
        conduct=Conducts(
            real(conduct.saturation_per_s),
            real(conduct.lost_s),
            real(conduct.yellow_use_s),
            real(conduct.gap_s),
            real(conduct.patience_s),
            real(conduct.cruise),
        ),
        link_steps=whole(steps),
        links_ordered=whole(ordered),
        link_rank=whole(np.argsort(ordered)),
        steps_left=steps_left(steps.astype(int)),
        link_storage=real(network.link_storage),
        link_lane_count=real(network.link_lanes),
        link_lanes=table_of(network.lane_link, network.links),
        lane_link=whole(network.lane_link),
        lane_storage=real((network.link_storage / network.link_lanes)[network.lane_link]),
        lane_beside=table([_beside(network, lane) for lane in range(network.lanes)]),
        lane_movements=lanes,
        movement_lane=whole(network.movement_lane),
        movement_place=whole(place),
        place_used=jnp.asarray(used),
        place_to=whole(placed(network.movement_to)),
        place_signal=whole(placed(np.maximum(network.movement_signal, 0))),
        place_controlled=jnp.asarray(placed(network.movement_signal >= 0).astype(bool)),
        place_green=jnp.asarray(placed(network.movement_green), jnp.int8),
        place_turn=whole(placed(network.movement_turn)),
        place_turn_before=whole(placed(np.maximum(before, 0)[network.movement_turn])),
        place_turn_first=jnp.asarray(placed(before[network.movement_turn] < 0).astype(bool)),
        place_choice=whole(placed(_transposed(choices, network.movements))),
        place_choice_any=jnp.asarray(placed(np.isin(np.arange(network.movements), chosen)).astype(bool)),
        place_incoming=whole(placed(_transposed(into, network.movements))),
        place_yielding=whole(placed(np.maximum(np.cumsum(yields) - 1, 0))),
        place_yields=jnp.asarray(placed(yields).astype(bool)),
        short_from=whole(network.movement_lane[short]),
        short_ahead=table([np.flatnonzero(network.lane_link == network.movement_to[m]) for m in short]),
        place_short=whole(np.where(used & np.isin(at, short), np.searchsorted(short, at), len(short))),
        turn_from=whole(network.turn_from),
        choices=choices,
        link_incoming=Table(whole(place[np.asarray(into.index)]), into.mask),
        yielding_foes=table(
            [place[np.array(network.movement_foes[m], int)] for m in np.flatnonzero(yields)] or [np.zeros(0, int)]
        ),
        long_ago=whole(np.ceil(LONG_AGO_S / dt_s)),
    )


def _onto_short(network: Network) -> Int[np.ndarray, " short"]:
    """The movements onto short links of several lanes."""
    several = (network.link_lanes > 1) & (network.link_length_m < SORTED_M)
    return np.flatnonzero(several[network.movement_to])


def _choices(network: Network) -> Table:
    """The movements of each turn that may be made from several lanes."""
    turns = [np.flatnonzero(network.movement_turn == turn) for turn in range(len(network.turn_from))]
    return table([movements for movements in turns if len(movements) > 1] or [np.zeros(0, int)])


def _beside(network: Network, lane: int) -> Int[np.ndarray, " beside"]:
    link = network.lane_link[lane]
    near = [i for i in (lane - 1, lane + 1) if 0 <= i < network.lanes and network.lane_link[i] == link]
    return np.array(near if network.link_length_m[link] >= SORTED_M else [], int)


def _turn_before(network: Network) -> Int[np.ndarray, " turns"]:
    """The turn before each one of the same link; -1 for the first."""
    last: dict[int, int] = {}
    before = []
    for turn, link in enumerate(network.turn_from.tolist()):
        before.append(last.get(link, -1))
        last[link] = turn
    return np.array(before)


def _transposed(rows: Table, count: int) -> Int[np.ndarray, " items"]:
    """Where each item stands in the flattened transpose; 0 if nowhere."""
    index, mask = np.asarray(rows.index), np.asarray(rows.mask)
    row, column = np.nonzero(mask)
    at = np.zeros(count, np.int64)
    at[index[mask]] = column * len(index) + row
    return at


def _column(rows: Table, count: int) -> Int[np.ndarray, " items"]:
    """In which column of its row each item stands."""
    column = np.zeros(count, np.int64)
    index, mask = np.asarray(rows.index), np.asarray(rows.mask)
    column[index[mask]] = np.nonzero(mask)[1]
    return column


def demand_constants(network: Network, demand: Demand) -> DemandConstants:
    """Shares of the turns of a link, one after the other."""
    upto, total = np.zeros_like(demand.turn_ratio), np.zeros_like(demand.rate_per_s)
    for turn, link in enumerate(network.turn_from):
        total[:, link] += demand.turn_ratio[:, turn]
        upto[:, turn] = total[:, link]
    # rounding must not make a car end its trip where none does
    snap = lambda x: jnp.asarray(np.where(x > 1 - 1e-6, 1.0, x), jnp.float32)  # noqa: E731
    lane_share = demand.lane_share
    if lane_share is None:
        lanes = np.bincount(network.movement_turn)[network.movement_turn]
        lane_share = np.broadcast_to(1.0 / lanes, (demand.windows, network.movements))
    choices, real = _choices(network), lambda x: jnp.asarray(x, jnp.float32)
    wanted = np.where(np.asarray(choices.mask), lane_share[:, np.asarray(choices.index)], 0.0)
    lane_from, lane_upto = _lanes_shared_out(network, demand.turn_ratio[:, network.movement_turn] * lane_share)
    return DemandConstants(
        window_s=demand.window_s,
        rate_per_s=real(demand.rate_per_s),
        share_with=snap(upto),
        share_on=snap(total),
        lane_from=real(lane_from),
        lane_upto=real(lane_upto),
        lane_share=real(wanted),
    )


def _lanes_shared_out(
    network: Network, share: Float[np.ndarray, "windows movements"]
) -> tuple[Float[np.ndarray, "windows lanes"], Float[np.ndarray, "windows lanes"]]:
    """Of the cars of a link the shares between which they want each lane; from those that make each movement."""
    each = np.stack([np.bincount(network.movement_lane, row, network.lanes) for row in share])
    upto = np.zeros_like(each)
    for own in network.lanes_of_link:
        upto[:, own] = np.cumsum(each[:, own], 1)
    return upto - each, upto
