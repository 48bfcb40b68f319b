"""Agents as objects: an algorithm, a learner and experience, over jitted functions that agents of a shape share."""

import abc
import itertools
from dataclasses import fields, replace
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms import ppo, sac, td3
from dynamic_graph_fed_rl.algorithms.returns import ValueScale
from dynamic_graph_fed_rl.algorithms.settings import (
    LearningSettings,
    OffPolicySettings,
    PPOSettings,
    SACSettings,
    TD3Settings,
)
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.experiment import known
from dynamic_graph_fed_rl.objects import learning
from dynamic_graph_fed_rl.objects.buffers import Batch, GraphTemporalBuffer, RolloutBuffer
from dynamic_graph_fed_rl.objects.environments import DynamicGraphEnv
from dynamic_graph_fed_rl.objects.graphs import Subgraph, columns, sizes

_numbers = itertools.count()
Agent = TypeVar("Agent", bound="GraphAgent")


class GraphAgent(abc.ABC):
    """One agent that acts in one world at a time.

    **Arguments:** `state_dim`, `action_dim` and `edge_dim` are checked against the first graph that is seen, where
    they are given: parameters are made then, as graphs also have global and slot features (or by
    `for_environment`). `gnn_type` is an encoder by name (`dgfrl list`); `hyperparameters` are the fields of the
    algorithm's settings. Agents of equal `seed` begin with equal parameters, as averaging them wants; each draws
    noise of its own, by its `number`, without one the count of agents made in this process.

    Raises:
        ValueError: what is not known or cannot be, by name.
        NotImplementedError: `safety_layer` or `constraint_threshold`, which are yet to come.
    """

    name: ClassVar[str]
    actions: ClassVar[str] = "continuous"
    settings_class: ClassVar[type[LearningSettings]]

    def __init__(
        self,
        state_dim: int | None = None,
        action_dim: int | None = None,
        edge_dim: int | None = None,
        gnn_type: str | None = None,
        *,
        planning_horizon: int = 5,
        seed: int = 0,
        number: int | None = None,
        safety_layer: bool = False,
        constraint_threshold: dict[str, float] | None = None,
        **hyperparameters: Any,
    ):
        if safety_layer or constraint_threshold:
            asked = "safety_layer" if safety_layer else "constraint_threshold"
            raise NotImplementedError(
                f"{self.name}, {asked}: safety layers arrive with a later version; leave it out"
            )
        names = dict.fromkeys(field.name for field in fields(self.settings_class))
        for given in hyperparameters:
            known(f"{self.name}, hyperparameter", given, names)
        if gnn_type is not None:
            hyperparameters["encoder"] = gnn_type
        self.planning_horizon = planning_horizon
        """Rows that a batch for learning may look back: for `sample_temporal`."""
        self._dims = {"state_dim": state_dim, "action_dim": action_dim, "edge_dim": edge_dim}
        self.settings = self._checked(self.settings_class(**hyperparameters))
        self.algorithm = self._build()
        self._begin_key = jax.random.key(seed)
        number = next(_numbers) if number is None else number
        self._key = jax.random.fold_in(jax.random.fold_in(self._begin_key, 1), number)
        self._draws = 0
        self._spec: Spec | None = None
        self._learner: Any = None
        self._received: PyTree = None
        self._memory: PyTree = None
        self._remembered = (0, 0, 0)

    @classmethod
    def for_environment(cls: type[Agent], environment: DynamicGraphEnv, **arguments: Any) -> Agent:
        """An agent whose parameters are made at once, for what the environment shows."""
        agent = cls(**arguments)
        agent.begin(environment.spec)
        return agent

    @property
    def spec(self) -> Spec:
        """
        Raises:
            ValueError: the agent has seen no graph yet.
        """
        if self._spec is None:
            raise ValueError(f"{self.name}: has seen no graph yet; call select_action, or make it by for_environment")
        return self._spec

    @property
    def learner(self) -> Any:
        """What the pure core calls a learner: networks, optimisers, scale.

        Raises:
            ValueError: the agent has seen no graph yet.
        """
        assert self.spec is not None
        return self._learner

    def begin(self, spec: Spec) -> None:
        """Make the parameters.

        Raises:
            ValueError: graphs of other sizes than were given, or actions of a kind that the algorithm has not.
        """
        if self.actions != "any" and spec.action != self.actions:
            raise ValueError(f"{self.name}: acts with {self.actions} actions; these are {spec.action}")
        there = {
            "state_dim": (len(spec.node_features), "features a node"),
            "action_dim": (spec.action_size, "numbers or choices an action slot"),
            "edge_dim": (len(spec.edge_features), "features an edge"),
        }
        for name, wanted in self._dims.items():
            size, what = there[name]
            if wanted is not None and wanted != size:
                raise ValueError(f"{self.name}, {name} {wanted}: the graph has {size} {what}")
        self._spec = spec
        self._learner = learning.fresh(self.algorithm, self._begin_key, spec)
        self._received = self.get_parameters()

    def select_action(self, subgraph: Subgraph, deterministic: bool = False) -> np.ndarray:
        """An action for what is seen, `[S, D]` in [-1, 1] or choices `[S]`; `deterministic`: without exploration.

        What is seen is remembered until an episode's first graph, or one of another size.

        Raises:
            ValueError: a graph with other features or actions than the first.
        """
        if self._spec is None:
            self.begin(subgraph.spec)
        if columns(subgraph.spec) != columns(self.spec):
            raise ValueError(f"{self.name}: this graph has other features or actions than the first that was seen")
        seen = subgraph.observation
        if self._memory is None or sizes(subgraph.spec) != self._remembered:
            self._remembered = sizes(subgraph.spec)
            self._memory = learning.blank_memory(self.algorithm, self.learner, seen)
        key = None if deterministic else self._next_key()
        action, self._memory = learning.act(self.algorithm, key, self.learner, self._memory, seen)
        return np.asarray(action)

    def get_parameters(self) -> PyTree:
        """What may leave the agent: policy and critics, never optimisers or experience."""
        return self.algorithm.shared(self.learner)

    def set_parameters(self, parameters: PyTree) -> None:
        """Go on with other parameters.

        Raises:
            ValueError: they are of another shape; names the first that differs.
        """
        learning.check_alike(self.get_parameters(), parameters)
        self._learner = self.algorithm.with_shared(self.learner, parameters)
        self._received = parameters

    def encode_graph(self, graph: Subgraph) -> Float[np.ndarray, "nodes width"]:
        """Embeddings of the nodes, by the policy's encoder, as if nothing had been seen before."""
        if self._spec is None:
            self.begin(graph.spec)
        one = jax.tree.map(lambda leaf: np.asarray(leaf)[None, None], graph.observation)
        return np.asarray(learning.encode(*self._encoding(), one))[0, 0]

    def get_representations(self, batch: Batch) -> Float[Array, "length windows nodes width"]:
        """Embeddings of the nodes in each graph of a batch, by the policy's encoder; before the first of a window
        nothing was seen."""
        return learning.encode(*self._encoding(), batch.sample.observation)

    @property
    def safety_violations(self) -> int:
        """
        Raises:
            NotImplementedError: always; safety layers arrive with a later version.
        """
        raise NotImplementedError("safety_violations: safety layers arrive with a later version")

    def strengthen_safety_constraints(self) -> None:
        """
        Raises:
            NotImplementedError: always; safety layers arrive with a later version.
        """
        raise NotImplementedError("strengthen_safety_constraints: safety layers arrive with a later version")

    @abc.abstractmethod
    def _checked(self, settings: Any) -> Any:
        """The settings as one agent in one world has them, refused where they cannot be."""

    @abc.abstractmethod
    def _build(self) -> Any: ...

    @abc.abstractmethod
    def _encoding(self) -> tuple[Any, Any]:
        """Memory and encoder of the policy."""

    def _next_key(self) -> PRNGKeyArray:
        self._draws += 1
        return jax.random.fold_in(self._key, self._draws)


class OffPolicyAgent(GraphAgent):
    """An agent that learns from a `buffer` that it has filled.

    **Arguments**, besides those of `GraphAgent`: `buffer_size` rows are kept, `window` of them written together
    (as `time_window` of the buffer); `actor_lr` and `critic_lr` are one and the same `learning_rate`.
    """

    def __init__(
        self,
        *dims: Any,
        buffer_size: int = 100_000,
        actor_lr: float | None = None,
        critic_lr: float | None = None,
        window: int = 4,
        **arguments: Any,
    ):
        rates = {rate for rate in (actor_lr, critic_lr, arguments.pop("learning_rate", None)) if rate is not None}
        if len(rates) > 1:
            raise ValueError(
                f"{self.name}, actor_lr {actor_lr}, critic_lr {critic_lr}: must be equal; there is one learning_rate"
            )
        if rates:
            arguments["learning_rate"] = rates.pop()
        super().__init__(*dims, replay=buffer_size, window=window, **arguments)
        settings = self.settings
        self.buffer = GraphTemporalBuffer(
            buffer_size,
            window,
            priority=settings.priority,
            seed=int(jax.random.bits(self._next_key()) >> 1),
            remembering=lambda: self.learner.networks.memory,
        )

    def update(self, batch: Batch | None = None) -> dict[str, float]:
        """One gradient step, the same as `Algorithm.learn` makes, on a batch of `batch_size` rows of the buffer or
        on the one given; figures of it.

        Raises:
            ValueError: too little is stored; says how much is needed.
        """
        own = batch is None
        if batch is None:
            settings = self.settings
            batch = self.buffer.windows(settings.batch_size // settings.window, settings.window + settings.steps)
        self._guess_scale()
        self._learner, error, figures = learning.update(
            self.algorithm, self._next_key(), self.learner, self._received, batch
        )
        if own:
            self.buffer.with_errors(batch, error)
        return {name: float(value) for name, value in figures.items()}

    def update_critic(self, batch: Batch) -> float:
        """The first half of `update`: a gradient step of the critics; their loss before it."""
        self._guess_scale()
        self._learner, loss = learning.update_critics(
            self.algorithm, self._next_key(), self.learner, self._received, batch
        )
        return float(loss)

    def update_actor(self, batch: Batch) -> float:
        """The second half of `update`: a gradient step of the actor and of the slow copies; its loss before it.

        Nothing happens, and 0 is returned, but after every `update_delay`-th step of the critics (TD3: every other).
        """
        if int(self.learner.updates) % self.settings.update_delay:
            return 0.0
        self._learner, loss = learning.update_actor(
            self.algorithm, self._next_key(), self.learner, self._received, batch
        )
        return float(loss)

    def compute_loss(self, batch: Batch) -> float:
        """The critics' loss on a batch; nothing is learned."""
        key = self._next_key()
        return float(learning.update_critics(self.algorithm, key, self.learner, self._received, batch)[1])

    def _checked(self, settings: OffPolicySettings) -> OffPolicySettings:
        for name in ("siblings", "updates", "warm_up", "actor_rate_falls"):
            if getattr(settings, name) != getattr(self.settings_class(), name):
                raise ValueError(f"{self.name}, {name}: is for whole rounds; here the loop is yours")
        # what a loop of one's own does not have, as small as can be
        settings = replace(settings, updates=1, warm_up=settings.window + settings.steps)
        settings.check(worlds=1, decisions=settings.window)
        return settings

    def _encoding(self) -> tuple[Any, Any]:
        networks = self.learner.networks
        return networks.memory, networks.actor.encoder

    def _guess_scale(self) -> None:
        """Before the first gradient step: the scale of values, from all rewards so far."""
        if int(self.learner.updates) == 0 and len(self.buffer):
            reward, terminated = self.buffer.all_rewards()
            scale = ValueScale.guess(reward, terminated, self.algorithm.discount)
            self._learner = replace(self.learner, scale=scale)


class GraphTD3(OffPolicyAgent):
    """TD3 over graphs (Fujimoto et al. 2018); hyperparameters as in `TD3Settings`."""

    name, settings_class = "GraphTD3", TD3Settings

    def _build(self) -> td3.TD3:
        return td3.build(self.settings, 1)


class GraphSAC(OffPolicyAgent):
    """SAC over graphs (Haarnoja et al. 2018); hyperparameters as in `SACSettings`."""

    name, settings_class = "GraphSAC", SACSettings

    def _build(self) -> sac.SAC:
        return sac.build(self.settings, 1)


class GraphPPO(GraphAgent):
    """PPO over graphs (Schulman et al. 2017), for continuous and discrete actions; hyperparameters as in
    `PPOSettings`.

    **Arguments**, besides those of `GraphAgent`: `rollout` decisions are learned from at once; `rounds` updates over
    which the learning rate falls to 0, without it it stays.
    """

    name, settings_class, actions = "GraphPPO", PPOSettings, "any"

    def __init__(self, *dims: Any, rollout: int = 128, rounds: int | None = None, **arguments: Any):
        if rollout < 1:
            raise ValueError(f"{self.name}, rollout {rollout}: must be at least 1")
        self._rounds = rounds
        super().__init__(*dims, **({"minibatches": 1} | arguments))
        self.buffer = RolloutBuffer(rollout, self._judge)

    def update(self) -> dict[str, float]:
        """Learn from the rollout, which is then empty; figures.

        Raises:
            ValueError: the rollout is not full yet.
        """
        experience = self.buffer.take()
        self._learner, figures = learning.study(self.algorithm, self._next_key(), self.learner, experience)
        return {name: float(value) for name, value in figures.items()}

    def _judge(self, memory: PyTree, observation: Observation, action: np.ndarray) -> tuple[Array, PyTree]:
        if memory is None:
            memory = learning.blank_memory(self.algorithm, self.learner, observation)
        return learning.judge(self.algorithm, self.learner, memory, observation, action)

    def _checked(self, settings: PPOSettings) -> PPOSettings:
        settings.check(worlds=1, decisions=1)
        return settings

    def _build(self) -> ppo.PPO:
        # so many that the rate stays what it is
        return ppo.build(self.settings, 2**31 if self._rounds is None else self._rounds)

    def _encoding(self) -> tuple[Any, Any]:
        return self.learner.network.memory, self.learner.network.actor.encoder
