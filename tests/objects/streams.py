"""Decisions in the smallest environments, for agents and buffers to be tried on."""

import numpy as np

from dynamic_graph_fed_rl import DynamicGraphEnv, GraphTransition


def played(env: DynamicGraphEnv, decisions: int, seed: int = 0) -> list[GraphTransition]:
    """Decisions of the first agent of an environment of one, at random, over as many episodes as that takes."""
    rng, state, rows = np.random.default_rng(seed), env.reset(), []
    while len(rows) < decisions:
        action = rng.integers(0, 2, 1) if env.spec.action == "discrete" else rng.uniform(-1, 1, (1, 1))
        after, rewards, done, _ = env.step({0: action})
        rows.append(GraphTransition(state.get_subgraph(0), action, rewards[0], after.get_subgraph(0)))
        state = env.reset() if done else after
    return rows
