"""The one loop: act, learn, exchange. Start reading here.

A round is one jitted call. `run_round` is pure; everything that touches files is in `runs.py`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm
from dynamic_graph_fed_rl.environments.worlds import Worlds, select
from dynamic_graph_fed_rl.federation.federation import Federation
from dynamic_graph_fed_rl.training.rollout import Actors, AgentMap, collect, over_agents, start


class Training(eqx.Module):
    """All that a run is made of between two rounds: save it, and the run can go on from it bit for bit."""

    key: PRNGKeyArray
    round: Int[Array, ""]
    learners: PyTree
    actors: Actors
    federation: PyTree


class Trainer(eqx.Module):
    """A agents that learn in `worlds` by `algorithm` and exchange through `federation`."""

    algorithm: Algorithm
    worlds: Worlds
    federation: Federation
    decisions_per_round: int = eqx.field(static=True)
    agent_map: AgentMap = eqx.field(static=True, default="vmap")

    @property
    def steps_per_round(self) -> int:
        """World steps of a round: never multiplied by the number of agents that share a world."""
        worlds = self.worlds.copies * (self.worlds.owners or 1)
        return self.decisions_per_round * worlds * self.worlds.spec.steps_per_decision

    @eqx.filter_jit
    def init(self, key: PRNGKeyArray) -> Training:
        """All agents start from the same parameters."""
        key, learner_key, world_key = jax.random.split(key, 3)
        learner = self.algorithm.init(learner_key, self.worlds.spec)
        learners = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], self.worlds.agents, axis=0), learner)
        actors = start(world_key, self.algorithm, self.worlds, learners)
        shared = jax.vmap(self.algorithm.shared)(learners)
        return Training(key, jnp.zeros((), jnp.int32), learners, actors, self.federation.init(shared))

    @eqx.filter_jit(donate="all-except-first")
    def run_round(self, training: Training) -> tuple[Training, dict[str, Any]]:
        """Plan, act, learn, exchange; metrics are means over the round, those of learning `[A]`."""
        key, plan_key, act_key, learn_key, exchange_key = jax.random.split(training.key, 5)
        agents = self.worlds.agents
        federation, plan = self.federation.plan(plan_key, training.federation)

        actors, experience, world_metrics = collect(
            act_key,
            self.algorithm,
            self.worlds,
            training.learners,
            training.actors,
            self.decisions_per_round,
            self.agent_map,
        )
        learn = over_agents(self.algorithm.learn, self.agent_map)
        learned, learning_metrics = learn(jax.random.split(learn_key, agents), training.learners, experience)
        learners = select(plan.active, learned, training.learners)

        shared = jax.vmap(self.algorithm.shared)(learners)
        federation, shared, report = self.federation.exchange(exchange_key, federation, shared, plan)
        learners = jax.vmap(self.algorithm.with_shared)(learners, shared)

        metrics = {
            "reward": experience.transition.reward.mean((1, 2)),
            "cost": {
                column.name: experience.transition.cost[..., i].mean()
                for i, column in enumerate(self.worlds.spec.costs)
            },
            "terminated": experience.transition.terminated.sum((1, 2)),
            "world": jax.tree.map(jnp.mean, world_metrics),
            "learning": learning_metrics,
            "federation": report,
        }
        return Training(key, training.round + 1, learners, actors, federation), metrics
