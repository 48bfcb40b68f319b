"""Experience as objects: a `Replay` of one world, and the rollout that on-policy learning needs."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Shaped

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.on_policy import unroll
from dynamic_graph_fed_rl.buffers.packing import Flags, Layout
from dynamic_graph_fed_rl.buffers.replay import Replay, Sample
from dynamic_graph_fed_rl.environments.base import Observation, Transition
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.memory import NodeMemory
from dynamic_graph_fed_rl.objects.graphs import GraphTransition, Subgraph, columns, sizes


class Batch(eqx.Module):
    """What a buffer has drawn: K windows of L rows, time first; see `Sample`.

    `followed` tells whether a row's successor is the next one, also of the last row that is learned from. Windows
    that look back end with the row drawn, whose successor they do not have.
    """

    sample: Sample
    followed: bool = eqx.field(static=True)

    @property
    def graphs(self) -> Graph:
        """The graphs that were seen, leaves `[L, K, ...]`."""
        return self.sample.observation.graph

    @property
    def actions(self) -> Shaped[Array, "length windows ..."]:
        return self.sample.action

    @property
    def rewards(self) -> Float[Array, "length windows"]:
        return self.sample.reward

    @property
    def valid(self) -> Bool[Array, "length windows"]:
        """Rows that belong to their window; others repeat one that does."""
        return self.sample.valid

    def with_graphs(self, graphs: Graph) -> "Batch":
        """The same decisions on other graphs, such as augmented ones."""
        return eqx.tree_at(lambda batch: batch.sample.observation.graph, self, graphs)


class Row(eqx.Module):
    """A decision on the host; `counts` is False where a row only holds what was seen last."""

    observation: Observation
    action: Any
    reward: Any
    terminated: Any
    truncated: Any
    counts: Any

    @staticmethod
    def of(transition: GraphTransition, begins: bool) -> "Row":
        observation = transition.graph_t.observation
        if begins:
            observation = eqx.tree_at(lambda seen: seen.first, observation, np.asarray(True))
        reward = np.asarray(transition.reward, np.float32)
        terminated, truncated = (np.asarray(end) for end in transition.ends)
        return Row(observation, transition.shaped_action, reward, terminated, truncated, np.asarray(True))

    @staticmethod
    def last(seen: Subgraph) -> "Row":
        """What was seen after the last decision, before something else begins."""
        action = np.zeros(seen.action_shape, np.float32 if seen.spec.action == "continuous" else np.int32)
        ends = np.asarray(False), np.asarray(True)
        return Row(seen.observation, action, np.zeros((), np.float32), *ends, np.asarray(False))


def stacked(rows: list[Row]) -> Row:
    """Rows `[T]` of one world, as learners have them: leaves `[T, 1, ...]`."""
    return jax.tree.map(lambda *leaves: np.stack(leaves)[:, None], *rows)


# the replay is written in place; what stands first may be used again
@eqx.filter_jit(donate="all-except-first")
def _write(given: tuple[NodeMemory | None, Row], replay: Replay, memory: PyTree) -> tuple[Replay, PyTree]:
    """The replay with a window more, and what is remembered after it."""
    remembering, rows = given
    seen = rows.observation
    outcome = Transition(seen, rows.reward, jnp.zeros((*rows.reward.shape, 0)), rows.terminated, rows.truncated, {})
    experience = Experience(memory, seen, rows.action, outcome, None)
    after = memory
    if remembering is not None:
        after = jax.tree.map(lambda leaf: leaf[-1], unroll(remembering, memory, seen))
    return replay.add(experience, transition=rows.counts), after


@eqx.filter_jit
def _blank_memory(remembering: NodeMemory, observation: Observation) -> PyTree:
    return remembering.initial(jax.tree.map(lambda leaf: leaf[None], observation))


_one_by_one = eqx.filter_jit(lambda replay, key, size: replay.sample(key, size))
_looking_back = eqx.filter_jit(lambda replay, key, *how: replay.sample_temporal(key, *how))
_windows = eqx.filter_jit(lambda replay, key, count, length: replay.windows(key, count, length))


class GraphTemporalBuffer:
    """The newest `capacity` rows of one agent in one world, kept small; see `Replay`.

    Rows are written `time_window` at a time (until then they wait, and are not drawn). Where an agent hands in what
    it remembers with, its memory is kept once in as many rows. What does not follow the row before begins an
    episode; wherever one is cut off, an extra row holds what was seen last, so that the last decision has a
    successor.

    **Arguments:** `priority` is what is drawn more often: uniform, td-error (of the batches that `agent.update()`
    draws) or topology-change; `remembering` returns the agent's memory module.
    """

    def __init__(
        self,
        capacity: int,
        time_window: int = 1,
        *,
        priority: str = "uniform",
        seed: int = 0,
        remembering: Callable[[], NodeMemory] | None = None,
    ):
        self.capacity, self.time_window, self.priority = capacity, time_window, priority
        self._replay: Replay | None = None
        self._remembering = remembering
        self._memory: PyTree = None
        self._waiting: list[Row] = []
        self._last: Subgraph | None = None
        self._key = jax.random.key(seed)

    @property
    def replay(self) -> Replay:
        """
        Raises:
            ValueError: nothing has been added yet.
        """
        if self._replay is None:
            raise ValueError("buffer: nothing has been added yet")
        return self._replay

    def __len__(self) -> int:
        """Rows that may be drawn from and rows that wait, those with an episode's last sight included."""
        return (0 if self._replay is None else int(self._replay.size)) + len(self._waiting)

    def add(self, transition: GraphTransition) -> None:
        """One decision, in the order in which they were made.

        Raises:
            ValueError: an action of another shape, or a graph of other features or sizes than those before.
        """
        seen = transition.graph_t
        if self._replay is None:
            self._begin(seen)
        own = self.replay.spec
        if (columns(seen.spec), sizes(seen.spec)) != (columns(own), sizes(own)):
            raise ValueError("buffer: this graph has other features or sizes than those before")
        follows = self._last is not None and seen.is_same(self._last)
        row = Row.of(transition, begins=not follows)
        if self._last is not None and not follows:
            self._put(Row.last(self._last))
        self._last = transition.graph_t1
        if not row.truncated:
            self._put(row)
        else:
            # not the decision is cut off, but what would have followed its successor
            self._put(eqx.tree_at(lambda one: one.truncated, row, np.asarray(False)))
            self._put(Row.last(self._last))
        if row.terminated or row.truncated:
            self._last = None

    def sample(self, batch_size: int) -> Batch:
        """Single decisions: rows, and what was seen after them, `[2, batch_size]`.

        Raises:
            ValueError: too little is stored; says how much is needed.
        """
        self.replay.check_can_sample(batch_size)
        return Batch(_one_by_one(self.replay, self._next_key(), batch_size), True)

    def sample_temporal(self, batch_size: int, lookback: int = 5, respect_topology_changes: bool = True) -> Batch:
        """Windows of `lookback` rows, `[lookback, batch_size]`; none reaches back beyond the beginning of its
        episode or, if respected, a topology change: earlier rows are then not `valid`.

        Raises:
            ValueError: too little is stored, or a lookback beyond the capacity; says what would be right.
        """
        replay, key = self.replay, self._next_key()
        if lookback <= replay.capacity:
            replay.check_can_sample(batch_size, lookback)
        return Batch(_looking_back(replay, key, batch_size, lookback, respect_topology_changes), False)

    def windows(self, count: int, length: int) -> Batch:
        """Windows that begin where memory is known, `[length, count]`; what `agent.update()` learns from.

        Raises:
            ValueError: too little is stored; says how much is needed.
        """
        if self.time_window <= length <= self.replay.capacity:
            self.replay.check_can_sample(count, length)
        return Batch(_windows(self.replay, self._next_key(), count, length), True)

    def with_errors(self, batch: Batch, error: Float[Array, "length windows"]) -> None:
        """Keep the TD errors of a batch of `windows`, if rows are drawn by them."""
        self._replay = self.replay.with_priorities(batch.sample.index, error)

    def all_rewards(self) -> tuple[Float[Array, "rows 1"], Bool[Array, "rows 1"]]:
        """Rewards of the decisions stored, in no order, and where the episode terminated."""
        stored = int(self.replay.stored)
        flags: Flags = Layout(self.replay.spec).flags(self.replay.rows.bits[0, :stored])
        counts = np.flatnonzero(flags.transition)
        return self.replay.rows.reward[0, counts][:, None], flags.terminated[counts][:, None]

    def _begin(self, seen: Subgraph) -> None:
        if self._remembering is not None:
            self._memory = _blank_memory(self._remembering(), seen.observation)
        self._replay = Replay.create(seen.spec, self.capacity, 1, self.time_window, self._memory, self.priority)

    def _put(self, row: Row) -> None:
        self._waiting.append(row)
        if len(self._waiting) == self.time_window:
            remembering = None if self._remembering is None else self._remembering()
            given = remembering, stacked(self._waiting)
            self._replay, self._memory = _write(given, self.replay, self._memory)
            self._waiting = []

    def _next_key(self) -> PRNGKeyArray:
        self._key, key = jax.random.split(self._key)
        return key


class RolloutBuffer:
    """The decisions since the agent last learned from them, in one world, in order.

    `judge(memory, observation, action)` returns the log-probability that the agent gave to an action, and what it
    remembers then; without a memory it begins afresh.
    """

    def __init__(self, length: int, judge: Callable[[PyTree, Observation, np.ndarray], tuple[Array, PyTree]]):
        self.length = length
        self._judge = judge
        self._rows: list[tuple[Row, Subgraph, Any]] = []
        self._begun: PyTree = None
        self._memory: PyTree = None
        self._last: Subgraph | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, transition: GraphTransition) -> None:
        """One decision, in the order in which they were made.

        Raises:
            ValueError: an action of another shape, or more decisions than are learned from at once.
        """
        if len(self) == self.length:
            raise ValueError(f"buffer: holds {self.length} decisions; call update(), which learns from them")
        follows = self._last is not None and transition.graph_t.is_same(self._last)
        if self._rows and self._last is not None and not follows:
            row, after, log_prob = self._rows[-1]
            self._rows[-1] = eqx.tree_at(lambda one: one.truncated, row, np.asarray(True)), after, log_prob
        row = Row.of(transition, begins=not follows)
        if not self._rows:
            self._begun = self._memory
        log_prob, self._memory = self._judge(self._memory, row.observation, row.action)
        if self._begun is None:
            # shapes only: at an episode's beginning nothing of it is used
            self._begun = jax.tree.map(jnp.zeros_like, self._memory)
        self._rows.append((row, transition.graph_t1, log_prob))
        self._last = None if row.terminated or row.truncated else transition.graph_t1

    def take(self) -> Experience:
        """All of it, as learned from; the buffer is then empty.

        Raises:
            ValueError: it is not full yet; says how much is missing.
        """
        if len(self) < self.length:
            raise ValueError(f"buffer: {len(self)} decisions; update() learns from {self.length} at once (rollout)")
        rows = stacked([row for row, *_ in self._rows])
        after = jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *(s.observation for _, s, _ in self._rows))
        ends = jnp.asarray(rows.terminated), jnp.asarray(rows.truncated)
        outcome = Transition(after, jnp.asarray(rows.reward), jnp.zeros((self.length, 1, 0)), *ends, {})
        log_prob = jnp.stack([log_prob for *_, log_prob in self._rows])
        self._rows = []
        return Experience(self._begun, rows.observation, jnp.asarray(rows.action), outcome, log_prob)
