"""A road network and its demand as the arrays and index tables that the dynamics gather from."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.traffic.network import YIELDING, Demand, Network
from dynamic_graph_fed_rl.graph import padded_rows


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
    cruise: Float[Array, ""]


class RoadConstants(eqx.Module):
    """A `Network` as arrays for the dynamics; built by `road_constants`."""

    dt_s: float = eqx.field(static=True)
    memory: int = eqx.field(static=True)
    """Steps that the longest link takes."""
    services: int = eqx.field(static=True)
    """Cars of one lane that may go in a step."""
    conduct: Conducts
    link_steps: Int[Array, " links"]
    link_storage: Float[Array, " links"]
    link_lane_count: Float[Array, " links"]
    link_lanes: Table
    link_incoming: Table
    lane_link: Int[Array, " lanes"]
    lane_movements: Table
    movement_lane: Int[Array, " movements"]
    movement_turn: Int[Array, " movements"]
    movement_to: Int[Array, " movements"]
    movement_signal: Int[Array, " movements"]
    """0 where there is none: `movement_green` is then the same in all phases."""
    movement_controlled: Bool[Array, " movements"]
    movement_green: Int[Array, "movements phases"]
    movement_lane_place: Int[Array, " movements"]
    """Column in `lane_movements`."""
    movement_incoming_place: Int[Array, " movements"]
    """In the flattened `link_incoming`."""
    movement_sibling_lanes: Table
    """Lanes that the same turn may be made from."""
    yielding: Int[Array, " yielding"]
    """Movements that yield in some phase."""
    movement_yielding_place: Int[Array, " movements"]
    """Among `yielding`; one past its end for others."""
    yielding_foes: Table
    turn_from: Int[Array, " turns"]


class DemandConstants(eqx.Module):
    """A `Demand` as arrays; of turns the cumulated shares on their link, so that one draw decides for all."""

    window_s: float = eqx.field(static=True)
    rate_per_s: Float[Array, "windows links"]
    share_before: Float[Array, "windows turns"]
    share_with: Float[Array, "windows turns"]
    share_on: Float[Array, "windows links"]
    """Of the cars on a link that do not end there."""


def road_constants(network: Network, dt_s: float = 1.0) -> RoadConstants:
    """Tables for the dynamics at a step of `dt_s`."""
    real, whole = lambda x: jnp.asarray(x, jnp.float32), lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    conduct = network.conduct
    steps = np.maximum(np.round(network.link_time_s / dt_s), 1)
    into = table_of(network.movement_to, network.links)
    lanes = table_of(network.movement_lane, network.lanes)
    yields = np.flatnonzero((network.movement_green == YIELDING).any(1))
    place = np.full(network.movements, len(yields))
    place[yields] = np.arange(len(yields))
    lanes_of_turn = [network.movement_lane[network.movement_turn == turn] for turn in range(len(network.turn_from))]
    return RoadConstants(
        dt_s=dt_s,
        memory=int(steps.max()),
        services=int(np.ceil(conduct.saturation_per_s * dt_s)),
        conduct=Conducts(
            real(conduct.saturation_per_s),
            real(conduct.lost_s),
            real(conduct.yellow_use_s),
            real(conduct.gap_s),
            real(conduct.cruise),
        ),
        link_steps=whole(steps),
        link_storage=real(network.link_storage),
        link_lane_count=real(network.link_lanes),
        link_lanes=table_of(network.lane_link, network.links),
        link_incoming=into,
        lane_link=whole(network.lane_link),
        lane_movements=lanes,
        movement_lane=whole(network.movement_lane),
        movement_turn=whole(network.movement_turn),
        movement_to=whole(network.movement_to),
        movement_signal=whole(np.maximum(network.movement_signal, 0)),
        movement_controlled=jnp.asarray(network.movement_signal >= 0),
        movement_green=whole(network.movement_green),
        movement_lane_place=whole(_column(lanes, network.movements)),
        movement_incoming_place=whole(network.movement_to * into.index.shape[1] + _column(into, network.movements)),
        movement_sibling_lanes=table([lanes_of_turn[turn] for turn in network.movement_turn]),
        yielding=whole(yields),
        movement_yielding_place=whole(place),
        yielding_foes=table([np.array(network.movement_foes[m], int) for m in yields] or [np.zeros(0, int)]),
        turn_from=whole(network.turn_from),
    )


def _column(rows: Table, count: int) -> Int[np.ndarray, " items"]:
    """In which column of its row each item stands."""
    column = np.zeros(count, np.int64)
    index, mask = np.asarray(rows.index), np.asarray(rows.mask)
    column[index[mask]] = np.nonzero(mask)[1]
    return column


def demand_constants(network: Network, demand: Demand) -> DemandConstants:
    """Shares of the turns of a link, one after the other."""
    before, upto = np.zeros_like(demand.turn_ratio), np.zeros_like(demand.turn_ratio)
    total = np.zeros_like(demand.rate_per_s)
    for turn, link in enumerate(network.turn_from):
        before[:, turn] = total[:, link]
        total[:, link] += demand.turn_ratio[:, turn]
        upto[:, turn] = total[:, link]
    # rounding must not make a car end its trip where none does
    snap = lambda x: jnp.asarray(np.where(x > 1 - 1e-6, 1.0, x), jnp.float32)  # noqa: E731
    return DemandConstants(
        demand.window_s, jnp.asarray(demand.rate_per_s, jnp.float32), snap(before), snap(upto), snap(total)
    )
