"""Soft actor-critic (Haarnoja et al. 2018) over graphs: GraphSAC; on a graph of one node, SAC."""

import math
from dataclasses import asdict

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.continuous import ActorCritics, ContinuousOffPolicy, Critics, least
from dynamic_graph_fed_rl.algorithms.off_policy import Batch, Learner
from dynamic_graph_fed_rl.algorithms.settings import SACSettings
from dynamic_graph_fed_rl.buffers.replay import Sample
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph, masked_mean
from dynamic_graph_fed_rl.models.distributions import SquashedGaussian
from dynamic_graph_fed_rl.models.memory import remembered
from dynamic_graph_fed_rl.models.slots import SlotNetwork

# range of log standard deviations before tanh
LOG_STD = (-5.0, 2.0)


class SAC(ContinuousOffPolicy):
    """Hyperparameters; see `SACSettings` for what each one means.

    Log-probabilities are means over the usable slots, so that the price of entropy does not grow with the graph.
    """

    temperature: float = eqx.field(static=True)
    target_entropy: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def networks(self, key: PRNGKeyArray, spec: Spec) -> ActorCritics:
        return self.actor_critics(key, spec, 2, self.temperature)

    def slow(self, networks: ActorCritics) -> PyTree:
        return networks.critics

    def optimisers(self, networks: ActorCritics) -> PyTree:
        critics, temperature = (networks.memory, networks.critics), networks.log_temperature
        return self.begun(critics), self.begun(networks.actor, self.actor_optimiser()), self.begun(temperature)

    def policy(self, actor: SlotNetwork, graph: Graph, observation: Observation) -> SquashedGaussian:
        mean, raw = jnp.split(actor(graph, observation), 2, axis=-1)
        low, high = LOG_STD
        begin = math.atanh(2 * (math.log(self.initial_std) - low) / (high - low) - 1)
        return SquashedGaussian(mean, low + (high - low) * (jnp.tanh(raw + begin) + 1) / 2)

    def explore(self, key: PRNGKeyArray, learner: Learner, memory: PyTree, observation: Observation) -> Array:
        graph = remembered(learner.networks.memory, memory, observation)
        return self.policy(learner.networks.actor, graph, observation).sample(key)[0]

    def greedy(self, networks: ActorCritics, memory: PyTree, observation: Observation) -> Array:
        return self.policy(networks.actor, remembered(networks.memory, memory, observation), observation).mode()

    def target(
        self, key: PRNGKeyArray, networks: ActorCritics, slow: PyTree, graph: Graph, following: Observation
    ) -> Float[Array, "*batch"]:
        """The lower slow value of a fresh action, with its entropy (Haarnoja et al. 2018b, equation 3)."""
        action, log_prob = self.policy(networks.actor, graph, following).sample(key)
        value = least(slow, graph, following, action)
        return value - networks.temperature * mean_over_slots(log_prob, following)

    def actor_loss(
        self,
        actor: SlotNetwork,
        key: PRNGKeyArray,
        critics: Critics,
        temperature: Float[Array, ""],
        graph: Graph,
        batch: Batch,
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """What fresh actions lack in value and entropy (equation 9), and their mean entropy."""
        action, log_prob = self.policy(actor, graph, batch.observation).sample(key)
        log_prob = mean_over_slots(log_prob, batch.observation)
        value = least(critics, graph, batch.observation, action)
        return (batch.weight * (temperature * log_prob - value)).sum(), -(batch.weight * log_prob).sum()

    def improve(
        self,
        key: PRNGKeyArray,
        networks: ActorCritics,
        received: ActorCritics,
        states: tuple[PyTree, ...],
        graph: Graph,
        batch: Batch,
    ) -> tuple[ActorCritics, tuple[PyTree, ...], dict[str, Float[Array, ""]]]:
        """The actor, then the temperature."""
        actor_state, temperature_state = states
        temperature = networks.temperature
        (loss, entropy), gradient = jax.value_and_grad(self.actor_loss, has_aux=True)(
            networks.actor, key, networks.critics, temperature, graph, batch
        )
        actor, actor_state = self.descend(
            gradient, networks.actor, actor_state, received.actor, self.actor_optimiser()
        )

        # the derivative of temperature * (entropy - wanted) by the temperature's logarithm (equation 18)
        wanted = self.target_entropy * batch.action.shape[-1]
        log_temperature, temperature_state = self.descend(
            temperature * (entropy - wanted), networks.log_temperature, temperature_state, received.log_temperature
        )
        learned = eqx.tree_at(lambda one: (one.actor, one.log_temperature), networks, (actor, log_temperature))
        figures = {"actor_loss": loss, "entropy": entropy, "temperature": temperature}
        return learned, (actor_state, temperature_state), figures

    def step(
        self, key: PRNGKeyArray, learner: Learner, received: ActorCritics, sample: Sample
    ) -> tuple[ActorCritics, PyTree, Float[Array, "rows windows"], dict[str, Float[Array, ""]]]:
        """Critics, the actor, the temperature (Haarnoja et al. 2018b, algorithm 1)."""
        critic_state, *states = learner.optimiser
        next_key, actor_key = jax.random.split(key)
        after = self.criticise(next_key, learner, received, sample, critic_state)
        learned, states, figures = self.improve(
            actor_key, after.networks, received, tuple(states), after.graph, after.batch
        )
        return learned, (after.optimiser, *states), after.error, {"critic_loss": after.loss} | figures


def mean_over_slots(log_prob: Float[Array, "*batch slots"], observation: Observation) -> Float[Array, "*batch"]:
    return masked_mean(log_prob[..., None], observation.action_mask)[..., 0]


def build(settings: SACSettings, rounds: int) -> SAC:
    """SAC from its settings; the actor moves in every gradient step of the run."""
    return SAC(actor_steps=float(rounds * settings.updates), **asdict(settings))
