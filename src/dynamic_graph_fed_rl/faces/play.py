"""A world in play behind a face: which keys it draws, and what each call shows. Pure; the faces hold the state."""

import importlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.host import HostEnvironment
from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
from dynamic_graph_fed_rl.environments.worlds import select
from dynamic_graph_fed_rl.evaluation.evaluate import EVALUATION_STREAM, TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import default_experiment, known

Who = int | Literal["all", "each"]
"""Whose view a face has: one agent's, that of all agents as one, or that of each agent."""


class Play(eqx.Module):
    """Where a world stands: whose episode it is, and after how many decisions."""

    seed: Int[Array, "*worlds"]
    episode: Int[Array, "*worlds"]
    decision: Int[Array, "*worlds"]
    state: PyTree


class Outcome(eqx.Module):
    """What a decision brought, `[A]` where each agent has a view of its own; `metrics` are the world's.

    The world ends for all its agents at once: whoever did not terminate is then truncated.
    """

    reward: Float[Array, "*agents"]
    cost: Float[Array, "*agents costs"]
    terminated: Bool[Array, "*agents"]
    truncated: Bool[Array, "*agents"]
    metrics: dict[str, Array]


class Seen(eqx.Module):
    """An observation as a face shows it, and the choices that are open, where actions are discrete."""

    observation: dict[str, Array] | Array
    choices: Int[Array, "*agents slots choices"] | None


class Player(eqx.Module):
    """An environment as a face sees it.

    Training episodes come from the stream that training draws from, one after the other of a seed. Held-out ones
    are those of `dgfrl evaluate`: seed k plays evaluation seed k, then those `stride` apart. `owner` is the place
    among owners, and how many there are, where each has a world of its own.
    """

    environment: Environment
    who: Who = eqx.field(static=True)
    flat: bool = eqx.field(static=True)
    held_out: bool = eqx.field(static=True)
    stride: int = eqx.field(static=True, default=1)
    owner: tuple[int, int] | None = eqx.field(static=True, default=None)

    def begin(self, seed: Int[Array, ""], episode: Int[Array, ""]) -> tuple[Play, Seen]:
        """The first observation of a seed's episode, counted from 0."""
        decision = jnp.zeros((), jnp.int32)
        state, observation = self.environment.reset(self._key(seed, episode, decision))
        return Play(seed, episode, decision, state), self._seen(observation)

    def advance(self, play: Play, action: Array) -> tuple[Play, Seen, Outcome]:
        """One decision. `action` is `[S * D]` or `[S]` of one agent, or has those of all agents in a row."""
        decision = play.decision + 1
        key = self._key(play.seed, play.episode, decision)
        state, transition = self.environment.step(key, play.state, self._actions(action))
        after = Play(play.seed, play.episode, decision, state)
        return after, self._seen(transition.observation), self._outcome(transition)

    def advance_or_begin(self, play: Play, action: Array) -> tuple[Play, Seen, Seen, Outcome]:
        """`advance` in worlds `[B]`, of which those that ended begin their next episode.

        Returns what is seen next, and what was seen at the end of the decision.
        """
        stepped, final, outcome = jax.vmap(self.advance)(play, action)
        ended = outcome.terminated | outcome.truncated

        def begin(_: None) -> tuple[Play, Seen]:
            fresh = jax.vmap(self.begin)(play.seed, play.episode + 1)
            return select(ended, fresh, (stepped, final))

        # most decisions end no episode
        after, seen = jax.lax.cond(ended.any(), begin, lambda _: (stepped, final), None)
        return after, seen, final, outcome

    def episode_metrics(self, totals: dict[str, Array]) -> dict[str, Array]:
        """What the specification promises of an episode, from the sums of its decisions' metrics."""
        names = {metric.name for metric in self.environment.spec.metrics}
        return {name: value for name, value in self.environment.episode_metrics(totals).items() if name in names}

    def _key(self, seed: Int[Array, ""], episode: Int[Array, ""], decision: Int[Array, ""]) -> Key[Array, ""]:
        if self.held_out:
            key = stream_key(EVALUATION_STREAM, seed + episode * self.stride)
        else:
            key = jax.random.fold_in(stream_key(TRAINING_STREAM, seed), episode)
        key = jax.random.fold_in(key, decision)
        if self.owner is None:
            return key
        place, owners = self.owner
        return jax.random.split(key, owners)[place]

    @property
    def _action_shape(self) -> tuple[int, ...]:
        """Of one agent."""
        spec = self.environment.spec
        return (spec.slots,) if spec.action == "discrete" else (spec.slots, spec.action_size)

    def _actions(self, action: Array) -> Array:
        """`[A, S]` or `[A, S, D]`; agents without a face do nothing: 0, or the first choice."""
        agents, shape = self.environment.spec.agents, self._action_shape
        if not isinstance(self.who, int):
            return action.reshape(agents, *shape)
        return jnp.zeros((agents, *shape), action.dtype).at[self.who].set(action.reshape(shape))

    def _seen(self, observation: Observation) -> Seen:
        choices = observation.action_mask.astype(jnp.int8) if self.environment.spec.action == "discrete" else None
        seen = Seen(flattened(observation) if self.flat else leaves(observation), choices)
        if isinstance(self.who, int):
            return jax.tree.map(lambda leaf: leaf[self.who], seen)
        if self.who == "all":
            joint = seen.observation.reshape(-1) if self.flat else seen.observation  # type: ignore[union-attr]
            choices = None if choices is None else choices.reshape(-1, choices.shape[-1])
            return Seen(joint, choices)
        return seen

    def _outcome(self, transition: Transition) -> Outcome:
        reward, cost, terminated = transition.reward, transition.cost, transition.terminated
        over = (terminated | transition.truncated).any()
        if isinstance(self.who, int):
            reward, cost, terminated = reward[self.who], cost[self.who], terminated[self.who]
        elif self.who == "all":
            reward, cost, terminated = reward.mean(), cost.mean(0), terminated.any()
        metrics = transition.info.get("metrics", {})
        return Outcome(reward, cost, terminated, over & ~terminated, metrics)


def leaves(observation: Observation) -> dict[str, Array]:
    """The parts of an observation by name, `[A, ...]`; masks as 0 and 1, parts without any number left out."""
    graph = observation.graph
    parts = {
        "nodes": graph.nodes,
        "edges": graph.edges,
        "globals": graph.globals,
        "node_mask": graph.node_mask,
        "edge_mask": graph.edge_mask,
        "senders": graph.senders,
        "receivers": graph.receivers,
        "slots": observation.slots,
        "slot_owner": observation.slot_owner,
        "action_mask": observation.action_mask,
        "births": observation.births,
    }
    whole = {jnp.dtype(bool): jnp.int8, jnp.dtype("int32"): jnp.int32}
    return {name: leaf.astype(whole.get(leaf.dtype, jnp.float32)) for name, leaf in parts.items() if leaf.size}


def flattened(observation: Observation) -> Float[Array, "agents numbers"]:
    """Nodes, edges, globals and slots in a row, `[A, L]`; what is masked is 0."""
    graph, mask = observation.graph, observation.action_mask
    usable = mask.any(-1) if mask.ndim == observation.slots.ndim else mask
    parts = (
        graph.nodes * graph.node_mask[..., None],
        graph.edges * graph.edge_mask[..., None],
        graph.globals,
        observation.slots * usable[..., None],
    )
    return jnp.concatenate([part.reshape(part.shape[0], -1) for part in parts], axis=-1).astype(jnp.float32)


# one program for all faces of an environment, however many of them a library makes
begin = eqx.filter_jit(lambda player, seed, episode: player.begin(seed, episode))
advance = eqx.filter_jit(lambda player, play, action: player.advance(play, action))
begin_many = eqx.filter_jit(lambda player, seed, episode: jax.vmap(player.begin)(seed, episode))
episode_metrics = eqx.filter_jit(lambda player, totals: player.episode_metrics(totals))
advance_many = eqx.filter_jit(lambda player, play, action: player.advance_or_begin(play, action))


def chosen(
    name: str, agents: int | None, scenario: str | None, settings: Mapping[str, Any]
) -> tuple[Environment, int | None]:
    """An environment by name and, where each agent has a world of its own, how many those are: it is then stacked
    over them. `agents` is how many there are, by default as many as training has; `scenario` is one of the
    environments of evaluation, without it that of training.

    Raises:
        ValueError: a name, setting or scenario that is not known, or settings that cannot be.
    """
    entry = known("environment", name, ENVIRONMENTS)
    own = [field.name for field in fields(entry.settings)]
    for setting in settings:
        known(f"setting of environment '{name}'", setting, dict.fromkeys(own))
    experiment = default_experiment(name, **({} if agents is None else {"agents": agents}), **settings)
    domain = importlib.import_module(entry.module).build(experiment.settings, experiment.agents)
    if scenario is None:
        return domain.training, domain.owners
    return known(f"scenario of environment '{name}'", scenario, dict(domain.scenarios)), domain.owners


def named(
    name: str, agents: int, owner: int, scenario: str | None, settings: Mapping[str, Any]
) -> tuple[Environment, tuple[int, int] | None]:
    """As `chosen`, but of stacked environments that of one owner, and whose of how many it is.

    Raises:
        ValueError: as in `chosen`; also an owner that is not there.
    """
    environment, owners = chosen(name, agents, scenario, settings)
    if owners is None or isinstance(environment, HostEnvironment):
        return environment, None
    if not 0 <= owner < owners:
        raise ValueError(f"agent {owner}: there are {owners}, counted from 0")
    one = jax.tree.map(lambda leaf: leaf[owner] if eqx.is_array(leaf) else leaf, environment)
    return one, (owner, owners)
