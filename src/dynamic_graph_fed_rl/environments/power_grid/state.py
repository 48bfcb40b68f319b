"""What a grid environment is made of and what one world's state holds."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.power_grid.dispatch import merit_order
from dynamic_graph_fed_rl.environments.power_grid.dynamics import Network
from dynamic_graph_fed_rl.environments.power_grid.scenarios import (
    Profiles,
    Scenario,
    Weather,
    availability,
    load_level,
)


class Units(eqx.Module):
    """The fleet's figures a unit; see `fleet.Fleet`."""

    bus: Int[Array, " units"]
    p_max_mw: Float[Array, " units"]
    p_min_mw: Float[Array, " units"]
    cost_c2: Float[Array, " units"]
    cost_c1: Float[Array, " units"]
    cost_c0: Float[Array, " units"]
    ramp_mw_per_min: Float[Array, " units"]
    co2_t_per_mwh: Float[Array, " units"]
    wind: Bool[Array, " units"]
    solar: Bool[Array, " units"]

    @property
    def farm(self) -> Bool[Array, " units"]:
        return self.wind | self.solar

    def cost(self, output_mw: Float[Array, " units"]) -> Float[Array, " units"]:
        """[$/h]"""
        return self.cost_c2 * output_mw**2 + self.cost_c1 * output_mw + self.cost_c0

    def dispatch(
        self, demand_mw: Float[Array, ""], available_mw: Float[Array, " units"]
    ) -> tuple[Float[Array, " units"], Float[Array, ""]]:
        """Network-blind least-cost outputs [MW] and their marginal cost [$/MWh]."""
        lower = jnp.minimum(self.p_min_mw, available_mw)
        return merit_order(demand_mw, lower, available_mw, self.cost_c2, self.cost_c1)


class Outlook(eqx.Module):
    """What is known before a decision: what its end is expected to bring, and the merit-order operator's answer.

    `level` (demand over nominal) and `available_mw` are expected at the decision's end, `*_hour` an hour ahead;
    `schedule_mw` is the network-blind least-cost dispatch of that demand and the last known losses, `price` its
    marginal cost [$/MWh].
    """

    level: Float[Array, " buses"]
    available_mw: Float[Array, " units"]
    level_hour: Float[Array, " buses"]
    available_hour_mw: Float[Array, " units"]
    schedule_mw: Float[Array, " units"]
    price: Float[Array, ""]


class GridState(eqx.Module):
    """One world: the kind of day, where in it, the weather, what was asked of the units, and the network.

    `level` and `available_mw` are the present demand over nominal and possible output; `shed` the share of each
    bus's load given up; `pressure` how far and how long each line has been loaded to its limit; `born` the buses
    reconnected by the last decision.
    """

    kind: Scenario
    day: Int[Array, ""]
    minute: Float[Array, ""]
    decisions: Int[Array, ""]
    weather: Weather
    level: Float[Array, " buses"]
    available_mw: Float[Array, " units"]
    set_point_mw: Float[Array, " units"]
    shed: Float[Array, " buses"]
    network: Network
    pressure: Float[Array, " lines"]
    born: Bool[Array, " buses"]
    outlook: Outlook


def conditions(
    units: Units,
    profiles: Profiles,
    kind: Scenario,
    weather: Weather,
    day: Int[Array, ""],
    minute: Float[Array, ""],
) -> tuple[Float[Array, " buses"], Float[Array, " units"]]:
    """Demand over nominal a bus, and possible output [MW] a unit."""
    shape, wind, solar = profiles.at(day, minute.astype(jnp.int32))
    level = load_level(kind, weather, shape)
    return level, units.p_max_mw * availability(weather, wind, solar, units.wind, units.solar)
