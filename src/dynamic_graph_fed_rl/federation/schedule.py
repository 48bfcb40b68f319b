"""Who works when: a virtual clock, absences, joining and leaving. A round of training is a tick; no wall clock."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Plan(eqx.Module):
    """A tick of the virtual clock.

    `active` agents finish a round of learning in it and exchange; `reachable` ones can be heard, though they may
    be busy; `weights` say how much each update counts.
    """

    active: Bool[Array, " agents"]
    reachable: Bool[Array, " agents"]
    weights: Float[Array, " agents"]


class ScheduleState(eqx.Module):
    """Ticks so far, and who is away."""

    tick: Int[Array, ""]
    away: Bool[Array, " agents"]


class Schedule(eqx.Module):
    """When each agent finishes its rounds.

    **Fields:** `step_time` ticks that an agent needs for a round of learning; `dropout` share of agents away at
    any time, each for `absence` ticks on average; `joins` and `leaves` the ticks between which an agent is a
    member. Asynchronous agents finish each in their own time; otherwise all wait for the slowest member.
    """

    step_time: Float[Array, " agents"]
    dropout: Float[Array, " agents"]
    absence: Float[Array, ""]
    joins: Int[Array, " agents"]
    leaves: Int[Array, " agents"]
    asynchronous: bool = eqx.field(static=True, default=False)
    always: bool = eqx.field(static=True, default=False)
    """Everybody takes part in every round: nobody's state has to be held back, which spares a copy of it all."""

    def init(self) -> ScheduleState:
        return ScheduleState(jnp.zeros((), jnp.int32), jnp.zeros(self.step_time.shape, bool))

    def advance(
        self, key: PRNGKeyArray, state: ScheduleState
    ) -> tuple[ScheduleState, Bool[Array, " agents"], Bool[Array, " agents"]]:
        """The next tick: who finishes a round in it, and who can be reached."""
        member = (self.joins <= state.tick) & (state.tick < self.leaves)
        # a two-state Markov chain whose stationary share of absent agents is `dropout`
        leaving = self.dropout / (self.absence * jnp.maximum(1.0 - self.dropout, 1e-6))
        chance = jnp.where(state.away, 1.0 - 1.0 / self.absence, leaving)
        # an absence of one tick is a draw of its own every tick
        chance = jnp.where(self.absence <= 1.0, self.dropout, chance)
        away = jax.random.uniform(key, self.step_time.shape) < chance
        step_time = self.step_time
        if not self.asynchronous:
            step_time = jnp.full_like(step_time, jnp.where(member, step_time, 0.0).max())
        # whole rounds done by the end of the tick, counted from when the agent joined; the margin is for rounding
        worked = jnp.maximum(state.tick + 1 - self.joins, 0) + 1e-4
        finished = jnp.floor(worked / step_time) > jnp.floor((worked - 1.0) / step_time)
        reachable = member & ~away
        return ScheduleState(state.tick + 1, away), reachable & finished, reachable
