"""The Markov game on a transmission grid: regional agents dispatch units and shed load under weather and faults."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.power_grid.dynamics import (
    GridConstants,
    Injections,
    Network,
    intact,
    weathered,
    world_step,
)
from dynamic_graph_fed_rl.environments.power_grid.scenarios import (
    MINUTES_PER_DAY,
    Profiles,
    Scenario,
    Weather,
)
from dynamic_graph_fed_rl.environments.power_grid.set_points import (
    SlotLayout,
    ramped,
    set_points,
    shed_share,
)
from dynamic_graph_fed_rl.environments.power_grid.state import GridState, Outlook, Units, conditions
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec

VOLTAGE_BAND_PU = (0.94, 1.06)
METRICS = (
    Metric("operating_cost", "operating cost", "$/MWh"),
    Metric("cost_per_mwh_served", "cost per MWh served", "$/MWh"),
    Metric("unserved_mwh", "unserved energy", "MWh"),
    Metric("overload_mvah", "overload", "MVAh"),
    Metric("overload_line_hours", "overloaded lines", "line h"),
    Metric("voltage_violation_bus_hours", "voltage violation", "bus h"),
    Metric("survival_steps", "survival", "steps", lower_is_better=False),
    Metric("n1_secure_share", "N-1 secure", "share of time", lower_is_better=False),
    Metric("renewable_curtailed_mwh", "renewable curtailed", "MWh"),
    Metric("co2_tonnes", "CO2", "t"),
    Metric("moved_mw", "set-points moved", "MW"),
)
COSTS = (Column("overload", "MVA"), Column("voltage", "p.u."), Column("unserved", "MW"))
# caps of the three parts of the reward: charges as a share of the merit-order cost at which safety and uptime
# are halved, and at which the cost part is used up
_SAFETY_SCALE, _COST_SCALE, _UPTIME_SCALE = 0.5, 0.3, 0.2
# charge for voltage outside its band, for the reward alone [$/h per p.u.]
_VOLTAGE_PRICE = 20_000.0
_SETTLING_STEPS = 3


@runtime_checkable
class View(Protocol):
    """How agents see a grid; see `observation.py`."""

    def columns(self) -> dict[str, tuple[Column, ...]]: ...
    def sizes(self) -> tuple[int, int]: ...
    def observe(self, environment: "PowerGrid", state: GridState, first: Bool[Array, ""]) -> Observation: ...


class Prices(eqx.Module):
    """What the headline metric charges, and the span of a set-point action [$/MWh]."""

    overload: Float[Array, ""]
    unserved: Float[Array, ""]
    span: Float[Array, ""]


def _pressed(pressure: Float[Array, " lines"], loading: Float[Array, " lines"]) -> Float[Array, " lines"]:
    """A line's pressure after one more decision: it builds up above 97 % of the rating and falls below it.

    The ascent of a limit's shadow price (dual ascent): as long as a line stays overloaded, relief becomes dearer.
    """
    return jnp.clip(pressure + 10.0 * (loading - 0.97), 0.0, 40.0)


class PowerGrid(Environment):
    """Dispatch of a transmission grid by the agents of its regions.

    A call of `step` is one decision: `decision_interval` world steps of `step_s`, during which set-points ramp.

    **Action** `[A, S, 1]` in [-1, 1]: each agent's slots are its units, then its sheddable loads, padded. A unit
    at 0 follows the merit-order schedule; the inner half of the range moves it as a price change of up to
    `price_span` would, the outer half on to its limits; ramp limits apply. A load is shed above 0.5, by up to
    `max_shed` at 1.

    **Observation:** the region and a halo of `radius` hops as a graph; columns in `observation.py`.

    **Reward** in (0, 1], the same for all agents: 0.5 safety + 0.3 cost + 0.2 uptime, each within [0, 1]. All
    three are in units of the merit-order cost of the demand, so that the reward ranks as operating cost does. Load
    cut off from the main island counts in the headline, not in the reward: no action can serve it.

    **Termination:** a blackout (divergence, more than half of the load lost, or too many lines out); the reward
    is 0 from then on. Truncated after `episode_decisions`.
    """

    grid: GridConstants
    units: Units
    prices: Prices
    profiles: Profiles
    kinds: Scenario
    max_shed: Float[Array, ""]
    shed_bus: Int[Array, " sheddable"]
    layout: SlotLayout
    view: View
    step_s: float = eqx.field(static=True)
    decision_interval: int = eqx.field(static=True)
    episode_decisions: int = eqx.field(static=True)
    random_start: bool = eqx.field(static=True)
    screen_n_minus_1: bool = eqx.field(static=True)

    @property
    def spec(self) -> Spec:
        agents, slots = self.layout.mask.shape
        nodes, edges = self.view.sizes()
        return Spec(
            agents=agents,
            nodes=nodes,
            edges=edges,
            slots=slots,
            action="continuous",
            action_size=1,
            **self.view.columns(),
            costs=COSTS,
            metrics=METRICS,
            headline="operating_cost",
            steps_per_decision=self.decision_interval,
            episode_decisions=self.episode_decisions,
        )

    @property
    def minutes(self) -> float:
        """Length of a decision [min]."""
        return self.decision_interval * self.step_s / 60.0

    def reset(self, key: PRNGKeyArray) -> tuple[GridState, Observation]:
        """A day of one of the kinds, from its first minute or anywhere in it; the grid is whole and dispatched by
        merit order."""
        keys = jax.random.split(key, 4)
        kind = jax.random.randint(keys[0], (), 0, self.kinds.load_low.shape[0])
        scenario = jax.tree.map(lambda leaf: leaf[kind], self.kinds)
        day = jax.random.randint(keys[1], (), 0, self.profiles.wind.shape[0])
        minute = jnp.zeros(())
        if self.random_start:
            minute = jnp.floor(jax.random.uniform(keys[2], maxval=MINUTES_PER_DAY / self.minutes)) * self.minutes
        weather = Weather.draw(keys[3], self.grid.load_mw.shape[0], self.units.bus.shape[0])
        level, available = conditions(self.units, self.profiles, scenario, weather, day, minute)
        schedule, _ = self.units.dispatch((self.grid.load_mw * level).sum(), available)
        no_shed = jnp.zeros_like(level)

        # the losses of one solution are dispatched in the next
        def settle(_: Int[Array, ""], carry: tuple[Network, Array]) -> tuple[Network, Array]:
            network, set_point = carry
            asked = Injections(set_point, available, level, no_shed)
            network = world_step(self.grid, network, asked, jnp.zeros((), jnp.int32))
            demand = (self.grid.load_mw * level).sum() + network.losses_mw
            return network, self.units.dispatch(demand, available)[0]

        network, set_point = jax.lax.fori_loop(0, _SETTLING_STEPS, settle, (intact(self.grid), schedule))
        state = GridState(
            kind=scenario,
            day=day,
            minute=minute,
            decisions=jnp.zeros((), jnp.int32),
            weather=weather,
            level=level,
            available_mw=available,
            set_point_mw=set_point,
            shed=no_shed,
            network=eqx.tree_at(lambda n: n.overload_steps, network, jnp.zeros_like(network.overload_steps)),
            pressure=jnp.zeros_like(network.loading),
            born=jnp.zeros(level.shape, bool),
            outlook=self._outlook(scenario, weather, day, minute, network),
        )
        return state, self.view.observe(self, state, jnp.asarray(True))

    def step(
        self, key: PRNGKeyArray, state: GridState, action: Float[Array, "agents slots 1"]
    ) -> tuple[GridState, Transition]:
        weather_key, fault_key, repair_key = jax.random.split(key, 3)
        requested = self.layout.gather(action)
        # a request that is not a number asks for nothing
        clipped = jnp.clip(jnp.where(jnp.isfinite(requested), requested, 0.0), -1.0, 1.0)
        count = self.units.bus.shape[0]
        wanted = set_points(clipped[:count], self.units, state.outlook, self.prices.span)
        target = ramped(wanted, state.set_point_mw, self.units, self.minutes)
        shed = jnp.zeros_like(state.shed).at[self.shed_bus].set(shed_share(clipped[count:], self.max_shed))

        minute = state.minute + self.minutes
        weather = state.weather.after(weather_key, self.minutes, self.units.wind)
        level, available = conditions(self.units, self.profiles, state.kind, weather, state.day, minute)
        faults = jax.random.bernoulli(fault_key, self._fault_probability(state.kind), self.grid.rating_mva.shape)
        hours = state.kind.repair_hours * jax.random.uniform(repair_key, minval=0.5, maxval=1.5)
        repair_steps = jnp.ceil(hours * 3600.0 / self.step_s).astype(jnp.int32)
        struck = weathered(self.grid, state.network, faults, repair_steps, self.decision_interval)
        reference = self._reference_cost(
            jnp.where(struck.live, 0.5 * (state.level + level), 0.0), 0.5 * (state.available_mw + available)
        )

        def one(network: Network, index: Int[Array, ""]) -> tuple[Network, dict[str, Array]]:
            part = (index + 1) / self.decision_interval
            between = lambda before, after: before + part * (after - before)  # noqa: E731
            possible = between(state.available_mw, available)
            set_point = jnp.minimum(between(state.set_point_mw, target), possible)
            asked = Injections(set_point, possible, between(state.level, level), shed)
            network = world_step(self.grid, network, asked, repair_steps)
            return network, self._account(network, asked, reference)

        network, figures = jax.lax.scan(one, struck, jnp.arange(self.decision_interval))
        after = GridState(
            kind=state.kind,
            day=state.day,
            minute=minute,
            decisions=state.decisions + 1,
            weather=weather,
            level=level,
            available_mw=available,
            set_point_mw=jnp.minimum(target, available),
            shed=shed,
            network=network,
            pressure=_pressed(state.pressure, network.loading),
            born=network.live & ~state.network.live,
            outlook=self._outlook(state.kind, weather, state.day, minute, network),
        )
        reward = figures["reward"].mean()
        cost = jnp.stack([figures["overload"], figures["voltage"], figures["unserved"]]).mean(1)
        agents = self.layout.mask.shape[0]
        metrics = {name: value.sum() for name, value in figures.items() if name.startswith("total_")}
        metrics["total_moved_mw"] = jnp.abs(after.set_point_mw - state.set_point_mw).sum()
        metrics["total_decisions"] = jnp.ones(())
        metrics["total_n1_secure"] = self._secure(network) if self.screen_n_minus_1 else jnp.zeros(())
        transition = Transition(
            observation=self.view.observe(self, after, jnp.asarray(False)),
            reward=jnp.full(agents, reward),
            cost=jnp.broadcast_to(cost, (agents, len(COSTS))),
            terminated=jnp.broadcast_to(network.dark, (agents,)),
            truncated=jnp.broadcast_to(~network.dark & (after.decisions >= self.episode_decisions), (agents,)),
            info={
                "metrics": metrics,
                "requested": requested,
                "clipped": clipped,
                "wanted_mw": wanted,
                "applied_mw": target,
            },
        )
        return after, transition

    def episode_metrics(self, totals: dict[str, Array]) -> dict[str, Array]:
        """The headline and further metrics of a day from the sums over its decisions."""
        demand, served = totals["total_demand_mwh"], totals["total_served_mwh"]
        dollars = totals["total_dollars"]
        metrics = {
            "operating_cost": dollars / demand,
            "cost_per_mwh_served": dollars / jnp.maximum(served, 1e-6),
            "unserved_mwh": demand - served,
            "n1_secure_share": totals["total_n1_secure"] / totals["total_decisions"],
        }
        for metric in METRICS:
            if metric.name not in metrics:
                metrics[metric.name] = totals[f"total_{metric.name}"]
        return metrics

    def _outlook(
        self,
        kind: Scenario,
        weather: Weather,
        day: Int[Array, ""],
        minute: Float[Array, ""],
        network: Network,
    ) -> Outlook:
        def ahead(minutes: float) -> tuple[Array, Array]:
            expected = weather.expected(minutes, self.units.wind)
            return conditions(self.units, self.profiles, kind, expected, day, minute + minutes)

        level, available = ahead(self.minutes)
        level_hour, available_hour = ahead(60.0)
        demand = jnp.where(network.live, self.grid.load_mw * level, 0.0).sum() + network.losses_mw
        running = jnp.where(network.live[self.units.bus], available, 0.0)
        schedule, price = self.units.dispatch(demand, running)
        return Outlook(level, available, level_hour, available_hour, schedule, price)

    def _fault_probability(self, kind: Scenario) -> Float[Array, ""]:
        """Of one line within one decision; the faults of a decision strike at its start."""
        return -jnp.expm1(-kind.line_failure_rate * self.minutes / 60.0)

    def _reference_cost(self, level: Float[Array, " buses"], possible_mw: Float[Array, " units"]) -> Float[Array, ""]:
        """Merit-order cost [$/h] of the demand without losses: the unit in which rewards are counted."""
        schedule, _ = self.units.dispatch((self.grid.load_mw * level).sum(), possible_mw)
        return jnp.maximum(self.units.cost(schedule).sum(), 1.0)

    def _account(self, network: Network, asked: Injections, reference: Float[Array, ""]) -> dict[str, Array]:
        """Reward, constraint signals and what evaluation adds up, of one world step."""
        hours = self.step_s / 3600.0
        demand = (self.grid.load_mw * asked.level).sum()
        unserved = jnp.maximum(demand - network.served_mw.sum(), 0.0)
        excess = jnp.maximum(network.apparent_mva - self.grid.rating_mva, 0.0)
        generation = jnp.where(network.dark, 0.0, self.units.cost(network.generation_mw).sum())
        low, high = VOLTAGE_BAND_PU
        voltage = network.voltage
        outside = jnp.where(voltage > 0, jnp.maximum(voltage - high, 0) + jnp.maximum(low - voltage, 0), 0.0)
        overload_charge = self.prices.overload * excess.sum()
        unserved_charge = self.prices.unserved * unserved
        # load that a fault has cut off is on the bill, but no action could have served it
        reachable = jnp.where(network.live, self.grid.load_mw * asked.level, 0.0).sum()
        refused_charge = self.prices.unserved * jnp.maximum(reachable - network.served_mw.sum(), 0.0)
        danger = (overload_charge + refused_charge + _VOLTAGE_PRICE * outside.sum()) / reference
        safety = 1.0 / (1.0 + danger / _SAFETY_SCALE)
        thrift = 1.0 - jnp.clip((generation / reference - 1.0) / _COST_SCALE, 0.0, 1.0)
        uptime = 1.0 / (1.0 + refused_charge / reference / _UPTIME_SCALE)
        reward = jnp.where(network.dark, 0.0, 0.5 * safety + 0.3 * thrift + 0.2 * uptime)
        curtailed = jnp.where(self.units.farm, asked.p_max_mw - network.generation_mw, 0.0)
        return {
            "reward": reward,
            "overload": excess.sum(),
            "voltage": outside.sum(),
            "unserved": unserved,
            "total_dollars": (generation + overload_charge + unserved_charge) * hours,
            "total_demand_mwh": demand * hours,
            "total_served_mwh": (demand - unserved) * hours,
            "total_overload_mvah": excess.sum() * hours,
            "total_overload_line_hours": (excess > 0).sum() * hours,
            "total_voltage_violation_bus_hours": (outside > 0).sum() * hours,
            "total_survival_steps": jnp.where(network.dark, 0.0, 1.0),
            "total_renewable_curtailed_mwh": jnp.maximum(curtailed, 0.0).sum() * hours,
            "total_co2_tonnes": (self.units.co2_t_per_mwh * network.generation_mw).sum() * hours,
        }

    def _secure(self, network: Network) -> Float[Array, ""]:
        """1 if the loss of any one further line would overload no other (DC screen; radial lines do not count)."""
        worst = self.grid.flow.n_minus_1_loading(
            network.p_from_mw,
            jnp.where(jnp.isfinite(self.grid.rating_mva), self.grid.rating_mva, 0.0),
            network.outages,
        )
        return ((worst <= 1.0).all() & ~network.dark).astype(jnp.float32)
