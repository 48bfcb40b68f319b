"""What a federation does around a round: who takes part before it, and the exchange after it.

Pure functions over stacked parameters `[A, ...]`. A federation does not know what is being learned and never sees
experience.
"""

import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators import Aggregator
from dynamic_graph_fed_rl.federation.overlay import Overlay, present

State = TypeVar("State")


class Plan(eqx.Module):
    """Who works in a round and how much each update will weigh."""

    active: Bool[Array, " agents"]
    weights: Float[Array, " agents"]


class Federation(eqx.Module, Generic[State]):
    """`init`, `plan` before a round, `exchange` after it."""

    agents: int = eqx.field(static=True)

    @abc.abstractmethod
    def init(self, shared: PyTree) -> State: ...

    def plan(self, key: PRNGKeyArray, state: State) -> tuple[State, Plan]:
        """Synchronous: everybody works in every round and weighs the same."""
        return state, Plan(jnp.ones(self.agents, bool), jnp.ones(self.agents))

    @abc.abstractmethod
    def exchange(
        self, key: PRNGKeyArray, state: State, shared: PyTree, plan: Plan
    ) -> tuple[State, PyTree, dict[str, Float[Array, ""]]]:
        """New federation state, what each agent goes on with `[A, ...]`, and a report."""


def parameter_bytes(shared: PyTree) -> int:
    """Bytes of one agent's parameters as they travel (float32, no codec); `shared` is `[A, ...]`."""
    return sum(leaf.size // leaf.shape[0] * leaf.dtype.itemsize for leaf in jax.tree.leaves(shared))


class Independent(Federation[None]):
    """Nobody exchanges anything. With one agent over the whole network this is centralised learning."""

    def init(self, shared: PyTree) -> None:
        return None

    def exchange(
        self, key: PRNGKeyArray, state: None, shared: PyTree, plan: Plan
    ) -> tuple[None, PyTree, dict[str, Float[Array, ""]]]:
        return None, shared, {"bytes": jnp.zeros(()), "disagreement": _disagreement(shared)}


class ServerState(eqx.Module):
    """The server's model, which everybody last received, and the aggregator's memory."""

    base: PyTree
    aggregator: PyTree


class Server(Federation[ServerState]):
    """A server adds the aggregate of the agents' updates to its model and sends the model to everybody."""

    aggregator: Aggregator

    def init(self, shared: PyTree) -> ServerState:
        base = jax.tree.map(lambda leaf: leaf[0], shared)
        return ServerState(base, self.aggregator.init(base))

    def exchange(
        self, key: PRNGKeyArray, state: ServerState, shared: PyTree, plan: Plan
    ) -> tuple[ServerState, PyTree, dict[str, Float[Array, ""]]]:
        updates = jax.tree.map(lambda leaf, base: leaf - base, shared, state.base)
        weights = plan.weights * plan.active
        update, memory, info = self.aggregator(updates, weights, state.aggregator, key)
        base = jax.tree.map(jnp.add, state.base, update)
        spread = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], self.agents, axis=0), base)
        report = info | {
            "bytes": 2.0 * plan.active.sum() * parameter_bytes(shared),
            "disagreement": _disagreement(shared),
        }
        return ServerState(base, memory), spread, report


class Gossip(Federation[PyTree]):
    """No server: each agent aggregates the differences of its neighbours to itself, weighted by the overlay."""

    aggregator: Aggregator
    overlay: Overlay

    def init(self, shared: PyTree) -> PyTree:
        return jax.vmap(self.aggregator.init)(shared)

    def exchange(
        self, key: PRNGKeyArray, state: PyTree, shared: PyTree, plan: Plan
    ) -> tuple[PyTree, PyTree, dict[str, Float[Array, ""]]]:
        overlay_key, rule_key = jax.random.split(key)
        mixing = present(self.overlay.weights(overlay_key), plan.active)
        mixing = mixing * plan.weights[None, :]
        mixing = mixing / mixing.sum(1, keepdims=True)

        def receive(
            row: Float[Array, " agents"], own: PyTree, memory: PyTree, one_key: PRNGKeyArray
        ) -> tuple[PyTree, PyTree]:
            updates = jax.tree.map(lambda leaf, mine: leaf - mine, shared, own)
            update, memory, _ = self.aggregator(updates, row, memory, one_key)
            return jax.tree.map(jnp.add, own, update), memory

        keys = jax.random.split(rule_key, self.agents)
        # one receiver at a time: the differences of all pairs at once would be A times the parameters
        mixed, memory = jax.lax.map(lambda row: receive(*row), (mixing, shared, state, keys))
        heard = ((mixing > 0) & ~jnp.eye(self.agents, dtype=bool)).sum()
        report = {"bytes": 1.0 * heard * parameter_bytes(shared), "disagreement": _disagreement(shared)}
        return memory, mixed, report


def _disagreement(shared: PyTree) -> Float[Array, ""]:
    """Root mean square distance of the agents' parameters to their mean, before the exchange."""
    squares = [((leaf - leaf.mean(0)) ** 2).sum() for leaf in jax.tree.leaves(shared)]
    agents = jax.tree.leaves(shared)[0].shape[0]
    return jnp.sqrt(sum(squares, jnp.zeros(())) / agents)
