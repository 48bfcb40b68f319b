"""How parameters travel: the contract behind a federation, over the agents' parameters as rows of a matrix."""

import abc
from typing import Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.schedule import Plan

State = TypeVar("State")
Exchanged = tuple[PyTree, Float[Array, "agents size"], dict[str, Array]]
"""New state, the parameters that each agent goes on with, and scalars worth recording."""


class Method(eqx.Module, Generic[State]):
    """Pure functions over `[A, P]`: A agents' chosen parameters, each ravelled to P numbers."""

    @abc.abstractmethod
    def init(self, vectors: Float[Array, "agents size"]) -> State: ...

    @abc.abstractmethod
    def held(self, state: State) -> Float[Array, "agents size"]:
        """What each agent had after it last exchanged: its update is what it has now less this."""

    def staleness(self, state: State) -> Int[Array, " agents"]:
        """Versions by which what each agent started from is behind."""
        return jnp.zeros(self.held(state).shape[0], jnp.int32)

    def releases(self, state: State) -> Int[Array, ""]:
        """Aggregates that have been given out so far: what a privacy bound counts."""
        return jnp.zeros((), jnp.int32)

    @abc.abstractmethod
    def exchange(
        self,
        key: PRNGKeyArray,
        state: State,
        own: Float[Array, "agents size"],
        updates: Float[Array, "agents size"],
        plan: Plan,
        tick: Int[Array, ""],
    ) -> Exchanged:
        """One tick. `updates` is what each agent would send, `own - held` unless it attacks."""


def pick(mask: Bool[Array, " rows"], new: PyTree, old: PyTree) -> PyTree:
    """Rows of `new` where the mask is True, of `old` elsewhere."""
    return jax.tree.map(lambda a, b: jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b), new, old)
