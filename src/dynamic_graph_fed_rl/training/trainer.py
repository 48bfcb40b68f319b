"""The one loop: act, learn, exchange. Start reading here.

A round is one jitted call. `run_round` is pure; everything that touches files is in `runs.py`.
"""

from itertools import accumulate
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm
from dynamic_graph_fed_rl.environments.worlds import Worlds, select
from dynamic_graph_fed_rl.federation.federation import Federation, FederationState
from dynamic_graph_fed_rl.federation.sharing import Chosen, everything, from_vectors, to_vectors
from dynamic_graph_fed_rl.training.rollout import Actors, AgentMap, collect, start, study


class Training(eqx.Module):
    """All that a run is made of between two rounds: save it, and the run can go on from it bit for bit.

    `learners` and `actors` have one entry a group.
    """

    key: PRNGKeyArray
    round: Int[Array, ""]
    learners: tuple[PyTree, ...]
    actors: tuple[Actors, ...]
    federation: FederationState


class Group(eqx.Module):
    """Agents of equal spec, how they learn, and the worlds that they share or that each of them has."""

    algorithm: Algorithm
    worlds: Worlds

    def world_steps(self, active: Bool[Array, " agents"], decisions: int) -> Int[Array, ""]:
        """World steps of a round: never multiplied by the number of agents that share a world."""
        per_world = decisions * self.worlds.copies * self.worlds.spec.steps_per_decision
        return jnp.asarray(per_world) if self.worlds.owners is None else active.sum() * per_world


class Trainer(eqx.Module):
    """Groups of agents, A in all, that learn in their worlds and exchange what `share` chooses by name.

    Between groups, what is chosen must have the same names and shapes: a graph network over grids of any size has.
    """

    groups: tuple[Group, ...]
    federation: Federation
    decisions_per_round: int = eqx.field(static=True)
    agent_map: AgentMap = eqx.field(static=True, default="vmap")
    share: Chosen = eqx.field(static=True, default=everything)

    @property
    def agents(self) -> int:
        return sum(group.worlds.agents for group in self.groups)

    @eqx.filter_jit
    def init(self, key: PRNGKeyArray) -> Training:
        """All agents start from the same parameters."""
        key, learner_key, world_key = jax.random.split(key, 3)
        learners, actors = [], []
        for group, group_key in zip(self.groups, jax.random.split(world_key, len(self.groups)), strict=True):
            learner = group.algorithm.init(learner_key, group.worlds.spec, group.worlds.copies)
            alike = jax.tree.map(lambda leaf, a=group.worlds.agents: jnp.repeat(leaf[None], a, axis=0), learner)
            learners.append(alike)
            actors.append(start(group_key, group.algorithm, group.worlds, alike))
        federation = self.federation.init(to_vectors(self._shared(learners), self.share))
        return Training(key, jnp.zeros((), jnp.int32), tuple(learners), tuple(actors), federation)

    @eqx.filter_jit(donate="all-except-first")
    def run_round(self, training: Training) -> tuple[Training, dict[str, Any]]:
        """Plan, act, learn, exchange; metrics are means over the round, those of learning `[A]`."""
        key, plan_key, work_key, exchange_key = jax.random.split(training.key, 4)
        federation, plan = self.federation.plan(plan_key, training.federation)

        learners, actors, metrics = [], [], []
        ends = list(accumulate(group.worlds.agents for group in self.groups))
        for i, group in enumerate(self.groups):
            own = slice(ends[i] - group.worlds.agents, ends[i])
            learned, moved, row = self._work(
                jax.random.fold_in(work_key, i),
                group,
                training.learners[i],
                training.actors[i],
                plan.active[own],
                own,
            )
            learners.append(learned)
            actors.append(moved)
            metrics.append(row)

        shared = self._shared(learners)
        vectors = to_vectors(shared, self.share)
        federation, vectors, report = self.federation.exchange(exchange_key, federation, vectors, plan)
        learners = [
            jax.vmap(group.algorithm.with_shared)(learner, part)
            for group, learner, part in zip(
                self.groups, learners, from_vectors(vectors, shared, self.share), strict=True
            )
        ]
        after = Training(key, training.round + 1, tuple(learners), tuple(actors), federation)
        return after, _together(metrics) | {"federation": report}

    def _work(
        self,
        key: PRNGKeyArray,
        group: Group,
        learners: PyTree,
        actors: Actors,
        active: Bool[Array, " agents"],
        own: slice,
    ) -> tuple[PyTree, Actors, dict[str, Any]]:
        """A group acts and learns; whoever is not active keeps its learner and, if it has its own, its worlds."""
        act_key, learn_key = jax.random.split(key)
        worlds, random = group.worlds, self.federation.acts_randomly
        moved, experience, world_metrics = collect(
            act_key,
            group.algorithm,
            worlds,
            learners,
            actors,
            self.decisions_per_round,
            None if random is None else random[own],
        )
        keys = jax.random.split(learn_key, worlds.agents)
        learned, learning = study(keys, group.algorithm, learners, experience, self.agent_map)
        if worlds.owners is not None and not self.federation.always:
            moved = select(active, moved, actors)
        transition = experience.transition
        costs = {column.name: transition.cost[..., i].mean() for i, column in enumerate(worlds.spec.costs)}
        metrics = {
            "reward": transition.reward.mean((1, 2)),
            "cost": costs,
            "terminated": transition.terminated.sum((1, 2)),
            "ended": (transition.terminated | transition.truncated).sum((1, 2)),
            "world_steps": group.world_steps(active, self.decisions_per_round),
            "world": jax.tree.map(jnp.mean, world_metrics),
            "learning": learning,
        }
        return learned if self.federation.always else select(active, learned, learners), moved, metrics

    def _shared(self, learners: list[PyTree]) -> list[PyTree]:
        return [
            jax.vmap(group.algorithm.shared)(learner) for group, learner in zip(self.groups, learners, strict=True)
        ]


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
