"""Proximal policy optimisation (Schulman et al. 2017) over graphs.

Each action slot is clipped on its own likelihood ratio with the agent's advantage (independent PPO, de Witt et al.
2020): with dozens of slots the joint ratio leaves the trust region on noise alone.
"""

from dataclasses import asdict
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.on_policy import Augmented, Learner, Lesson, OnPolicy, judge, slot_weights
from dynamic_graph_fed_rl.algorithms.returns import ReturnScale
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.augmentation.settings import critical_column
from dynamic_graph_fed_rl.augmentation.strategies import augmented
from dynamic_graph_fed_rl.models.distributions import Categorical, Gaussian
from dynamic_graph_fed_rl.models.policies import GraphActorCritic


class PPO(OnPolicy):
    """Hyperparameters; see `PPOSettings` for what each one means."""

    trace: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    clip: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    value_weight: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    # static, so that without it not a single operation is added
    augmentation_weight: float = eqx.field(static=True)
    augment: tuple[str, ...] = eqx.field(static=True)
    augmentation_probability: float = eqx.field(static=True)
    augmentation_noise: float = eqx.field(static=True)
    critical_edge: str | None = eqx.field(static=True)
    critical_threshold: float = eqx.field(static=True)

    has_critic: ClassVar[bool] = True

    def prepare(
        self, learner: Learner, memory: PyTree, experience: Experience
    ) -> tuple[Lesson, ReturnScale, dict[str, Float[Array, ""]]]:
        return judge(learner, memory, experience, self.discount, self.trace, self.siblings)

    def with_worse_sensors(self, key: PRNGKeyArray, learner: Learner, experience: Experience) -> Augmented | None:
        if not self.augmentation_weight:
            return None
        observation = augmented(
            # a key that is none of those of the passes
            jax.random.fold_in(key, self.epochs),
            experience.observation,
            self.augment,
            self.augmentation_probability,
            self.augmentation_noise,
            critical_column(self.critical_edge, learner.network.edge_features),
            self.critical_threshold,
        )
        return Augmented(observation, jax.tree.map(lambda leaf: leaf[None], experience.memory))

    def loss(self, network: GraphActorCritic, lesson: Lesson) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Clipped surrogate (Schulman et al. 2017, equation 7) a slot, Huber loss of the value, entropy bonus."""
        distribution = network.actions(lesson.memory, lesson.observation)
        weights = slot_weights(lesson)
        log_ratio = distribution.log_prob(lesson.action) - lesson.log_prob
        ratio = jnp.exp(log_ratio)
        gain = lesson.advantage[..., None]
        surrogate = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - self.clip, 1 + self.clip) * gain)
        policy_loss = -(surrogate * weights).sum()
        value = network.value(lesson.memory, lesson.observation)
        value_loss = optax.huber_loss(value, lesson.target).mean()
        entropy = (distribution.entropy() * weights).sum()
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approximate_kl": ((ratio - 1 - log_ratio) * weights).sum(),
            "clip_fraction": ((jnp.abs(ratio - 1) > self.clip) * weights).sum(),
        }
        loss = policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy
        if lesson.augmented is None:
            return loss, metrics
        metrics["inconsistency"] = inconsistency(network, lesson, lesson.augmented, distribution, value)
        return loss + self.augmentation_weight * metrics["inconsistency"], metrics


def inconsistency(
    network: GraphActorCritic,
    lesson: Lesson,
    other: Augmented,
    distribution: Gaussian | Categorical,
    value: Float[Array, "T worlds"],
) -> Float[Array, ""]:
    """How differently the network acts and values when the observation is augmented (Raileanu et al. 2021,
    equations 3 and 4): `KL(pi(s) || pi(f(s)))`, a mean over usable slots, and the mean of `(V(s) - V(f(s)))^2`.

    `distribution` and `value` are what it makes of the observation as it was. They are what is aimed at, not moved.
    """
    memory = other.memory(network, lesson.memory)
    aim, aimed = jax.lax.stop_gradient((distribution, value))
    seen = network.actions(memory, other.observation)
    divergence = aim.divergence(seen)  # type: ignore[arg-type]  # both are of one kind
    policy = (divergence * slot_weights(lesson)).sum()
    return policy + ((aimed - network.value(memory, other.observation)) ** 2).mean()


def build(settings: PPOSettings, rounds: int) -> PPO:
    """PPO from its settings; the learning rate falls to 0 over `rounds`."""
    return PPO(decay_rounds=float(rounds), **asdict(settings))
