"""The one loop: act, learn, exchange. Start reading here.

A round is one jitted call. `run_round` is pure; everything that touches files is in `runs.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.environments.worlds import Worlds, select
from dynamic_graph_fed_rl.federation.federation import Federation, FederationState
from dynamic_graph_fed_rl.federation.sharing import Chosen, everything, from_vectors, to_vectors
from dynamic_graph_fed_rl.training.pooling import Pool
from dynamic_graph_fed_rl.training.rollout import Actors, AgentMap, collect, start, study


class Training(eqx.Module):
    """All that a run is made of between two rounds: save it, and the run can go on from it bit for bit.

    `learners` and `actors` have one entry a group; `server` is the learner of pooled experience, if there is one.
    """

    key: PRNGKeyArray
    round: Int[Array, ""]
    learners: tuple[PyTree, ...]
    actors: tuple[Actors, ...]
    federation: FederationState
    server: PyTree = None


class Group(eqx.Module):
    """Agents of equal spec, how they learn, and the worlds that they share or that each of them has.

    A round has `lessons`: times at which the agents stop acting to learn. Where they do not learn (`learns`),
    somebody else does so for them.
    """

    algorithm: Algorithm
    worlds: Worlds
    lessons: int = eqx.field(static=True, default=1)
    learns: bool = eqx.field(static=True, default=True)

    def init(self, learner_key: PRNGKeyArray, world_key: PRNGKeyArray) -> tuple[PyTree, Actors]:
        """Learners, all alike, and where they begin to act."""
        learner = self.algorithm.init(learner_key, self.worlds.spec, self.worlds.copies)
        alike = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], self.worlds.agents, axis=0), learner)
        return alike, start(world_key, self.algorithm, self.worlds, alike)

    def work(
        self,
        key: PRNGKeyArray,
        learners: PyTree,
        actors: Actors,
        decisions: int,
        how: AgentMap = "vmap",
        random: Bool[Array, " agents"] | None = None,
    ) -> "Worked":
        """A round's lessons: act, then learn from it, each time."""

        def lesson(before: tuple[PyTree, Actors], lesson_key: PRNGKeyArray) -> tuple[tuple[PyTree, Actors], tuple]:
            learners, actors = before
            act_key, learn_key = jax.random.split(lesson_key)
            moved, experience, world = collect(
                act_key, self.algorithm, self.worlds, learners, actors, decisions // self.lessons, random
            )
            if self.learns:
                keys = self.worlds.agent_keys(learn_key)
                learned, figures = study(keys, self.algorithm, learners, experience, how)
            else:
                learned, figures = jax.vmap(self.algorithm.skip)(learners), {}
            return (learned, moved), (experience, world, figures)

        if self.lessons == 1:
            (learned, moved), outcome = lesson((learners, actors), key)
            return Worked(learned, moved, *outcome)
        keys = jax.random.split(key, self.lessons)
        (learned, moved), (experience, world, figures) = jax.lax.scan(lesson, (learners, actors), keys)
        figures = jax.tree.map(lambda one: one.mean(0), figures)
        return Worked(learned, moved, _in_a_row(experience), _flat(world), figures)

    def world_steps(self, active: Bool[Array, " agents"], decisions: int) -> Int[Array, ""]:
        """World steps of a round: never multiplied by the number of agents that share a world."""
        per_world = decisions * self.worlds.copies * self.worlds.spec.steps_per_decision
        return jnp.asarray(per_world) if self.worlds.owners is None else active.sum() * per_world


class RoundKeys(NamedTuple):
    """Randomness of a round's parts, and the key that the next one begins with."""

    next: PRNGKeyArray
    plan: PRNGKeyArray
    work: PRNGKeyArray
    exchange: PRNGKeyArray


def keys_of_round(key: PRNGKeyArray) -> RoundKeys:
    return RoundKeys(*jax.random.split(key, 4))


class Worked(NamedTuple):
    """A group after its lessons; what it experienced in them `[A, T, B, ...]`, the environment's metrics `[T, ...]`,
    and the figures of learning `[A]`."""

    learners: PyTree
    actors: Actors
    experience: Experience
    world: dict[str, Array]
    learning: dict[str, Array]


class Trainer(eqx.Module):
    """Groups of agents, A in all, that learn in their worlds and exchange what `share` chooses by name.

    Between groups, what is chosen must have the same names and shapes: a graph network over grids of any size has.
    With a `pool`, a server learns from the experience of the one group's agents; its parameters are the first row
    of what the federation sees, the agents' follow. `keep_scores` adds the environment's metrics of every decision
    to those of the round.
    """

    groups: tuple[Group, ...]
    federation: Federation
    decisions_per_round: int = eqx.field(static=True)
    agent_map: AgentMap = eqx.field(static=True, default="vmap")
    share: Chosen = eqx.field(static=True, default=everything)
    pool: Pool | None = None
    keep_scores: bool = eqx.field(static=True, default=False)

    @property
    def agents(self) -> int:
        return sum(group.worlds.agents for group in self.groups)

    @eqx.filter_jit
    def init(self, key: PRNGKeyArray) -> Training:
        """All agents start from the same parameters."""
        key, learner_key, world_key = jax.random.split(key, 3)
        keys = jax.random.split(world_key, len(self.groups))
        begun = [group.init(learner_key, one) for group, one in zip(self.groups, keys, strict=True)]
        learners, actors = zip(*begun, strict=True)
        server = None
        if self.pool is not None:
            worlds = self.groups[0].worlds
            server = self.pool.init(learner_key, worlds.spec, worlds.agents * worlds.copies)
        federation = self.federation.init(to_vectors(self._shared(server, learners), self.share))
        return Training(key, jnp.zeros((), jnp.int32), learners, actors, federation, server)

    @eqx.filter_jit(donate="all-except-first")
    def run_round(self, training: Training) -> tuple[Training, dict[str, Any]]:
        """Plan, act, learn, exchange; metrics are means over the round, those of learning `[A]`."""
        keys = keys_of_round(training.key)
        federation, plan = self.federation.plan(keys.plan, training.federation)

        learners, actors, metrics, experience = [], [], [], None
        first = 0 if self.pool is None else 1
        for i, group in enumerate(self.groups):
            own = slice(first, first + group.worlds.agents)
            first = own.stop
            learned, moved, row, experience = self._work(
                jax.random.fold_in(keys.work, i),
                group,
                training.learners[i],
                training.actors[i],
                plan.active[own],
                own,
            )
            learners.append(learned)
            actors.append(moved)
            metrics.append(row)
        together = _together(metrics)

        server = training.server
        if self.pool is not None:
            assert experience is not None
            pool_key = jax.random.fold_in(keys.work, len(self.groups))
            server, together["server"] = self.pool.study(pool_key, server, experience, plan.active[1:])
        shared = self._shared(server, learners)
        vectors = to_vectors(shared, self.share)
        federation, vectors, report = self.federation.exchange(keys.exchange, federation, vectors, plan)
        received = from_vectors(vectors, shared, self.share)
        if self.pool is not None:
            server = self.pool.algorithm.with_shared(server, jax.tree.map(lambda leaf: leaf[0], received.pop(0)))
        learners = [
            jax.vmap(group.algorithm.with_shared)(learner, part)
            for group, learner, part in zip(self.groups, learners, received, strict=True)
        ]
        after = Training(keys.next, training.round + 1, tuple(learners), tuple(actors), federation, server)
        return after, together | {"federation": report}

    def _work(
        self,
        key: PRNGKeyArray,
        group: Group,
        learners: PyTree,
        actors: Actors,
        active: Bool[Array, " agents"],
        own: slice,
    ) -> tuple[PyTree, Actors, dict[str, Any], Experience]:
        """A group acts and learns; whoever is not active keeps its learner and, if it has its own, its worlds."""
        random = self.federation.acts_randomly
        worked = group.work(
            key, learners, actors, self.decisions_per_round, self.agent_map, None if random is None else random[own]
        )
        learned, moved = worked.learners, worked.actors
        if not self.federation.always:
            learned = select(active, learned, learners)
            moved = moved if group.worlds.owners is None else select(active, moved, actors)
        steps = group.world_steps(active, self.decisions_per_round)
        return learned, moved, measured(group, worked, self.keep_scores) | {"world_steps": steps}, worked.experience

    def _shared(self, server: PyTree, learners: Sequence[PyTree]) -> list[PyTree]:
        agents = [
            jax.vmap(group.algorithm.shared)(learner) for group, learner in zip(self.groups, learners, strict=True)
        ]
        if self.pool is None:
            return agents
        return [jax.tree.map(lambda leaf: leaf[None], self.pool.algorithm.shared(server)), *agents]


def measured(group: Group, worked: Worked, keep_scores: bool = False) -> dict[str, Any]:
    """Figures of a round's work: means, counts, and of learning an entry an agent."""
    transition = worked.experience.transition
    ended = transition.terminated | transition.truncated
    metrics = {
        "reward": transition.reward.mean((1, 2)),
        "cost": {column.name: transition.cost[..., i].mean() for i, column in enumerate(group.worlds.spec.costs)},
        "terminated": transition.terminated.sum((1, 2)),
        "ended": ended.sum((1, 2)),
        "world": jax.tree.map(jnp.mean, worked.world),
        "learning": worked.learning,
    }
    return metrics | ({"scores": worked.world | {"ended": ended}} if keep_scores else {})


def _in_a_row(lessons: Experience) -> Experience:
    """Experience of one lesson after the other, `[lessons, A, T, B, ...]`, as that of a single longer one."""

    def joined(leaf: Array) -> Array:
        by_agent = jnp.moveaxis(leaf, 0, 1)
        return by_agent.reshape(leaf.shape[1], leaf.shape[0] * leaf.shape[2], *leaf.shape[3:])

    rows = (lessons.observation, lessons.action, lessons.transition, lessons.extras)
    return Experience(jax.tree.map(lambda leaf: leaf[0], lessons.memory), *jax.tree.map(joined, rows))


def _flat(rows: PyTree) -> PyTree:
    """`[lessons, T, ...]` to `[lessons * T, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), rows)


def _together(groups: list[dict[str, Any]]) -> dict[str, Any]:
    """One row from the groups': what is per agent side by side, world steps added up, the rest averaged."""
    if len(groups) == 1:
        return groups[0]

    def join(path: tuple, *leaves: Array) -> Array:
        if leaves[0].ndim:
            return jnp.concatenate(leaves)
        stacked = jnp.stack(leaves)
        return stacked.sum() if path[0].key == "world_steps" else stacked.mean()

    return jax.tree_util.tree_map_with_path(join, *groups)
