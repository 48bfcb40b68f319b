"""Learning curves against what each agent has spent, many seeds in one program; agents with worlds of their own.

`learn(experiment, seeds)` trains every seed at once and judges it as it goes; `reached` and `at` read the curves.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.base import Environment
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.evaluation.evaluate import EVALUATION_STREAM, TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import Experiment, build
from dynamic_graph_fed_rl.training.trainer import Trainer, Training


@dataclass(frozen=True)
class Curves:
    """One row a seed, one column an evaluation.

    `trajectories` are the episodes that an honest agent has started so far, mean over those agents: what is under
    way counts. `steps` are the world steps of one agent. `returns` are mean returns of whole episodes of what has
    been learned: of the server's model, or under gossip of every honest agent's own, their mean.
    """

    trajectories: Float[np.ndarray, "seeds evaluations"]
    steps: Float[np.ndarray, "seeds evaluations"]
    returns: Float[np.ndarray, "seeds evaluations"]


def learn(
    experiment: Experiment,
    seeds: Sequence[int],
    *,
    episodes: int = 10,
    every: int = 1,
    greedy: bool = True,
    enough: Callable[[Curves], bool] | None = None,
) -> Curves:
    """Train on each of the seeds, for `experiment.rounds` rounds or until `enough` of the curves so far.

    Each judgement, after every `every` rounds, plays `episodes` fresh episodes a judged agent, with the likelier
    action (`greedy`) or a sampled one. `experiment.seed` is not read.
    """
    built = build(experiment)
    trainer, environment = built.trainer, built.domain.scenarios["standard"]
    honest = trainer.agents - experiment.exchange.byzantine
    # whoever took part in an exchange with a server holds its model
    judged = 1 if experiment.federation == "server" else honest
    numbers = jnp.asarray(seeds)
    training = start(trainer, numbers)
    ended = np.zeros(len(seeds))
    columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for number in range(1, experiment.rounds // every + 1):
        training, finished, returns = advance(
            trainer, environment, training, numbers, jnp.asarray(number), every, judged, episodes, greedy
        )
        ended = ended + np.asarray(finished)[:, :honest].mean(1)
        steps = np.full(len(seeds), float(number * every * experiment.decisions_per_round * experiment.worlds))
        columns.append((experiment.worlds + ended, steps, np.asarray(returns)))
        curves = Curves(*(np.stack(rows, axis=1) for rows in zip(*columns, strict=True)))
        if enough is not None and enough(curves):
            break
    return curves


def reached(curves: Curves, threshold: float, hold: int = 2) -> Int[np.ndarray, " seeds"]:
    """Column of the first of `hold` evaluations in a row with at least `threshold`; -1 for a seed without.

    `curves.trajectories[seed, column]` is then what that seed needed.
    """
    good = curves.returns >= threshold
    if good.shape[1] < hold:
        return np.full(len(good), -1)
    held = np.lib.stride_tricks.sliding_window_view(good, hold, axis=1).all(-1)
    return np.where(held.any(-1), held.argmax(-1), -1)


def at(curves: Curves, trajectories: float) -> Float[np.ndarray, " seeds"]:
    """Return at each seed's last evaluation within so many trajectories per agent; NaN for a seed without."""
    within = (curves.trajectories <= trajectories).sum(1)
    last = np.take_along_axis(curves.returns, np.maximum(within - 1, 0)[:, None], axis=1)[:, 0]
    return np.where(within > 0, last, np.nan)


@eqx.filter_jit
def start(trainer: Trainer, seeds: Int[Array, " seeds"]) -> Training:
    # mapped by `vmap`, the many small QR factorisations of fresh networks may wait for each other for ever
    return jax.lax.map(lambda seed: trainer.init(stream_key(TRAINING_STREAM, seed)), seeds)


@eqx.filter_jit
def advance(
    trainer: Trainer,
    environment: Environment,
    training: Training,
    seeds: Int[Array, " seeds"],
    number: Int[Array, ""],
    rounds: int,
    judged: int,
    episodes: int,
    greedy: bool,
) -> tuple[Training, Int[Array, "seeds agents"], Float[Array, " seeds"]]:
    """Some rounds of every seed: their end, the episodes that ended in each agent's worlds, and returns after."""

    def one(training: Training, seed: Int[Array, ""]) -> tuple[Training, Array, Array]:
        def round_(training: Training, _: None) -> tuple[Training, Array]:
            training, metrics = trainer.run_round(training)
            return training, metrics["ended"]

        training, ended = jax.lax.scan(round_, training, None, length=rounds)
        key = jax.random.fold_in(stream_key(EVALUATION_STREAM, seed), number)
        first = partial(jax.tree.map, lambda leaf: leaf[:judged] if eqx.is_array(leaf) else leaf)
        returns = _judge(key, trainer, first(training.learners[0]), first(environment), episodes, greedy)
        return training, ended.sum(0), returns.mean()

    return jax.vmap(one)(training, seeds)


def _judge(
    key: PRNGKeyArray, trainer: Trainer, learners: PyTree, environment: Environment, episodes: int, greedy: bool
) -> Float[Array, "agents episodes"]:
    """Returns of whole episodes, each up to its own end."""
    algorithm = trainer.groups[0].algorithm
    agents = jax.tree.leaves(learners)[0].shape[0]
    worlds = Worlds(environment, episodes, agents)
    start_key, play_key = jax.random.split(key)
    state, observation = worlds.reset(start_key)
    memory = jax.vmap(algorithm.initial_memory)(learners, observation)

    def act(key: PRNGKeyArray, learner: PyTree, kept: PyTree, seen: PyTree) -> tuple[Array, PyTree, Any]:
        return algorithm.act(None if greedy else key, learner, kept, seen)

    def decide(carry: tuple, row: Key[Array, ""]) -> tuple[tuple, None]:
        state, observation, memory, going, total = carry
        act_key, step_key = jax.random.split(row)
        action, memory, _ = jax.vmap(act)(jax.random.split(act_key, agents), learners, memory, observation)
        state, transition = worlds.advance(worlds.keys(step_key), state, action)
        total = total + jnp.where(going, transition.reward, 0.0)
        going = going & ~(transition.terminated | transition.truncated)
        return (state, transition.observation, memory, going, total), None

    begun = jnp.ones((agents, episodes), bool), jnp.zeros((agents, episodes))
    keys = jax.random.split(play_key, worlds.spec.episode_decisions)
    (*_, total), _ = jax.lax.scan(decide, (state, observation, memory, *begun), keys)
    return total
