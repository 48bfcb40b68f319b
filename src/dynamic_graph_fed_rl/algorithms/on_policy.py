"""What algorithms that learn from the experience of one round have in common: everything but what they make of it.

An agent has a graph policy (with a critic, if the algorithm has a use for one). A round's experience is prepared
once, then followed by gradient for a number of passes, split by worlds into minibatches.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience, pulled_back
from dynamic_graph_fed_rl.algorithms.returns import (
    ReturnScale,
    beside_siblings,
    generalised_advantage,
    robust_moments,
)
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.distributions import Categorical, Gaussian
from dynamic_graph_fed_rl.models.memory import has_parameters
from dynamic_graph_fed_rl.models.policies import GraphActorCritic

# standardised advantages beyond this are cut: a fault that nobody caused must not steer the policy
ADVANTAGE_LIMIT = 8.0


class Learner(eqx.Module):
    """One agent: its networks, its optimiser, and the scale of its returns (None without a critic)."""

    network: GraphActorCritic
    optimiser: PyTree
    scale: ReturnScale | None


class Augmented(NamedTuple):
    """The rows of a lesson as worse sensors would have shown them."""

    observation: Observation
    begun: PyTree
    """Memory before the first row, `[1, B, ...]`; what came before each row was well observed."""

    def memory(self, network: GraphActorCritic, memory: PyTree) -> PyTree:
        """Memory after each row if only that row was augmented, from `memory` after each row as it was."""
        join = lambda first, after: jnp.concatenate([first, after[:-1]])  # noqa: E731
        return network.remember(jax.tree.map(join, self.begun, memory), self.observation)


class Lesson(NamedTuple):
    """What a round's experience teaches, made once for all passes; every leaf `[T, B, ...]`."""

    memory: PyTree
    observation: Observation
    action: Array
    log_prob: Float[Array, "T worlds slots"]
    """Of the action, when it was taken."""
    advantage: Float[Array, "T worlds"]
    """How much better than expected the action turned out, standardised."""
    counts: Bool[Array, "T worlds"]
    """Rows that teach the policy."""
    target: Float[Array, "T worlds"] | None
    """Standardised returns that the critic is to predict."""
    augmented: Augmented | None = None
    """None unless what is learned depends on it."""


class OnPolicy(Algorithm):
    """Hyperparameters as in `OnPolicySettings`; a final class says how to prepare experience and what its loss is."""

    learning_rate: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    discount: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    entropy_weight: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    max_gradient_norm: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    decay_rounds: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    # static, so that without it not a single operation is added
    proximal: float = eqx.field(static=True)
    epochs: int = eqx.field(static=True)
    minibatches: int = eqx.field(static=True)
    siblings: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    initial_std: float = eqx.field(static=True)
    encoder: str = eqx.field(static=True)
    memory: str | None = eqx.field(static=True)

    has_critic: ClassVar[bool]

    @abc.abstractmethod
    def prepare(
        self, learner: Learner, memory: PyTree, experience: Experience
    ) -> tuple[Lesson, ReturnScale | None, dict[str, Float[Array, ""]]]:
        """The lesson of a round, the new scale of returns, and figures worth recording.

        `memory` is that after each of the T observations.
        """

    @abc.abstractmethod
    def loss(
        self, network: GraphActorCritic, lesson: Lesson
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]: ...

    def with_worse_sensors(self, key: PRNGKeyArray, learner: Learner, experience: Experience) -> Augmented | None:
        """A round's observations once more, augmented, for a loss that compares; by default there is none."""
        return None

    def init(self, key: PRNGKeyArray, spec: Spec, worlds: int) -> Learner:
        network = GraphActorCritic(key, spec, self.width, self.layers, self.initial_std, self.encoder, self.memory)
        if not self.has_critic:
            # not carried along: it would travel in every exchange and never learn
            network = eqx.tree_at(lambda one: one.critic, network, None)
        parameters: Any = network
        scale = ReturnScale.initial() if self.has_critic else None
        return Learner(network, self._optimiser().init(parameters), scale)

    def initial_memory(self, learner: Learner, observation: Observation) -> PyTree:
        return learner.network.initial_memory(observation)

    def act(
        self, key: PRNGKeyArray | None, learner: Learner, memory: PyTree, observation: Observation
    ) -> tuple[Array, PyTree, Float[Array, "worlds slots"] | None]:
        memory = learner.network.remember(memory, observation)
        distribution = learner.network.actions(memory, observation)
        if key is None:
            return distribution.mode(), memory, None
        action = distribution.sample(key)
        return action, memory, distribution.log_prob(action)

    def shared(self, learner: Learner) -> PyTree:
        return learner.network

    def with_shared(self, learner: Learner, shared: PyTree) -> Learner:
        return eqx.tree_at(lambda one: one.network, learner, shared)

    def learn(
        self, key: PRNGKeyArray, learner: Learner, experience: Experience
    ) -> tuple[Learner, dict[str, Float[Array, ""]]]:
        """`epochs` passes over the rows, split by worlds into minibatches."""
        memory = unroll(learner.network, experience.memory, experience.observation)
        lesson, scale, figures = self.prepare(learner, memory, experience)
        network, state, metrics = follow(
            key,
            self.loss,
            lesson._replace(augmented=self.with_worse_sensors(key, learner, experience)),
            experience.memory,
            learner.network,
            learner.optimiser,
            self._optimiser(),
            self.epochs,
            self.minibatches,
            self.proximal,
        )
        return Learner(network, state, scale), metrics | figures

    def _optimiser(self) -> optax.GradientTransformation:
        rate = falling(self.learning_rate, self.decay_rounds * (self.epochs * self.minibatches))
        return optax.chain(optax.clip_by_global_norm(self.max_gradient_norm), optax.adam(rate, eps=1e-5))


def falling(rate: Float[Array, ""], steps: Float[Array, ""]) -> optax.Schedule:
    """A learning rate that falls linearly to 0."""
    return lambda count: rate * jnp.maximum(1 - count / steps, 0.0)


def follow(
    key: PRNGKeyArray,
    loss: Callable[[Any, Any], tuple[Float[Array, ""], dict[str, Float[Array, ""]]]],
    lesson: Any,
    begun: PyTree,
    network: Any,
    state: PyTree,
    optimiser: optax.GradientTransformation,
    epochs: int,
    minibatches: int,
    proximal: float,
) -> tuple[Any, PyTree, dict[str, Float[Array, ""]]]:
    """Descend the loss of a lesson, a named tuple of leaves `[T, B, ...]` among them `memory` and `observation`:
    `epochs` passes, each split by worlds into minibatches.

    `begun` is the memory before the first row. Returns network, the optimiser's state, and means of the metrics.
    """
    received, worlds = network, lesson.observation.first.shape[1]

    def objective(network: Any, part: Any, begun: PyTree) -> tuple[Float[Array, ""], dict]:
        # a memory without parameters is unrolled once for all passes; through a learned one the loss is
        # differentiated, back to the round's first row
        if has_parameters(network.memory):
            part = part._replace(memory=unroll(network.memory, begun, part.observation))
        return loss(network, part)

    def minibatch(carry: tuple, index: Array) -> tuple[tuple, dict]:
        network, state = carry
        part = jax.tree.map(lambda leaf: leaf[:, index], lesson)
        beginning = jax.tree.map(lambda leaf: leaf[index], begun)
        gradient, metrics = jax.grad(objective, has_aux=True)(network, part, beginning)
        gradient = pulled_back(gradient, network, received, proximal)
        updates, state = optimiser.update(gradient, state, network)
        return (optax.apply_updates(network, updates), state), metrics

    def epoch(carry: tuple, epoch_key: PRNGKeyArray) -> tuple[tuple, dict]:
        order = jax.random.permutation(epoch_key, worlds).reshape(minibatches, -1)
        return jax.lax.scan(minibatch, carry, order)

    (network, state), metrics = jax.lax.scan(epoch, (network, state), jax.random.split(key, epochs))
    return network, state, jax.tree.map(jnp.mean, metrics)


def unroll(network: Any, start: PyTree, observation: Observation) -> PyTree:
    """Memory after each of the T observations, by a network or its memory."""

    def forward(memory: PyTree, row: Observation) -> tuple[PyTree, PyTree]:
        memory = network.remember(memory, row)
        return memory, memory

    return jax.lax.scan(forward, start, observation)[1]


def judge(
    learner: Learner,
    memory: PyTree,
    experience: Experience,
    discount: Float[Array, ""],
    trace: Float[Array, ""],
    siblings: int,
) -> tuple[Lesson, ReturnScale, dict[str, Float[Array, ""]]]:
    """A lesson by the critic: generalised advantages, standardised robustly, and standardised returns."""
    assert learner.scale is not None
    network, transition = learner.network, experience.transition
    value = learner.scale.restore(network.value(memory, experience.observation))
    successor_memory = network.remember(memory, transition.observation)
    next_value = learner.scale.restore(network.value(successor_memory, transition.observation))
    advantage = generalised_advantage(
        transition.reward, value, next_value, transition.terminated, transition.truncated, discount, trace
    )
    returns = advantage + value
    scale = learner.scale.update(returns)
    advantage = beside_siblings(advantage, siblings)
    centre, spread = robust_moments(advantage)
    advantage = jnp.clip((advantage - centre) / spread, -ADVANTAGE_LIMIT, ADVANTAGE_LIMIT)
    lesson = Lesson(
        memory,
        experience.observation,
        experience.action,
        experience.extras,
        advantage - advantage.mean(),
        jnp.ones_like(transition.terminated),
        scale.standardise(returns),
    )
    explained = 1 - (returns - value).var() / jnp.maximum(returns.var(), 1e-12)
    return lesson, scale, {"explained_variance": explained}


def slot_weights(lesson: Lesson) -> Float[Array, "T worlds slots"]:
    """Weights of the mean over the usable slots of the rows that count; 0 everywhere if there are none."""
    allowed, slots = lesson.observation.action_mask, lesson.log_prob
    usable = allowed if allowed.ndim == slots.ndim else allowed.any(-1)
    usable = usable & lesson.counts[..., None]
    return usable / jnp.maximum(usable.sum(), 1)


def policy_gradient_loss(
    distribution: Gaussian | Categorical, lesson: Lesson, entropy_weight: Float[Array, ""]
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """`-log pi(a) * advantage`, and a bonus for entropy: means over slots (Williams 1992, Mnih et al. 2016)."""
    weights = slot_weights(lesson)
    policy_loss = -(distribution.log_prob(lesson.action) * lesson.advantage[..., None] * weights).sum()
    entropy = (distribution.entropy() * weights).sum()
    return policy_loss - entropy_weight * entropy, {"policy_loss": policy_loss, "entropy": entropy}
