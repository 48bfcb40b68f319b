"""Proximal policy optimisation (Schulman et al. 2017) over graphs.

Each action slot is clipped on its own likelihood ratio with the agent's advantage (independent PPO, de Witt et al.
2020): with dozens of slots the joint ratio leaves the trust region on noise alone.
"""

from dataclasses import asdict
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.algorithms.returns import generalised_advantage
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.policies import GraphActorCritic

# standardised advantages beyond this are cut: a fault that nobody caused must not steer the policy
_ADVANTAGE_LIMIT = 4.0


class ReturnScale(eqx.Module):
    """Running location and spread of the agent's returns; the critic predicts standardised returns.

    Robust ones, so that rare disasters do not flatten everything else.
    """

    location: Float[Array, ""]
    spread: Float[Array, ""]
    weight: Float[Array, ""]

    @staticmethod
    def initial() -> "ReturnScale":
        return ReturnScale(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))

    def update(self, returns: Float[Array, "*rows"], memory: float = 0.9) -> "ReturnScale":
        """Exponential moving averages with bias correction: the first batch counts fully."""
        weight = memory * self.weight + (1 - memory)
        rate = (1 - memory) / weight
        location, spread = robust_moments(returns)
        return ReturnScale(
            self.location + rate * (location - self.location),
            self.spread + rate * (spread - self.spread),
            weight,
        )

    def standardise(self, returns: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
        return (returns - self.location) / self.spread

    def restore(self, value: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
        return value * self.spread + self.location


def robust_moments(values: Float[Array, "*rows"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and standard deviation of the values, those far from the median pulled in first.

    Far is five times the median absolute deviation (scaled by 1.4826, its normal consistency), or where more than
    half of the values agree, five standard deviations.
    """
    median = jnp.median(values)
    deviation = 1.4826 * jnp.median(jnp.abs(values - median))
    reach = 5.0 * jnp.where(deviation > 1e-6, deviation, values.std())
    near = jnp.clip(values, median - reach, median + reach)
    return near.mean(), near.std() + 1e-6


class PPOLearner(eqx.Module):
    """One agent: its networks, its optimiser, and the scale of its returns."""

    network: GraphActorCritic
    optimiser: PyTree
    scale: ReturnScale


class PPO(Algorithm):
    """Hyperparameters; see `PPOSettings` for what each one means."""

    learning_rate: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    discount: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    trace: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    clip: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    entropy_weight: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    value_weight: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    max_gradient_norm: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    decay_rounds: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    initial_std: float = eqx.field(static=True)
    epochs: int = eqx.field(static=True)
    minibatches: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)

    def init(self, key: PRNGKeyArray, spec: Spec) -> PPOLearner:
        network = GraphActorCritic(key, spec, self.width, self.layers, self.initial_std)
        parameters: Any = network
        return PPOLearner(network, self._optimiser().init(parameters), ReturnScale.initial())

    def initial_memory(self, learner: PPOLearner, observation: Observation) -> PyTree:
        return learner.network.initial_memory(observation)

    def act(
        self, key: PRNGKeyArray | None, learner: PPOLearner, memory: PyTree, observation: Observation
    ) -> tuple[Array, PyTree, Float[Array, "worlds slots"] | None]:
        memory = learner.network.remember(memory, observation)
        distribution = learner.network.actions(memory, observation)
        if key is None:
            return distribution.mode(), memory, None
        action = distribution.sample(key)
        return action, memory, distribution.log_prob(action)

    def shared(self, learner: PPOLearner) -> PyTree:
        return learner.network

    def with_shared(self, learner: PPOLearner, shared: PyTree) -> PPOLearner:
        return eqx.tree_at(lambda one: one.network, learner, shared)

    def learn(
        self, key: PRNGKeyArray, learner: PPOLearner, experience: Experience
    ) -> tuple[PPOLearner, dict[str, Float[Array, ""]]]:
        """`epochs` passes over the rows, split by worlds into minibatches."""
        observation, transition = experience.observation, experience.transition
        # once for all passes: the leaky bank has no parameters that an update could change
        memory = self._unroll(learner.network, experience.memory, observation)
        value = learner.scale.restore(learner.network.value(memory, observation))
        successor_memory = learner.network.remember(memory, transition.observation)
        next_value = learner.scale.restore(learner.network.value(successor_memory, transition.observation))
        advantage = generalised_advantage(
            transition.reward,
            value,
            next_value,
            transition.terminated,
            transition.truncated,
            self.discount,
            self.trace,
        )
        returns = advantage + value
        scale = learner.scale.update(returns)
        centre, spread = robust_moments(advantage)
        advantage = jnp.clip((advantage - centre) / spread, -_ADVANTAGE_LIMIT, _ADVANTAGE_LIMIT)
        advantage = advantage - advantage.mean()
        rows = (memory, observation, experience.action, experience.extras, advantage, scale.standardise(returns))
        worlds = advantage.shape[1]
        optimiser = self._optimiser()

        def minibatch(carry: tuple, index: Array) -> tuple[tuple, dict]:
            network, state = carry
            batch = jax.tree.map(lambda leaf: leaf[:, index], rows)
            gradient, metrics = jax.grad(self._loss, has_aux=True)(network, *batch)
            updates, state = optimiser.update(gradient, state, network)
            return (optax.apply_updates(network, updates), state), metrics

        def epoch(carry: tuple, epoch_key: PRNGKeyArray) -> tuple[tuple, dict]:
            order = jax.random.permutation(epoch_key, worlds).reshape(self.minibatches, -1)
            return jax.lax.scan(minibatch, carry, order)

        (network, state), metrics = jax.lax.scan(
            epoch, (learner.network, learner.optimiser), jax.random.split(key, self.epochs)
        )
        metrics = jax.tree.map(jnp.mean, metrics)
        explained = 1 - (returns - value).var() / jnp.maximum(returns.var(), 1e-12)
        return PPOLearner(network, state, scale), metrics | {"explained_variance": explained}

    def _loss(
        self,
        network: GraphActorCritic,
        memory: PyTree,
        observation: Observation,
        action: Array,
        old_log_prob: Float[Array, "T worlds slots"],
        advantage: Float[Array, "T worlds"],
        target: Float[Array, "T worlds"],
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Clipped surrogate (Schulman et al. 2017, equation 7) a slot, Huber loss of the value, entropy bonus."""
        distribution = network.actions(memory, observation)
        mask = (
            observation.action_mask
            if old_log_prob.ndim == observation.action_mask.ndim
            else (observation.action_mask.any(-1))
        )
        active = mask / jnp.maximum(mask.sum(), 1)
        log_ratio = distribution.log_prob(action) - old_log_prob
        ratio = jnp.exp(log_ratio)
        gain = advantage[..., None]
        surrogate = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - self.clip, 1 + self.clip) * gain)
        policy_loss = -(surrogate * active).sum()
        value_loss = optax.huber_loss(network.value(memory, observation), target).mean()
        entropy = (distribution.entropy() * active).sum()
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approximate_kl": ((ratio - 1 - log_ratio) * active).sum(),
            "clip_fraction": ((jnp.abs(ratio - 1) > self.clip) * active).sum(),
        }
        return policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy, metrics

    def _unroll(self, network: GraphActorCritic, start: PyTree, observation: Observation) -> PyTree:
        """Memory after each of the T observations."""

        def forward(memory: PyTree, row: Observation) -> tuple[PyTree, PyTree]:
            memory = network.remember(memory, row)
            return memory, memory

        return jax.lax.scan(forward, start, observation)[1]

    def _optimiser(self) -> optax.GradientTransformation:
        steps = self.decay_rounds * (self.epochs * self.minibatches)
        rate = lambda count: self.learning_rate * jnp.maximum(1 - count / steps, 0.0)  # noqa: E731
        return optax.chain(optax.clip_by_global_norm(self.max_gradient_norm), optax.adam(rate, eps=1e-5))


def build(settings: PPOSettings, rounds: int) -> PPO:
    """PPO from its settings; the learning rate falls to 0 over `rounds`."""
    return PPO(decay_rounds=float(rounds), **asdict(settings))
