"""What detectors tell of a road network: the same struct, whichever simulator fills it.

Controllers and observations read nothing else, so that both run in either. Detectors see lanes and links, not where a
car will turn.
"""

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.traffic.arrivals import within
from dynamic_graph_fed_rl.environments.traffic.constants import RoadConstants, Table, table, table_of
from dynamic_graph_fed_rl.environments.traffic.dynamics import Conditions, TrafficState
from dynamic_graph_fed_rl.environments.traffic.network import ARRIVING_S, NEAR_S, PROTECTED, YIELDING, Network


class Sensed(eqx.Module):
    """One look at the network."""

    lane_queue: Float[Array, "*batch lanes"]
    """Cars that stand on the lane."""
    link_vehicles: Float[Array, "*batch links"]
    """Cars on the link, those that stand included."""
    link_arriving: Float[Array, "*batch links"]
    """Cars in motion that reach the stop line within 10 s, if nothing holds them up."""
    link_near: Float[Array, "*batch links"]
    """The same within 3 s: what the loop of an actuated signal sees."""
    link_entry: Float[Array, "*batch links"]
    """Cars that want to begin their trip on the link and find no room."""
    closed: Bool[Array, "*batch links"]
    since_s: Float[Array, "*batch links"]
    """Since the link last closed or opened."""
    working: Bool[Array, "*batch links"]
    """Where not, the link and its lanes count nothing."""
    dark: Bool[Array, "*batch signals"]
    phase: Int[Array, "*batch signals"]
    """The phase that is green, or was before the yellow."""
    target: Int[Array, "*batch signals"]
    """The phase that is green, or will be after the yellow."""
    phase_s: Float[Array, "*batch signals"]
    """Since it turned green."""
    clearing_s: Float[Array, "*batch signals"]
    """Rest of the yellow; 0 outside it."""
    time_s: Float[Array, "*batch"]
    """Since the episode began."""


def sense(roads: RoadConstants, state: TrafficState, conditions: Conditions) -> Sensed:
    """What detectors would tell of the simulated state, those that are at work."""
    ahead, near = math.ceil(ARRIVING_S / roads.dt_s), math.ceil(NEAR_S / roads.dt_s)
    arriving, arriving_now = (within(state.coming, steps)[roads.link_rank] for steps in (ahead, near))
    # a queue that is moving off runs over the loop at the stop line
    moving = (roads.lane_movements.of(state.quiet_s < NEAR_S) & (roads.lane_movements.of(state.queue) > 0)).any(-1)
    working = conditions.working
    return Sensed(
        lane_queue=jnp.where(working[roads.lane_link], roads.lane_movements.sum(state.queue), 0.0),
        link_vehicles=jnp.where(working, state.vehicles, 0.0),
        link_arriving=jnp.where(working, arriving, 0.0),
        link_near=jnp.where(working, arriving_now + roads.link_lanes.sum(moving.astype(jnp.float32)), 0.0),
        link_entry=jnp.where(working, state.entry, 0.0),
        closed=conditions.closed,
        since_s=conditions.since_s,
        working=working,
        dark=conditions.dark,
        phase=state.phase,
        target=state.target,
        phase_s=state.phase_s,
        clearing_s=state.clearing_s,
        time_s=state.time_s,
    )


class SignalConstants(eqx.Module):
    """What controllers know of the network; rows of phases are `signal * phases + phase`."""

    signals: int = eqx.field(static=True)
    phases: int = eqx.field(static=True)
    phase_mask: Bool[Array, "signals phases"]
    phase_movements: Table
    """Movements that a phase serves, those that yield included; places in `movement_lane`."""
    phase_lanes: Table
    """Lanes from which it serves any."""
    phase_first_lanes: Table
    """Lanes from which it serves any that need not yield."""
    lane_link: Int[Array, " lanes"]
    chain: Table
    """Lanes upstream of those before signals that a detector sees besides them; see `network.Network.lane_chain`."""
    chain_share: Float[Array, "chains width"]
    lane_chain: Int[Array, " lanes"]
    """Row of `chain`; one too many where there is none."""
    link_lanes: Table
    link_lane_count: Float[Array, " links"]
    link_storage: Float[Array, " links"]
    movement_lane: Int[Array, " controlled"]
    """Of the movements that a signal controls, in whose order all that follows stands."""
    movement_to: Int[Array, " controlled"]

    def by_phase(self, rows: Float[Array, " rows"]) -> Float[Array, "signals phases"]:
        return rows.reshape(self.signals, self.phases)

    def standing(self, sensed: Sensed) -> "Standing":
        upstream = jnp.pad((self.chain.of(sensed.lane_queue) * self.chain_share).sum(-1), (0, 1))[self.lane_chain]
        return Standing(sensed.lane_queue + upstream, self.link_lanes.sum(sensed.lane_queue))

    def pressure(self, standing: "Standing", sensed: Sensed) -> Float[Array, " controlled"]:
        """Cars that stand before a movement, less those that stand on a lane of the link it leads to; at least 0.

        A negative pressure would speak against the other movements of a phase, which may lead elsewhere. None towards
        a closed link, whose empty lanes would otherwise draw the green.
        """
        ahead = (standing.link / self.link_lane_count)[self.movement_to]
        pressure = jnp.maximum(standing.lane[self.movement_lane] - ahead, 0.0)
        return jnp.where(sensed.closed[self.movement_to], 0.0, pressure)


class Standing(eqx.Module):
    """Cars that stand, as controllers count them."""

    lane: Float[Array, " lanes"]
    """Before the stop line of each lane; where that is a signal's, on up to 100 m."""
    link: Float[Array, " links"]
    """On all lanes of each link."""


def signal_constants(network: Network) -> SignalConstants:
    def served_from(level: int) -> list[np.ndarray]:
        return [
            np.flatnonzero((network.movement_signal == s) & (network.movement_green[:, k] >= level))
            for s in range(network.signals)
            for k in range(network.phases)
        ]

    served, counts = served_from(YIELDING), network.phase_count
    controlled = np.flatnonzero(network.movement_signal >= 0)
    before = np.isin(np.arange(network.lanes), network.movement_lane[controlled])
    before |= network.link_end[network.lane_link] >= 0
    chained = [lane for lane in np.flatnonzero(before).tolist() if network.lane_chain[lane]]
    chain = table(
        [np.array([at for at, _ in network.lane_chain[lane]], int) for lane in chained] or [np.zeros(0, int)]
    )
    share = np.zeros(chain.index.shape, np.float32)
    for row, lane in enumerate(chained):
        share[row, : len(network.lane_chain[lane])] = [part for _, part in network.lane_chain[lane]]
    lane_chain = np.full(network.lanes, len(share))
    lane_chain[chained] = np.arange(len(chained))
    return SignalConstants(
        signals=network.signals,
        phases=network.phases,
        phase_mask=jnp.asarray(np.arange(network.phases) < counts[:, None]),
        phase_movements=table([np.searchsorted(controlled, m) for m in served]),
        phase_lanes=table([np.unique(network.movement_lane[m]) for m in served]),
        phase_first_lanes=table([np.unique(network.movement_lane[m]) for m in served_from(PROTECTED)]),
        lane_link=jnp.asarray(network.lane_link, jnp.int32),
        chain=chain,
        chain_share=jnp.asarray(share),
        lane_chain=jnp.asarray(lane_chain, jnp.int32),
        link_lanes=table_of(network.lane_link, network.links),
        link_lane_count=jnp.asarray(network.link_lanes, jnp.float32),
        link_storage=jnp.asarray(network.link_storage, jnp.float32),
        movement_lane=jnp.asarray(network.movement_lane[controlled], jnp.int32),
        movement_to=jnp.asarray(network.movement_to[controlled], jnp.int32),
    )
