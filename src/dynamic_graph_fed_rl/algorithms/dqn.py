"""Deep Q-network (Mnih et al. 2015) over graphs, with double and dueling variants and n-step returns."""

from dataclasses import asdict

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.discrete import ChoiceNetworks, decayed, epsilon_greedy
from dynamic_graph_fed_rl.algorithms.off_policy import Batch, Learner, OffPolicy
from dynamic_graph_fed_rl.algorithms.returns import ValueScale
from dynamic_graph_fed_rl.algorithms.settings import DQNSettings
from dynamic_graph_fed_rl.buffers.replay import Sample
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.models.memory import remembered
from dynamic_graph_fed_rl.models.values import ChoiceValues, best, together


class DQN(OffPolicy[ChoiceNetworks]):
    """Hyperparameters; see `DQNSettings` for what each one means.

    A choice in every slot, whose values together are the agent's (see `models/values.py`).
    """

    first_epsilon: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    last_epsilon: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    exploration_share: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    decay_rounds: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    double: bool = eqx.field(static=True)
    dueling: bool = eqx.field(static=True)
    layer_norm: bool = eqx.field(static=True)

    def networks(self, key: PRNGKeyArray, spec: Spec) -> ChoiceNetworks:
        return ChoiceNetworks(
            key, spec, self.width, self.layers, self.encoder, self.memory, self.dueling, self.layer_norm
        )

    def slow(self, networks: ChoiceNetworks) -> ChoiceValues:
        return networks.values

    def optimisers(self, networks: ChoiceNetworks) -> PyTree:
        return self.begun(networks)

    def explore(
        self, key: PRNGKeyArray, learner: Learner, memory: PyTree, observation: Observation
    ) -> Int[Array, "*batch slots"]:
        values = learner.networks(memory, observation)
        return epsilon_greedy(key, values, observation.action_mask, self.epsilon(learner.updates))

    def epsilon(self, updates: Int[Array, ""]) -> Float[Array, ""]:
        """Share of choices at random after so many gradient steps."""
        progress = updates / (self.decay_rounds * self.updates)
        return decayed(self.first_epsilon, self.last_epsilon, self.exploration_share, progress)

    def greedy(
        self, networks: ChoiceNetworks, memory: PyTree, observation: Observation
    ) -> Int[Array, "*batch slots"]:
        return best(networks(memory, observation), observation.action_mask)

    def target(
        self, networks: ChoiceNetworks, slow: ChoiceValues, scale: ValueScale, batch: Batch
    ) -> Float[Array, "rows windows"]:
        """Standardised `gain + factor * Q_slow(s', argmax Q(s', .))`; the argmax is of the networks if double (van
        Hasselt et al. 2016, equation 4), else of the slow copy."""
        allowed = batch.following.action_mask
        graph = remembered(networks.memory, batch.following_memory, batch.following)
        slowly = slow(graph, batch.following)
        chosen = best(networks.values(graph, batch.following) if self.double else slowly, allowed)
        value = scale.restore(together(slowly, chosen, allowed))
        return jax.lax.stop_gradient(scale.standardise(batch.gain + batch.factor * value))

    def loss(
        self, networks: ChoiceNetworks, slow: ChoiceValues, scale: ValueScale, batch: Batch
    ) -> tuple[Float[Array, ""], Float[Array, "rows windows"]]:
        """Huber loss (Mnih et al. 2015 clip the error's derivative at 1), and the size of each row's error."""
        allowed = batch.observation.action_mask
        value = together(networks(batch.memory, batch.observation), batch.action, allowed)
        error = value - self.target(networks, slow, scale, batch)
        return (batch.weight * optax.huber_loss(error)).sum(), jnp.abs(error)

    def step(
        self, key: PRNGKeyArray, learner: Learner, received: ChoiceNetworks, sample: Sample
    ) -> tuple[ChoiceNetworks, PyTree, Float[Array, "rows windows"], dict[str, Float[Array, ""]]]:
        """Mnih et al. 2015, algorithm 1."""

        def objective(networks: ChoiceNetworks) -> tuple[Float[Array, ""], Float[Array, "rows windows"]]:
            batch = self.batch(networks.memory, sample)
            return self.loss(networks, learner.targets, learner.scale, batch)

        (loss, size), gradient = jax.value_and_grad(objective, has_aux=True)(learner.networks)
        networks, state = self.descend(gradient, learner.networks, learner.optimiser, received)
        return networks, state, size, {"value_loss": loss, "epsilon": self.epsilon(learner.updates)}


def build(settings: DQNSettings, rounds: int) -> DQN:
    """DQN from its settings; epsilon falls over a share of `rounds`."""
    return DQN(decay_rounds=float(rounds), **asdict(settings))
