"""Stacks of updates, and one compiled call, that the tests of all rules share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

AGENTS, SIZE = 7, 11


def draw(seed: int, agents: int = AGENTS, size: int = SIZE) -> np.ndarray:
    """`[agents, size]` of normal numbers around a common shift, as updates of agents that learn the same have."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=size) + generator.normal(size=(agents, size))).astype(np.float32)


@eqx.filter_jit
def _call(rule, updates, weights, base, state, seed):
    return rule(updates, weights, base, state, jax.random.key(seed))


def apply(rule, updates, weights=None, base=None, state=None, seed=0):
    """Update, state and info of a rule; everybody weighs 1 and the base is all ones unless given."""
    agents, size = updates.shape
    weights = np.ones(agents) if weights is None else weights
    base = np.ones(size) if base is None else base
    state = rule.init(size) if state is None else state
    arrays = [jnp.asarray(one, jnp.float32) for one in (updates, weights, base)]
    update, state, info = _call(rule, *arrays, state, jnp.asarray(seed))
    return np.asarray(update), state, info
