"""Windows from the ring against plain lists; what it costs; what it refuses."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_rows import EDGES, NODES, random_rows, spec_of

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.buffers.priorities import Priorities
from dynamic_graph_fed_rl.buffers.replay import Replay, Sample
from dynamic_graph_fed_rl.environments.base import Transition
from dynamic_graph_fed_rl.training.checkpoint import newest, save

WORLDS, WINDOW, ROWS, CAPACITY, BATCH = 2, 2, 4, 12, 48
SPEC = spec_of("continuous")
KEY = jax.random.key(0)


class Stretch(NamedTuple):
    """T rows for `add`, `[T, worlds, ...]`, with the memory before every window."""

    experience: Experience
    memory: dict
    transition: jax.Array


def stretch(rng: np.random.Generator, rows: int, before: list[str]) -> Stretch:
    """Random rows of as many worlds as `before` has words: what each world's last row was, brought up to date.

    Episodes end now and then, some followed by a row that only holds what came after; topologies mostly stay.
    """
    lead = (rows, len(before))
    first, terminated, truncated, transition = (np.zeros(lead, bool) for _ in range(4))
    node_mask, edge_mask = rng.random((*lead, NODES)) < 0.7, rng.random((*lead, EDGES)) < 0.7
    for t, b in np.ndindex(*lead):
        if t and rng.random() < 0.6:
            node_mask[t, b], edge_mask[t, b] = node_mask[t - 1, b], edge_mask[t - 1, b]
        if before[b] == "end" and rng.random() < 0.5:
            before[b] = "aftermath"
            continue
        transition[t, b], first[t, b] = True, before[b] != "midway"
        before[b] = rng.choice(["midway", "end"], p=[0.7, 0.3])
        if before[b] == "end":
            (terminated if rng.random() < 0.5 else truncated)[t, b] = True
    observation, action = random_rows(SPEC, lead, int(rng.integers(1 << 30)), node_mask)
    graph = replace(observation.graph, edge_mask=jnp.asarray(edge_mask))
    observation = replace(observation, graph=graph, first=jnp.asarray(first))
    memory = {
        "averages": jnp.asarray(rng.integers(-99, 99, (rows // WINDOW, len(before), NODES)), jnp.float32),
        "steps": jnp.asarray(rng.integers(0, 99, (rows // WINDOW, len(before))), jnp.int32),
    }
    outcome = Transition(
        observation=observation,
        reward=jnp.asarray(rng.normal(size=lead), jnp.float32),
        cost=jnp.zeros((*lead, 0)),
        terminated=jnp.asarray(terminated),
        truncated=jnp.asarray(truncated),
        info={},
    )
    experience = Experience(jax.tree.map(lambda leaf: leaf[0], memory), observation, action, outcome, None)
    return Stretch(experience, memory, jnp.asarray(transition))


NEW = stretch(np.random.default_rng(0), ROWS, ["aftermath"] * WORLDS)


class Lists:
    """The oracle: every row ever added, in a list a world."""

    def __init__(self, worlds: int):
        self.rows = [[] for _ in range(worlds)]
        self.memories = [[] for _ in range(worlds)]

    def add(self, new: Stretch) -> None:
        experience = new.experience
        graph, outcome = experience.observation.graph, experience.transition
        content = flat(
            (experience.observation, experience.action, outcome.reward, outcome.terminated, outcome.truncated)
        )
        masks = np.concatenate([graph.node_mask, graph.edge_mask], axis=-1)
        memory = flat(new.memory)
        for t, b in np.ndindex(*outcome.reward.shape):
            self.rows[b].append(
                {
                    "content": content[t, b],
                    "masks": masks[t, b],
                    "first": bool(experience.observation.first[t, b]),
                    "transition": bool(new.transition[t, b]),
                }
            )
            if t % WINDOW == 0:
                self.memories[b].append(memory[t // WINDOW, b])

    def stored(self, b: int) -> range:
        count = len(self.rows[b])
        return range(max(count - CAPACITY, 0), count)

    def find(self, index) -> tuple[int, int]:
        """Place in the list, and the world, of a row of the ring."""
        row, b = (int(i) for i in index)
        return next(i for i in self.stored(b) if i % CAPACITY == row), b

    def continues(self, b: int, i: int) -> bool:
        """Whether row i + 1 is there and of the same episode."""
        return i + 1 < len(self.rows[b]) and not self.rows[b][i + 1]["first"]

    def window(self, b: int, end: int, lookback: int, respect: bool) -> list[int]:
        window = [end]
        while len(window) < lookback:
            now, i = self.rows[b][window[0]], window[0] - 1
            if i not in self.stored(b) or now["first"]:
                break
            if respect and (now["masks"] != self.rows[b][i]["masks"]).any():
                break
            window.insert(0, i)
        return window


def flat(tree) -> np.ndarray:
    """All leaves of `[T, K, ...]` side by side."""
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(leaf, np.float64).reshape(*leaf.shape[:2], -1) for leaf in leaves], axis=-1)


def content(sample: Sample) -> np.ndarray:
    return flat((sample.observation, sample.action, sample.reward, sample.terminated, sample.truncated))


def empty(priority: str = "uniform", transitions: int = CAPACITY * WORLDS, **settings) -> Replay:
    memory = {"averages": jnp.zeros((WORLDS, NODES)), "steps": jnp.zeros(WORLDS, jnp.int32)}
    return Replay.create(SPEC, transitions, WORLDS, WINDOW, memory, priority, **settings)


@jax.jit
def add(replay: Replay, new: Stretch) -> Replay:
    return replay.add(new.experience, new.memory, new.transition)


@jax.jit
def draw_all(replay: Replay, key: jax.Array) -> dict[str, Sample]:
    """Every kind of draw in one compiled program."""
    return {
        "sample": replay.sample(key, BATCH),
        "respect": replay.sample_temporal(key, BATCH, 4, respect_topology_changes=True),
        "episode": replay.sample_temporal(key, BATCH, 4, respect_topology_changes=False),
        "windows": replay.windows(key, BATCH, WINDOW + 1),
    }


def filled(seed: int, stretches: int, priority: str = "uniform", **settings) -> tuple[Replay, Lists]:
    rng, before, oracle = np.random.default_rng(seed), ["aftermath"] * WORLDS, Lists(WORLDS)
    replay = empty(priority, **settings)
    for _ in range(stretches):
        new = stretch(rng, ROWS, before)
        replay = add(replay, new)
        oracle.add(new)
    return replay, oracle


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), stretches=st.integers(1, 8), priority=st.sampled_from(["uniform", "td-error"]))
def test_windows_are_those_of_plain_lists(seed, stretches, priority):
    replay, oracle = filled(seed, stretches, priority)
    assert int(replay.size) == sum(len(oracle.stored(b)) for b in range(WORLDS))
    drawn = draw_all(replay, jax.random.key(seed))

    for name in ("respect", "episode"):
        sample, rows = drawn[name], content(drawn[name])
        for k, index in enumerate(sample.index):
            end, b = oracle.find(index)
            window = oracle.window(b, end, 4, respect=name == "respect")
            padding = 4 - len(window)
            if not sample.valid[-1, k]:
                # drawn in vain every time
                assert not oracle.rows[b][end]["transition"] and not sample.valid[:, k].any()
                continue
            assert oracle.rows[b][end]["transition"]
            np.testing.assert_array_equal(sample.valid[:, k], [False] * padding + [True] * len(window))
            wanted = [oracle.rows[b][i]["content"] for i in [window[0]] * padding + window]
            np.testing.assert_array_equal(rows[:, k], wanted)

    sample, rows = drawn["sample"], content(drawn["sample"])
    for k, index in enumerate(sample.index):
        i, b = oracle.find(index)
        assert i < len(oracle.rows[b]) - 1, "the newest row's successor is not known yet"
        follows = oracle.continues(b, i)
        assert bool(sample.valid[0, k]) == oracle.rows[b][i]["transition"]
        assert bool(sample.valid[1, k]) == (follows and bool(sample.valid[0, k]))
        wanted = [oracle.rows[b][j]["content"] for j in (i, i + follows)]
        np.testing.assert_array_equal(rows[:, k], wanted)

    sample, rows, memory = drawn["windows"], content(drawn["windows"]), flat_memory(drawn["windows"])
    for k, index in enumerate(sample.index):
        start, b = oracle.find(index)
        window = range(start, start + WINDOW + 1)
        assert start % WINDOW == 0 and window[-1] in oracle.stored(b)
        np.testing.assert_array_equal(rows[:, k], [oracle.rows[b][i]["content"] for i in window])
        np.testing.assert_array_equal(sample.valid[:, k], [oracle.rows[b][i]["transition"] for i in window])
        np.testing.assert_array_equal(memory[k], oracle.memories[b][start // WINDOW])


def flat_memory(sample: Sample) -> np.ndarray:
    return flat(jax.tree.map(lambda leaf: leaf[None], sample.memory))[0]


def counts_of(samples: list[jax.Array], shape: tuple[int, int]) -> np.ndarray:
    """How often each row and world was drawn."""
    counts = np.zeros(shape)
    for index in samples:
        np.add.at(counts, tuple(np.asarray(index).T), 1)
    return counts


def assert_frequencies(counts: np.ndarray, probability: np.ndarray) -> None:
    """Within five standard deviations of a binomial count, everywhere."""
    total = counts.sum()
    deviation = np.sqrt(total * probability * (1 - probability))
    assert (np.abs(counts - total * probability) <= 5 * deviation).all()


@pytest.mark.parametrize("stretches", [2, 5])
def test_rows_are_drawn_alike(stretches):
    replay, oracle = filled(3, stretches)
    samples = [draw_all(replay, key) for key in jax.random.split(KEY, 300)]
    there = np.zeros((CAPACITY, WORLDS))
    for b in range(WORLDS):
        for i in oracle.stored(b):
            there[i % CAPACITY, b] = oracle.rows[b][i]["transition"]
    # what no try found is not valid, and not counted
    counts = counts_of([one["respect"].index[one["respect"].valid[-1]] for one in samples], there.shape)
    assert_frequencies(counts, there / there.sum())
    starts = np.zeros((CAPACITY, WORLDS))
    for i in oracle.stored(0):
        starts[i % CAPACITY] = i % WINDOW == 0 and i + WINDOW in oracle.stored(0)
    assert_frequencies(counts_of([one["windows"].index for one in samples], starts.shape), starts / starts.sum())


def test_errors_decide_how_often_a_row_is_drawn_and_what_it_weighs():
    replay, _ = filled(4, 5, "td-error", exponent=0.7, correction=0.5)
    rng = np.random.default_rng(5)
    every = np.array(list(np.ndindex(CAPACITY, WORLDS)))
    can = np.asarray(replay.priority.values) > 0
    # the rows that came with an add get the largest priority so far: 1, as nothing is known
    assert set(np.unique(replay.priority.values)) == {0.0, 1.0}
    error = rng.exponential(size=len(every)).astype(np.float32)
    replay = replay.with_priorities(jnp.asarray(every), jnp.asarray(error))
    expected = ((error + 1e-6) ** 0.7).reshape(CAPACITY, WORLDS) * can
    np.testing.assert_allclose(replay.priority.values, expected, rtol=1e-5)
    samples = [draw_all(replay, key) for key in jax.random.split(KEY, 300)]

    chance = expected / expected.sum()
    assert_frequencies(counts_of([one["respect"].index for one in samples], chance.shape), chance)
    weight = (CAPACITY * WORLDS * chance[tuple(np.asarray(samples[0]["respect"].index).T)]) ** -0.5
    np.testing.assert_allclose(samples[0]["respect"].weight, weight / weight.max(), rtol=1e-5)

    newest_row = (int(replay.write) - 1) % CAPACITY
    known = expected.copy()
    known[newest_row] = 0
    assert_frequencies(counts_of([one["sample"].index for one in samples], known.shape), known / known.sum())

    ordered = np.roll(expected, -int(replay.write), axis=0)
    sums = np.zeros_like(expected)
    for start in range(0, CAPACITY - WINDOW, WINDOW):
        sums[(start + int(replay.write)) % CAPACITY] = ordered[start : start + WINDOW + 1].sum(0)
    assert_frequencies(counts_of([one["windows"].index for one in samples], sums.shape), sums / sums.sum())

    # errors of whole windows go to each of their rows, and new rows get the largest of all
    windows = jnp.asarray([[0, 0], [CAPACITY - 1, 1]])
    errors = jnp.asarray([[2.0, 3.0], [4.0, 50.0]])
    after = replay.with_priorities(windows, errors)
    places = [(0, 0), (CAPACITY - 1, 1), (1, 0), (0, 1)]
    for place, value in zip(places, np.asarray(errors).ravel(), strict=True):
        np.testing.assert_allclose(after.priority.values[place], can[place] * value**0.7, rtol=1e-5)
    largest = float(after.priority.largest)
    new = stretch(rng, ROWS, ["aftermath"] * WORLDS)
    added = np.asarray(add(after, new).priority.values)[np.arange(ROWS) + int(after.write)]
    np.testing.assert_allclose(added, np.where(new.transition, largest, 0.0), rtol=1e-6)


def test_rows_after_a_change_of_topology_are_drawn_more_often():
    replay, oracle = filled(6, 3, "topology-change", change_rows=2, change_weight=4.0)
    wanted = np.zeros((CAPACITY, WORLDS))
    for b in range(WORLDS):
        since = 99
        for i, row in enumerate(oracle.rows[b]):
            since += 1
            if row["first"]:
                since = 99
            elif (row["masks"] != oracle.rows[b][i - 1]["masks"]).any():
                since = 1
            wanted[i, b] = row["transition"] * (4.0 if since <= 2 else 1.0)
    assert {0.0, 1.0, 4.0} == set(np.unique(wanted))
    np.testing.assert_array_equal(replay.priority.values, wanted)
    # errors change nothing here
    assert replay.with_priorities(jnp.zeros((1, 2), jnp.int32), jnp.ones(1)) is replay


def test_adding_touches_new_rows_only():
    """The compiled program needs the same little room beside a small and a large ring that are given away."""
    rooms = []
    for transitions in (1 << 12, 1 << 17):
        replay = jax.eval_shape(lambda n=transitions: empty("td-error", n))
        compiled = jax.jit(lambda r, s: r.add(s.experience, s.memory, s.transition), donate_argnums=0)
        statistics = compiled.lower(replay, NEW).compile().memory_analysis()
        ring = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(replay))
        assert statistics.alias_size_in_bytes >= 0.99 * ring
        rooms.append(statistics.temp_size_in_bytes)
    assert rooms[0] == rooms[1] < 1 << 17


@jax.jit
def draw_two(replay: Replay, key: jax.Array) -> tuple[Sample, Sample]:
    return replay.sample_temporal(key, 8, 3), replay.windows(key, 8, WINDOW + 1)


@pytest.mark.parametrize("how", [jax.vmap, lambda f: lambda *trees: jax.lax.map(lambda one: f(*one), trees)])
def test_agents_side_by_side_or_in_turn(how):
    rng = np.random.default_rng(7)
    alone = [empty("td-error"), empty("td-error")]
    before = [["aftermath"] * WORLDS, ["aftermath"] * WORLDS]
    both = lambda *trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)  # noqa: E731
    together, adding, drawing = both(*alone), jax.jit(how(add)), jax.jit(how(draw_two))
    for _ in range(4):
        new = [stretch(rng, ROWS, words) for words in before]
        alone = [add(replay, one) for replay, one in zip(alone, new, strict=True)]
        together = adding(together, both(*new))
    keys = jax.random.split(KEY, 2)
    samples = drawing(together, keys)
    for a in range(2):
        expected = alone[a], draw_two(alone[a], keys[a])
        for got, wanted in zip(jax.tree.leaves((together, samples)), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(got[a], wanted)


@pytest.mark.parametrize("priority", ["uniform", "td-error"])
def test_siblings_are_drawn_together(priority):
    """Families of two: at the same rows, next to each other, and as often as their priorities together say."""
    replay, _ = filled(9, 3, priority)
    if priority == "td-error":
        # only the newest row of the second world matters
        values = jnp.zeros_like(replay.priority.values)
        replay = replay.prioritised_by(
            Priorities(values.at[(replay.write - 1) % replay.capacity, 1].set(1.0), jnp.ones(()))
        )
    sample = replay.windows(jax.random.key(0), 24, WINDOW, WORLDS)
    rows, worlds = np.asarray(sample.index).reshape(-1, WORLDS, 2).transpose(2, 0, 1)
    np.testing.assert_array_equal(worlds, np.tile(np.arange(WORLDS), (len(worlds), 1)))
    assert (rows == rows[:, :1]).all() and (rows % WINDOW == 0).all()
    newest = int(replay.write - WINDOW) % replay.capacity
    assert set(rows.ravel()) == {newest} if priority == "td-error" else len(set(rows.ravel())) > 2
    kept = np.stack([replay.rows.reward[0, row : row + WINDOW] for row in rows[:, 0]], axis=1)
    np.testing.assert_array_equal(sample.reward[:, ::WORLDS], kept)


def test_saved_and_restored_with_the_run(tmp_path):
    replay, _ = filled(8, 2, "td-error")
    save(tmp_path, replay, 1, 1)
    restored = newest(tmp_path, jax.eval_shape(lambda: empty("td-error")), pytest.fail)
    assert restored is not None
    for got, wanted in zip(jax.tree.leaves(restored[1]), jax.tree.leaves(replay), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_where_memory_is_not_kept_none_is_needed():
    replay = jax.jit(lambda one: Replay.create(SPEC, 20, WORLDS, WINDOW).add(one))(NEW.experience)
    assert replay.capacity == 10
    assert jax.eval_shape(lambda one: one.windows(KEY, 4, WINDOW), replay).memory is None
    assert replay.needed(3) == 4 and replay.needed(9) == 9
    assert bool(replay.can_sample(8, ROWS)) and not bool(replay.can_sample(9, ROWS))


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: empty(priority="size"), "priority 'size': unknown; known: uniform, td-error, topology-change"),
        (lambda: empty(transitions=0), "transitions 0: must be at least 1"),
        (lambda: empty().sample(KEY, 4), "needs 4 stored transitions; there are 0"),
        (
            lambda: filled(0, 1)[0].sample_temporal(KEY, 4, 5),
            r"batch of 4 windows of 5 rows: needs 10 stored transitions; there are 8 \(4 rows of each of 2 worlds\)",
        ),
        (lambda: filled(0, 1)[0].sample(KEY, 100), "needs 100 stored transitions; there are 8"),
        (lambda: filled(0, 1)[0].sample(KEY, 0), "both must be at least 1"),
        (lambda: empty().sample_temporal(KEY, 4, 13), "windows of 13 rows: longer than the 12 rows of each world"),
        (lambda: empty().windows(KEY, 4, 1), "windows of 1 rows: must be at least 2"),
        (lambda: filled(0, 1)[0].windows(KEY, 6, WINDOW, 3), r"3 siblings: must divide the worlds \(2\)"),
        (lambda: empty().add(NEW.experience), r"needs the memories before 2 of them .* \[2, 2, ...\]"),
        (lambda: empty(transitions=4).add(NEW.experience), r"experience of 4 rows: .* the capacity \(2 rows"),
    ],
)
def test_refuses(mistake, words):
    with pytest.raises(ValueError, match=words):
        mistake()
