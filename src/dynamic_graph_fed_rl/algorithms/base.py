"""The algorithm contract: how one agent learns. Written for one agent; the trainer maps it over A."""

import abc

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.base import Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Spec


class Experience(eqx.Module):
    """T rows of one agent in B worlds, and the memory it had before the first of them.

    `extras` is whatever `act` wanted to keep for learning. `transition.observation` is the true successor of each
    row, so values can be bootstrapped at time limits.
    """

    memory: PyTree
    observation: Observation  # leaves [T, B, ...]
    action: Array
    transition: Transition
    extras: PyTree


class Algorithm(eqx.Module):
    """Pure functions over one agent's learner; hyperparameters are traced leaves where they may be swept."""

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray, spec: Spec, worlds: int) -> PyTree:
        """A learner that will act in so many copies of the world at once."""

    @abc.abstractmethod
    def initial_memory(self, learner: PyTree, observation: Observation) -> PyTree:
        """Memory before the first observation, shaped like the batch of `observation`."""

    @abc.abstractmethod
    def act(
        self, key: PRNGKeyArray | None, learner: PyTree, memory: PyTree, observation: Observation
    ) -> tuple[Array, PyTree, PyTree]:
        """Action `[B, S, ...]`, memory that includes the observation, extras. Without a key: act greedily."""

    def recall(self, key: PRNGKeyArray, learner: PyTree, experience: Experience) -> tuple[PyTree, PyTree]:
        """Takes in a round's experience: the learner with what it keeps of it, and what to learn from now.

        Cheap, and apart from `learn`, so that a large replay need not travel with the work of learning.
        """
        return learner, experience

    def skip(self, learner: PyTree) -> PyTree:
        """The learner after a lesson in which somebody else learned for it: whatever follows a schedule moves on."""
        return learner

    @abc.abstractmethod
    def learn(self, key: PRNGKeyArray, learner: PyTree, lesson: PyTree) -> tuple[PyTree, dict[str, Float[Array, ""]]]:
        """The learner after a round, from what `recall` gave."""

    @abc.abstractmethod
    def shared(self, learner: PyTree) -> PyTree:
        """What may leave the agent: never optimiser state, normalisation or experience."""

    @abc.abstractmethod
    def with_shared(self, learner: PyTree, shared: PyTree) -> PyTree: ...


def pulled_back(gradient: PyTree, parameters: PyTree, received: PyTree, proximal: float) -> PyTree:
    """The gradient with that of FedProx's `proximal / 2 * |w - w_received|^2` (Li et al. 2020, equation 2)."""
    if not proximal:
        return gradient
    return jax.tree.map(lambda g, now, then: g + proximal * (now - then), gradient, parameters, received)
