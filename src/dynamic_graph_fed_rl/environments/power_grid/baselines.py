"""What grid operators use today, as controllers in the environment's own action space.

All read the true state and all act on a batch of worlds. Set-points are asked for in MW and turned into actions
by the inverse of the environment's own map, so ramp limits and clipping apply to them as to a policy.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.base import Controller, Observation
from dynamic_graph_fed_rl.environments.power_grid.dispatch import dc_opf, redistribute
from dynamic_graph_fed_rl.environments.power_grid.environment import PowerGrid
from dynamic_graph_fed_rl.environments.power_grid.observation import signals
from dynamic_graph_fed_rl.environments.power_grid.set_points import actions, shed_action
from dynamic_graph_fed_rl.environments.power_grid.state import GridState


class GridBaseline(Controller):
    """A rule of one world: set-points [MW] of all units and the share of each sheddable load to give up."""

    environment: PowerGrid

    @abc.abstractmethod
    def decide(
        self, key: PRNGKeyArray, memory: PyTree, state: GridState
    ) -> tuple[Float[Array, " units"], Float[Array, " loads"]]: ...

    def remember(self, state: GridState) -> PyTree:
        """What the rule keeps from the first state of an episode."""
        return None

    def initial_memory(self, state: PyTree, observation: Observation) -> PyTree:
        return jax.vmap(self.remember)(state)

    def act(self, key: PRNGKeyArray, memory: PyTree, state: PyTree, observation: Observation) -> tuple[Array, PyTree]:
        def one(world_key: PRNGKeyArray, kept: PyTree, world: GridState) -> Array:
            target, shed = self.decide(world_key, kept, world)
            environment = self.environment
            units = actions(target, environment.units, world.outlook, environment.prices.span)
            loads = shed_action(shed, environment.max_shed)
            return environment.layout.spread(jnp.concatenate([units, loads]))[..., None]

        keys = jax.random.split(key, observation.first.shape[1])
        return jax.vmap(one, out_axes=1)(keys, memory, state), memory

    @property
    def no_shed(self) -> Float[Array, " loads"]:
        return jnp.zeros(self.environment.shed_bus.shape)


class DoNothing(GridBaseline):
    """Set-points frozen at the start of the day; the distributed slack balances."""

    def remember(self, state: GridState) -> Float[Array, " units"]:
        return state.set_point_mw

    def decide(self, key, memory, state):
        return memory, self.no_shed


class Random(Controller):
    """Uniform over the whole action space, shedding included: a floor, for sanity."""

    environment: PowerGrid

    def initial_memory(self, state: PyTree, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state: PyTree, observation: Observation) -> tuple[Array, None]:
        return jax.random.uniform(key, (*observation.action_mask.shape, 1), minval=-1.0, maxval=1.0), None


class Proportional(GridBaseline):
    """Every unit at the same share of what it can give (farms at all they can)."""

    def decide(self, key, memory, state):
        units, outlook = self.environment.units, state.outlook
        demand = outlook.schedule_mw.sum()
        farms = jnp.where(units.farm, outlook.available_mw, 0.0)
        rest = jnp.where(units.farm, 0.0, outlook.available_mw)
        share = jnp.clip((demand - farms.sum()) / jnp.maximum(rest.sum(), 1e-6), 0.0, 1.0)
        lower = jnp.minimum(units.p_min_mw, outlook.available_mw)
        return redistribute(farms + share * rest, lower, outlook.available_mw, demand), self.no_shed


class MeritOrder(GridBaseline):
    """Least-cost dispatch of the forecast, blind to the network: the zero action."""

    def decide(self, key, memory, state):
        return state.outlook.schedule_mw, self.no_shed


class PTDFRedispatch(GridBaseline):
    """Merit order, corrected by sensitivities where a line would be loaded above a threshold; idle otherwise.

    The way of a control room's redispatch tool: for the worst line of the forecast, the pair of units with the
    most relief a dollar is moved, up and down by the same amount, until the line is back at `target_loading` or
    one of the pair is at its limit or out of reach of its ramp; then the next line, `moves` times. If lines stay
    above `shed_loading`, loads are shed where that relieves the worst of them most. The first two
    thresholds are tuned on training seeds by benchmarks/tune_baselines.py.
    """

    idle_loading: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.96)
    target_loading: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.96)
    shed_loading: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.5)
    moves: int = eqx.field(static=True, default=12)

    def decide(self, key, memory, state):
        environment = self.environment
        units, grid, network, outlook = environment.units, environment.grid, state.network, state.outlook
        rating = jnp.where(network.closed, grid.rating_mva, jnp.inf)
        ahead = signals(environment, state)
        # the direction of the flow under the schedule, in MVA so that loading is compared with the rating
        flow = ahead.loading_ahead * grid.rating_mva * jnp.sign(ahead.p_ahead_mw)
        flow = jnp.where(jnp.isfinite(grid.rating_mva), flow, 0.0)
        reach = units.ramp_mw_per_min * environment.minutes
        lower = jnp.maximum(jnp.minimum(units.p_min_mw, outlook.available_mw), state.set_point_mw - reach)
        upper = jnp.minimum(outlook.available_mw, state.set_point_mw + reach)
        running = network.live[units.bus]

        def sensitivity_of(line: Array) -> Float[Array, " units"]:
            one_hot = jnp.zeros_like(flow).at[line].set(1.0)
            return grid.flow.injection_sensitivity(one_hot[None], network.outages)[0][units.bus]

        def move(_: Int[Array, ""], carry: tuple[Array, Array]) -> tuple[Array, Array]:
            target, flow = carry
            loading = jnp.abs(flow) / rating
            line = jnp.argmax(loading)
            relief = -jnp.sign(flow[line]) * sensitivity_of(line)
            marginal = units.cost_c1 + 2.0 * units.cost_c2 * target
            up_room = jnp.where(running, upper - target, 0.0)
            down_room = jnp.where(running, target - lower, 0.0)
            gain = relief[:, None] - relief[None, :]
            # dearer pairs must relieve more; a constant keeps free moves from counting as infinitely good
            price = jnp.maximum(marginal[:, None] - marginal[None, :], 0.0) + 1.0
            usable = (up_room[:, None] > 0.1) & (down_room[None, :] > 0.1) & (gain > 0.02)
            best = jnp.argmax(jnp.where(usable, gain / price, -jnp.inf))
            up, down = jnp.unravel_index(best, gain.shape)
            excess = (loading[line] - self.target_loading) * rating[line]
            amount = jnp.minimum(
                excess / jnp.maximum(gain[up, down], 1e-6), jnp.minimum(up_room[up], down_room[down])
            )
            amount = jnp.where(usable.any() & (loading[line] > self.idle_loading), amount, 0.0)
            amount = jnp.maximum(amount, 0.0)
            step = jnp.zeros_like(target).at[up].add(amount).at[down].add(-amount)
            injected = jnp.zeros_like(grid.load_mw).at[units.bus].add(step)
            base = grid.flow.base_mva
            change = base * grid.flow.dc_change(injected / base, network.outages)
            return target + step, flow + jnp.where(network.closed, change, 0.0)

        start = jnp.clip(outlook.schedule_mw, lower, jnp.maximum(upper, lower))
        target, flow = jax.lax.fori_loop(0, self.moves, move, (start, flow))
        loading = jnp.abs(flow) / rating
        line = jnp.argmax(loading)
        one_hot = jnp.zeros_like(flow).at[line].set(jnp.sign(flow[line]))
        relief = grid.flow.injection_sensitivity(one_hot[None], network.outages)[0][environment.shed_bus]
        urgent = loading[line] > self.shed_loading
        shed = jnp.where(urgent & (relief < -0.2), environment.max_shed, 0.0)
        return target, shed


class DCOptimalPowerFlow(GridBaseline):
    """DC optimal power flow at every decision with the perfect model: the strong reference.

    It knows the grid's sensitivities, the forecast and the outages exactly; not the reactive flows, for which the
    limits are reduced to what the lines' present reactive power leaves.
    """

    margin: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.94)

    def decide(self, key, memory, state):
        environment = self.environment
        units, grid, network, outlook = environment.units, environment.grid, state.network, state.outlook
        flow, base = grid.flow, grid.flow.base_mva
        identity = jnp.eye(grid.rating_mva.shape[0])
        closed = network.closed
        ptdf = flow.injection_sensitivity(jnp.where(closed, identity, 0.0), network.outages)
        sensitivities = ptdf[:, units.bus]
        now = network.p_from_mw - sensitivities @ network.generation_mw
        drawn = jnp.where(network.live, grid.load_mw * outlook.level, 0.0) - network.served_mw
        base_flow = now + base * flow.dc_change(-drawn / base, network.outages)
        rating = grid.rating_mva * self.margin
        reactive = jnp.minimum(jnp.abs(network.q_from_mvar), 0.9 * rating)
        limit = jnp.where(jnp.isfinite(rating) & closed, jnp.sqrt(rating**2 - reactive**2), jnp.inf)
        running = network.live[units.bus]
        reach = units.ramp_mw_per_min * environment.minutes
        available = jnp.where(running, outlook.available_mw, 0.0)
        lower = jnp.minimum(
            jnp.maximum(jnp.minimum(units.p_min_mw, available), state.set_point_mw - reach), available
        )
        upper = jnp.maximum(jnp.minimum(available, state.set_point_mw + reach), lower)
        demand = outlook.schedule_mw.sum()
        target, _, _ = dc_opf(
            demand,
            lower,
            upper,
            units.cost_c2,
            units.cost_c1,
            sensitivities,
            jnp.where(closed, base_flow, 0.0),
            limit,
            environment.prices.overload,
        )
        return target, self.no_shed


BASELINES: Mapping[str, Callable[[Any], Controller]] = {
    "do-nothing": DoNothing,
    "random": Random,
    "proportional": Proportional,
    "merit-order": MeritOrder,
    "ptdf-redispatch": PTDFRedispatch,
    "dc-opf": DCOptimalPowerFlow,
}
