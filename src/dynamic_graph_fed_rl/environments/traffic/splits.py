"""Green splits: agents set how a cycle's green is shared among its phases, instead of the next phase."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.environments.traffic.environment import CityState, Traffic
from dynamic_graph_fed_rl.environments.traffic.observation import PHASE_COLUMNS
from dynamic_graph_fed_rl.environments.traffic.rules import Program, plan_phases

# all cycles begin with the first phase: which one is green tells nothing
_KEPT = tuple(i for i, column in enumerate(PHASE_COLUMNS) if column.name != "green")
_SPAN = 2.0
"""An action times this is the logarithm of a share, before all are scaled to 1: up to 55 times the least."""


class GreenSplits(Environment):
    """The same city, where a decision is a cycle of all signals.

    **Action** `[A, S, 1]`, a number in [-1, 1] for every phase of the agent's signals: a slot is a phase. A cycle
    serves all phases of a signal in order, each for the minimum green and its share of what the cycle has besides
    minimum greens and yellows; shares are the softmax of twice the numbers.

    **Observation:** that of `Traffic`, a phase's columns in its slot.

    **Reward:** as there, the mean over the cycle.
    """

    city: Traffic
    """Decided phase by phase; what rules play in."""
    cycle_steps: int = eqx.field(static=True)

    @property
    def spec(self) -> Spec:
        spec = self.city.spec
        return replace(
            spec,
            slots=spec.slots * spec.action_size,
            action="continuous",
            action_size=1,
            slot_features=tuple(PHASE_COLUMNS[i] for i in _KEPT),
            choice_features=(),
            steps_per_decision=self.cycle_steps,
            episode_decisions=self.cycles,
        )

    @property
    def cycles(self) -> int:
        """Whole ones in an episode."""
        return self.city.episode_decisions * self.city.decision_steps // self.cycle_steps

    @property
    def decision_s(self) -> float:
        return self.cycle_steps * self.city.roads.dt_s

    def seen(self, observation: Observation) -> Observation:
        """An observation of the city, `[A, ...]`, with a slot for each phase."""
        own, districts = self.city.view.signals, self.city.view.districts
        agents, phases = districts.mask.shape[0], own.phases
        return eqx.tree_at(
            lambda o: (o.slots, o.slot_owner, o.action_mask),
            observation,
            (
                observation.slots.reshape(agents, -1, len(PHASE_COLUMNS))[..., _KEPT],
                jnp.repeat(observation.slot_owner, phases, axis=1),
                districts.spread(own.phase_mask).reshape(agents, -1),
            ),
        )

    def gather(self, action: Float[Array, "agents slots 1"]) -> Float[Array, "signals phases"]:
        """From agents' slots to phases; 0 where a signal has none."""
        own = self.city.view.signals
        return jnp.where(own.phase_mask, action.reshape(-1, own.phases)[self.city.view.districts.place], 0.0)

    def plan(self, action: Float[Array, "agents slots 1"]) -> Program:
        """Green times of the coming cycle, from its begin."""
        own, wish = self.city.view.signals, self.gather(action)
        wish = jnp.clip(jnp.where(jnp.isfinite(wish), wish, 0.0), -1.0, 1.0)
        share = jax.nn.softmax(jnp.where(own.phase_mask, _SPAN * wish, -jnp.inf), axis=1)
        yellow_s, least_s = self.city.yellow_s, self.city.min_green_s
        spare_s = self.decision_s - own.phase_mask.sum(1) * (yellow_s + least_s)
        return Program(
            green_s=jnp.where(own.phase_mask, least_s + share * spare_s[:, None], 0.0),
            clearance_s=jnp.where(own.phase_mask, yellow_s, 0.0),
            offset_s=jnp.zeros(own.signals),
        )

    def reset(self, key: PRNGKeyArray) -> tuple[CityState, Observation]:
        state, observation = self.city.reset(key)
        return state, self.seen(observation)

    def step(
        self, key: PRNGKeyArray, state: CityState, action: Float[Array, "agents slots 1"]
    ) -> tuple[CityState, Transition]:
        city, plan = self._by_steps, self.plan(action)
        spread = city.view.districts.spread

        def tick(now: CityState, number: Array) -> tuple[CityState, Transition]:
            wanted = plan_phases(plan, number * city.roads.dt_s)
            now, transition = city.step(jax.random.fold_in(key, number), now, spread(wanted))
            # seen by nobody, and so never made
            return now, eqx.tree_at(lambda t: t.observation, transition, None)

        after, each = jax.lax.scan(tick, state, jnp.arange(self.cycle_steps))
        last = jax.tree.map(lambda leaf: leaf[-1], each)
        transition = Transition(
            observation=self.seen(city.observe(after, first=False)),
            reward=each.reward.mean(0),
            cost=last.cost,
            terminated=last.terminated,
            truncated=last.truncated,
            info={
                "metrics": jax.tree.map(lambda leaf: leaf.sum(0), each.info["metrics"]),
                "requested": self.gather(action),
                "applied": plan.green_s,
            },
        )
        return after, transition

    @property
    def _by_steps(self) -> Traffic:
        return replace(self.city, decision_steps=1, episode_decisions=self.cycles * self.cycle_steps)

    def episode_metrics(self, totals: dict[str, Array]) -> dict[str, Array]:
        return self.city.episode_metrics(totals)
