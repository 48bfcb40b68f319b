"""Advantages and returns against NumPy loops over episodes; standardisation."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.algorithms.returns import (
    ReturnScale,
    beside_siblings,
    generalised_advantage,
    lambda_returns,
    masked_standardise,
    returns_to_go,
)

advantages, followed = jax.jit(generalised_advantage), jax.jit(lambda_returns)


def by_definition(reward, value, next_value, terminated, truncated, discount, trace):
    """Equation 16 of Schulman et al. 2016, summed forwards from every row to the end of its episode."""
    steps = len(reward)
    advantage = np.zeros(steps)
    for t in range(steps):
        weight = 1.0
        for k in range(t, steps):
            ahead = 0.0 if terminated[k] else next_value[k]
            advantage[t] += weight * (reward[k] + discount * ahead - value[k])
            if terminated[k] or truncated[k]:
                break
            weight *= discount * trace
    return advantage


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_against_the_definition(seed, discount, trace):
    rng = np.random.default_rng(seed)
    shape = (12, 3)
    reward, value, next_value = rng.normal(size=(3, *shape))
    terminated = rng.random(shape) < 0.2
    truncated = ~terminated & (rng.random(shape) < 0.2)
    expected = np.stack(
        [
            by_definition(*(a[:, i] for a in (reward, value, next_value, terminated, truncated)), discount, trace)
            for i in range(shape[1])
        ],
        axis=1,
    )
    floats = [jnp.asarray(a, jnp.float32) for a in (reward, value, next_value)]
    result = advantages(*floats, jnp.asarray(terminated), jnp.asarray(truncated), discount, trace)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


def weighted_sum(reward, next_value, terminated, truncated, discount, trace):
    """Every n-step return up to the end of the episode or the rows, each `(1 - trace) * trace^(n - 1)` of the whole
    and the longest what is left (Sutton and Barto 2018, equation 12.3)."""
    returns = np.zeros(len(reward))
    for t in range(len(reward)):
        gained, weight = 0.0, 1.0
        for n, k in enumerate(range(t, len(reward)), start=1):
            gained += discount ** (n - 1) * reward[k]
            whole = gained + (0.0 if terminated[k] else discount**n * next_value[k])
            last = terminated[k] or truncated[k] or k == len(reward) - 1
            returns[t] += weight * (1.0 if last else 1 - trace) * whole
            weight *= trace
            if last:
                break
    return returns


@given(st.integers(0, 10_000), st.floats(0, 1), st.floats(0, 1))
def test_lambda_returns_are_weighted_sums_of_n_step_returns(seed, discount, trace):
    rng = np.random.default_rng(seed)
    shape = (12, 3)
    reward, next_value = rng.normal(size=(2, *shape))
    terminated = rng.random(shape) < 0.2
    truncated = ~terminated & (rng.random(shape) < 0.2)
    columns = [
        weighted_sum(*(a[:, i] for a in (reward, next_value, terminated, truncated)), discount, trace)
        for i in range(shape[1])
    ]
    floats = [jnp.asarray(a, jnp.float32) for a in (reward, next_value)]
    result = followed(*floats, jnp.asarray(terminated), jnp.asarray(truncated), discount, trace)
    np.testing.assert_allclose(result, np.stack(columns, axis=1), rtol=1e-5, atol=1e-5)


def test_a_time_limit_bootstraps_and_an_end_does_not():
    one, no, yes = jnp.ones((1, 1)), jnp.zeros((1, 1), bool), jnp.ones((1, 1), bool)
    value, ahead = jnp.full((1, 1), 3.0), jnp.full((1, 1), 10.0)
    ended = generalised_advantage(one, value, ahead, yes, no, 0.5, 0.9)
    cut_off = generalised_advantage(one, value, ahead, no, yes, 0.5, 0.9)
    assert ended.item() == 1 - 3
    assert cut_off.item() == 1 + 0.5 * 10 - 3


def test_trace_one_gives_returns_and_trace_zero_one_step_errors():
    rng = np.random.default_rng(0)
    reward, value = jnp.asarray(rng.normal(size=(2, 6)), jnp.float32)
    ahead = jnp.append(value[1:], 0.0)
    ends, no = jnp.arange(6) == 5, jnp.zeros(6, bool)
    full = generalised_advantage(reward, value, ahead, ends, no, 1.0, 1.0)
    np.testing.assert_allclose(full + value, np.cumsum(reward[::-1])[::-1], rtol=1e-4, atol=1e-5)
    short = generalised_advantage(reward, value, ahead, ends, no, 1.0, 0.0)
    np.testing.assert_allclose(short, reward + jnp.where(ends, 0, ahead) - value, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_returns_to_go_against_a_loop(seed, discount):
    rng = np.random.default_rng(seed)
    reward, ended = rng.normal(size=(12, 3)).astype(np.float32), rng.random((12, 3)) < 0.2
    returns, known = jax.jit(returns_to_go)(reward, ended, discount)
    for t in range(12):
        for b in range(3):
            after = np.flatnonzero(ended[t:, b])
            last = t + after[0] if len(after) else 11
            expected = sum(discount ** (k - t) * reward[k, b] for k in range(t, last + 1))
            assert abs(returns[t, b] - expected) < 1e-4
            assert known[t, b] == bool(len(after))


def test_masked_values_are_standardised_among_themselves():
    rng = np.random.default_rng(0)
    values, mask = rng.normal(3.0, 7.0, (20, 4)).astype(np.float32), rng.random((20, 4)) < 0.5
    kept = values[mask]
    expected = np.where(mask, (values - kept.mean()) / kept.std(), 0.0)
    standardised = masked_standardise(jnp.asarray(values), jnp.asarray(mask))
    np.testing.assert_allclose(standardised, expected, atol=1e-5)
    nothing = masked_standardise(jnp.asarray(values), jnp.zeros((20, 4), bool))
    np.testing.assert_array_equal(nothing, np.zeros_like(values))


def test_returns_are_standardised_whatever_their_scale():
    """The first batch counts fully, scale and shift of all returns are undone, and the past is forgotten."""
    rng = np.random.default_rng(0)
    batches = jnp.asarray(rng.normal(size=(5, 512)), jnp.float32)
    first = ReturnScale.initial().update(7.0 + 3.0 * batches[0])
    standard = np.asarray(first.standardise(7.0 + 3.0 * batches[0]))
    # an eighth of a standard deviation is three standard errors of the median of 512 draws
    assert abs(standard.mean()) < 0.125 and abs(standard.std() - 1) < 0.125
    plain, moved = ReturnScale.initial(), ReturnScale.initial()
    for batch in batches:
        plain, moved = plain.update(batch), moved.update(80.0 + 50.0 * batch)
    values = jnp.asarray([-1.0, 0.0, 5.0])
    np.testing.assert_allclose(
        moved.standardise(80.0 + 50.0 * values), plain.standardise(values), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(moved.restore(moved.standardise(values)), values, rtol=1e-4, atol=1e-4)
    for batch in rng.normal(size=(150, 512)):
        moved = moved.update(jnp.asarray(batch, jnp.float32))
    np.testing.assert_allclose(moved.standardise(values), values, atol=0.2)


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_siblings_are_judged_against_each_other(seed, siblings):
    """Each world against the mean of its siblings: luck that all of them share disappears."""
    rng = np.random.default_rng(seed)
    own = rng.normal(size=(5, 3 * siblings)).astype(np.float32)
    luck = rng.normal(size=(5, 3)).astype(np.float32).repeat(siblings, axis=1)
    judged = np.asarray(beside_siblings(jnp.asarray(own + luck), siblings))
    if siblings == 1:
        np.testing.assert_array_equal(judged, own + luck)
        return
    for world in range(own.shape[1]):
        first = world - world % siblings
        others = [one for one in range(first, first + siblings) if one != world]
        np.testing.assert_allclose(judged[:, world], own[:, world] - own[:, others].mean(1), atol=1e-5)
