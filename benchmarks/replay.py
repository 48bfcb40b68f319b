"""Replay against replay: our ring, flashbax, and a Python list of transitions, in turns.

    python benchmarks/replay.py

A row is one decision on a graph of 118 nodes with 6 features that change, 372 edges that come and go with 4 that do
not, and 54 actions. Rows are added from 16 worlds, 8 each at a time; windows of 5 are sampled 256 at a time.
"""

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from measure import (
    Claim,
    Noise,
    Stopwatch,
    claim_from_repeats,
    interleave,
    print_claims,
    ratios,
    use_one_thread,
    write_results,
)
from peer_flashbax import ACTIONS, BATCH, EDGE_FEATURES, EDGES, FEATURES, LOOKBACK, NODES, ROWS, WORLDS
from peers import DEFAULT_DIRECTORY, FLASHBAX_PINS, Peer

ADDED = WORLDS * ROWS


@dataclass(frozen=True)
class Options:
    """What to measure."""

    repeats: int = 7
    """Turns that each side takes."""
    calls: int = 200
    """Adds, and samples of each kind, in a turn (a tenth of it for the list)."""
    capacities: tuple[int, int, int] = (4_096, 65_536, 262_144)
    """Transitions that our rings hold; flashbax holds the middle one."""
    list_capacity: int = 16_384
    """Transitions in the list, 25 kB each."""
    peers: Path = DEFAULT_DIRECTORY.with_name("flashbax")
    """Where flashbax's virtual environment is, or will be made."""


def experience() -> tuple[Any, Any]:
    """The spec of the item, and random rows of it, `[ROWS, WORLDS, ...]`."""
    import jax.numpy as jnp
    import numpy as np

    from dynamic_graph_fed_rl.algorithms.base import Experience
    from dynamic_graph_fed_rl.environments.base import Observation, Transition
    from dynamic_graph_fed_rl.environments.spec import Column, Spec
    from dynamic_graph_fed_rl.graph import Graph

    nodes = tuple(Column(f"feature_{i}") for i in range(FEATURES))
    edges = tuple(Column(f"feature_{i}", dynamic=False) for i in range(EDGE_FEATURES))
    spec = Spec(1, NODES, EDGES, ACTIONS, "continuous", 1, nodes, edges)
    rng, lead = np.random.default_rng(0), (ROWS, WORLDS)

    def numbers(*shape: int) -> Any:
        return jnp.asarray(rng.normal(size=(*lead, *shape)), jnp.float32)

    def truths(chance: float, *shape: int) -> Any:
        return jnp.asarray(rng.random((*lead, *shape)) < chance)

    def held(chance: float, size: int) -> Any:
        """A mask that stays for these rows, as topologies mostly do."""
        return jnp.broadcast_to(truths(chance, size)[0], (*lead, size))

    def indices(size: int) -> Any:
        return jnp.broadcast_to(jnp.asarray(rng.integers(NODES, size=size), jnp.int32), (*lead, size))

    graph = Graph(
        nodes=numbers(NODES, FEATURES),
        edges=jnp.broadcast_to(numbers(EDGES, EDGE_FEATURES)[0, 0], (*lead, EDGES, EDGE_FEATURES)),
        senders=indices(EDGES),
        receivers=indices(EDGES),
        node_mask=held(0.95, NODES),
        edge_mask=held(0.95, EDGES),
        globals=numbers(0),
    )
    observation = Observation(
        graph=graph,
        slots=numbers(ACTIONS, 0),
        slot_owner=indices(ACTIONS),
        action_mask=truths(0.95, ACTIONS),
        first=truths(0.05),
        births=truths(0.05, NODES),
    )
    outcome = Transition(observation, numbers(), numbers(0), truths(0.03), truths(0.02), {})
    return spec, Experience(None, observation, jnp.clip(numbers(ACTIONS, 1), -1, 1), outcome, None)


def what_differs(sample: Any) -> Any:
    """Without what is the same in every row, which a compiled program that uses a sample need not copy for each."""
    import equinox as eqx

    def same(sample: Any) -> tuple[Any, ...]:
        graph = sample.observation.graph
        return graph.senders, graph.receivers, graph.edges, sample.observation.slot_owner

    return eqx.tree_at(same, sample, (None,) * 4)


def ring(
    capacity: int, priority: str, calls: int, kinds: tuple[str, ...]
) -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    """Fill a ring once around; what it is, and a function that measures adds and the named kinds of sample."""
    import jax

    from dynamic_graph_fed_rl.buffers.replay import Replay

    spec, rows = experience()
    replay = Replay.create(spec, capacity, WORLDS, ROWS, priority=priority)
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves((replay.rows, replay.priority))) / capacity
    add = jax.jit(lambda replay, rows: replay.add(rows), donate_argnums=0)
    room = add.lower(replay, rows).compile().memory_analysis().temp_size_in_bytes
    draws = {
        "single": jax.jit(lambda replay, key: what_differs(replay.sample(key, BATCH))),
        "temporal": jax.jit(lambda replay, key: what_differs(replay.sample_temporal(key, BATCH, LOOKBACK))),
        "copied": jax.jit(lambda replay, key: replay.sample_temporal(key, BATCH, LOOKBACK)),
    }
    keys = list(jax.random.split(jax.random.key(0), calls))
    # once around, so that no measurement touches fresh memory
    for _ in range(capacity // ADDED + 1):
        replay = add(replay, rows)

    def measure() -> dict[str, float]:
        nonlocal replay
        with Stopwatch() as adding:
            for _ in range(calls):
                replay = add(replay, rows)
            jax.block_until_ready(replay)
        figures = {"add_cpu_ms": adding.cpu_seconds / calls * 1e3}
        for kind in kinds:
            with Stopwatch() as drawing:
                for key in keys:
                    jax.block_until_ready(draws[kind](replay, key))
            figures[f"{kind}_cpu_ms"] = drawing.cpu_seconds / calls * 1e3
        return figures

    measure()
    return {"capacity": capacity, "bytes_per_transition": stored, "working_bytes_of_add": room}, measure


def plain_list(capacity: int, calls: int) -> Callable[[], dict[str, float]]:
    """A list of transitions, stacked and handed to jax when sampled: state and successor in full, with their graph,
    as published code on graphs keeps them; the successor is shared with the next transition.

    Windows end where an episode or a topology does, as ours, and are stacked one by one, then together. `tuned` takes
    any rows and stacks them all at once; `lean` of these only what differs from row to row.
    """
    import jax
    import numpy as np

    _, rows = experience()
    observation, outcome = rows.observation, rows.transition
    graph = observation.graph
    states = {
        "nodes": graph.nodes,
        "edges": graph.edges,
        "edge_index": np.stack([graph.senders, graph.receivers], axis=-2),
        "node_mask": graph.node_mask,
        "edge_mask": graph.edge_mask,
        "action_mask": observation.action_mask,
    }
    states = {name: np.asarray(value) for name, value in states.items()}
    action, reward = np.asarray(rows.action), np.asarray(outcome.reward)
    terminated, truncated = np.asarray(outcome.terminated), np.asarray(outcome.truncated)
    generator = random.Random(0)

    def state(t: int, b: int) -> dict[str, Any]:
        # a copy, as a step that returns new arrays makes
        return {name: value[t, b].copy() for name, value in states.items()}

    transitions: list[dict[str, Any]] = []
    now = state(0, 0)
    for i in range(capacity):
        t, b = i % ROWS, i // ROWS % WORLDS
        after = state((t + 1) % ROWS, b)
        transitions.append(
            {
                **now,
                **{f"next_{name}": value for name, value in after.items()},
                "action": action[t, b],
                "reward": reward[t, b],
                "terminated": terminated[t, b],
                "truncated": truncated[t, b],
            }
        )
        now = after

    everything = list(transitions[0])
    differing = [name for name in everything if not name.endswith(("edges", "edge_index"))]

    def window(end: int) -> list[dict[str, Any]]:
        rows = [transitions[end]]
        while len(rows) < LOOKBACK:
            before = transitions[end - len(rows)]
            same = all(np.array_equal(before[name], rows[0][name]) for name in ("node_mask", "edge_mask"))
            if before["terminated"] or before["truncated"] or not same:
                # what does not belong repeats the first row that does, as ours
                return [rows[0]] * (LOOKBACK - len(rows)) + rows
            rows.insert(0, before)
        return rows

    def draw() -> list[int]:
        return [generator.randrange(LOOKBACK - 1, capacity) for _ in range(BATCH)]

    def plain() -> dict[str, Any]:
        windows = [window(end) for end in draw()]
        return {
            name: np.stack([np.stack([row[name] for row in one]) for one in windows], axis=1) for name in everything
        }

    def tuned(names: list[str]) -> dict[str, Any]:
        ends = draw()
        rows = [transitions[end + 1 - LOOKBACK + i] for i in range(LOOKBACK) for end in ends]
        batch = {name: np.stack([row[name] for row in rows]) for name in names}
        return {name: value.reshape(LOOKBACK, BATCH, *value.shape[1:]) for name, value in batch.items()}

    def measure() -> dict[str, float]:
        figures = {}
        for kind, sample in (
            ("temporal", plain),
            ("tuned", lambda: tuned(everything)),
            ("lean", lambda: tuned(differing)),
        ):
            with Stopwatch() as stopwatch:
                for _ in range(calls):
                    jax.block_until_ready(jax.device_put(sample()))
            figures[f"{kind}_cpu_ms"] = stopwatch.cpu_seconds / calls * 1e3
        return figures

    measure()
    return measure


def main(options: Options) -> None:
    core = use_one_thread()
    noise = Noise()
    small, middle, large = options.capacities
    calls = options.calls
    plans = {
        "small": (small, "uniform", ()),
        "ours": (middle, "uniform", ("single", "temporal", "copied")),
        "large": (large, "uniform", ("temporal",)),
        "by error": (middle, "td-error", ("single", "temporal")),
    }
    rings = {name: ring(capacity, priority, calls, kinds) for name, (capacity, priority, kinds) in plans.items()}
    arguments = ["--capacity", str(middle), "--calls", str(calls)]
    with Peer("peer_flashbax.py", *arguments, directory=options.peers, pins=FLASHBAX_PINS) as peer:
        sides = {name: measure for name, (_, measure) in rings.items()}
        sides |= {"flashbax": peer.measure, "list": plain_list(options.list_capacity, max(calls // 10, 1))}
        # the list's arrays are many: no side is to pay for looking through them
        gc.freeze()
        samples = interleave(sides, options.repeats, noise)
    ours, flashbax = samples["ours"], samples["flashbax"]
    details = {
        "core": core,
        "rings": {name: description for name, (description, _) in rings.items()},
        "flashbax": peer.description,
        "samples": samples,
    }

    def times(side: str, name: str) -> list[float]:
        return [row[name] for row in samples[side]]

    def claim(words: str, values: list[float], unit: str, bar: float | None = None, **fields: Any) -> Claim:
        return claim_from_repeats(words, values, unit=unit, bar=bar, **fields)

    def over_list(kind: str, ours_kind: str) -> list[float]:
        return [a / b for a, b in zip(times("list", kind), times("ours", ours_kind), strict=True)]

    added = [ADDED / milliseconds * 1e3 for milliseconds in times("ours", "add_cpu_ms")]
    stored = [rings["ours"][0]["bytes_per_transition"]]
    growth = ratios(samples["large"], samples["small"], "add_cpu_ms")
    room = [rings["large"][0]["working_bytes_of_add"] / rings["small"][0]["working_bytes_of_add"]]
    capacities = f"{large:,} over {small:,} transitions of capacity"
    windows = f"{BATCH} windows of {LOOKBACK}"
    claims = [
        claim("added", added, "transitions per CPU second", 200_000, details=details),
        claim(f"sampled, {windows}, over a list", over_list("temporal_cpu_ms", "temporal_cpu_ms"), "ratio", 50),
        claim("room for a transition", stored, "bytes", 1_700, direction="at most"),
        claim(f"time of an add, {capacities}", growth, "ratio", 1.5, direction="at most"),
        claim(f"working memory of an add, {capacities}", room, "ratio", 1.0, direction="at most"),
        claim("sampled, over a tuned list", over_list("tuned_cpu_ms", "temporal_cpu_ms"), "ratio"),
        claim("sampled, over a tuned list of what differs", over_list("lean_cpu_ms", "temporal_cpu_ms"), "ratio"),
        claim("sampled with all copied, over a list", over_list("temporal_cpu_ms", "copied_cpu_ms"), "ratio"),
        claim("added, over flashbax", ratios(flashbax, ours, "add_cpu_ms"), "ratio"),
        claim("sampled, over flashbax", ratios(flashbax, ours, "temporal_cpu_ms"), "ratio"),
        claim("flashbax: room for a transition", [peer.description["bytes_per_transition"]], "bytes"),
    ]
    for words, side, kind in (
        (f"ours, {small:,}: add {ADDED} rows", "small", "add"),
        (f"ours, {middle:,}: add {ADDED} rows", "ours", "add"),
        (f"ours, {large:,}: add {ADDED} rows", "large", "add"),
        (f"flashbax, {middle:,}: add {ADDED} rows", "flashbax", "add"),
        (f"ours, {middle:,}: sample {windows}", "ours", "temporal"),
        (f"ours, {middle:,}: sample {windows}, all copied", "ours", "copied"),
        (f"ours, {large:,}: sample {windows}", "large", "temporal"),
        (f"ours by TD error, {middle:,}: sample {windows}", "by error", "temporal"),
        (f"flashbax, {middle:,}: sample {windows}", "flashbax", "temporal"),
        (f"list: sample {windows}", "list", "temporal"),
        (f"list: sample {windows}, tuned", "list", "tuned"),
        (f"list: sample {windows}, tuned, only what differs", "list", "lean"),
        (f"ours, {middle:,}: sample {BATCH} transitions", "ours", "single"),
        (f"ours by TD error, {middle:,}: sample {BATCH} transitions", "by error", "single"),
    ):
        claims.append(claim(words, times(side, f"{kind}_cpu_ms"), "CPU ms"))
    print_claims("Replay of graph transitions, one core", claims, noise)
    print(f"written: {write_results('replay', claims, noise)}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
