"""Many copies of a world: adds the axis B, resets what has finished."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Int, Key, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.host import HostEnvironment
from dynamic_graph_fed_rl.environments.spec import Spec

# what a learner sees; `info` belongs to the world as a whole and stays [B, ...]
_PER_AGENT = ("observation", "reward", "cost", "terminated", "truncated")


def select(mask: Bool[Array, "*rows"], new: PyTree, old: PyTree, axis: int = 0) -> PyTree:
    """`new` where the mask, which spans the axes from `axis` on, is True; `old` elsewhere."""

    def choose(a: Array, b: Array) -> Array:
        trailing = a.ndim - axis - mask.ndim
        return jnp.where(mask.reshape((1,) * axis + mask.shape + (1,) * trailing), a, b)

    return jax.tree.map(choose, new, old)


def stored(leaf: Array) -> Array:
    """In the order of its axes, at once: the compiler would rather leave it as it was, and read it across the grain
    or copy it from then on."""
    return with_layout_constraint(leaf, Layout(tuple(range(leaf.ndim))))


class Worlds(eqx.Module):
    """`copies` independent worlds of one environment, in which its A agents act together.

    A single-agent environment may be given to `owners` learners, each with worlds of its own; the environment's
    arrays then carry a leading axis over the owners, so that their parameters may differ. Either way every
    learner-facing leaf is `[A, B, ...]`.
    """

    environment: Environment
    copies: int = eqx.field(static=True)
    owners: int | None = eqx.field(static=True, default=None)
    siblings: int = eqx.field(static=True, default=1)
    """Neighbouring copies that get the same keys: they begin alike and meet the same luck."""
    place: Int[Array, ""] | None = None
    """Of the first of these owners among the `everybody` of a run whose other owners are elsewhere: each has the luck
    that it would have if all were here."""
    everybody: int | None = eqx.field(static=True, default=None)

    @property
    def spec(self) -> Spec:
        return self.environment.spec

    @property
    def agents(self) -> int:
        return self.spec.agents if self.owners is None else self.owners

    def alone(self, place: int | Int[Array, ""]) -> "Worlds":
        """The worlds of the owner at this place, with the luck that they have among all."""
        environment = jax.tree.map(lambda leaf: leaf[place][None] if eqx.is_array(leaf) else leaf, self.environment)
        return Worlds(environment, self.copies, 1, self.siblings, jnp.asarray(place, jnp.int32), self.agents)

    def agent_keys(self, key: PRNGKeyArray) -> Key[Array, " agents"]:
        """One key an agent."""
        return self._here(jax.random.split(key, self.everybody or self.agents))

    def keys(self, key: PRNGKeyArray) -> Key[Array, "*worlds"]:
        """One key a world, `[B]` or `[A, B]`; siblings share theirs."""
        families = self.copies // self.siblings
        if self.owners is None:
            keys = jax.random.split(key, families)
        else:
            keys = self._here(jax.random.split(key, (self.everybody or self.owners, families)))
        return keys[..., jnp.arange(self.copies) // self.siblings]

    def _here(self, rows: Key[Array, "everybody ..."]) -> Key[Array, "agents ..."]:
        return rows if self.place is None else rows[self.place + jnp.arange(self.agents)]

    def begin(self, keys: Key[Array, "*worlds"]) -> tuple[PyTree, Observation]:
        """Fresh worlds from a key each: state and the first observation `[A, B, ...]`."""
        if isinstance(self.environment, HostEnvironment):
            return self.environment.begin(keys)
        if self.owners is None:
            return jax.vmap(self.environment.reset, out_axes=(0, 1))(keys)
        state, observation = eqx.filter_vmap(lambda e, k: jax.vmap(e.reset)(k))(self.environment, keys)
        return state, _drop_agent_axis(observation)

    def advance(self, keys: Key[Array, "*worlds"], state: PyTree, action: Array) -> tuple[PyTree, Transition]:
        """One decision in every world, a key each; what has finished stays finished."""
        if isinstance(self.environment, HostEnvironment):
            return self.environment.advance(state, action)
        if self.owners is None:
            state, transition = jax.vmap(self.environment.step, in_axes=(0, 0, 1))(keys, state, action)
            face = _agents_first
        else:
            state, transition = eqx.filter_vmap(lambda e, k, s, a: jax.vmap(e.step)(k, s, a))(
                self.environment, keys, state, action[:, :, None]
            )
            face = _drop_agent_axis
        per_agent = {name: face(getattr(transition, name)) for name in _PER_AGENT}
        return state, Transition(**per_agent, info=transition.info)

    def reset(self, key: PRNGKeyArray) -> tuple[PyTree, Observation]:
        """`begin` from a single key."""
        return self.begin(self.keys(key))

    def step(self, key: PRNGKeyArray, state: PyTree, action: Array) -> tuple[PyTree, Observation, Transition]:
        """`advance`, then finished worlds begin anew.

        Returns the state and the observation to act on next, and the transition, whose `observation` is the true
        successor from which a value may be bootstrapped.
        """
        step_key, reset_key = jax.random.split(key)
        if isinstance(self.environment, HostEnvironment):
            return self.environment.advance_or_begin(self.keys(reset_key), state, action)
        stepped, transition = self.advance(self.keys(step_key), state, action)
        done = transition.terminated | transition.truncated

        def reset(_: None) -> tuple[PyTree, Observation]:
            fresh, first = self.reset(reset_key)
            # owners' worlds end one by one, a shared world ends for all its agents
            ended, axis = (done.any(0), 1) if self.owners is None else (done, 0)
            return select(ended, fresh, stepped), select(ended, first, transition.observation, axis)

        # a reset costs more than a step, and most steps end no episode
        state, observation = jax.lax.cond(done.any(), reset, lambda _: (stepped, transition.observation), None)
        return state, observation, transition


def _agents_first(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: stored(jnp.moveaxis(leaf, 1, 0)), tree)


def _drop_agent_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[:, :, 0], tree)
