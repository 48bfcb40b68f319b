"""Twin delayed deep deterministic policy gradient (Fujimoto et al. 2018) over graphs: GraphTD3; on one node, TD3."""

from dataclasses import asdict

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.continuous import ActorCritics, ContinuousOffPolicy, Critics, least
from dynamic_graph_fed_rl.algorithms.off_policy import Batch, Learner
from dynamic_graph_fed_rl.algorithms.settings import TD3Settings
from dynamic_graph_fed_rl.buffers.replay import Sample
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.memory import remembered
from dynamic_graph_fed_rl.models.slots import SlotNetwork


class TD3(ContinuousOffPolicy):
    """Hyperparameters; see `TD3Settings` for what each one means."""

    exploration_std: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    target_noise: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    target_noise_limit: Float[Array, ""] = eqx.field(converter=jnp.asarray)

    def networks(self, key: PRNGKeyArray, spec: Spec) -> ActorCritics:
        return self.actor_critics(key, spec, 1)

    def slow(self, networks: ActorCritics) -> PyTree:
        return networks.actor, networks.critics

    def optimisers(self, networks: ActorCritics) -> PyTree:
        return self.begun((networks.memory, networks.critics)), self.begun(networks.actor, self.actor_optimiser())

    def explore(self, key: PRNGKeyArray, learner: Learner, memory: PyTree, observation: Observation) -> Array:
        action = self.greedy(learner.networks, memory, observation)
        deviation = jnp.where(learner.updates == 0, self.initial_std, self.exploration_std)
        return jnp.clip(action + deviation * jax.random.normal(key, action.shape), -1.0, 1.0)

    def greedy(self, networks: ActorCritics, memory: PyTree, observation: Observation) -> Array:
        return jnp.tanh(networks.actor(remembered(networks.memory, memory, observation), observation))

    def target(
        self, key: PRNGKeyArray, networks: ActorCritics, slow: PyTree, graph: Graph, following: Observation
    ) -> Float[Array, "*batch"]:
        """The lower slow value of the slow actor's action with clipped noise, so that a narrow peak of a critic is
        not mistaken for a good action (Fujimoto et al. 2018, equation 14)."""
        actor, critics = slow
        action = jnp.tanh(actor(graph, following))
        limit = self.target_noise_limit
        noise = jnp.clip(self.target_noise * jax.random.normal(key, action.shape), -limit, limit)
        return least(critics, graph, following, jnp.clip(action + noise, -1.0, 1.0))

    def actor_loss(self, actor: SlotNetwork, critics: Critics, graph: Graph, batch: Batch) -> Float[Array, ""]:
        """What the actor's actions lack in value by the first critic."""
        value = critics[0](graph, batch.observation, jnp.tanh(actor(graph, batch.observation)))
        return -(batch.weight * value).sum()

    def improve(
        self,
        key: PRNGKeyArray,
        networks: ActorCritics,
        received: ActorCritics,
        states: tuple[PyTree, ...],
        graph: Graph,
        batch: Batch,
    ) -> tuple[ActorCritics, tuple[PyTree, ...], dict[str, Float[Array, ""]]]:
        loss, gradient = jax.value_and_grad(self.actor_loss)(networks.actor, networks.critics, graph, batch)
        actor, state = self.descend(gradient, networks.actor, states[0], received.actor, self.actor_optimiser())
        return eqx.tree_at(lambda one: one.actor, networks, actor), (state,), {"actor_loss": loss}

    def step(
        self, key: PRNGKeyArray, learner: Learner, received: ActorCritics, sample: Sample
    ) -> tuple[ActorCritics, PyTree, Float[Array, "rows windows"], dict[str, Float[Array, ""]]]:
        """Critics, and every `update_delay` steps the actor (Fujimoto et al. 2018, algorithm 1)."""
        critic_state, actor_state = learner.optimiser
        after = self.criticise(key, learner, received, sample, critic_state)

        def follow(actor: SlotNetwork, state: PyTree) -> tuple[SlotNetwork, PyTree, Float[Array, ""]]:
            networks = eqx.tree_at(lambda one: one.actor, after.networks, actor)
            learned, states, figures = self.improve(key, networks, received, (state,), after.graph, after.batch)
            return learned.actor, states[0], figures["actor_loss"]

        def stay(actor: SlotNetwork, state: PyTree) -> tuple[SlotNetwork, PyTree, Float[Array, ""]]:
            return actor, state, jnp.zeros(())

        # the critics stay outside of the branches, so that they are not copied
        actor, actor_state, loss = jax.lax.cond(
            self.delayed(learner), follow, stay, learner.networks.actor, actor_state
        )
        learned = eqx.tree_at(lambda one: one.actor, after.networks, actor)
        # a mean over the round, in which the actor moved once in `update_delay` steps
        figures = {"critic_loss": after.loss, "actor_loss": loss * self.update_delay}
        return learned, (after.optimiser, actor_state), after.error, figures


def build(settings: TD3Settings, rounds: int) -> TD3:
    """TD3 from its settings; the actor moves every `update_delay` gradient steps of the run."""
    return TD3(actor_steps=rounds * settings.updates / settings.update_delay, **asdict(settings))
