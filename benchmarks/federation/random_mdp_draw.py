"""The random MDPs of Jin et al. (AISTATS 2022), drawn as their published code draws them.

An experiment of `total` MDPs seeds NumPy's legacy generator with 101 and draws one seed for every MDP. Before
each MDP, reward and first Q table are drawn from wherever the generator stands, that is behind the transitions
of the MDP before; then the generator is seeded anew for the 25 transition tables. Every MDP can therefore be
drawn by itself, in any process. Needs NumPy only: the processes that draw start quickly.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

STATES, ACTIONS = 5, 5
TRAINING_AGENTS, TEST_AGENTS = 5, 20
AGENTS = TRAINING_AGENTS + TEST_AGENTS
SPARSITY = 0.2
FIRST_SEED = 101
_PAIRS = STATES * ACTIONS


@dataclass(frozen=True)
class Mdps:
    """A batch of MDPs, the batch on the last axis, where it fills vector registers.

    Training agents come first: `transitions[a, t, n, s, b]` is the probability that action `a` leads agent `n`
    of MDP `b` from state `s` to state `t`. Rewards and the first Q table are shared by all agents of an MDP.
    """

    transitions: Float[np.ndarray, "actions next agents states B"]
    rewards: Float[np.ndarray, "actions states B"]
    first_q: Float[np.ndarray, "actions states B"]


def draw(total: int, start: int, stop: int) -> Mdps:
    """MDPs `start` to `stop - 1` of an experiment of `total` MDPs."""
    generator = np.random.RandomState(FIRST_SEED)
    seeds = generator.randint(low=0, high=1_000_000, size=total)
    if start > 0:
        _transitions(generator, int(seeds[start - 1]))
    transitions = np.empty((stop - start, AGENTS, _PAIRS, STATES))
    tables = np.empty((2, stop - start, STATES, ACTIONS))
    for row, seed in enumerate(seeds[start:stop]):
        tables[0, row] = generator.random_sample((STATES, ACTIONS))
        tables[1, row] = generator.random_sample((STATES, ACTIONS))
        transitions[row] = _transitions(generator, int(seed))
    split = transitions.reshape(-1, AGENTS, STATES, ACTIONS, STATES)
    rewards, first_q = np.ascontiguousarray(tables.transpose(0, 3, 2, 1))
    return Mdps(np.ascontiguousarray(split.transpose(3, 4, 1, 2, 0)), rewards, first_q)


def _transitions(generator: np.random.RandomState, seed: int) -> Float[np.ndarray, "agents pairs next"]:
    """One table an agent: each entry is kept with probability 0.2, a row without any gets one, rows sum to 1."""
    generator.seed(seed)
    tables = np.empty((AGENTS, _PAIRS, STATES))
    for table in tables:
        kept = generator.binomial(1, SPARSITY, size=(_PAIRS, STATES))
        empty = np.flatnonzero(~kept.any(1))
        kept[empty, generator.randint(STATES, size=empty.size)] = 1
        np.multiply(kept, generator.random_sample((_PAIRS, STATES)), out=table)
    return tables / tables.sum(2, keepdims=True)
