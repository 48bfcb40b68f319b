"""What agents see of the roads: their signals and those around, and for every phase what it would serve.

One function from what detectors tell; it does not know which simulator these stand in.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column
from dynamic_graph_fed_rl.environments.traffic.constants import Table, table
from dynamic_graph_fed_rl.environments.traffic.layout import made_once
from dynamic_graph_fed_rl.environments.traffic.network import Network, roads_between_signals
from dynamic_graph_fed_rl.environments.traffic.sensing import Sensed, SignalConstants, Standing
from dynamic_graph_fed_rl.graph import Graph, local_views, padded_rows

NODE_COLUMNS = (
    Column("owned", dynamic=False),
    Column("phases", "4", dynamic=False),
    Column("green_time", "30 s"),
    Column("queue", "10 cars"),
    Column("arriving", "10 cars"),
    Column("waiting_outside", "10 cars"),
    Column("dark"),
    Column("sensors_ok", "approaches"),
    Column("exits_open", "exits"),
)
EDGE_COLUMNS = (
    Column("free_time", "20 s", dynamic=False),
    Column("storage", "30 cars", dynamic=False),
    Column("queue", "10 cars"),
    Column("occupancy", "storage"),
    Column("open"),
    Column("since_change", "10 min, at most one"),
    Column("sensors_ok"),
)
GLOBAL_COLUMNS = (
    Column("queue", "10 cars a signal"),
    Column("waiting_outside", "10 cars a signal"),
)
PHASE_COLUMNS = (
    Column("offered", dynamic=False),
    Column("green"),
    Column("queue", "10 cars"),
    Column("pressure", "10 cars"),
    Column("arriving", "10 cars"),
    Column("room_ahead", "storage"),
)


class Districts(eqx.Module):
    """Which agent's which slot sets which signal."""

    signal: Int[Array, "agents slots"]
    mask: Bool[Array, "agents slots"]
    place: Int[Array, " signals"]
    """Flat position in `[A, S]` of each signal's slot."""

    def gather(self, action: Int[Array, "agents slots"]) -> Int[Array, " signals"]:
        """From agents' slots to signals."""
        return action.reshape(-1)[self.place]

    def spread(self, values: Array) -> Array:
        """From signals, `[S, ...]`, to agents' slots; 0 in padding."""
        rows = values[self.signal]
        there = self.mask.reshape(*self.mask.shape, *[1] * (rows.ndim - 2))
        return jnp.where(there, rows, jnp.zeros((), rows.dtype))


class TrafficView(eqx.Module):
    """Local graphs of signals, joined by the roads between them; slots are signals, with a block of columns for each
    of their phases, all alike, so that one score can be learned for all phases of all signals."""

    signals: SignalConstants
    districts: Districts
    node_index: Int[Array, "agents nodes"]
    node_mask: Bool[Array, "agents nodes"]
    owned: Bool[Array, "agents nodes"]
    edge_index: Int[Array, "agents edges"]
    edge_mask: Bool[Array, "agents edges"]
    senders: Int[Array, "agents edges"]
    receivers: Int[Array, "agents edges"]
    slot_owner: Int[Array, "agents slots"]
    road_links: Table
    road_static: Float[Array, "roads 2"]
    """Columns that never change, made once: divided anew in every program they would differ in the last digit."""
    approach_lanes: Table
    """Lanes that end at each signal."""
    approach_links: Table
    exit_links: Table
    """Links that begin at each signal."""
    closures_visible: bool = eqx.field(static=True)
    """Whether closures are seen."""
    min_green_s: Float[Array, ""]

    def columns(self) -> dict[str, tuple[Column, ...]]:
        phases = range(self.signals.phases)
        return {
            "node_features": NODE_COLUMNS,
            "edge_features": EDGE_COLUMNS,
            "global_features": GLOBAL_COLUMNS,
            "choice_features": PHASE_COLUMNS,
            "slot_features": tuple(
                Column(f"phase{k}_{column.name}", column.unit, column.dynamic)
                for k in phases
                for column in PHASE_COLUMNS
            ),
        }

    def sizes(self) -> tuple[int, int]:
        return self.node_index.shape[1], self.edge_index.shape[1]

    def allowed(self, sensed: Sensed) -> Bool[Array, "signals phases"]:
        """Phases that may be asked for: all, once the green has lasted; before that, while the signal clears, and
        at a dark signal, only the one it has or goes to."""
        free = (sensed.phase_s >= self.min_green_s) & (sensed.clearing_s <= 0) & ~sensed.dark
        present = jnp.arange(self.signals.phases) == sensed.target[:, None]
        return self.signals.phase_mask & (free[:, None] | present)

    def observe(self, sensed: Sensed, first: Bool[Array, ""]) -> Observation:
        agents = self.node_index.shape[0]
        if not self.closures_visible:
            hidden = jnp.zeros_like(sensed.closed), jnp.full_like(sensed.since_s, 1e6)
            sensed = eqx.tree_at(lambda s: (s.closed, s.since_s), sensed, hidden)
        standing = made_once(SignalConstants.standing, sensed.time_s, self.signals, sensed)
        nodes = self._nodes(sensed, standing)[self.node_index]
        nodes = jnp.concatenate([self.owned[..., None].astype(nodes.dtype), nodes], axis=-1)
        edges, open_road = self._edges(sensed, standing)
        return Observation(
            graph=Graph(
                nodes=jnp.where(self.node_mask[..., None], nodes, 0.0),
                edges=jnp.where(self.edge_mask[..., None], edges[self.edge_index], 0.0),
                senders=self.senders,
                receivers=self.receivers,
                node_mask=self.node_mask,
                edge_mask=self.edge_mask & open_road[self.edge_index],
                globals=jnp.broadcast_to(self._globals(sensed), (agents, len(GLOBAL_COLUMNS))),
            ),
            slots=self.districts.spread(self._slots(sensed, standing)),
            slot_owner=self.slot_owner,
            action_mask=self.districts.spread(self.allowed(sensed)),
            first=jnp.broadcast_to(first, (agents,)),
            births=jnp.zeros(self.node_mask.shape, bool),
        )

    def _nodes(self, sensed: Sensed, standing: Standing) -> Float[Array, "signals features"]:
        own = self.signals
        return jnp.stack(
            [
                own.phase_mask.sum(1) / 4.0,
                jnp.minimum(sensed.phase_s / 30.0, 4.0),
                self.approach_lanes.sum(standing.lane) / 10.0,
                self.approach_links.sum(sensed.link_arriving) / 10.0,
                self.approach_links.sum(sensed.link_entry) / 10.0,
                sensed.dark.astype(jnp.float32),
                _share(self.approach_links, sensed.working),
                _share(self.exit_links, ~sensed.closed),
            ],
            axis=-1,
        )

    def _edges(
        self, sensed: Sensed, standing: Standing
    ) -> tuple[Float[Array, "roads features"], Bool[Array, " roads"]]:
        own = self.signals
        storage = self.road_links.sum(own.link_storage)
        open_road = ~self.road_links.of(sensed.closed).any(-1)
        since_s = jnp.where(self.road_links.mask, sensed.since_s[self.road_links.index], jnp.inf).min(-1)
        columns = [
            *self.road_static.T,
            self.road_links.sum(standing.link) / 10.0,
            self.road_links.sum(sensed.link_vehicles) / jnp.maximum(storage, 1.0),
            open_road.astype(jnp.float32),
            jnp.minimum(since_s / 600.0, 1.0),
            _share(self.road_links, sensed.working),
        ]
        return jnp.stack(columns, axis=-1), open_road

    def _globals(self, sensed: Sensed) -> Float[Array, " features"]:
        each = 10.0 * self.signals.signals
        return jnp.stack([sensed.lane_queue.sum() / each, sensed.link_entry.sum() / each])

    def _slots(self, sensed: Sensed, standing: Standing) -> Float[Array, "signals features"]:
        own = self.signals
        arriving = (sensed.link_arriving / own.link_lane_count)[own.lane_link]
        room = jnp.where(sensed.closed, 0.0, 1.0 - sensed.link_vehicles / own.link_storage)[own.movement_to]
        served = jnp.maximum(own.phase_movements.mask.sum(-1), 1)
        features = [
            own.phase_mask.astype(jnp.float32),
            (jnp.arange(own.phases) == sensed.target[:, None]).astype(jnp.float32),
            own.by_phase(own.phase_lanes.sum(standing.lane)) / 10.0,
            own.by_phase(own.phase_movements.sum(own.pressure(standing, sensed))) / 10.0,
            own.by_phase(own.phase_lanes.sum(arriving)) / 10.0,
            own.by_phase(own.phase_movements.sum(room) / served),
        ]
        rows = jnp.where(own.phase_mask[..., None], jnp.stack(features, axis=-1), 0.0)
        return rows.reshape(own.signals, -1)


def _share(links: Table, flag: Bool[Array, " links"]) -> Float[Array, " rows"]:
    """Of the links of each row; 1 where there is none."""
    return 1.0 - links.sum((~flag).astype(jnp.float32)) / jnp.maximum(links.mask.sum(-1), 1)


def traffic_view(
    network: Network,
    signals: SignalConstants,
    district: Int[np.ndarray, " signals"],
    radius: int,
    min_green_s: float,
    closures_visible: bool,
) -> TrafficView:
    """Each agent's district with a halo of `radius` signals."""
    roads = roads_between_signals(network)
    views = local_views(district, roads.origin, roads.end, radius)
    index, mask = padded_rows([np.flatnonzero(district == agent) for agent in range(int(district.max()) + 1)])
    place = np.zeros(network.signals, np.int32)
    place[index[mask]] = np.flatnonzero(mask.reshape(-1))
    owner = np.zeros(index.shape, np.int32)
    for agent in range(len(index)):
        where = {int(signal): i for i, signal in enumerate(views.node_index[agent][views.node_mask[agent]])}
        owner[agent, mask[agent]] = [where[int(signal)] for signal in index[agent, mask[agent]]]
    free_time_s = [float(network.link_time_s[list(links)].sum()) for links in roads.links]
    storage = [float(network.link_storage[list(links)].sum()) for links in roads.links]
    static = np.array([free_time_s, storage]).T / (20.0, 30.0) if roads.links else np.zeros((1, 2))
    ends_at = network.link_end[network.lane_link]
    return TrafficView(
        signals=signals,
        districts=Districts(jnp.asarray(index), jnp.asarray(mask), jnp.asarray(place)),
        node_index=jnp.asarray(views.node_index),
        node_mask=jnp.asarray(views.node_mask),
        owned=jnp.asarray(views.owned),
        edge_index=jnp.asarray(views.edge_index),
        edge_mask=jnp.asarray(views.edge_mask),
        senders=jnp.asarray(views.senders),
        receivers=jnp.asarray(views.receivers),
        slot_owner=jnp.asarray(owner),
        road_links=table([np.array(links, int) for links in roads.links] or [np.zeros(0, int)]),
        road_static=jnp.asarray(static, jnp.float32),
        approach_lanes=table([np.flatnonzero(ends_at == s) for s in range(network.signals)]),
        approach_links=table([np.flatnonzero(network.link_end == s) for s in range(network.signals)]),
        exit_links=table([np.flatnonzero(network.link_origin == s) for s in range(network.signals)]),
        closures_visible=closures_visible,
        min_green_s=jnp.asarray(min_green_s, jnp.float32),
    )
