"""Worlds that live outside jax, on the host: called from within the compiled program, a whole batch at a time."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jax.experimental.buffer_callback import buffer_callback
from jaxtyping import Array, Bool, Float, Int, Key, Num, PRNGKeyArray, UInt

from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Spec
from dynamic_graph_fed_rl.environments.vector import observe


class Pool(abc.ABC):
    """Worlds on the host; NumPy in, NumPy out, a row a world.

    A world is known by its place in the pool and by a ticket, new after every decision. Whoever comes with another
    ticket than the last (a run that was resumed, decisions that were thrown away) has lost its world.
    """

    @abc.abstractmethod
    def begin(self, seeds: UInt[np.ndarray, " worlds"]) -> "tuple[np.ndarray, ...]":
        """As many fresh worlds, which replace all there were: `place`, `ticket`, `features`."""

    @abc.abstractmethod
    def advance(
        self,
        place: Int[np.ndarray, " worlds"],
        ticket: Int[np.ndarray, " worlds"],
        action: Num[np.ndarray, "worlds ..."],
        seeds: UInt[np.ndarray, " worlds"] | None,
    ) -> "tuple[np.ndarray, ...]":
        """One decision: `ticket`, `features`, `reward`, `terminated`, `truncated`, `lost`, `upcoming`.

        A world that has ended stays as it is and earns nothing. With `seeds`, whoever ended or is lost begins anew;
        `upcoming` are the features to act on next. A lost world counts as truncated, with a reward of 0.
        """


Judge = Callable[
    [Float[Array, "*worlds"], Float[Array, "*worlds features"]],
    tuple[Float[Array, "*worlds"], dict[str, Float[Array, "*worlds"]]],
]
"""From the reward of a decision and the features after it: the reward to learn from, and the figures that an episode
adds up. Worlds that did not move, since they had ended or are lost, count for nothing, whatever it says."""


def as_it_is(
    reward: Float[Array, "*worlds"], features: Float[Array, "*worlds features"]
) -> tuple[Float[Array, "*worlds"], dict[str, Float[Array, "*worlds"]]]:
    """The reward, and its sum as the episode's return."""
    return reward, {"episode_return": reward}


class HostState(eqx.Module):
    """Which worlds of the pool these are, and what was last seen of them."""

    place: Int[Array, "*worlds"]
    ticket: Int[Array, "*worlds"]
    features: Float[Array, "*worlds features"]


class HostEnvironment(Environment):
    """A single-agent environment with a vector to see and one slot to act in, whose worlds live in a pool.

    `Worlds` steps all of its copies, of all owners, in one call of the host; `reset` and `step` are for one world
    alone. Neither can be mapped by `vmap`, nor spread over devices. A callback stands where the pure
    functions of other environments do, so the same program and the same trainer serve both. What it costs: no
    bit-for-bit promises, and a run goes on at an episode's end: resumed worlds begin anew, the episodes before
    count as truncated.

    No held-out episode has the seed of one in training: theirs are odd.
    """

    name: str = eqx.field(static=True)
    details: Spec = eqx.field(static=True)
    pool: Pool = eqx.field(static=True)
    held_out: bool = eqx.field(static=True)
    judge: Judge = eqx.field(static=True, default=as_it_is)

    @property
    def spec(self) -> Spec:
        return self.details

    def reset(self, key: PRNGKeyArray) -> tuple[HostState, Observation]:
        state, observation = self.begin(key[None, None])
        return _only(state), jax.tree.map(lambda leaf: leaf[0], observation)

    def step(self, key: PRNGKeyArray, state: HostState, action: Array) -> tuple[HostState, Transition]:
        batch = jax.tree.map(lambda leaf: leaf[None, None], state)
        after, transition = self.advance(batch, action[:, None])
        info = {"metrics": {name: _only(value) for name, value in transition.info["metrics"].items()}}
        one = eqx.tree_at(lambda t: t.info, transition, {})
        return _only(after), eqx.tree_at(lambda t: t.info, jax.tree.map(lambda leaf: leaf[0], one), info)

    def begin(self, keys: Key[Array, "*worlds"]) -> tuple[HostState, Observation]:
        """Fresh worlds; leaves `[A, B, ...]`."""
        lead = self._owned(keys.shape)
        shapes = (_integers(lead), _integers(lead), self._numbers(lead))
        place, ticket, features = self._call(self.pool.begin, shapes, self._seeds(keys))
        return HostState(place, ticket, features), self._observe(features, jnp.ones(lead, bool))

    def advance(self, state: HostState, action: Array) -> tuple[HostState, Transition]:
        """One decision in every world; what has ended stays ended."""
        after, transition, _ = self._advance(state, action, None)
        return after, transition

    def advance_or_begin(
        self, keys: Key[Array, "owners copies"], state: HostState, action: Array
    ) -> tuple[HostState, Observation, Transition]:
        """`advance`, and what ended begins anew from its key, within the same call of the host."""
        after, transition, upcoming = self._advance(state, action, self._seeds(keys))
        first = transition.terminated | transition.truncated
        state = HostState(after.place, after.ticket, upcoming)
        return state, self._observe(upcoming, first), transition

    def _advance(
        self, state: HostState, action: Array, seeds: UInt[Array, "owners copies"] | None
    ) -> tuple[HostState, Transition, Float[Array, "owners copies features"]]:
        lead = self._owned(state.place.shape)
        flags = jax.ShapeDtypeStruct(lead, bool)
        rewards = jax.ShapeDtypeStruct(lead, jnp.float32)
        shapes = (_integers(lead), self._numbers(lead), rewards, flags, flags, flags, self._numbers(lead))
        # the one slot goes
        moves = action[:, :, 0]
        ticket, features, reward, terminated, truncated, lost, upcoming = self._call(
            self.pool.advance, shapes, state.place, state.ticket, moves, seeds
        )
        # where a world is lost its last sight stands for the successor that is not known
        features = jnp.where(lost[..., None], state.features, features)
        # every decision brings a new ticket, unless there was none to take
        moved = (ticket != state.ticket) & ~lost
        reward, metrics = jax.tree.map(lambda leaf: jnp.where(moved, leaf, 0.0), self.judge(reward, features))
        transition = Transition(
            observation=self._observe(features, jnp.zeros(lead, bool)),
            reward=reward,
            cost=jnp.zeros((*lead, 0)),
            terminated=terminated,
            truncated=truncated,
            info={"metrics": metrics},
        )
        return HostState(state.place, ticket, features), transition, upcoming

    def _call(self, function: Callable[..., tuple[np.ndarray, ...]], shapes: tuple, *arguments: Any) -> Any:
        """One call of the host, whose arrays have one row a world instead of `[A, B]`.

        Calls are in order since each needs the tickets of the one before.
        """
        worlds = int(np.prod(shapes[0].shape))

        def called(*values: Any) -> tuple[np.ndarray, ...]:
            rows = [None if v is None else np.asarray(v).reshape(worlds, *np.shape(v)[2:]) for v in values]
            results = function(*rows)
            return tuple(
                np.asarray(result, shape.dtype).reshape(shape.shape)
                for result, shape in zip(results, shapes, strict=True)
            )

        if jax.default_backend() != "cpu":
            return io_callback(called, shapes, *arguments, ordered=True)

        def in_place(_: Any, out: tuple[Any, ...], *values: Any) -> None:
            for buffer, result in zip(out, called(*values), strict=True):
                np.asarray(buffer)[...] = result

        # the arrays as they lie: a tenth of what it costs to hand each over as an array of jax
        return buffer_callback(in_place, shapes, has_side_effect=True)(*arguments)

    def _seeds(self, keys: Key[Array, "owners copies"]) -> UInt[Array, "owners copies"]:
        bits = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, dtype=jnp.uint32)))(keys)
        # 31 bits, which every environment takes for a seed; the last of them says whose it is
        return (bits >> 2) * 2 + int(self.held_out)

    def _owned(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if len(shape) != 2:
            raise ValueError(
                f"environment '{self.name}': worlds {list(shape)}; each agent has worlds of its own here, so Worlds "
                "must be told the owners"
            )
        return shape[0], shape[1]

    def _numbers(self, lead: tuple[int, int]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*lead, len(self.spec.node_features)), jnp.float32)

    def _observe(
        self, features: Float[Array, "owners copies features"], first: Bool[Array, "owners copies"]
    ) -> Observation:
        choices = self.spec.action_size if self.spec.action == "discrete" else None
        one = lambda seen, begun: jax.tree.map(lambda leaf: leaf[0], observe(seen, choices, begun))  # noqa: E731
        return jax.vmap(jax.vmap(one))(features, first)


def _only(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0, 0], tree)


def _integers(lead: tuple[int, int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(lead, jnp.int32)
