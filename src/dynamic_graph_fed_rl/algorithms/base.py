"""The algorithm contract: how one agent learns. Written for one agent; the trainer maps it over A."""

import abc

import equinox as eqx
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
    def init(self, key: PRNGKeyArray, spec: Spec) -> PyTree: ...

    @abc.abstractmethod
    def initial_memory(self, learner: PyTree, observation: Observation) -> PyTree:
        """Memory before the first observation, shaped like the batch of `observation`."""

    @abc.abstractmethod
    def act(
        self, key: PRNGKeyArray | None, learner: PyTree, memory: PyTree, observation: Observation
    ) -> tuple[Array, PyTree, PyTree]:
        """Action `[B, S, ...]`, memory that includes the observation, extras. Without a key: act greedily."""

    @abc.abstractmethod
    def learn(
        self, key: PRNGKeyArray, learner: PyTree, experience: Experience
    ) -> tuple[PyTree, dict[str, Float[Array, ""]]]: ...

    @abc.abstractmethod
    def shared(self, learner: PyTree) -> PyTree:
        """What may leave the agent: never optimiser state, normalisation or experience."""

    @abc.abstractmethod
    def with_shared(self, learner: PyTree, shared: PyTree) -> PyTree: ...
