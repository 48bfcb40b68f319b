"""Federations of agents that a user's own loop steps: `Federation.exchange` over the parameters of objects."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.experiment import known
from dynamic_graph_fed_rl.federation.build import build
from dynamic_graph_fed_rl.federation.federation import Federation, FederationState
from dynamic_graph_fed_rl.federation.hierarchy import Hierarchy, Level
from dynamic_graph_fed_rl.federation.settings import FederationSettings
from dynamic_graph_fed_rl.federation.sharing import Chosen, from_vectors, matching, to_vectors
from dynamic_graph_fed_rl.objects.agents import GraphAgent

_COMMUNICATION = {
    "asynchronous_gossip": ("gossip", "asynchronous"),
    "async_gossip": ("gossip", "asynchronous"),
    "synchronous_gossip": ("gossip", "synchronous"),
    "sync_gossip": ("gossip", "synchronous"),
    "gossip": ("gossip", "synchronous"),
    "server": ("server", "synchronous"),
    "asynchronous_server": ("server", "asynchronous"),
    "tree": ("tree", "synchronous"),
    "independent": ("independent", "synchronous"),
}

# one function a pattern, so that it is compiled for once
_chosen = cache(matching)


def _as_rows(shared: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[None], shared)


@eqx.filter_jit
def _vector(shared: PyTree, chosen: Chosen) -> Float[Array, " size"]:
    return to_vectors([_as_rows(shared)], chosen)[0]


@eqx.filter_jit
def _with_vector(shared: PyTree, vector: Float[Array, " size"], chosen: Chosen) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], from_vectors(vector[None], [_as_rows(shared)], chosen)[0])


@eqx.filter_jit
def _exchange(
    federation: Federation, key: PRNGKeyArray, state: FederationState, own: Float[Array, "agents size"]
) -> tuple[FederationState, Float[Array, "agents size"], dict[str, Float[Array, ""]]]:
    plan_key, exchange_key = jax.random.split(key)
    state, plan = federation.plan(plan_key, state)
    return federation.exchange(exchange_key, state, own, plan)


class Exchange:
    """A federation and where it stands."""

    def __init__(self, federation: Federation, share: str, seed: int):
        self.federation, self.share = federation, _chosen(share)
        self._state: FederationState | None = None
        self._key = jax.random.key(seed)

    def __call__(self, agents: Sequence[GraphAgent]) -> dict[str, float]:
        """One exchange among these agents, and what it took.

        Raises:
            ValueError: not as many agents as the federation has, one that has no parameters yet, or agents whose
                parameters differ in shape.
        """
        if len(agents) != self.federation.agents:
            raise ValueError(f"{len(agents)} agents: this federation is of {self.federation.agents}")
        shared = [agent.get_parameters() for agent in agents]
        if self._state is None:
            # says which parameters differ, before anything is computed
            jax.eval_shape(lambda groups: to_vectors(groups, self.share), [_as_rows(one) for one in shared])
        own = jnp.stack([_vector(one, self.share) for one in shared])
        if self._state is None:
            self._state = self.federation.init(own)
        self._key, key = jax.random.split(self._key)
        self._state, mixed, report = _exchange(self.federation, key, self._state, own)
        for agent, one, row in zip(agents, shared, mixed, strict=True):
            agent.set_parameters(_with_vector(one, row, self.share))
        return {name: float(value) for name, value in report.items()}


def _settings(values: dict[str, Any]) -> FederationSettings:
    names = dict.fromkeys(field.name for field in fields(FederationSettings))
    for name in values:
        known("setting of a federation", name, names)
    return FederationSettings(**values)


class FederatedActorCritic:
    """`num_agents` agents that exchange what they learn whenever `aggregate_parameters` is called.

    **Arguments:** `communication` is asynchronous_gossip, synchronous_gossip, server, asynchronous_server, tree or
    independent; `aggregation_interval` is for the user's loop to read; `rounds` is the length of a falling server
    rate; `settings` are the fields of `FederationSettings` (overlay, aggregator, codec, share, step_times, ...).

    Raises:
        ValueError: what is not known or cannot be, by name.
    """

    def __init__(
        self,
        num_agents: int,
        communication: str = "asynchronous_gossip",
        buffer_type: str = "graph_temporal",
        aggregation_interval: int = 100,
        *,
        rounds: int = 1,
        seed: int = 0,
        **settings: Any,
    ):
        federation, schedule = known("communication", communication, _COMMUNICATION)
        known("buffer_type", buffer_type, {"graph_temporal": "the buffer that agents have"})
        for name, value in (("num_agents", num_agents), ("aggregation_interval", aggregation_interval)):
            if value < 1:
                raise ValueError(f"{name} {value}: must be at least 1")
        chosen = _settings({"schedule": schedule} | settings)
        self.num_agents, self.aggregation_interval = num_agents, aggregation_interval
        self.communication, self.buffer_type = communication, buffer_type
        self._exchange = Exchange(build(chosen, federation, num_agents, rounds), chosen.share, seed)
        self._agents: Sequence[GraphAgent] | None = None

    def aggregate_parameters(self, agents: Sequence[GraphAgent]) -> dict[str, float]:
        """One exchange: the agents go on with what they receive. Returns bytes sent, disagreement and the like.

        Raises:
            ValueError: another number of agents, one that has no parameters yet, or unlike parameters.
        """
        report = self._exchange(agents)
        self._agents = agents
        return report

    def gossip_round(self) -> dict[str, float]:
        """`aggregate_parameters` of the agents of the last time.

        Raises:
            ValueError: there was none.
        """
        if self._agents is None:
            raise ValueError("gossip_round: call aggregate_parameters(agents) first, which says who takes part")
        return self.aggregate_parameters(self._agents)


@dataclass(frozen=True)
class FederatedOptimizer:
    """What a server does with the aggregated update (Reddi et al. 2021).

    `learning_rate` is by default such that a steady update is followed in full: 1 - momentum; for Adam 0.01.
    `async_` before the algorithm takes each update when it is ready, discounted by its staleness.
    """

    algorithm: str = "sgd"
    """sgd, async_sgd, adam or async_adam."""
    learning_rate_schedule: str = "constant"
    """constant or cosine."""
    momentum: float = 0.0
    learning_rate: float | None = None
    rounds: int | None = None
    """Aggregations over which a cosine schedule falls."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: an unknown algorithm or schedule, a momentum that is none, a cosine without its length.
        """
        known("algorithm", self.algorithm, dict.fromkeys(("sgd", "async_sgd", "adam", "async_adam")))
        known("learning_rate_schedule", self.learning_rate_schedule, dict.fromkeys(("constant", "cosine")))
        if not 0.0 <= self.momentum < 1.0:
            raise ValueError(f"momentum {self.momentum}: must be a share below 1")
        if self.learning_rate_schedule == "cosine" and self.rounds is None:
            raise ValueError("learning_rate_schedule 'cosine': needs rounds, the aggregations over which it falls")

    def settings(self) -> dict[str, Any]:
        """The fields of `FederationSettings` that it stands for."""
        adam = self.algorithm.endswith("adam")
        kind = "adam" if adam else "momentum" if self.momentum else "plain"
        default = 0.01 if adam else 1.0 - self.momentum
        return {
            "server_optimiser": kind,
            "server_momentum": self.momentum,
            "server_learning_rate": default if self.learning_rate is None else self.learning_rate,
            "server_rate_schedule": self.learning_rate_schedule,
            "schedule": "asynchronous" if self.algorithm.startswith("async") else "synchronous",
        }


class FederatedHierarchy:
    """Levels of agents from the top down, each agent but the top ones below one of the level above.

    `aggregate_level` averages each superior with its subordinates (on the top level: all agents with each other), so
    that news travels a level at a time, as often as the user's loop says.

    **Arguments:** `agents_per_level` from the top; `create_agent(level, number)` makes an agent; `settings` are
    the fields of `FederationSettings`.

    Raises:
        ValueError: lists of unlike length, levels of one name, an empty level, or an unknown topology.
    """

    def __init__(
        self,
        levels: Sequence[str],
        agents_per_level: Sequence[int],
        communication_topology: str = "tree",
        create_agent: Callable[[str, int], GraphAgent] | None = None,
        *,
        seed: int = 0,
        **settings: Any,
    ):
        known("communication_topology", communication_topology, {"tree": "levels"})
        if len(levels) != len(agents_per_level) or len(set(levels)) != len(levels) or min(agents_per_level) < 1:
            raise ValueError(
                f"levels {list(levels)}, agents_per_level {list(agents_per_level)}: need a name of its own and at "
                "least 1 agent for each level"
            )
        self.levels = list(levels)
        self.agents_per_level = list(agents_per_level)
        self._create, self._seed = create_agent, seed
        self._settings = _settings(settings)
        self._agents: dict[str, list[GraphAgent]] = {}
        self._exchanges: dict[str, tuple[FederatedOptimizer, Exchange]] = {}

    def get_agents(self, level: str) -> list[GraphAgent]:
        """The agents of a level, made when they are first asked for.

        Raises:
            ValueError: no such level, or nothing to make agents with.
        """
        place = self._place(level)
        if level not in self._agents:
            if self._create is None:
                raise ValueError("get_agents: needs create_agent(level, number), an argument of FederatedHierarchy")
            self._agents[level] = [self._create(level, i) for i in range(self.agents_per_level[place])]
        return self._agents[level]

    def superiors(self, level: str) -> list[int]:
        """For each agent of a level the number of the one above it: neighbours in number, as even as can be.

        Raises:
            ValueError: no such level, or the top one.
        """
        place = self._place(level)
        if not place:
            raise ValueError(f"level '{level}': is the top one")
        parts = np.array_split(np.arange(self.agents_per_level[place]), self.agents_per_level[place - 1])
        return np.repeat(np.arange(len(parts)), [len(part) for part in parts]).tolist()

    def aggregate_level(self, level: str, optimizer: FederatedOptimizer | None = None) -> dict[str, float]:
        """One exchange between a level and the one above it; returns bytes sent, disagreement and the like.

        Raises:
            ValueError: no such level, another optimizer than the level began with, agents without parameters yet, or
                with unlike ones.
        """
        optimizer = FederatedOptimizer() if optimizer is None else optimizer
        if level not in self._exchanges:
            self._exchanges[level] = optimizer, self._exchange_of(level, optimizer)
        begun, exchange = self._exchanges[level]
        if begun != optimizer:
            raise ValueError(
                f"level '{level}': began with {begun}; an optimizer keeps its state, so it cannot change"
            )
        place = self._place(level)
        above = self.get_agents(self.levels[place - 1]) if place else []
        return exchange([*above, *self.get_agents(level)])

    def _exchange_of(self, level: str, optimizer: FederatedOptimizer) -> Exchange:
        place = self._place(level)
        # a superior belongs to its own group
        parent = [*range(self.agents_per_level[place - 1]), *self.superiors(level)] if place else []
        parent = parent or [0] * self.agents_per_level[place]
        settings = replace(self._settings, **optimizer.settings())
        star = build(settings, "server", len(parent), optimizer.rounds or 1)
        assert isinstance(star.method, Hierarchy)
        one = star.method.levels[0]
        groups = Level(parent, one.aggregator, one.codec, one.optimiser, one.clock, one.buffer)
        return Exchange(replace(star, method=Hierarchy((groups,))), settings.share, self._seed + place)

    def _place(self, level: str) -> int:
        return known("level", level, {name: i for i, name in enumerate(self.levels)})
