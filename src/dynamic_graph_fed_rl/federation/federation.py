"""What a federation does around a round: who takes part before it, and the exchange after it.

Pure functions over the agents' parameters as rows of a matrix (`sharing.py` makes them). A federation does not know
what is being learned and never sees experience.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.attacks import Attack
from dynamic_graph_fed_rl.federation.method import Exchanged, Method
from dynamic_graph_fed_rl.federation.schedule import Plan, Schedule, ScheduleState


class FederationState(eqx.Module):
    """What the method keeps, where the virtual clock stands, and what the attackers remember."""

    method: PyTree
    schedule: ScheduleState
    attack: PyTree


class Federation(eqx.Module):
    """`init`, `plan` before a round, `exchange` after it.

    **Fields:** `method` is how parameters travel (servers, gossip, not at all); `schedule` decides who works
    when; `weights` how much each agent's update counts; `attack` is what the agents in `byzantine` send instead of
    their updates; an update overtaken by s versions weighs `(1 + s) ** -staleness_power`.
    """

    method: Method
    schedule: Schedule
    weights: Float[Array, " agents"]
    byzantine: Bool[Array, " agents"]
    staleness_power: Float[Array, ""]
    attack: Attack | None = None

    @property
    def always(self) -> bool:
        return self.schedule.always

    @property
    def agents(self) -> int:
        return self.weights.shape[0]

    @property
    def acts_randomly(self) -> Bool[Array, " agents"] | None:
        """Attackers that act at random in their worlds and send what they learn from it, if these attack so."""
        return self.byzantine if self.attack is not None and self.attack.acts_randomly else None

    def init(self, vectors: Float[Array, "agents size"]) -> FederationState:
        attack = None if self.attack is None else self.attack.init(*vectors.shape)
        return FederationState(self.method.init(vectors), self.schedule.init(), attack)

    def plan(self, key: PRNGKeyArray, state: FederationState) -> tuple[FederationState, Plan]:
        """Who finishes a round in this tick, who can be heard, and how much each update counts."""
        schedule, active, reachable = self.schedule.advance(key, state.schedule)
        stale = self.method.staleness(state.method)
        weights = self.weights * (1.0 + stale) ** -self.staleness_power
        state = eqx.tree_at(lambda s: s.schedule, state, schedule)
        return state, Plan(active, reachable, weights)

    def exchange(
        self, key: PRNGKeyArray, state: FederationState, own: Float[Array, "agents size"], plan: Plan
    ) -> tuple[FederationState, Float[Array, "agents size"], dict[str, Float[Array, ""]]]:
        """New state, the parameters that each agent goes on with, and a report."""
        attack_key, method_key = jax.random.split(key)
        updates, memory = own - self.method.held(state.method), state.attack
        if self.attack is not None:
            updates, memory = self.attack(updates, self.byzantine, plan.active, memory, attack_key)
        # `plan` has already moved the clock on
        tick = state.schedule.tick - 1
        method, mixed, info = self.method.exchange(method_key, state.method, own, updates, plan, tick)
        report = info | {
            "active": plan.active.sum().astype(jnp.float32),
            "disagreement": _disagreement(own),
            "releases": self.method.releases(method).astype(jnp.float32),
        }
        return FederationState(method, state.schedule, memory), mixed, report


class Alone(Method[Float[Array, "agents one"]]):
    """Nobody exchanges anything. With one agent over the whole network this is centralised learning."""

    def init(self, vectors: Float[Array, "agents size"]) -> Float[Array, "agents one"]:
        # what would be sent is never looked at: one number that broadcasts
        return jnp.zeros((vectors.shape[0], 1))

    def held(self, state: Float[Array, "agents one"]) -> Float[Array, "agents one"]:
        return state

    def exchange(
        self,
        key: PRNGKeyArray,
        state: Float[Array, "agents one"],
        own: Float[Array, "agents size"],
        updates: Float[Array, "agents size"],
        plan: Plan,
        tick: Int[Array, ""],
    ) -> Exchanged:
        return state, own, {"bytes": jnp.zeros(()), "rejected": jnp.zeros(())}


def _disagreement(vectors: Float[Array, "agents size"]) -> Float[Array, ""]:
    """Root mean square distance of the agents' parameters to their mean, before the exchange."""
    return jnp.sqrt(((vectors - vectors.mean(0)) ** 2).sum(1).mean())
