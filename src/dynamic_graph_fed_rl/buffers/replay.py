"""Graph-temporal replay: the experience of one agent in a ring of rows, and three ways of drawing from it.

A row is what was seen, done and got in one decision; its successor is the next row of the same world, so nothing is
stored twice. All sizes are fixed, all methods are pure: jit the whole update and donate the old replay.
"""

import math
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.buffers.packing import Layout, Statics, restored, shrunk
from dynamic_graph_fed_rl.buffers.priorities import (
    PRIORITIES,
    SMALLEST_ERROR,
    Drawn,
    Priorities,
    draw,
    importance_weights,
)
from dynamic_graph_fed_rl.buffers.rows import Rows, Runs, Sample, blank, pack, read, write
from dynamic_graph_fed_rl.environments.spec import Spec

# a row without a transition is drawn in vain: so often is another one tried
_TRIES = 2


class Replay(eqx.Module):
    """The newest rows of one agent in B worlds; see `create`.

    An episode's last row has no successor in the ring: at a termination none is needed, and a truncated row is
    bootstrapped from its own observation or passed over, unless a row without a transition was added after it.
    """

    rows: Rows
    statics: Statics
    memory: PyTree
    """Before every `window`-th row, `[rows / window, worlds, ...]`, floats as halves."""
    priority: Priorities | None
    newest: Runs
    """Of the newest row. Kept apart: were they read from the ring, all of it would be copied before it is written."""
    write: Int[Array, ""]
    """The next row to be written."""
    stored: Int[Array, ""]
    """Rows that hold something."""
    spec: Spec = eqx.field(static=True)
    window: int = eqx.field(static=True)
    memory_dtypes: tuple[str, ...] = eqx.field(static=True)
    priority_by: str = eqx.field(static=True)
    exponent: float = eqx.field(static=True)
    correction: float = eqx.field(static=True)
    change_rows: int = eqx.field(static=True)
    change_weight: float = eqx.field(static=True)

    @staticmethod
    def create(
        spec: Spec,
        transitions: int,
        worlds: int,
        window: int = 1,
        memory: PyTree = None,
        priority: str = "uniform",
        exponent: float = 0.6,
        correction: float = 0.4,
        change_rows: int = 5,
        change_weight: float = 5.0,
    ) -> "Replay":
        """An empty replay.

        **Arguments:** `transitions` over all `worlds`, rounded up to whole windows; `window` rows between two
        snapshots of memory; `memory` an example of the agent's, leaves `[worlds, ...]`; `priority` what rows are
        drawn by: all alike, `|TD error|^exponent`, or `change_weight` times as often in the `change_rows` rows from
        a topology change on. `correction` is the exponent of importance weights. Exponents as in Schaul et al.
        (2016), proportional variant.

        Raises:
            ValueError: a size below 1, or an unknown priority.
        """
        for name, value in (("transitions", transitions), ("worlds", worlds), ("window", window)):
            if value < 1:
                raise ValueError(f"replay, {name} {value}: must be at least 1")
        if priority not in PRIORITIES:
            raise ValueError(f"replay, priority '{priority}': unknown; known: {', '.join(PRIORITIES)}")
        layout = Layout(spec)
        windows = math.ceil(transitions / worlds / window)
        capacity = windows * window

        def snapshots(leaf: Array) -> Array:
            dtype = jnp.uint16 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf.dtype
            return jnp.zeros((windows, *leaf.shape), dtype)

        return Replay(
            rows=blank(layout, capacity, worlds),
            statics=layout.blank_statics(),
            memory=jax.tree.map(snapshots, memory),
            priority=None if priority == "uniform" else Priorities(jnp.zeros((capacity, worlds)), jnp.ones(())),
            newest=Runs.none(worlds),
            write=jnp.zeros((), jnp.int32),
            stored=jnp.zeros((), jnp.int32),
            spec=spec,
            window=window,
            memory_dtypes=tuple(str(leaf.dtype) for leaf in jax.tree.leaves(memory)),
            priority_by=priority,
            exponent=exponent,
            correction=correction,
            change_rows=change_rows,
            change_weight=change_weight,
        )

    @property
    def capacity(self) -> int:
        """Rows of each world that there is room for."""
        return self.rows.reward.shape[1]

    @property
    def worlds(self) -> int:
        return self.rows.reward.shape[0]

    @property
    def size(self) -> Int[Array, ""]:
        """Rows stored, over all worlds."""
        return self.stored * self.worlds

    def add(
        self, experience: Experience, memory: PyTree = None, transition: Bool[Array, "T worlds"] | None = None
    ) -> "Replay":
        """The replay with T more rows in every world, the oldest overwritten.

        **Arguments:** `memory` is that before every `window`-th row, `[T / window, worlds, ...]`; where T is
        `window`, that is `experience.memory`. `transition` is False for rows that only hold the observation after
        an episode's end.

        Raises:
            ValueError: T is not a multiple of `window`, above the capacity, or memories are missing.
        """
        observation, outcome = experience.observation, experience.transition
        count = outcome.reward.shape[0]
        if count % self.window or not count or count > self.capacity:
            raise ValueError(
                f"replay, experience of {count} rows: must be a multiple of the window ({self.window}) and fit the "
                f"capacity ({self.capacity} rows of each world)"
            )
        if memory is None and self.memory_dtypes:
            if count != self.window:
                raise ValueError(
                    f"replay, experience of {count} rows with a snapshot of memory every {self.window}: needs the "
                    f"memories before {count // self.window} of them as `memory`, leaves "
                    f"[{count // self.window}, {self.worlds}, ...]"
                )
            memory = jax.tree.map(lambda leaf: leaf[None], experience.memory)
        if transition is None:
            transition = jnp.ones_like(outcome.terminated)
        layout = Layout(self.spec)
        fresh = pack(layout, experience, transition, self.newest)
        snapshots = self.memory
        if self.memory_dtypes:
            snapshots = write(snapshots, jax.tree.map(shrunk, memory), self.write // self.window, 1, axis=0)
        return replace(
            self,
            rows=write(self.rows, fresh, self.write, self.window, axis=1),
            statics=layout.statics(observation, self.statics),
            memory=snapshots,
            priority=self._with_first_priorities(fresh.runs, transition),
            newest=jax.tree.map(lambda column: column[-1], fresh.runs),
            write=(self.write + count) % self.capacity,
            stored=jnp.minimum(self.stored + count, self.capacity),
        )

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Sample:
        """Single transitions: a row that is one, and its successor, which is valid unless the episode ended.

        Raises:
            ValueError: `batch_size` is below 1, or, outside of jit, too little is stored.
        """
        self._check_draw(batch_size, 2)
        # the successor of the newest row is yet to come
        newest = (self.write - 1) % self.capacity
        drawn, weight = self._draw(key, batch_size, self.stored - 1, newest)
        following = (drawn.row + 1) % self.capacity
        continues = self.rows.runs.episode[drawn.world, following] > 1
        index = jnp.stack([drawn.row, jnp.where(continues, following, drawn.row)])
        possible = drawn.probability > 0
        return self._read(index, drawn, jnp.stack([possible, possible & continues]), weight)

    def sample_temporal(
        self, key: PRNGKeyArray, batch_size: int, lookback: int, respect_topology_changes: bool = True
    ) -> Sample:
        """Windows of `lookback` rows that end with the row drawn.

        Earlier rows that belong to another episode (or, where topology changes are respected, to another topology),
        or that have been overwritten, are not valid and repeat the first row that is.

        Raises:
            ValueError: a size below 1, `lookback` above the capacity, or, outside of jit, too little is stored.
        """
        self._check_draw(batch_size, lookback)
        drawn, weight = self._draw(key, batch_size, self.stored)
        run = self.rows.runs.same_topology if respect_topology_changes else self.rows.runs.episode
        oldest = self.write - self.stored
        depth = jnp.minimum(run[drawn.world, drawn.row], (drawn.row - oldest) % self.capacity + 1)
        back = jnp.arange(lookback)[::-1, None]
        index = (drawn.row - jnp.minimum(back, depth - 1)) % self.capacity
        return self._read(index, drawn, (back < depth) & (drawn.probability > 0), weight)

    def windows(self, key: PRNGKeyArray, count: int, length: int, siblings: int = 1) -> Sample:
        """Windows of `length` rows of one world that begin where memory is known, at every `window`-th row.

        They run on through ends of episodes and changes of topology, where memory clears itself by `first` and
        `births`; `valid` is False only for rows without a transition. A window's priority is the sum over its rows.
        Neighbouring worlds that are `siblings` are drawn together, at the same rows and next to each other, by the
        sum of their priorities.

        Raises:
            ValueError: `length` is below `window` or above the capacity, `siblings` divide worlds or `count` badly,
                or, outside of jit, too little is stored.
        """
        if length < self.window:
            raise ValueError(
                f"replay, windows of {length} rows: must be at least {self.window}, the rows of a window"
            )
        self._check_draw(count, length)
        if self.worlds % siblings or count % siblings:
            raise ValueError(
                f"replay, {siblings} siblings: must divide the worlds ({self.worlds}) and the windows ({count})"
            )
        draws, families = count // siblings, self.worlds // siblings
        starts = jnp.maximum((self.stored - length) // self.window + 1, 0)
        oldest = self.write - self.stored
        if self.priority is None:
            place_key, world_key = jax.random.split(key)
            place = jax.random.randint(place_key, (draws,), 0, jnp.maximum(starts, 1))
            family = jax.random.randint(world_key, (draws,), 0, families)
            drawn, weight = Drawn(place, family, jnp.ones(draws)), jnp.ones(draws)
        else:
            in_order = jnp.roll(self.priority.values, -oldest, axis=0)
            sums = jax.lax.reduce_window(in_order, 0.0, jax.lax.add, (length, 1), (self.window, 1), "valid")
            sums = sums.reshape(len(sums), families, siblings).sum(-1)
            drawn = draw(key, jnp.where(jnp.arange(len(sums))[:, None] < starts, sums, 0.0), draws)
            weight = importance_weights(drawn.probability, starts * families, self.correction)
        drawn, weight = jax.tree.map(lambda leaf: jnp.repeat(leaf, siblings), (drawn, weight))
        drawn = drawn._replace(world=drawn.world * siblings + jnp.arange(count) % siblings)
        first = (oldest + drawn.row * self.window) % self.capacity
        index = (first + jnp.arange(length)[:, None]) % self.capacity
        drawn = drawn._replace(row=first)
        valid = self._is_transition(index, drawn.world) & (drawn.probability > 0)
        snapshots = jax.tree.map(lambda leaf: leaf[first // self.window, drawn.world], self.memory)
        leaves, tree = jax.tree.flatten(snapshots)
        memory = [restored(leaf, dtype) for leaf, dtype in zip(leaves, self.memory_dtypes, strict=True)]
        return self._read(index, drawn, valid, weight, jax.tree.unflatten(tree, memory))

    def with_priorities(
        self, index: Int[Array, "windows 2"], error: Float[Array, " windows"] | Float[Array, "length windows"]
    ) -> "Replay":
        """The replay with the TD errors of rows that were drawn: of each row `index`, or of that and the following
        ones. Nothing changes where TD errors are not what rows are drawn by."""
        if self.priority is None or self.priority_by != "td-error":
            return self
        values = (jnp.abs(error) + SMALLEST_ERROR) ** self.exponent
        values = values.reshape(-1, index.shape[0])
        rows = (index[:, 0] + jnp.arange(len(values))[:, None]) % self.capacity
        old = self.priority.values
        # what could not be drawn stays so
        values = jnp.where(old[rows, index[:, 1]] > 0, values, 0.0)
        largest = jnp.maximum(self.priority.largest, values.max())
        return self.prioritised_by(Priorities(old.at[rows, index[:, 1]].set(values), largest))

    def prioritised_by(self, priority: Priorities | None) -> "Replay":
        """The same rows under other priorities, as from `replay.priority` of this replay at another time."""
        return replace(self, priority=priority)

    def needed(self, batch_size: int, length: int = 2) -> int:
        """What `size` must be before a batch of windows of `length` rows may be drawn."""
        return max(batch_size, length * self.worlds)

    def can_sample(self, batch_size: int, length: int = 2) -> Bool[Array, ""]:
        """Whether so much is stored; for use under jit, where nothing can be raised."""
        return self.size >= self.needed(batch_size, length)

    def check_can_sample(self, batch_size: int, length: int = 2) -> None:
        """
        Raises:
            ValueError: too little is stored; says how much there is and how much is needed.
        """
        if not self.can_sample(batch_size, length):
            raise ValueError(
                f"replay, batch of {batch_size} windows of {length} rows: needs {self.needed(batch_size, length)} "
                f"stored transitions; there are {int(self.size)} ({int(self.stored)} rows of each of {self.worlds} "
                "worlds)"
            )

    def _with_first_priorities(self, runs: Runs, transition: Bool[Array, "T worlds"]) -> Priorities | None:
        if self.priority is None:
            return None
        value = self.priority.largest
        if self.priority_by == "topology-change":
            recent = (runs.same_topology <= self.change_rows) & (runs.same_topology < runs.episode)
            value = jnp.where(recent, self.change_weight, 1.0)
        values = write(self.priority.values, jnp.where(transition, value, 0.0), self.write, self.window, axis=0)
        return Priorities(values, self.priority.largest)

    def _draw(
        self, key: PRNGKeyArray, count: int, candidates: Int[Array, ""], without: Int[Array, ""] | None = None
    ) -> tuple[Drawn, Float[Array, " count"]]:
        """Rows with a transition among the `candidates` oldest, all but row `without`; and their weights."""
        if self.priority is not None:
            values = self.priority.values
            values = values if without is None else values.at[without].set(0.0)
            drawn = draw(key, values, count)
            return drawn, importance_weights(drawn.probability, candidates * self.worlds, self.correction)
        # the remainder of 31 random bits favours the first of n rows by n / 2^31, and costs half of a fair draw
        age, world = jax.random.bits(key, (2, _TRIES, count)) // 2
        row = (self.write - self.stored + age.astype(jnp.int32) % jnp.maximum(candidates, 1)) % self.capacity
        world = world.astype(jnp.int32) % self.worlds
        found = self._is_transition(row, world)
        kept = found.argmax(0), jnp.arange(count)
        return Drawn(row[kept], world[kept], found.any(0).astype(jnp.float32)), jnp.ones(count)

    def _is_transition(self, row: Int[Array, "*shape"], world: Int[Array, "*_"]) -> Bool[Array, "*shape"]:
        return Layout(self.spec).flags(self.rows.bits[world, row, :1]).transition

    def _read(
        self,
        row: Int[Array, "length windows"],
        drawn: Drawn,
        valid: Bool[Array, "length windows"],
        weight: Float[Array, " windows"],
        memory: PyTree = None,
    ) -> Sample:
        index = jnp.stack([drawn.row, drawn.world], axis=-1)
        return read(self.rows, Layout(self.spec), self.statics, row, index, valid, weight, memory)

    def _check_draw(self, batch_size: int, length: int) -> None:
        if batch_size < 1 or length < 1:
            raise ValueError(f"replay, batch of {batch_size} windows of {length} rows: both must be at least 1")
        if length > self.capacity:
            raise ValueError(
                f"replay, windows of {length} rows: longer than the {self.capacity} rows of each world that the "
                "replay has room for"
            )
        if not isinstance(self.stored, Tracer):
            self.check_can_sample(batch_size, length)
