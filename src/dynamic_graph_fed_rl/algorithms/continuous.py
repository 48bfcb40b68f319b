"""What deterministic and stochastic actor-critics for continuous actions share: networks, and the critics' step."""

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.off_policy import Batch, Learner, OffPolicy
from dynamic_graph_fed_rl.algorithms.on_policy import falling
from dynamic_graph_fed_rl.algorithms.returns import beside_siblings
from dynamic_graph_fed_rl.buffers.replay import Sample
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.build import build_memory
from dynamic_graph_fed_rl.models.critics import ActionCritic, QuadraticCritic
from dynamic_graph_fed_rl.models.memory import NodeMemory, remembered
from dynamic_graph_fed_rl.models.slots import SlotNetwork

Critics = tuple[ActionCritic, ActionCritic] | tuple[QuadraticCritic, QuadraticCritic]


class ActorCritics(eqx.Module):
    """An actor and two critics (van Hasselt 2010, Fujimoto et al. 2018) over one memory, which learns with the
    critics. `log_temperature` is the price of entropy; None where nothing has one. `reach` is that of quadratic
    critics; None: they are free."""

    memory: NodeMemory
    actor: SlotNetwork
    critics: Critics
    log_temperature: Float[Array, ""] | None

    def __init__(
        self,
        key: PRNGKeyArray,
        spec: Spec,
        outputs: int,
        width: int,
        layers: int,
        encoder: str,
        memory: str | None,
        temperature: float | None,
        reach: float | None,
    ):
        memory_key, actor_key, first_key, second_key = jax.random.split(key, 4)
        self.memory = build_memory(memory_key, spec, width, encoder, memory)
        features = self.memory.features(len(spec.node_features))
        keys = jax.random.split(actor_key)
        self.actor = SlotNetwork(keys, features, spec, outputs * spec.action_size, width, layers, encoder)
        sizes = features, spec, width, layers, encoder
        if reach is None:
            self.critics = ActionCritic(first_key, *sizes), ActionCritic(second_key, *sizes)
        else:
            self.critics = QuadraticCritic(first_key, *sizes, reach), QuadraticCritic(second_key, *sizes, reach)
        self.log_temperature = None if temperature is None else jnp.log(jnp.asarray(temperature, jnp.float32))

    @property
    def temperature(self) -> Float[Array, ""]:
        assert self.log_temperature is not None
        return jnp.exp(self.log_temperature)


class Criticised(NamedTuple):
    """What a step of the critics leaves for the actor: its batch, the graphs as remembered, the networks after the
    step, and figures."""

    batch: Batch
    graph: Graph
    networks: ActorCritics
    optimiser: PyTree
    error: Float[Array, "rows windows"]
    loss: Float[Array, ""]


class ContinuousOffPolicy(OffPolicy[ActorCritics]):
    """Two critics fitted to one target; a final class says which, and what the actor makes of them."""

    value_limit: float = eqx.field(static=True)
    critic: str = eqx.field(static=True)
    initial_std: float = eqx.field(static=True)
    actor_rate_falls: bool = eqx.field(static=True)
    actor_steps: Float[Array, ""] = eqx.field(converter=jnp.asarray)
    """Gradient steps of the actor in the whole run."""

    compares: ClassVar[bool] = True

    def actor_critics(
        self, key: PRNGKeyArray, spec: Spec, outputs: int, temperature: float | None = None
    ) -> ActorCritics:
        """Fresh networks; the actor gives so many `outputs` for each number of an action."""
        reach = self.initial_std if self.critic == "quadratic" else None
        return ActorCritics(
            key, spec, outputs, self.width, self.layers, self.encoder, self.memory, temperature, reach
        )

    def actor_optimiser(self) -> optax.GradientTransformation:
        """That of the actor, whose step size may fall: it settles while the critics go on judging it."""
        if not self.actor_rate_falls:
            return self.optimiser()
        return self.optimiser(falling(self.learning_rate, self.actor_steps))

    @abc.abstractmethod
    def target(
        self, key: PRNGKeyArray, networks: ActorCritics, slow: PyTree, graph: Graph, following: Observation
    ) -> Float[Array, "*batch"]:
        """Standardised value of what follows, by the slow copies."""

    @abc.abstractmethod
    def improve(
        self,
        key: PRNGKeyArray,
        networks: ActorCritics,
        received: ActorCritics,
        states: tuple[PyTree, ...],
        graph: Graph,
        batch: Batch,
    ) -> tuple[ActorCritics, tuple[PyTree, ...], dict[str, Float[Array, ""]]]:
        """A gradient step of the actor by the critics in `networks`: the networks, its optimisers, figures."""

    def critic_loss(
        self, critics: Critics, graph: Graph, batch: Batch, target: Float[Array, "rows windows"]
    ) -> tuple[Float[Array, ""], Float[Array, "rows windows"]]:
        """Sum of both critics' mean squared errors, and the mean size of their errors in each row.

        Siblings are compared: only how values and targets differ among them counts, so that what their common luck
        was teaches nothing, whatever policy acted at the time. Cut at `value_limit`, if that is not 0.
        """
        target = beside_siblings(target, self.siblings)
        if self.value_limit:
            target = jnp.clip(target, -self.value_limit, self.value_limit)
        values = (critic(graph, batch.observation, batch.action) for critic in critics)
        first, second = (beside_siblings(value, self.siblings) - target for value in values)
        return (batch.weight * (first**2 + second**2)).sum(), (jnp.abs(first) + jnp.abs(second)) / 2

    def criticise(
        self, key: PRNGKeyArray, learner: Learner, received: ActorCritics, sample: Sample, state: PyTree
    ) -> Criticised:
        """A gradient step of the critics, and of the memory through them."""
        networks, scale = learner.networks, learner.scale

        def objective(part: tuple[NodeMemory, Critics]) -> tuple[Array, tuple]:
            memory, critics = part
            batch = self.batch(memory, sample)
            following = jax.lax.stop_gradient(remembered(memory, batch.following_memory, batch.following))
            value = scale.restore(self.target(key, networks, learner.targets, following, batch.following))
            target = jax.lax.stop_gradient(scale.standardise(batch.gain + batch.factor * value))
            graph = remembered(memory, batch.memory, batch.observation)
            loss, error = self.critic_loss(critics, graph, batch, target)
            return loss, (batch, jax.lax.stop_gradient(graph), error)

        part = networks.memory, networks.critics
        (loss, (batch, graph, error)), gradient = jax.value_and_grad(objective, has_aux=True)(part)
        (memory, critics), state = self.descend(gradient, part, state, (received.memory, received.critics))
        learned = eqx.tree_at(lambda one: (one.memory, one.critics), networks, (memory, critics))
        return Criticised(batch, graph, learned, state, error, loss)


def least(
    critics: Critics, graph: Graph, observation: Observation, action: Float[Array, "*batch slots size"]
) -> Float[Array, "*batch"]:
    """The lower of the two values: the higher overestimates (Fujimoto et al. 2018, equation 10)."""
    return jnp.minimum(*(critic(graph, observation, action) for critic in critics))
