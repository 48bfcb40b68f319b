"""Client-level differential privacy: what one agent can move, how much noise there is, and what it costs."""

import importlib.util
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from dynamic_graph_fed_rl.federation.privacy import ClientLevelDP, epsilon

SIZE, SENDERS = 6, 5
numbers = st.floats(-1e4, 1e4, width=32)
rows = st.lists(st.lists(numbers, min_size=SIZE, max_size=SIZE), min_size=SENDERS, max_size=SENDERS)
weighed = st.lists(st.sampled_from([0.0, 0.25, 1.0, 7.0]), min_size=SENDERS, max_size=SENDERS)
# what is below the normal float32 counts as 0 on CPU
any_size = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=False)
radii = st.sampled_from([1e-2, 1.0, 30.0])

accounting = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="the extra dp is not installed"
)


@jax.jit
def clipped_sum(updates: jax.Array, weights: jax.Array, clip: jax.Array) -> jax.Array:
    return ClientLevelDP(clip=clip, noise_multiplier=0.0).clipped_sum(updates, weights)


def sums(updates: np.ndarray, weights: np.ndarray, clip: float) -> np.ndarray:
    return np.asarray(clipped_sum(jnp.asarray(updates), jnp.asarray(weights), jnp.asarray(clip)), np.float64)


@given(rows, weighed, st.lists(numbers, min_size=SIZE, max_size=SIZE), st.integers(0, SENDERS - 1), radii)
def test_one_agent_moves_the_sum_by_its_clip(
    updates: list, weights: list, other: list, who: int, clip: float
) -> None:
    here, there = np.array(updates, np.float32), np.array(updates, np.float32)
    there[who] = other
    present, absent = np.array(weights, np.float32), np.array(weights, np.float32)
    present[who], absent[who] = max(weights[who], 0.25), 0.0
    rounding = 1e-5 * SENDERS * clip
    replaced = np.linalg.norm(sums(here, present, clip) - sums(there, present, clip))
    removed = np.linalg.norm(sums(here, present, clip) - sums(here, absent, clip))
    assert replaced <= 2 * clip + rounding
    assert removed <= clip + rounding


def test_the_sensitivity_bound_is_reached() -> None:
    updates = np.zeros((2, 3), np.float32)
    updates[0, 0], there = 50.0, updates.copy()
    there[0, 0] = -50.0
    both = np.ones(2, np.float32)
    assert np.linalg.norm(sums(updates, both, 0.5) - sums(there, both, 0.5)) == 1.0


@jax.jit
def alone(update: jax.Array, radius: jax.Array) -> jax.Array:
    return ClientLevelDP(radius).clipped_sum(update[None], jnp.ones(1))


@given(st.lists(any_size, min_size=SIZE, max_size=SIZE), radii)
def test_clipping_keeps_the_direction_and_bounds_the_norm(update: list, radius: float) -> None:
    vector = np.array(update, np.float32)
    clipped = np.asarray(alone(jnp.asarray(vector), jnp.asarray(radius)), np.float64)
    length = np.linalg.norm(vector.astype(np.float64))
    assert np.linalg.norm(clipped) <= radius * (1 + 1e-5)
    if length <= 0.999 * radius:
        np.testing.assert_array_equal(clipped, vector)
    elif length < 1e15:  # the square of more leaves float32, and the update is dropped
        np.testing.assert_allclose(clipped, vector * (radius / length), rtol=1e-4, atol=1e-6 * radius)


@jax.jit
def noisy(updates: jax.Array, weights: jax.Array, key: jax.Array, noise: jax.Array) -> tuple[jax.Array, dict]:
    update, _, report = ClientLevelDP(2.0, noise)(updates, weights, jnp.zeros(updates.shape[1]), None, key)
    return update, report


def test_without_noise_it_is_the_mean_of_the_clipped_whatever_the_weights() -> None:
    updates = np.random.default_rng(0).normal(size=(4, 30)).astype(np.float32)
    updates[2] *= 0.01
    update, _ = noisy(jnp.asarray(updates), jnp.array([1.0, 0.0, 0.3, 8.0]), jax.random.key(0), jnp.zeros(()))
    clipped = [row * min(1.0, 2.0 / np.linalg.norm(row)) for row in updates[[0, 2, 3]]]
    np.testing.assert_allclose(np.asarray(update), np.mean(clipped, 0), rtol=1e-5, atol=1e-7)


def test_noise_has_the_stated_deviation_and_is_drawn_anew() -> None:
    size = 40_000
    updates, weights = jnp.zeros((5, size)), jnp.array([1.0, 1.0, 0.0, 1.0, 1.0])
    first, report = noisy(updates, weights, jax.random.key(1), jnp.asarray(3.0))
    second, _ = noisy(updates, weights, jax.random.key(2), jnp.asarray(3.0))
    deviation = 3.0 * 2.0 / 4
    assert float(report["noise_std"]) == pytest.approx(deviation)
    # the standard error of a deviation is 1 / sqrt(2 n) of it; five of them
    assert float(first.std()) == pytest.approx(deviation, rel=5 / np.sqrt(2 * size))
    assert abs(float(first.mean())) < 5 * deviation / np.sqrt(size)
    assert abs(np.corrcoef(np.asarray(first), np.asarray(second))[0, 1]) < 5 / np.sqrt(size)


def test_nobody_present_moves_nothing() -> None:
    update, report = noisy(jnp.ones((3, 8)), jnp.zeros(3), jax.random.key(0), jnp.asarray(3.0))
    assert not np.asarray(update).any() and float(report["noise_std"]) == 0.0


def test_only_what_is_public_is_reported() -> None:
    """The same report whatever the updates: figures computed from them would leave without noise."""
    _, here = noisy(jnp.zeros((3, 8)), jnp.ones(3), jax.random.key(0), jnp.asarray(1.0))
    _, there = noisy(jnp.full((3, 8), 100.0), jnp.ones(3), jax.random.key(0), jnp.asarray(1.0))
    assert here == there


def test_needs_no_single_updates_and_bears_no_byzantine_sender() -> None:
    assert not ClientLevelDP.sees_single_updates and ClientLevelDP().tolerance(50) == 0


@pytest.mark.parametrize(("clip", "noise"), [(0.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0), (1.0, -0.5)])
def test_impossible_settings_are_refused(clip: float, noise: float) -> None:
    with pytest.raises(ValueError, match="privacy: "):
        ClientLevelDP(clip, noise)


@accounting
@pytest.mark.parametrize(
    ("noise", "sampling_rate", "expected"), [(10.0, 1.0, 6.57), (4.0, 1.0, 20.7), (1.0, 0.25, 27.9)]
)
def test_epsilon_is_that_of_the_loss_distribution(noise: float, sampling_rate: float, expected: float) -> None:
    assert epsilon(noise, 200, sampling_rate, 1e-5) == pytest.approx(expected, rel=5e-3)


@accounting
@pytest.mark.parametrize(("noise", "rounds"), [(10.0, 200), (1.0, 3), (60.0, 1)])
def test_epsilon_solves_the_equation_of_balle_and_wang(noise: float, rounds: int) -> None:
    mean = np.sqrt(rounds) / noise

    def delta(eps: float) -> float:
        return norm.cdf(mean / 2 - eps / mean) - np.exp(eps) * norm.cdf(-mean / 2 - eps / mean)

    expected = brentq(lambda eps: delta(eps) - 1e-5, 0.0, 100.0, xtol=1e-12)
    assert epsilon(noise, rounds, 1.0, 1e-5) == pytest.approx(expected, rel=1e-5)


@accounting
def test_epsilon_at_nearly_full_sampling_meets_the_exact_one_from_above_or_beside() -> None:
    exact = epsilon(5.0, 50, 1.0, 1e-5)
    assert epsilon(5.0, 50, 0.999999, 1e-5) == pytest.approx(exact, rel=2e-3)
    assert epsilon(5.0, 50, 0.1, 1e-5) < 0.5 * exact


@accounting
def test_epsilon_grows_with_rounds_and_falls_with_noise() -> None:
    spent = [epsilon(2.0, rounds, 0.5, 1e-5) for rounds in (0, 1, 2, 10, 100)]
    assert spent[0] == 0.0 and spent == sorted(spent) and len(set(spent)) == 5
    assert epsilon(4.0, 100, 0.5, 1e-5) < spent[-1] < epsilon(0.0, 100, 0.5, 1e-5) == float("inf")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((-1.0, 1, 1.0, 1e-5), "noise multiplier -1.0"),
        ((1.0, -1, 1.0, 1e-5), "-1 rounds"),
        ((1.0, 1, 0.0, 1e-5), "sampling rate 0.0"),
        ((1.0, 1, 1.0, 1.0), "delta 1.0"),
    ],
)
def test_epsilon_names_a_bad_argument(arguments: tuple, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        epsilon(*arguments)


def test_a_missing_accountant_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(ValueError, match=r"pip install 'dynamic-graph-fed-rl\[dp\]'"):
        epsilon(1.25, 17, 1.0, 1e-5)
