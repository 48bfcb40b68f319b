"""Proximal policy optimisation (Schulman et al. 2017) over graphs.

Each action slot is clipped on its own likelihood ratio with the agent's advantage (independent PPO, de Witt et al.
2020): with dozens of slots the joint ratio leaves the trust region on noise alone.
"""

from dataclasses import asdict
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.on_policy import Learner, Lesson, OnPolicy, judge, slot_weights
from dynamic_graph_fed_rl.algorithms.returns import ReturnScale
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.models.policies import GraphActorCritic


class PPO(OnPolicy):
    """Hyperparameters; see `PPOSettings` for what each one means."""

    trace: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    clip: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    value_weight: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    has_critic: ClassVar[bool] = True

    def prepare(
        self, learner: Learner, memory: PyTree, experience: Experience
    ) -> tuple[Lesson, ReturnScale, dict[str, Float[Array, ""]]]:
        return judge(learner, memory, experience, self.discount, self.trace, self.siblings)

    def loss(self, network: GraphActorCritic, lesson: Lesson) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Clipped surrogate (Schulman et al. 2017, equation 7) a slot, Huber loss of the value, entropy bonus."""
        distribution = network.actions(lesson.memory, lesson.observation)
        weights = slot_weights(lesson)
        log_ratio = distribution.log_prob(lesson.action) - lesson.log_prob
        ratio = jnp.exp(log_ratio)
        gain = lesson.advantage[..., None]
        surrogate = jnp.minimum(ratio * gain, jnp.clip(ratio, 1 - self.clip, 1 + self.clip) * gain)
        policy_loss = -(surrogate * weights).sum()
        value_loss = optax.huber_loss(network.value(lesson.memory, lesson.observation), lesson.target).mean()
        entropy = (distribution.entropy() * weights).sum()
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropy,
            "approximate_kl": ((ratio - 1 - log_ratio) * weights).sum(),
            "clip_fraction": ((jnp.abs(ratio - 1) > self.clip) * weights).sum(),
        }
        return policy_loss + self.value_weight * value_loss - self.entropy_weight * entropy, metrics


def build(settings: PPOSettings, rounds: int) -> PPO:
    """PPO from its settings; the learning rate falls to 0 over `rounds`."""
    return PPO(decay_rounds=float(rounds), **asdict(settings))
