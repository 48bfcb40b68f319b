"""Parallelised Q-network (Gallici et al. 2024) over graphs: values of choices, without replay or slow copies."""

from dataclasses import asdict
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.algorithms.discrete import ChoiceNetworks, decayed, epsilon_greedy
from dynamic_graph_fed_rl.algorithms.on_policy import falling, follow, unroll
from dynamic_graph_fed_rl.algorithms.returns import ValueScale, beside_siblings, lambda_returns
from dynamic_graph_fed_rl.algorithms.settings import PQNSettings
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.values import best, together


class Learner(eqx.Module):
    """One agent: its networks, their optimiser, the scale of its values, and the rounds it has learned."""

    networks: ChoiceNetworks
    optimiser: PyTree
    scale: ValueScale
    rounds: Int[Array, ""]


class Lesson(NamedTuple):
    """What a round's experience teaches, made once for all passes; every leaf `[T, B, ...]`."""

    memory: PyTree
    observation: Observation
    action: Int[Array, "T worlds slots"]
    target: Float[Array, "T worlds"]
    """Standardised returns."""


class PQN(Algorithm):
    """Hyperparameters; see `PQNSettings` for what each one means.

    A choice in every slot, whose values together are the agent's (see `models/values.py`).
    """

    learning_rate: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    discount: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    trace: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    max_gradient_norm: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    first_epsilon: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    last_epsilon: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    exploration_share: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    decay_rounds: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    proximal: float = eqx.field(static=True)
    epochs: int = eqx.field(static=True)
    minibatches: int = eqx.field(static=True)
    siblings: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    encoder: str = eqx.field(static=True)
    memory: str | None = eqx.field(static=True)
    dueling: bool = eqx.field(static=True)
    layer_norm: bool = eqx.field(static=True)

    def init(self, key: PRNGKeyArray, spec: Spec, worlds: int) -> Learner:
        networks = ChoiceNetworks(
            key, spec, self.width, self.layers, self.encoder, self.memory, self.dueling, self.layer_norm
        )
        state = self._optimiser().init(networks)  # type: ignore[arg-type]
        return Learner(networks, state, ValueScale.initial(), jnp.zeros((), jnp.int32))

    def initial_memory(self, learner: Learner, observation: Observation) -> PyTree:
        return learner.networks.memory.initial(observation)

    def act(
        self, key: PRNGKeyArray | None, learner: Learner, memory: PyTree, observation: Observation
    ) -> tuple[Int[Array, "worlds slots"], PyTree, None]:
        memory = learner.networks.memory.remember(memory, observation)
        values, allowed = learner.networks(memory, observation), observation.action_mask
        if key is None:
            return best(values, allowed), memory, None
        return epsilon_greedy(key, values, allowed, self.epsilon(learner.rounds)), memory, None

    def epsilon(self, rounds: Int[Array, ""]) -> Float[Array, ""]:
        """Share of choices at random after so many rounds."""
        return decayed(self.first_epsilon, self.last_epsilon, self.exploration_share, rounds / self.decay_rounds)

    def shared(self, learner: Learner) -> PyTree:
        return learner.networks

    def with_shared(self, learner: Learner, shared: PyTree) -> Learner:
        return eqx.tree_at(lambda one: one.networks, learner, shared)

    def learn(
        self, key: PRNGKeyArray, learner: Learner, experience: Experience
    ) -> tuple[Learner, dict[str, Float[Array, ""]]]:
        """`epochs` passes over the rows, split by worlds into minibatches (Gallici et al. 2024, algorithm 1)."""
        reward = beside_siblings(experience.transition.reward, self.siblings)
        experience = eqx.tree_at(lambda one: one.transition.reward, experience, reward)
        guess = ValueScale.guess(reward, experience.transition.terminated, self.discount)
        unused = learner.rounds == 0
        scale = jax.tree.map(lambda new, old: jnp.where(unused, new, old), guess, learner.scale)
        networks, state, metrics = follow(
            key,
            self.loss,
            self.prepare(learner.networks, scale, experience),
            experience.memory,
            learner.networks,
            learner.optimiser,
            self._optimiser(),
            self.epochs,
            self.minibatches,
            self.proximal,
        )
        metrics["epsilon"] = self.epsilon(learner.rounds)
        return Learner(networks, state, scale, learner.rounds + 1), metrics

    def prepare(self, networks: ChoiceNetworks, scale: ValueScale, experience: Experience) -> Lesson:
        """Returns that follow experience while the value of the best choice stands for the rest."""
        transition, remembering = experience.transition, networks.memory
        memory = unroll(remembering, experience.memory, experience.observation)
        later, allowed = remembering.remember(memory, transition.observation), transition.observation.action_mask
        values = networks(later, transition.observation)
        returns = lambda_returns(
            transition.reward,
            scale.restore(together(values, best(values, allowed), allowed)),
            transition.terminated,
            transition.truncated,
            self.discount,
            self.trace,
        )
        return Lesson(memory, experience.observation, experience.action, scale.standardise(returns))

    def loss(self, networks: ChoiceNetworks, lesson: Lesson) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Half the squared error of the choices' value, a mean over rows."""
        allowed = lesson.observation.action_mask
        error = together(networks(lesson.memory, lesson.observation), lesson.action, allowed) - lesson.target
        loss = 0.5 * (error**2).mean()
        return loss, {"value_loss": loss}

    def _optimiser(self) -> optax.GradientTransformation:
        rate = falling(self.learning_rate, self.decay_rounds * (self.epochs * self.minibatches))
        return optax.chain(optax.clip_by_global_norm(self.max_gradient_norm), optax.radam(rate))


def build(settings: PQNSettings, rounds: int) -> PQN:
    """PQN from its settings; the learning rate falls to 0 over `rounds`, epsilon over a share of them."""
    return PQN(decay_rounds=float(rounds), **asdict(settings))
