"""The compiled functions behind the agents: one program for all agents of an algorithm and a shape.

One agent in one world: what is seen comes without batch axes and goes in as a batch of one.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.algorithms.continuous import ContinuousOffPolicy
from dynamic_graph_fed_rl.algorithms.off_policy import Learner, OffPolicy
from dynamic_graph_fed_rl.algorithms.on_policy import OnPolicy, unroll
from dynamic_graph_fed_rl.buffers.replay import Sample
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.memory import NodeMemory, remembered
from dynamic_graph_fed_rl.objects.buffers import Batch


def _batched(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], tree)


@eqx.filter_jit
def fresh(algorithm: Algorithm, key: PRNGKeyArray, spec: Spec) -> Any:
    """A learner whose experience is kept elsewhere."""
    return algorithm.fresh(key, spec) if isinstance(algorithm, OffPolicy) else algorithm.init(key, spec, 1)


@eqx.filter_jit
def blank_memory(algorithm: Algorithm, learner: PyTree, observation: Observation) -> PyTree:
    return algorithm.initial_memory(learner, _batched(observation))


@eqx.filter_jit
def act(
    algorithm: Algorithm, key: PRNGKeyArray | None, learner: PyTree, memory: PyTree, observation: Observation
) -> tuple[Array, PyTree]:
    action, memory, _ = algorithm.act(key, learner, memory, _batched(observation))
    return action[0], memory


@eqx.filter_jit
def judge(
    algorithm: OnPolicy, learner: PyTree, memory: PyTree, observation: Observation, action: Any
) -> tuple[Float[Array, "1 slots"], PyTree]:
    """The log-probability of an action, `[1, S]`, and what is remembered when it is taken."""
    memory = learner.network.remember(memory, _batched(observation))
    distribution = learner.network.actions(memory, _batched(observation))
    return distribution.log_prob(_batched(action)), memory


@eqx.filter_jit
def study(
    algorithm: Algorithm, key: PRNGKeyArray, learner: PyTree, experience: Experience
) -> tuple[PyTree, dict[str, Float[Array, ""]]]:
    return algorithm.learn(key, learner, experience)


@eqx.filter_jit
def encode(memory: NodeMemory, encoder: Any, graphs: Observation) -> Float[Array, "length windows nodes width"]:
    """Embeddings of sequences of graphs, leaves `[L, K, ...]`, of which nothing was seen before."""
    return encoder(remembered(memory, unroll(memory, _blank(memory, graphs), graphs), graphs))


@eqx.filter_jit
def update(
    algorithm: OffPolicy, key: PRNGKeyArray, learner: Learner, received: PyTree, batch: Batch
) -> tuple[Learner, Float[Array, "rows windows"], dict[str, Float[Array, ""]]]:
    return algorithm.advance(key, learner, received, as_sample(algorithm, learner, batch))


@eqx.filter_jit
def update_critics(
    algorithm: ContinuousOffPolicy, key: PRNGKeyArray, learner: Learner, received: PyTree, batch: Batch
) -> tuple[Learner, Float[Array, ""]]:
    """The first half of `update`: the critics, and the memory with them. Its loss is that before the step."""
    state, *others = learner.optimiser
    after = algorithm.criticise(key, learner, received, as_sample(algorithm, learner, batch), state)
    learned = eqx.tree_at(
        lambda one: (one.networks, one.optimiser, one.updates),
        learner,
        (after.networks, (after.optimiser, *others), learner.updates + 1),
    )
    return learned, after.loss


@eqx.filter_jit
def update_actor(
    algorithm: ContinuousOffPolicy, key: PRNGKeyArray, learner: Learner, received: PyTree, batch: Batch
) -> tuple[Learner, Float[Array, ""]]:
    """The second half of `update`: the actor, and the slow copies."""
    networks = learner.networks
    state, *states = learner.optimiser
    rows = algorithm.batch(networks.memory, as_sample(algorithm, learner, batch))
    graph = jax.lax.stop_gradient(remembered(networks.memory, rows.memory, rows.observation))
    networks, after, figures = algorithm.improve(key, networks, received, tuple(states), graph, rows)
    # the critics have counted this gradient step already
    before = eqx.tree_at(lambda one: one.updates, learner, learner.updates - 1)
    learned = eqx.tree_at(
        lambda one: (one.networks, one.targets, one.optimiser),
        learner,
        (networks, algorithm.followed(before, networks), (state, *after)),
    )
    return learned, figures["actor_loss"]


def as_sample(algorithm: OffPolicy, learner: Learner, batch: Batch) -> Sample:
    """A batch as a gradient step takes it: with a memory before the first row, blank where none was kept, and for
    windows that look back as many rows more as rewards are taken.

    These rows are empty. The last true one then teaches where it terminated, which needs no successor; elsewhere
    its successor is not known.
    """
    sample = batch.sample
    if sample.memory is None:
        memory = _blank(learner.networks.memory, sample.observation)
        sample = eqx.tree_at(lambda one: one.memory, sample, memory, is_leaf=lambda leaf: leaf is None)
    if batch.followed:
        if sample.reward.shape[0] <= algorithm.steps:
            raise ValueError(
                f"batch of {sample.reward.shape[0]} rows: {algorithm.steps} rewards are taken from each (steps), "
                f"which needs at least {algorithm.steps + 1}"
            )
        return sample

    def more(leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.repeat(leaf[-1:], algorithm.steps, axis=0)])

    cut = sample.truncated.at[-1].set(~sample.terminated[-1])
    valid = jnp.concatenate([sample.valid, jnp.zeros((algorithm.steps, sample.valid.shape[1]), bool)])
    return Sample(
        observation=jax.tree.map(more, sample.observation),
        action=more(sample.action),
        reward=more(sample.reward),
        terminated=more(sample.terminated),
        truncated=more(cut),
        valid=valid,
        topology=more(sample.topology),
        weight=sample.weight,
        index=sample.index,
        memory=sample.memory,
    )


def check_alike(own: PyTree, other: PyTree) -> None:
    """
    Raises:
        ValueError: parameters of another shape; names the first that differs.
    """
    (mine, structure), (theirs, other_structure) = (jax.tree_util.tree_flatten_with_path(one) for one in (own, other))
    for (path, leaf), (_, given) in zip(mine, theirs, strict=False):
        if leaf.shape != jnp.shape(given):
            name = jax.tree_util.keystr(path).removeprefix(".")
            raise ValueError(f"parameters, {name}: shape {list(jnp.shape(given))}, must be {list(leaf.shape)}")
    if structure != other_structure:
        raise ValueError("parameters: of another network than this agent's")


def _blank(memory: NodeMemory, rows: Observation) -> PyTree:
    return memory.initial(jax.tree.map(lambda leaf: leaf[0], rows))
