"""Traffic signals as a Markov game: the districts of a city choose the next phase of their signals."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Metric, Spec
from dynamic_graph_fed_rl.environments.traffic.constants import RoadConstants
from dynamic_graph_fed_rl.environments.traffic.dynamics import (
    Conditions,
    TrafficState,
    advance,
    empty_roads,
    switched,
    turned_away,
)
from dynamic_graph_fed_rl.environments.traffic.events import LONG_AGO_S, Closures, Events, draw_events
from dynamic_graph_fed_rl.environments.traffic.layout import made_once
from dynamic_graph_fed_rl.environments.traffic.observation import TrafficView
from dynamic_graph_fed_rl.environments.traffic.scenarios import Scenario
from dynamic_graph_fed_rl.environments.traffic.sensing import Sensed, sense

METRICS = (
    Metric("delay", "delay a car", "s"),
    Metric("throughput", "cars that reach their end", "1/h", lower_is_better=False),
    Metric("never_entered", "cars that never entered"),
    Metric("gridlock", "gridlocked"),
    Metric("travel_delay_h", "delay of all cars", "h"),
)
_GRIDLOCK_S = 300.0


class CityState(eqx.Module):
    """The roads, what happens on them, and how the episode goes."""

    traffic: TrafficState
    events: Events
    since_s: Float[Array, " links"]
    """Since each link last closed or opened."""
    decisions: Int[Array, ""]
    idle_s: Float[Array, ""]
    """Since a car last reached its end while any was on the roads."""
    gridlocked: Bool[Array, ""]


class Traffic(Environment):
    """Signals of a city set by the agents of its districts.

    A call of `step` is one decision: `decision_steps` steps of the roads, which last `decision_s` together.

    **Action** `[A, S]`, a phase for each of the agent's signals. One that the signal does not have, or may not take
    yet (minimum green, yellow), leaves it as it is. A change begins with `yellow_s` of yellow.

    **Observation:** the district and a halo of `radius` signals as a graph; columns in `observation.py`.

    **Reward** of an agent, in tens of cars a signal of its district: see `REWARDS`.

    **Episodes** end by time alone. Cars that have not entered by then count with all their waiting.
    """

    roads: RoadConstants
    closures: Closures
    """And the demand, under each of them."""
    busy: Int[Array, " candidates"]
    """Links that drops of capacity hit."""
    view: TrafficView
    kinds: Scenario
    link_district: Bool[Array, "agents links"]
    """Whose queues are whose."""
    district_signals: Float[Array, " agents"]
    min_green_s: Float[Array, ""]
    yellow_s: Float[Array, ""]
    latest_start_s: Float[Array, ""]
    """Episodes begin anywhere from 0 to here."""
    decision_steps: int = eqx.field(static=True)
    episode_decisions: int = eqx.field(static=True)
    reward: str = eqx.field(static=True)
    """One of `REWARDS`."""

    @property
    def spec(self) -> Spec:
        agents, slots = self.view.districts.mask.shape
        nodes, edges = self.view.sizes()
        return Spec(
            agents=agents,
            nodes=nodes,
            edges=edges,
            slots=slots,
            action="discrete",
            action_size=self.view.signals.phases,
            **self.view.columns(),
            metrics=METRICS,
            headline="delay",
            steps_per_decision=self.decision_steps,
            episode_decisions=self.episode_decisions,
        )

    @property
    def city(self) -> "Traffic":
        """Itself: what other ways to set the signals wrap."""
        return self

    @property
    def decision_s(self) -> float:
        return self.decision_steps * self.roads.dt_s

    def sensed(self, state: CityState) -> Sensed:
        """What detectors tell: all that baselines and policies may know."""
        return sense(self.roads, state.traffic, self.conditions(state))

    def observe(self, state: CityState, first: bool) -> Observation:
        """What agents see now."""
        now = state.traffic
        sensed = made_once(sense, now.time_s, self.roads, now, self.conditions(state))
        return self.view.observe(sensed, jnp.asarray(first))

    def conditions(self, state: CityState) -> Conditions:
        """What is closed, dark or broken now."""
        return state.events.conditions(self.closures, state.traffic.time_s, state.since_s)

    def reset(self, key: PRNGKeyArray) -> tuple[CityState, Observation]:
        """Empty roads at a quarter of an hour's begin, every signal in its first phase."""
        kind_key, event_key, start_key = jax.random.split(key, 3)
        number = jax.random.randint(kind_key, (), 0, self.kinds.demand_low.shape[0])
        kind = jax.tree.map(lambda leaf: leaf[number], self.kinds)
        links, signals = self.roads.link_steps.shape[0], self.view.signals.signals
        window = self.closures.demand.window_s
        length_s = self.episode_decisions * self.decision_s
        demand_s = window * self.closures.demand.rate_per_s.shape[1]
        start = jnp.floor(jax.random.uniform(start_key) * (self.latest_start_s / window + 1.0)) * window
        traffic = empty_roads(self.roads, signals)
        # a signal that has just been switched on may be switched at once
        traffic = eqx.tree_at(lambda t: (t.time_s, t.phase_s), traffic, (start, traffic.phase_s + self.min_green_s))
        state = CityState(
            traffic=traffic,
            events=draw_events(event_key, kind, links, signals, self.busy, demand_s, start, length_s),
            since_s=jnp.full(links, LONG_AGO_S),
            decisions=jnp.zeros((), jnp.int32),
            idle_s=jnp.zeros(()),
            gridlocked=jnp.asarray(False),
        )
        return state, self.observe(state, first=True)

    def step(
        self, key: PRNGKeyArray, state: CityState, action: Int[Array, "agents slots"]
    ) -> tuple[CityState, Transition]:
        requested = self.view.districts.gather(action)
        now = state.traffic
        phases = self.view.signals.phases
        allowed = self.view.allowed(self.sensed(state))
        inside = (requested >= 0) & (requested < phases)
        clipped = jnp.clip(requested, 0, phases - 1)
        possible = inside & jnp.take_along_axis(allowed, clipped[:, None], axis=1)[:, 0]
        applied = jnp.where(possible, clipped, now.target)
        ordered = switched(now, applied, jnp.broadcast_to(self.yellow_s, now.clearing_s.shape))
        row, conditions = state.events.row(now.time_s), self.conditions(state)
        demand = self.closures.demand_of(row, now.time_s)
        if self.closures.members.shape[0] > 1:
            ordered = turned_away(self.roads, ordered, self.closures.instead[row])
        level = state.events.demand_level(self.closures.demand, now.time_s)
        traffic, counts = advance(self.roads, demand, ordered, key, conditions, level, self.decision_steps)

        present = traffic.vehicles.sum() > 0
        idle = jnp.where((counts.left > 0) | ~present, 0.0, state.idle_s + self.decision_s)
        stuck = idle > _GRIDLOCK_S
        after = CityState(
            traffic=traffic,
            events=state.events,
            since_s=self._since(state, traffic.time_s),
            decisions=state.decisions + 1,
            idle_s=idle,
            gridlocked=state.gridlocked | stuck,
        )
        stood_s = counts.queued_s + counts.outside_s
        total_s = stood_s.sum() + counts.slowed_s
        agents = self.district_signals.shape[0]
        transition = Transition(
            observation=self.observe(after, first=False),
            reward=REWARDS[self.reward](self, now, after, stood_s) / (10.0 * self.district_signals),
            cost=jnp.zeros((agents, 0)),
            terminated=jnp.zeros(agents, bool),
            truncated=jnp.broadcast_to(after.decisions >= self.episode_decisions, (agents,)),
            info={
                "metrics": {
                    "total_delay_s": total_s,
                    "total_wanted": counts.wanted,
                    "total_entered": counts.entered,
                    "total_left": counts.left,
                    "total_gridlock": (stuck & ~state.gridlocked).astype(jnp.float32),
                    "total_s": jnp.asarray(self.decision_s),
                },
                "requested": requested,
                "applied": applied,
            },
        )
        return after, transition

    def _since(self, state: CityState, then_s: Float[Array, ""]) -> Float[Array, " links"]:
        """Since each link last closed or opened, at the end of a decision."""
        closed = self.closures.members
        changed = closed[state.events.row(state.traffic.time_s)] != closed[state.events.row(then_s)]
        return jnp.where(changed, 0.0, jnp.minimum(state.since_s + self.decision_s, LONG_AGO_S))

    def episode_metrics(self, totals: dict[str, Array]) -> dict[str, Array]:
        """Figures of an hour; a car's delay is the time it lost against the speed limit, or waited to enter."""
        return {
            "delay": totals["total_delay_s"] / jnp.maximum(totals["total_wanted"], 1.0),
            "throughput": totals["total_left"] / totals["total_s"] * 3600.0,
            "never_entered": totals["total_wanted"] - totals["total_entered"],
            "gridlock": totals["total_gridlock"],
            "travel_delay_h": totals["total_delay_s"] / 3600.0,
        }


def _queue(
    city: Traffic, before: TrafficState, after: CityState, stood_s: Float[Array, " links"]
) -> Float[Array, " agents"]:
    return -(city.link_district @ stood_s) / city.decision_s


def _pressure(
    city: Traffic, before: TrafficState, after: CityState, stood_s: Float[Array, " links"]
) -> Float[Array, " agents"]:
    sensed, signals = city.sensed(after), city.view.signals
    link = signals.lane_link[signals.movement_lane]
    return -(city.link_district[:, link] @ signals.pressure(signals.standing(sensed), sensed))


def _delay_difference(
    city: Traffic, before: TrafficState, after: CityState, stood_s: Float[Array, " links"]
) -> Float[Array, " agents"]:
    def standing(now: TrafficState) -> Float[Array, " links"]:
        return city.roads.link_lanes.sum(city.roads.lane_movements.sum(now.queue)) + now.entry

    return city.link_district @ (standing(before) - standing(after.traffic))


REWARDS = {"queue": _queue, "pressure": _pressure, "delay_difference": _delay_difference}
"""Of an agent, each before it is divided by ten times the signals of its district:

- queue: less the mean number of cars that stood in queues of the district or waited to enter it during the decision;
- pressure: less the sum over the district's movements, at the end of the decision, of the cars that stand before it
  less those that stand ahead, where above 0 (as max pressure counts them; after Wei et al. 2019, "PressLight");
- delay_difference: by how many the cars that stand or wait to enter, each of which loses a second a second, became
  fewer. With a discount g, the return is that of their number times 1 - g, but for a constant: the reward is its
  potential-based form (Ng et al. 1999), which has the same best policies and less to look ahead for.
"""
