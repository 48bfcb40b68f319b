"""What algorithms that learn from the experience of one round have in common: everything but what they make of it.

An agent has a graph policy (with a critic, if the algorithm has a use for one). A round's experience is prepared
once, then followed by gradient for a number of passes, split by worlds into minibatches.
"""

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.algorithms.returns import (
    ReturnScale,
    beside_siblings,
    generalised_advantage,
    robust_moments,
)
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.distributions import Categorical, Gaussian
from dynamic_graph_fed_rl.models.policies import GraphActorCritic

# standardised advantages beyond this are cut: a fault that nobody caused must not steer the policy
ADVANTAGE_LIMIT = 8.0


class Learner(eqx.Module):
    """One agent: its networks, its optimiser, and the scale of its returns (None without a critic)."""

    network: GraphActorCritic
    optimiser: PyTree
    scale: ReturnScale | None


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


class OnPolicy(Algorithm):
    """Hyperparameters as in `LearningSettings`; a final class says how to prepare experience and what its loss is."""

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

    def init(self, key: PRNGKeyArray, spec: Spec) -> Learner:
        network = GraphActorCritic(key, spec, self.width, self.layers, self.initial_std)
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
        # once for all passes: the leaky bank has no parameters that an update could change
        memory = unroll(learner.network, experience.memory, experience.observation)
        lesson, scale, figures = self.prepare(learner, memory, experience)
        worlds = lesson.advantage.shape[1]
        optimiser = self._optimiser()

        def minibatch(carry: tuple, index: Array) -> tuple[tuple, dict]:
            network, state = carry
            part = jax.tree.map(lambda leaf: leaf[:, index], lesson)
            gradient, metrics = jax.grad(self.loss, has_aux=True)(network, part)
            gradient = self._pulled_back(gradient, network, learner.network)
            updates, state = optimiser.update(gradient, state, network)
            return (optax.apply_updates(network, updates), state), metrics

        def epoch(carry: tuple, epoch_key: PRNGKeyArray) -> tuple[tuple, dict]:
            order = jax.random.permutation(epoch_key, worlds).reshape(self.minibatches, -1)
            return jax.lax.scan(minibatch, carry, order)

        (network, state), metrics = jax.lax.scan(
            epoch, (learner.network, learner.optimiser), jax.random.split(key, self.epochs)
        )
        return Learner(network, state, scale), jax.tree.map(jnp.mean, metrics) | figures

    def _pulled_back(self, gradient: PyTree, network: GraphActorCritic, received: GraphActorCritic) -> PyTree:
        """Adds the gradient of FedProx's `proximal / 2 * |w - w_received|^2` (Li et al. 2020, equation 2)."""
        if not self.proximal:
            return gradient
        return jax.tree.map(lambda g, now, then: g + self.proximal * (now - then), gradient, network, received)

    def _optimiser(self) -> optax.GradientTransformation:
        steps = self.decay_rounds * (self.epochs * self.minibatches)
        rate = lambda count: self.learning_rate * jnp.maximum(1 - count / steps, 0.0)  # noqa: E731
        return optax.chain(optax.clip_by_global_norm(self.max_gradient_norm), optax.adam(rate, eps=1e-5))


def unroll(network: GraphActorCritic, start: PyTree, observation: Observation) -> PyTree:
    """Memory after each of the T observations."""

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
