"""A learner without a world of its own, which learns from what all agents experienced.

Where experience may be pooled, it stands beside the agents: in the federation its parameters are one more row.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.off_policy import OffPolicy
from dynamic_graph_fed_rl.buffers.screening import Screen, described
from dynamic_graph_fed_rl.environments.spec import Spec


class Pool(eqx.Module):
    """The algorithm of the server's learner, and which experience it takes in (None: all)."""

    algorithm: OffPolicy
    screen: Screen | None = None

    def init(self, key: PRNGKeyArray, spec: Spec, worlds: int) -> PyTree:
        """A learner from the experience of `worlds` worlds, all agents' together."""
        return self.algorithm.init(key, spec, worlds)

    def study(
        self, key: PRNGKeyArray, server: PyTree, experience: Experience, there: Bool[Array, " agents"]
    ) -> tuple[PyTree, dict[str, Any]]:
        """The server's learner after a round, from the experience `[A, T, B, ...]` of the agents that are there."""
        screen_key, recall_key, learn_key = jax.random.split(key, 3)
        pooled = pool(experience)
        rows = pooled.transition.reward.shape
        copies = rows[1] // there.shape[0]
        counts = jnp.broadcast_to(jnp.repeat(there, copies), rows)
        if self.screen is not None:
            fresh = described(pooled.observation)
            known = described(server.replay.sample(screen_key, self.screen.compared).observation)[0]
            passes = self.screen.passes(known, fresh.reshape(-1, fresh.shape[-1])).reshape(rows)
            counts = counts & (passes | (server.replay.stored == 0))
        server, lesson = self.algorithm.recall(recall_key, server, pooled, counts)
        server, metrics = self.algorithm.learn(learn_key, server, lesson)
        kept = {"pooled": counts.sum(), "replay_size": server.replay.size}
        return server, metrics | {name: count.astype(jnp.float32) for name, count in kept.items()}


def pool(experience: Experience) -> Experience:
    """The experience of A agents in B worlds each as that of one agent in A * B worlds."""

    def beside(leaf: Array) -> Array:
        """`[A, T, B, ...]` to `[T, A * B, ...]`."""
        return jnp.moveaxis(leaf, 0, 1).reshape(leaf.shape[1], leaf.shape[0] * leaf.shape[2], *leaf.shape[3:])

    memory = jax.tree.map(
        lambda leaf: leaf.reshape(leaf.shape[0] * leaf.shape[1], *leaf.shape[2:]), experience.memory
    )
    rows = (experience.observation, experience.action, experience.transition, experience.extras)
    return Experience(memory, *jax.tree.map(beside, rows))
