"""Running controllers through whole episodes on seeds that training never draws."""

from collections.abc import Iterator
from functools import reduce

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm
from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation
from dynamic_graph_fed_rl.environments.worlds import Worlds

# training derives its keys from one stream and evaluation from the other, so no seed of one can meet the
# other's
TRAINING_STREAM, EVALUATION_STREAM = 0, 1


def stream_key(stream: int, seed: int | Int[Array, ""]) -> PRNGKeyArray:
    """The key of a seed in one of the two streams."""
    return jax.random.fold_in(jax.random.key(stream), seed)


class LearnedPolicy(Controller):
    """Trained learners `[A]` as a controller; sees observations only."""

    algorithm: Algorithm
    learners: PyTree

    def initial_memory(self, state: PyTree, observation: Observation) -> PyTree:
        return jax.vmap(self.algorithm.initial_memory)(self.learners, observation)

    def act(self, key: PRNGKeyArray, memory: PyTree, state: PyTree, observation: Observation) -> tuple[Array, PyTree]:
        act = lambda learner, kept, seen: self.algorithm.act(None, learner, kept, seen)  # noqa: E731
        action, memory, _ = jax.vmap(act)(self.learners, memory, observation)
        return action, memory


# Compiled apart, so that the environment's step, by far the largest program, is compiled once for all
# controllers and scenarios of a shape instead of once for each controller.
@eqx.filter_jit
def begin(environment: Environment, owners: int | None, keys: Key[Array, " seeds"]) -> tuple[PyTree, Observation]:
    """The first state and observation of an episode a key."""
    return Worlds(environment, keys.shape[0], owners).begin(_world_keys(owners, keys, jnp.zeros((), jnp.int32)))


@eqx.filter_jit
def decide(
    controller: Controller, key: PRNGKeyArray, memory: PyTree, state: PyTree, observation: Observation
) -> tuple[Array, PyTree]:
    """A controller's decision in a batch of worlds."""
    return controller.act(key, memory, state, observation)


@eqx.filter_jit
def _advance(
    environment: Environment,
    owners: int | None,
    keys: Key[Array, " seeds"],
    index: Int[Array, ""],
    state: PyTree,
    action: Array,
) -> tuple[PyTree, Observation, dict[str, Array]]:
    worlds = Worlds(environment, keys.shape[0], owners)
    state, transition = worlds.advance(_world_keys(owners, keys, index), state, action)
    return state, transition.observation, transition.info["metrics"]


@eqx.filter_jit
def _finish(environment: Environment, owners: int | None, totals: dict[str, Array]) -> dict[str, Array]:
    if owners is None:
        return environment.episode_metrics(totals)
    episode = eqx.filter_vmap(lambda one, sums: one.episode_metrics(sums))(environment, totals)
    return jax.tree.map(lambda leaf: leaf.mean(0), episode)


def _world_keys(owners: int | None, keys: Key[Array, " seeds"], index: Int[Array, ""]) -> Key[Array, "*owners_seeds"]:
    per_seed = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
    return per_seed if owners is None else jax.vmap(lambda key: jax.random.split(key, owners))(per_seed).T


def play(
    controller: Controller, environment: Environment, owners: int | None, keys: Key[Array, " seeds"]
) -> Iterator[tuple[PyTree, dict[str, Array]]]:
    """One whole episode a key, decision by decision: the states of all worlds and their metrics.

    Every controller meets the same weather and faults. Worlds are stepped to the end of the horizon also
    after a termination, since what comes after it counts.
    """
    environment = controller.plays_in(environment)
    state, observation = begin(environment, owners, keys)
    memory = controller.initial_memory(state, observation)
    for index in range(1, environment.spec.episode_decisions + 1):
        # keys of controllers that draw count down from the end, so that they never meet the worlds'
        key = jax.random.fold_in(keys[0], 2**32 - index)
        action, memory = decide(controller, key, memory, state, observation)
        state, observation, metrics = _advance(environment, owners, keys, jnp.asarray(index), state, action)
        yield state, metrics


def run_episodes(
    controller: Controller, environment: Environment, owners: int | None, keys: Key[Array, " seeds"]
) -> dict[str, Float[Array, " seeds"]]:
    """Metrics of one whole episode a key, by name; see `play`.

    With `owners` each has a world of its own and the metrics are their means.
    """
    decisions = (metrics for _, metrics in play(controller, environment, owners, keys))
    return _finish(environment, owners, reduce(_add, decisions))


@jax.jit
def _add(totals: dict[str, Array], metrics: dict[str, Array]) -> dict[str, Array]:
    return jax.tree.map(jnp.add, totals, metrics)


def evaluation_keys(first_seed: int, seeds: int) -> Key[Array, " seeds"]:
    """Keys of held-out seeds `first_seed` to `first_seed + seeds - 1`."""
    numbers = jnp.arange(first_seed, first_seed + seeds)
    return jax.vmap(lambda seed: stream_key(EVALUATION_STREAM, seed))(numbers)
