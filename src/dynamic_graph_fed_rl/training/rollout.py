"""Acting in worlds and keeping what happened."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Key, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.worlds import Worlds, select

AgentMap = Literal["vmap", "map"]


def over_agents(function: Callable[..., Any], how: AgentMap) -> Callable[..., Any]:
    """Apply a one-agent function along the leading axis A of all its arguments.

    On a CPU `vmap` wins for small work an agent, such as acting, and `map` (one after the other) for large, such
    as learning from graphs; see docs/trainer.md for the measurement behind the default.
    """
    if how == "vmap":
        return jax.vmap(function)
    return lambda *arguments: jax.lax.map(lambda row: function(*row), arguments)


def study(
    keys: Key[Array, " agents"], algorithm: Algorithm, learners: PyTree, experience: Experience, how: AgentMap
) -> tuple[PyTree, dict[str, Any]]:
    """Each agent learns from its own experience: the learners after it, and figures `[A]`."""
    recall_keys, learn_keys = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    learners, lessons = jax.vmap(algorithm.recall)(recall_keys, learners, experience)
    return over_agents(algorithm.learn, how)(learn_keys, learners, lessons)


class Actors(eqx.Module):
    """Where acting left off: memories `[A, B, ...]`, states of the worlds, and the observation to act on."""

    memory: PyTree
    worlds: PyTree
    observation: Observation


def start(key: PRNGKeyArray, algorithm: Algorithm, worlds: Worlds, learners: PyTree) -> Actors:
    state, observation = worlds.reset(key)
    memory = jax.vmap(algorithm.initial_memory)(learners, observation)
    return Actors(memory, state, observation)


def collect(
    key: PRNGKeyArray,
    algorithm: Algorithm,
    worlds: Worlds,
    learners: PyTree,
    actors: Actors,
    decisions: int,
    acts_randomly: Bool[Array, " agents"] | None = None,
) -> tuple[Actors, Experience, dict[str, Any]]:
    """`decisions` rows in every world: the actors after them, each agent's experience `[A, T, B, ...]`, and the
    environment's metrics `[T, B]`. Agents that act randomly (attackers) do so instead of what they decided."""
    act = jax.vmap(algorithm.act)

    def decide(actors: Actors, row_key: PRNGKeyArray) -> tuple[Actors, tuple]:
        act_key, step_key, random_key = jax.random.split(row_key, 3)
        keys = worlds.agent_keys(act_key)
        action, memory, extras = act(keys, learners, actors.memory, actors.observation)
        if acts_randomly is not None:
            random = _random_action(random_key, action, actors.observation)
            action = select(acts_randomly, random, action)
        state, observation, transition = worlds.step(step_key, actors.worlds, action)
        metrics = transition.info.get("metrics", {})
        kept = eqx.tree_at(lambda t: t.info, transition, {})
        return Actors(memory, state, observation), (actors.observation, action, kept, extras, metrics)

    after, rows = jax.lax.scan(decide, actors, jax.random.split(key, decisions))
    *learner_rows, metrics = rows
    per_agent = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), learner_rows)
    return after, Experience(actors.memory, *per_agent), metrics


def _random_action(key: PRNGKeyArray, action: Array, observation: Observation) -> Array:
    """A uniform draw among what each slot may do."""
    if jnp.issubdtype(action.dtype, jnp.floating):
        return jax.random.uniform(key, action.shape, action.dtype, -1.0, 1.0)
    return jax.random.categorical(key, jnp.where(observation.action_mask, 0.0, -1e9))
