"""Inside an environment of its own: adding to and sampling from flashbax's trajectory buffer.

What changes from row to row, each column in its natural type. In flashbax's favour: nothing that is the same in every
row, the trajectory layout, and a donated buffer, without which every add copies all of it.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from peers import serve, versions

# the item: IEEE 118 with both directions of each of its 186 lines, a slot for each of its 54 units
NODES, FEATURES, EDGES, EDGE_FEATURES, ACTIONS = 118, 6, 372, 4, 54
WORLDS, ROWS, BATCH, LOOKBACK = 16, 8, 256, 5


def prepare() -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--capacity", type=int, default=65_536, help="transitions that the buffer holds")
    parser.add_argument("--calls", type=int, default=200, help="adds, and samples, in a measurement")
    options = parser.parse_args()
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ["JAX_PLATFORMS"] = "cpu"
    import flashbax
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def row(*lead: int) -> dict[str, Any]:
        truths = {"node_mask": NODES, "births": NODES, "edge_mask": EDGES, "action_mask": ACTIONS}
        flags = ("first", "terminated", "truncated")
        numbers = {
            "nodes": rng.normal(size=(*lead, NODES, FEATURES)).astype(np.float32),
            "action": rng.uniform(-1, 1, (*lead, ACTIONS)).astype(np.float32),
            "reward": rng.normal(size=lead).astype(np.float32),
        }
        masks = {name: rng.random((*lead, size)) < 0.95 for name, size in truths.items()}
        return jax.tree.map(jax.numpy.asarray, numbers | masks | {name: rng.random(lead) < 0.05 for name in flags})

    buffer = flashbax.make_trajectory_buffer(
        add_batch_size=WORLDS,
        sample_batch_size=BATCH,
        sample_sequence_length=LOOKBACK,
        period=1,
        min_length_time_axis=LOOKBACK,
        max_length_time_axis=options.capacity // WORLDS,
    )
    state = buffer.init(jax.tree.map(lambda leaf: leaf[0, 0], row(1, 1)))
    stored = sum(leaf.nbytes for leaf in jax.tree.leaves(state.experience)) / options.capacity
    add, sample = jax.jit(buffer.add, donate_argnums=0), jax.jit(buffer.sample)
    rows, keys = row(WORLDS, ROWS), list(jax.random.split(jax.random.key(0), options.calls))
    # once around, so that no measurement touches fresh memory
    for _ in range(options.capacity // (WORLDS * ROWS) + 1):
        state = add(state, rows)
    jax.block_until_ready((state, sample(state, keys[0])))

    def measure() -> dict[str, float]:
        nonlocal state
        began = time.process_time()
        for _ in range(options.calls):
            state = add(state, rows)
        jax.block_until_ready(state)
        added = time.process_time()
        for key in keys:
            jax.block_until_ready(sample(state, key))
        return {
            "add_cpu_ms": (added - began) / options.calls * 1e3,
            "temporal_cpu_ms": (time.process_time() - added) / options.calls * 1e3,
        }

    measure()
    return {"bytes_per_transition": stored, "versions": versions("flashbax", "jax", "numpy")}, measure


if __name__ == "__main__":
    serve(prepare)
