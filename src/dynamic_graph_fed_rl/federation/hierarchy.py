"""Servers, and servers of servers: every level aggregates what its members send, on a clock of its own.

A level of one node whose members are the agents is the plain server (a star).
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator
from dynamic_graph_fed_rl.federation.codecs import Codec, compress, payload_bytes
from dynamic_graph_fed_rl.federation.method import Exchanged, Method, pick
from dynamic_graph_fed_rl.federation.schedule import Plan
from dynamic_graph_fed_rl.graph import padded_rows


class LevelState(eqx.Module):
    """Models of a level's nodes, and what it knows of its members (the agents, or the nodes below)."""

    model: Float[Array, "nodes size"]
    version: Int[Array, " nodes"]
    received: Float[Array, "members size"]
    """The model that each member holds."""
    received_version: Int[Array, " members"]
    pending: Float[Array, "members size"]
    """Updates that have arrived since the node last aggregated."""
    pending_weight: Float[Array, " members"]
    contributed: Float[Array, " nodes"]
    """Weight of all updates in the model that the level above has not heard of."""
    errors: Float[Array, "members size"] | None
    """What a lossy codec has left out so far."""
    aggregator: PyTree
    optimiser: PyTree


class Level(eqx.Module):
    """Nodes that each aggregate the updates of their own members, every `clock` ticks."""

    parent: Int[Array, " members"]
    slots: Int[Array, "nodes children"]
    """Members of each node, padded."""
    filled: Bool[Array, "nodes children"]
    aggregator: Aggregator
    codec: Codec
    optimiser: optax.GradientTransformation | None = eqx.field(static=True)
    clock: int = eqx.field(static=True)
    buffer: int = eqx.field(static=True)

    def __init__(
        self,
        parent: Sequence[int],
        aggregator: Aggregator,
        codec: Codec,
        optimiser: optax.GradientTransformation | None = None,
        clock: int = 1,
        buffer: int = 1,
    ):
        nodes = np.asarray(parent)
        slots, filled = padded_rows([np.flatnonzero(nodes == node) for node in range(int(nodes.max()) + 1)])
        self.parent = jnp.asarray(parent, jnp.int32)
        self.slots, self.filled = jnp.asarray(slots), jnp.asarray(filled)
        self.aggregator, self.codec, self.optimiser = aggregator, codec, optimiser
        self.clock, self.buffer = clock, buffer

    def init(self, members: Float[Array, "members size"]) -> LevelState:
        """Each node begins with its first member's model."""
        model = members[self.slots[:, 0]]
        nodes, size = model.shape
        count = members.shape[0]
        aggregator = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], nodes, axis=0), self.aggregator.init(size))
        return LevelState(
            model=model,
            version=jnp.zeros(nodes, jnp.int32),
            received=model[self.parent],
            received_version=jnp.zeros(count, jnp.int32),
            pending=jnp.zeros_like(members),
            pending_weight=jnp.zeros(count),
            contributed=jnp.zeros(nodes),
            errors=jnp.zeros_like(members) if self.codec.lossy else None,
            aggregator=aggregator,
            optimiser=None if self.optimiser is None else jax.vmap(self.optimiser.init)(model),
        )

    def staleness(self, state: LevelState) -> Int[Array, " members"]:
        """Versions of its node's model that have come since a member received one."""
        return state.version[self.parent] - state.received_version

    def up(
        self,
        key: PRNGKeyArray,
        state: LevelState,
        updates: Float[Array, "members size"],
        sends: Bool[Array, " members"],
        weights: Float[Array, " members"],
    ) -> tuple[LevelState, dict[str, Array]]:
        """Members send updates; nodes that have heard enough of them aggregate."""
        code_key, rule_key = jax.random.split(key)
        errors = state.errors
        if errors is not None:
            keys = jax.random.split(code_key, updates.shape[0])
            updates, left = jax.vmap(compress, in_axes=(None, 0, 0, 0))(self.codec, updates, errors, keys)
            errors = pick(sends, left, errors)
        sound = jnp.isfinite(updates).all(1)
        arrived = sends & sound
        pending = pick(arrived, state.pending + updates, state.pending)
        pending_weight = jnp.where(arrived, weights, state.pending_weight)
        waiting = jnp.where(self.filled, pending_weight[self.slots], 0.0)
        closes = (waiting > 0).sum(1) >= self.buffer

        def aggregate(slots: Array, weight: Array, model: Array, memory: PyTree, one_key: PRNGKeyArray) -> tuple:
            return self.aggregator(pending[slots], weight, model, memory, one_key)

        nodes = state.model.shape[0]
        update: Any
        update, aggregator, info = jax.vmap(aggregate)(
            self.slots, waiting, state.model, state.aggregator, jax.random.split(rule_key, nodes)
        )
        optimiser = state.optimiser
        if self.optimiser is not None:
            # optax descends: the negative update is the gradient
            update, optimiser = jax.vmap(self.optimiser.update)(-update, optimiser, state.model)
            optimiser = pick(closes, optimiser, state.optimiser)
        closed = closes[self.parent]
        report = {name: jnp.where(closes, value, 0.0).sum() for name, value in info.items()}
        report["rejected"] = (sends & ~sound).sum().astype(jnp.float32)
        report["bytes"] = sends.sum() * float(payload_bytes(self.codec, updates.shape[1]))
        return (
            LevelState(
                model=pick(closes, state.model + update, state.model),
                version=state.version + closes,
                received=state.received,
                received_version=state.received_version,
                pending=pick(closed, jnp.zeros_like(pending), pending),
                pending_weight=jnp.where(closed, 0.0, pending_weight),
                contributed=state.contributed + jnp.where(closes, waiting.sum(1), 0.0),
                errors=errors,
                aggregator=pick(closes, aggregator, state.aggregator),
                optimiser=optimiser,
            ),
            report,
        )

    def down(
        self, key: PRNGKeyArray, state: LevelState, listens: Bool[Array, " members"]
    ) -> tuple[LevelState, dict[str, Array]]:
        """Members that listen receive their node's model, as what has changed in it since they last did."""
        model = state.model[self.parent]
        if self.codec.lossy:
            # what is left out stays in the difference and goes out with the next
            keys = jax.random.split(key, model.shape[0])
            change, _ = jax.vmap(compress, in_axes=(None, 0, None, 0))(
                self.codec, model - state.received, jnp.zeros(model.shape[1]), keys
            )
            model = state.received + change
        received = pick(listens, model, state.received)
        version = jnp.where(listens, state.version[self.parent], state.received_version)
        report = {"bytes": listens.sum() * float(payload_bytes(self.codec, model.shape[1]))}
        return eqx.tree_at(lambda s: (s.received, s.received_version), state, (received, version)), report


class Hierarchy(Method[tuple[LevelState, ...]]):
    """Levels from the agents up to a single root; `levels[0]`'s members are the agents.

    Clocks are nested: each is a multiple of the one below it. A level's node tells the level above the change of
    its own model, weighed by all that went into it, and hands what it receives from there down at once.
    """

    levels: tuple[Level, ...]

    def init(self, vectors: Float[Array, "agents size"]) -> tuple[LevelState, ...]:
        states, members = [], vectors
        for level in self.levels:
            states.append(level.init(members))
            members = states[-1].model
        return tuple(states)

    def held(self, state: tuple[LevelState, ...]) -> Float[Array, "agents size"]:
        return state[0].received

    def staleness(self, state: tuple[LevelState, ...]) -> Int[Array, " agents"]:
        return self.levels[0].staleness(state[0])

    def releases(self, state: tuple[LevelState, ...]) -> Int[Array, ""]:
        return state[-1].version[0]

    def exchange(
        self,
        key: PRNGKeyArray,
        state: tuple[LevelState, ...],
        own: Float[Array, "agents size"],
        updates: Float[Array, "agents size"],
        plan: Plan,
        tick: Int[Array, ""],
    ) -> Exchanged:
        states, reports = list(state), []
        due = [(tick + 1) % level.clock == 0 for level in self.levels]
        keys = jax.random.split(key, (2, len(self.levels)))
        weights, listens = plan.weights, [plan.active & due[0]]
        # what counts for nothing need not be sent
        sends = listens[0] & (weights > 0)
        for i, level in enumerate(self.levels):
            states[i], report = level.up(keys[0, i], states[i], updates, sends, weights)
            reports.append(report)
            if i + 1 < len(self.levels):
                weights = states[i].contributed
                sends = (weights > 0) & due[i + 1]
                states[i] = eqx.tree_at(lambda s: s.contributed, states[i], jnp.where(sends, 0.0, weights))
                updates = states[i].model - states[i + 1].received
                listens.append(sends)
        for i in reversed(range(len(self.levels))):
            if i > 0:
                # a node hears of what is new above it also when it has nothing to tell
                listens[i] = listens[i] | (due[i] & (self.levels[i].staleness(states[i]) > 0))
            states[i], report = self.levels[i].down(keys[1, i], states[i], listens[i])
            reports.append(report)
            if i > 0:
                # whatever a node had of its own it has just told the level above
                model = pick(listens[i], states[i].received, states[i - 1].model)
                # one version a tick, as in a star, wherever the news came from
                closed = states[i - 1].version > state[i - 1].version
                moved = states[i].received_version > state[i].received_version
                version = states[i - 1].version + (moved & ~closed)
                states[i - 1] = eqx.tree_at(lambda s: (s.model, s.version), states[i - 1], (model, version))
        merged: dict[str, Array] = {}
        for report in reports:
            for name, value in report.items():
                merged[name] = merged.get(name, jnp.zeros(())) + value
        return tuple(states), pick(listens[0], states[0].received, own), merged
