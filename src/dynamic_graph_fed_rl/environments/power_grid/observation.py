"""What agents see of a grid: local graphs with a halo, or the flat vector of agents that expect a vector.

Besides measurements the columns hold what a transmission operator publishes to its regions: how each bus relieves
or aggravates the lines that are congested now, or would be under the schedule, and its marginal losses.
"""

from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.power_grid.scenarios import MINUTES_PER_DAY
from dynamic_graph_fed_rl.environments.power_grid.state import GridState
from dynamic_graph_fed_rl.environments.spec import Column
from dynamic_graph_fed_rl.graph import Graph, vector_graph

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.environments.power_grid.environment import PowerGrid

NODE_COLUMNS = (
    Column("owned", dynamic=False),
    Column("energised"),
    Column("voltage_deviation", "0.05 p.u."),
    Column("angle", "0.5 rad"),
    Column("load", "100 MW"),
    Column("load_change_next_hour", "100 MW"),
    Column("generation", "100 MW"),
    Column("upward_room", "100 MW"),
    Column("farm_change_next_hour", "100 MW"),
    Column("congestion_price", "pressure a MW"),
    Column("congestion_ahead", "MW a MW"),
    Column("marginal_losses", "0.1 MW a MW"),
)
EDGE_COLUMNS = (
    Column("flow", "rating"),
    Column("loading", "rating"),
    Column("loading_ahead", "rating"),
    Column("overload", "0.2 rating"),
    Column("in_service"),
    Column("rating", "log of 100 MVA", dynamic=False),
    Column("reactance", "0.1 p.u.", dynamic=False),
)
GLOBAL_COLUMNS = (
    Column("time_sine"),
    Column("time_cosine"),
    Column("demand", "nominal"),
    Column("demand_change_next_hour", "nominal"),
    Column("farm_output", "nominal demand"),
    Column("farm_change_next_hour", "nominal demand"),
    Column("highest_loading", "rating"),
    Column("overload", "100 MVA"),
    Column("overload_ahead", "100 MVA"),
    Column("lines_out", "slots"),
    Column("price", "50 $/MWh"),
    Column("slack", "100 MW"),
    Column("losses", "5 % of nominal demand"),
)
SLOT_COLUMNS = (
    Column("is_unit", dynamic=False),
    Column("is_farm", dynamic=False),
    Column("output", "100 MW"),
    Column("schedule", "100 MW"),
    Column("upward_room", "100 MW"),
    Column("price_gap", "price span"),
    Column("congestion_price", "pressure a MW"),
    Column("congestion_ahead", "MW a MW"),
    Column("loss_price", "price span"),
    Column("load", "100 MW"),
)
_UNRATED_MVA = 9999.0


class Signals(eqx.Module):
    """Sensitivities a bus: to the pressure on the lines, to their loading under the schedule [weighted MW a MW],
    marginal losses [MW a MW]; and the flow [MW] and loading expected under the schedule a line."""

    congestion_price: Float[Array, " buses"]
    congestion_ahead: Float[Array, " buses"]
    losses: Float[Array, " buses"]
    p_ahead_mw: Float[Array, " lines"]
    loading_ahead: Float[Array, " lines"]


def signals(environment: "PowerGrid", state: GridState) -> Signals:
    """DC sensitivities at the present topology, of one more megawatt that the marginal units give up."""
    grid, network, outlook = environment.grid, state.network, state.outlook
    flow, base = grid.flow, grid.flow.base_mva
    buses = grid.load_mw.shape[0]
    running = network.live[environment.units.bus]
    rise = jnp.where(running, outlook.schedule_mw - network.generation_mw, 0.0)
    injected = jnp.zeros(buses).at[environment.units.bus].add(rise)
    drawn = jnp.where(network.live, grid.load_mw * outlook.level, 0.0) - network.served_mw
    change_mw = base * flow.dc_change((injected - drawn) / base, network.outages)
    p_ahead = jnp.where(network.closed, network.p_from_mw + change_mw, 0.0)
    loading_ahead = jnp.sqrt(p_ahead**2 + network.q_from_mvar**2) / grid.rating_mva

    def pressed(loading: Float[Array, " lines"], p_mw: Float[Array, " lines"]) -> Float[Array, " lines"]:
        # from 92 % of the rating on, since relief must begin before the limit, and bounded
        return jnp.sign(p_mw) * jnp.clip((loading - 0.92) / 0.1, 0.0, 5.0)

    weights = jnp.stack(
        [
            jnp.sign(network.p_from_mw) * state.pressure,
            pressed(loading_ahead, p_ahead),
            2.0 * grid.resistance * network.p_from_mw / base,
        ]
    )
    sensitivity = flow.injection_sensitivity(jnp.where(network.closed, weights, 0.0), network.outages)
    share = _marginal_share(environment, state)
    relative = jnp.where(network.live, sensitivity - (sensitivity @ share)[:, None], 0.0)
    return Signals(relative[0], relative[1], relative[2], p_ahead, loading_ahead)


def _marginal_share(environment: "PowerGrid", state: GridState) -> Float[Array, " buses"]:
    """How the merit-order schedule would share out a change of demand: by the units' price response."""
    units, outlook = environment.units, state.outlook
    lower = jnp.minimum(units.p_min_mw, outlook.available_mw)
    room = jnp.minimum(outlook.schedule_mw - lower, outlook.available_mw - outlook.schedule_mw)
    # a unit at a limit does not answer; a tenth of a megawatt of room counts half
    answer = jnp.where(units.cost_c2 > 0, 1.0 / jnp.maximum(units.cost_c2, 1e-6), 0.0) * room / (room + 0.1)
    answer = jnp.where(state.network.live[units.bus], answer, 0.0)
    at_buses = jnp.zeros(environment.grid.load_mw.shape[0]).at[units.bus].add(answer)
    return at_buses / jnp.maximum(at_buses.sum(), 1e-6)


class GraphView(eqx.Module):
    """Local graphs: each agent's region and its halo, both directions of every branch."""

    node_index: Int[Array, "agents nodes"]
    node_mask: Bool[Array, "agents nodes"]
    owned: Bool[Array, "agents nodes"]
    edge_index: Int[Array, "agents edges"]
    """Branches counted twice: from -> to, then to -> from."""
    edge_mask: Bool[Array, "agents edges"]
    senders: Int[Array, "agents edges"]
    receivers: Int[Array, "agents edges"]
    slot_owner: Int[Array, "agents slots"]

    def columns(self) -> dict[str, tuple[Column, ...]]:
        return {
            "node_features": NODE_COLUMNS,
            "edge_features": EDGE_COLUMNS,
            "global_features": GLOBAL_COLUMNS,
            "slot_features": SLOT_COLUMNS,
        }

    def sizes(self) -> tuple[int, int]:
        return self.node_index.shape[1], self.edge_index.shape[1]

    def observe(self, environment: "PowerGrid", state: GridState, first: Bool[Array, ""]) -> Observation:
        signal = signals(environment, state)
        agents = self.node_index.shape[0]
        nodes = _node_features(environment, state, signal)[self.node_index]
        nodes = jnp.concatenate([self.owned[..., None].astype(nodes.dtype), nodes], axis=-1)
        edges = _edge_features(environment, state, signal)[self.edge_index]
        live_edge = jnp.concatenate([state.network.closed, state.network.closed])[self.edge_index]
        return Observation(
            graph=Graph(
                nodes=jnp.where(self.node_mask[..., None], nodes, 0.0),
                edges=jnp.where(self.edge_mask[..., None], edges, 0.0),
                senders=self.senders,
                receivers=self.receivers,
                node_mask=self.node_mask,
                edge_mask=self.edge_mask & live_edge,
                globals=jnp.broadcast_to(_global_features(environment, state, signal), (agents, len(GLOBAL_COLUMNS))),
            ),
            slots=_slot_features(environment, state, signal),
            slot_owner=self.slot_owner,
            action_mask=environment.layout.mask,
            first=jnp.broadcast_to(first, (agents,)),
            births=state.born[self.node_index] & self.node_mask,
        )


class FlatView(eqx.Module):
    """One node that holds the whole grid as a vector: 618 numbers on ieee118.

    Voltage deviation, angle, active and reactive injection a bus; output over capacity a unit; demand over nominal
    a sheddable load; frequency deviation, 0 while frequency is not modelled. Neither line loading nor time is in
    it: it is offered for comparison with agents that expect such a vector.
    """

    slot_owner: Int[Array, "agents slots"]
    buses: int = eqx.field(static=True)
    units: int = eqx.field(static=True)
    loads: int = eqx.field(static=True)

    def columns(self) -> dict[str, tuple[Column, ...]]:
        blocks = (
            ("voltage_deviation", "0.05 p.u.", self.buses),
            ("angle", "rad", self.buses),
            ("active_injection", "100 MVA", self.buses),
            ("reactive_injection", "100 MVA", self.buses),
            ("output", "capacity", self.units),
            ("demand", "nominal", self.loads),
            ("frequency_deviation", "Hz", 1),
        )
        flat = tuple(Column(f"{name}_{i}", unit) for name, unit, count in blocks for i in range(count))
        return {"node_features": flat}

    def sizes(self) -> tuple[int, int]:
        return 1, 0

    def observe(self, environment: "PowerGrid", state: GridState, first: Bool[Array, ""]) -> Observation:
        flat = vector_graph(self.vector(environment, state))
        agents, slots = self.slot_owner.shape
        return Observation(
            graph=jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (agents, *leaf.shape)), flat),
            slots=jnp.zeros((agents, slots, 0)),
            slot_owner=self.slot_owner,
            action_mask=environment.layout.mask,
            first=jnp.broadcast_to(first, (agents,)),
            births=jnp.zeros((agents, 1), bool),
        )

    def vector(self, environment: "PowerGrid", state: GridState) -> Float[Array, " features"]:
        """Active and reactive injections are what flows from each bus into its branches and shunts."""
        grid, network, units = environment.grid, state.network, environment.units
        p, q = grid.flow.injections(network.angle, network.voltage, network.outages)
        voltage = jnp.where(network.voltage > 0, (network.voltage - 1.0) / 0.05, 0.0)
        return jnp.concatenate(
            [
                voltage,
                network.angle,
                p,
                q,
                network.generation_mw / jnp.maximum(units.p_max_mw, 1e-6),
                state.level[environment.shed_bus],
                jnp.zeros(1),
            ]
        )


def _node_features(environment: "PowerGrid", state: GridState, signal: Signals) -> Float[Array, "buses features"]:
    """`NODE_COLUMNS` but the first, which depends on the viewer."""
    grid, network, units, outlook = environment.grid, state.network, environment.units, state.outlook

    def at_buses(values: Float[Array, " units"]) -> Float[Array, " buses"]:
        return jnp.zeros(grid.load_mw.shape[0]).at[units.bus].add(values)

    voltage = jnp.where(network.voltage > 0, (network.voltage - 1.0) / 0.05, 0.0)
    columns = [
        network.live.astype(voltage.dtype),
        voltage,
        (network.angle - (network.angle * network.live).sum() / jnp.maximum(network.live.sum(), 1)) / 0.5,
        network.served_mw / 100.0,
        grid.load_mw * (outlook.level_hour - state.level) / 100.0,
        at_buses(network.generation_mw) / 100.0,
        at_buses(jnp.maximum(state.available_mw - network.generation_mw, 0.0)) / 100.0,
        at_buses(outlook.available_hour_mw - state.available_mw) / 100.0,
        signal.congestion_price,
        signal.congestion_ahead,
        signal.losses / 0.1,
    ]
    return jnp.where(network.live, jnp.stack(columns), 0.0).T


def _edge_features(
    environment: "PowerGrid", state: GridState, signal: Signals
) -> Float[Array, "directed_edges features"]:
    grid, network = environment.grid, state.network
    rating = jnp.minimum(grid.rating_mva, _UNRATED_MVA)
    both = jnp.stack(
        [
            network.loading,
            signal.loading_ahead,
            jnp.maximum(network.loading - 1.0, 0.0) / 0.2,
            network.closed.astype(rating.dtype),
            jnp.log(rating / 100.0),
            grid.reactance / 0.1,
        ],
        axis=-1,
    )
    flow = (network.p_from_mw / rating)[:, None]
    return jnp.concatenate([jnp.concatenate([flow, both], axis=-1), jnp.concatenate([-flow, both], axis=-1)], axis=0)


def _global_features(environment: "PowerGrid", state: GridState, signal: Signals) -> Float[Array, " features"]:
    grid, network, outlook = environment.grid, state.network, state.outlook
    nominal = grid.load_mw.sum()
    turn = 2 * jnp.pi * state.minute / MINUTES_PER_DAY
    farm = environment.units.farm
    excess = jnp.maximum(network.apparent_mva - grid.rating_mva, 0.0)
    rated = jnp.isfinite(grid.rating_mva)
    ahead = jnp.where(rated, jnp.maximum(signal.loading_ahead - 1.0, 0.0) * grid.rating_mva, 0.0)
    return jnp.stack(
        [
            jnp.sin(turn),
            jnp.cos(turn),
            (grid.load_mw * state.level).sum() / nominal,
            (grid.load_mw * (outlook.level_hour - state.level)).sum() / nominal,
            jnp.where(farm, network.generation_mw, 0.0).sum() / nominal,
            jnp.where(farm, outlook.available_hour_mw - state.available_mw, 0.0).sum() / nominal,
            network.loading.max(),
            excess.sum() / 100.0,
            ahead.sum() / 100.0,
            (grid.flow.closed & ~network.closed).sum() / grid.max_outages,
            outlook.price / 50.0,
            network.slack_mw / 100.0,
            network.losses_mw / (0.05 * nominal),
        ]
    )


def _slot_features(
    environment: "PowerGrid", state: GridState, signal: Signals
) -> Float[Array, "agents slots features"]:
    units, outlook, network = environment.units, state.outlook, state.network
    span = environment.prices.span
    output = network.generation_mw
    loads = environment.shed_bus.shape[0]
    gap = (units.cost_c1 + 2.0 * units.cost_c2 * output - outlook.price) / span
    of_units = [
        jnp.ones_like(output),
        units.farm.astype(output.dtype),
        output / 100.0,
        outlook.schedule_mw / 100.0,
        jnp.maximum(state.available_mw - output, 0.0) / 100.0,
        jnp.clip(gap, -2.0, 2.0),
    ]
    bus = jnp.concatenate([units.bus, environment.shed_bus])
    demand = (environment.grid.load_mw * state.level)[environment.shed_bus]
    columns = [jnp.concatenate([column, jnp.zeros(loads)]) for column in of_units]
    columns += [
        signal.congestion_price[bus],
        signal.congestion_ahead[bus],
        # what a megawatt here saves in losses, as a price
        -outlook.price * signal.losses[bus] / span,
        jnp.concatenate([jnp.zeros_like(output), demand / 100.0]),
    ]
    return jax.vmap(environment.layout.spread, out_axes=-1)(jnp.stack(columns))
