"""Advantage actor-critic (Mnih et al. 2016) over graphs, synchronous.

The loss of PPO without its clipping: with one gradient step a round the two are the same (Huang et al. 2022,
"A2C is a special case of PPO").
"""

from dataclasses import asdict
from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.on_policy import Learner, Lesson, OnPolicy, judge, policy_gradient_loss
from dynamic_graph_fed_rl.algorithms.returns import ReturnScale
from dynamic_graph_fed_rl.algorithms.settings import A2CSettings
from dynamic_graph_fed_rl.models.policies import GraphActorCritic


class A2C(OnPolicy):
    """Hyperparameters; see `A2CSettings` for what each one means."""

    trace: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    value_weight: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    has_critic: ClassVar[bool] = True

    def prepare(
        self, learner: Learner, memory: PyTree, experience: Experience
    ) -> tuple[Lesson, ReturnScale, dict[str, Float[Array, ""]]]:
        return judge(learner, memory, experience, self.discount, self.trace, self.siblings)

    def loss(self, network: GraphActorCritic, lesson: Lesson) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Policy gradient weighted by the advantage, a mean over slots; Huber loss of the value; entropy bonus."""
        distribution = network.actions(lesson.memory, lesson.observation)
        policy_loss, metrics = policy_gradient_loss(distribution, lesson, self.entropy_weight)
        value_loss = optax.huber_loss(network.value(lesson.memory, lesson.observation), lesson.target).mean()
        return policy_loss + self.value_weight * value_loss, metrics | {"value_loss": value_loss}


def build(settings: A2CSettings, rounds: int) -> A2C:
    """A2C from its settings; the learning rate falls to 0 over `rounds`."""
    return A2C(decay_rounds=float(rounds), **asdict(settings))
