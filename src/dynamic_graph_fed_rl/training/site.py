"""The two halves of a round, each by itself: what happens at an owner's site, and what at the server.

`Trainer.run_round` does both in one program for all agents at once. Here every owner's half is a program of its own,
the same whether its agent is one of many in this process (`InTurn`) or alone in a client far away: the two give the
same bits.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.environments.base import Observation, Transition
from dynamic_graph_fed_rl.environments.worlds import select
from dynamic_graph_fed_rl.federation.federation import Federation, FederationState
from dynamic_graph_fed_rl.federation.sharing import Chosen, from_vectors, to_vectors
from dynamic_graph_fed_rl.training.pooling import Pool
from dynamic_graph_fed_rl.training.rollout import Actors
from dynamic_graph_fed_rl.training.trainer import Group, Trainer, Training, keys_of_round, measured


class Told(eqx.Module):
    """What a site tells of a round's experience, leaves `[T, B, ...]`: enough to keep it in a replay.

    `last` is what was seen after the last decision; every other row's successor is the row after it.
    """

    memory: PyTree
    observation: Observation
    action: Array
    reward: Float[Array, "T worlds"]
    terminated: Bool[Array, "T worlds"]
    truncated: Bool[Array, "T worlds"]
    last: Observation

    @staticmethod
    def of(experience: Experience) -> "Told":
        outcome = experience.transition
        last = jax.tree.map(lambda leaf: leaf[-1], outcome.observation)
        seen = experience.memory, experience.observation, experience.action
        return Told(*seen, outcome.reward, outcome.terminated, outcome.truncated, last)

    def experience(self) -> Experience:
        """As it was, but for costs and for what was seen after the end of an episode, which no replay keeps."""
        following = jax.tree.map(
            lambda seen, last: jnp.concatenate([seen[1:], last[None]]), self.observation, self.last
        )
        cost = jnp.zeros((*self.reward.shape, 0))
        outcome = Transition(following, self.reward, cost, self.terminated, self.truncated, {})
        return Experience(self.memory, self.observation, self.action, outcome, None)

    def absent(self, last: Observation) -> "Told":
        """As many rows in which nothing but `last` was seen."""
        seen = jax.tree.map(lambda leaf, one: jnp.broadcast_to(one, leaf.shape), self.observation, last)
        action, reward = jnp.zeros_like(self.action), jnp.zeros_like(self.reward)
        never = jnp.zeros_like(self.terminated)
        return Told(self.memory, seen, action, reward, never, never, last)


class SiteState(eqx.Module):
    """One owner between two steps: the key that everybody has at the beginning of the round, the learner and where
    it left off acting, leaves `[1, ...]`."""

    key: PRNGKeyArray
    round: Int[Array, ""]
    learners: PyTree
    actors: Actors


class Site(eqx.Module):
    """The half of a round at the owner who has the place `group.worlds.place` among all."""

    group: Group
    decisions: int = eqx.field(static=True)
    share: Chosen = eqx.field(static=True)

    @staticmethod
    def of(trainer: Trainer, place: int | Int[Array, ""]) -> "Site":
        """A single agent's part of a trainer, whose agents each have worlds of their own.

        Raises:
            ValueError: they act in one world together, or there are several groups.
        """
        group = trainer.groups[0]
        worlds = group.worlds
        if len(trainer.groups) > 1 or worlds.owners is None:
            raise ValueError("sites: need agents that each have a world of their own; these act in one together")
        own = worlds.alone(place)
        return Site(eqx.tree_at(lambda one: one.worlds, group, own), trainer.decisions_per_round, trainer.share)

    @eqx.filter_jit
    def init(self, key: PRNGKeyArray) -> SiteState:
        """As `Trainer.init` begins this agent."""
        key, learner_key, world_key = jax.random.split(key, 3)
        learners, actors = self.group.init(learner_key, jax.random.split(world_key, 1)[0])
        return SiteState(key, jnp.zeros((), jnp.int32), learners, actors)

    def work(
        self, state: SiteState, further: int | Int[Array, ""] = 0
    ) -> tuple[SiteState, Float[Array, " size"], Told, dict[str, Any]]:
        """The round's acting and learning: the state after it, what to send, what to tell, and figures.

        `further` counts how often the round's work has been done already, while nobody could be reached. The buffers
        of `state` are given away.
        """
        return self._work(state, jnp.array(further, jnp.int32))

    @eqx.filter_jit(donate="all-except-first")
    def _work(
        self, state: SiteState, further: Int[Array, ""]
    ) -> tuple[SiteState, Float[Array, " size"], Told, dict[str, Any]]:
        key = jax.random.fold_in(keys_of_round(state.key).work, 0)
        key = jax.lax.cond(further > 0, lambda k: jax.random.fold_in(k, further), lambda k: k, key)
        worked = self.group.work(key, state.learners, state.actors, self.decisions)
        after = SiteState(state.key, state.round, worked.learners, worked.actors)
        told = Told.of(jax.tree.map(lambda leaf: leaf[0], worked.experience))
        return after, self.vector(worked.learners), told, measured(self.group, worked)

    @eqx.filter_jit
    def receive(self, state: SiteState, vector: Float[Array, " size"], round: Int[Array, ""]) -> SiteState:
        """Goes on with what the server gives for a later round."""
        key = jax.lax.fori_loop(state.round, round, lambda _, key: keys_of_round(key).next, state.key)
        shared = [jax.vmap(self.group.algorithm.shared)(state.learners)]
        received = from_vectors(vector[None], shared, self.share)[0]
        learners = jax.vmap(self.group.algorithm.with_shared)(state.learners, received)
        return SiteState(key, round, learners, state.actors)

    def vector(self, learners: PyTree) -> Float[Array, " size"]:
        """What is sent of the one agent's parameters."""
        return to_vectors([jax.vmap(self.group.algorithm.shared)(learners)], self.share)[0]


class ServerState(eqx.Module):
    """The server between two rounds; `held` is what each agent goes on with, `last` what it was seen to see last
    (None where experience is not pooled)."""

    key: PRNGKeyArray
    round: Int[Array, ""]
    held: Float[Array, "agents size"]
    federation: FederationState
    server: PyTree
    last: Observation | None


class Server(eqx.Module):
    """The server's half of a round: the federation and, where experience is pooled, a learner."""

    federation: Federation
    pool: Pool | None
    group: Group
    decisions: int = eqx.field(static=True)
    share: Chosen = eqx.field(static=True)

    @staticmethod
    def of(trainer: Trainer) -> "Server":
        return Server(trainer.federation, trainer.pool, trainer.groups[0], trainer.decisions_per_round, trainer.share)

    @property
    def agents(self) -> int:
        return self.group.worlds.agents

    @eqx.filter_jit
    def init(self, key: PRNGKeyArray) -> ServerState:
        """As `Trainer.init` begins."""
        key, learner_key, _ = jax.random.split(key, 3)
        worlds = self.group.worlds
        one = self.group.algorithm.init(learner_key, worlds.spec, worlds.copies)
        first = to_vectors([_row(self.group.algorithm, one)], self.share)
        held = jnp.repeat(first, self.agents, axis=0)
        if self.pool is None:
            return ServerState(key, jnp.zeros((), jnp.int32), held, self.federation.init(held), None, None)
        server = self.pool.init(learner_key, worlds.spec, self.agents * worlds.copies)
        rows = jnp.concatenate([to_vectors([_row(self.pool.algorithm, server)], self.share), held])
        blank = Observation.blank(worlds.spec, worlds.copies)
        last = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], self.agents, axis=0), blank)
        return ServerState(key, jnp.zeros((), jnp.int32), held, self.federation.init(rows), server, last)

    def told(self) -> Told:
        """The shapes of what a site tells of a round, without making it."""
        worlds = self.group.worlds
        algorithm = self.group.algorithm

        def made(key: PRNGKeyArray) -> Told:
            seen = Observation.blank(worlds.spec, worlds.copies)
            learner = algorithm.init(key, worlds.spec, worlds.copies)
            memory = algorithm.initial_memory(learner, seen)
            action = algorithm.act(key, learner, memory, seen)[0]
            rows = self.decisions
            observation = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], rows, axis=0), seen)
            reward = jnp.zeros((rows, worlds.copies))
            flags = jnp.zeros((rows, worlds.copies), bool)
            return Told(memory, observation, jnp.repeat(action[None], rows, axis=0), reward, flags, flags, seen)

        return eqx.filter_eval_shape(made, jax.random.key(0))

    @eqx.filter_jit
    def close(
        self,
        state: ServerState,
        own: Float[Array, "agents size"],
        arrived: Bool[Array, " agents"],
        told: Told | None,
        there: Bool[Array, " agents"],
    ) -> tuple[ServerState, dict[str, Any]]:
        """The state of the next round from what has arrived, and a report.

        `own` are the agents' parameters and `told` their experience `[A, T, B, ...]`, of those that are `there`.
        """
        keys = keys_of_round(state.key)
        federation, plan = self.federation.plan(keys.plan, state.federation)
        rows, server, last, figures = jnp.where(arrived[:, None], own, state.held), state.server, state.last, {}
        if self.pool is not None and told is not None and last is not None:
            filled = select(there, told, jax.vmap(Told.absent)(told, last))
            pool_key = jax.random.fold_in(keys.work, 1)
            experience = jax.vmap(Told.experience)(filled)
            server, figures = self.pool.study(pool_key, server, experience, there)
            last = filled.last
            rows = jnp.concatenate([to_vectors([_row(self.pool.algorithm, server)], self.share), rows])
            arrived = jnp.concatenate([jnp.ones(1, bool), arrived])
        plan = eqx.tree_at(lambda one: one.active, plan, plan.active & arrived)
        federation, mixed, report = self.federation.exchange(keys.exchange, federation, rows, plan)
        if self.pool is not None:
            algorithm = self.pool.algorithm
            received = from_vectors(mixed[:1], [_row(algorithm, server)], self.share)[0]
            server = algorithm.with_shared(server, jax.tree.map(lambda leaf: leaf[0], received))
            mixed = mixed[1:]
        after = ServerState(keys.next, state.round + 1, mixed, federation, server, last)
        return after, {"federation": report} | ({"server": figures} if figures else {})


class InTurn(eqx.Module):
    """A trainer whose agents work one after the other, each in its own program; stands in for it wherever rounds
    are run. Slower than all at once, and what every client of a server over HTTP gives, bit for bit."""

    trainer: Trainer

    def run_round(self, training: Training) -> tuple[Training, dict[str, Any]]:
        """`Trainer.run_round`, up to rounding."""
        trainer, server = self.trainer, Server.of(self.trainer)
        _, plan = trainer.federation.plan(keys_of_round(training.key).plan, training.federation)
        active = plan.active[-trainer.agents :]
        sites = [Site.of(trainer, jnp.asarray(place, jnp.int32)) for place in range(trainer.agents)]
        everybody = training.learners[0], training.actors[0]
        before = [
            SiteState(training.key, training.round, *_only(everybody, place)) for place in range(trainer.agents)
        ]
        last = _stacked([jax.tree.map(lambda leaf: leaf[0], state.actors.observation) for state in before])
        # copies: a site gives its buffers away, and those that are not active go on with what they had
        worked = [site.work(jax.tree.map(jnp.copy, state)) for site, state in zip(sites, before, strict=True)]
        moved, vectors, told, rows = zip(*worked, strict=True)
        idle = [site.vector(state.learners) for site, state in zip(sites, before, strict=True)]

        state = ServerState(
            training.key,
            training.round,
            jnp.stack(idle),
            training.federation,
            training.server,
            None if trainer.pool is None else last,
        )
        after, report = server.close(
            state, jnp.stack(vectors), active, None if trainer.pool is None else _stacked(told), active
        )
        states = [
            site.receive(new if there else old, held, after.round)
            for site, new, old, there, held in zip(sites, moved, before, active.tolist(), after.held, strict=True)
        ]
        steps = trainer.groups[0].world_steps(active, trainer.decisions_per_round)
        metrics = jax.tree.map(lambda *leaves: _beside(leaves), *rows) | {"world_steps": steps} | report
        learners, actors = (_joined([getattr(one, part) for one in states]) for part in ("learners", "actors"))
        return Training(after.key, after.round, (learners,), (actors,), after.federation, after.server), metrics


def _row(algorithm: Algorithm, learner: PyTree) -> PyTree:
    """What one learner shares, as a group of one."""
    return jax.tree.map(lambda leaf: leaf[None], algorithm.shared(learner))


def _only(tree: PyTree, place: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[place : place + 1], tree)


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _joined(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)


def _beside(leaves: Sequence[Array]) -> Array:
    """Figures of single agents as those of all: an entry each, or the mean of what is one number."""
    return jnp.concatenate(leaves) if leaves[0].ndim else jnp.stack(leaves).mean()
