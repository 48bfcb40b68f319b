"""Codecs against NumPy formulae, what they weigh, and what error feedback is for."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.federation.codecs import (
    CODECS,
    Bf16,
    Codec,
    Int8Blocks,
    Sign,
    TopK,
    compress,
    payload_bytes,
)

KEY = jax.random.key(0)


def draw(size: int, seed: int = 0) -> np.ndarray:
    """Magnitudes over several decades, both signs, and some zeros."""
    rng = np.random.default_rng(seed)
    vector = rng.normal(size=size) * 10.0 ** rng.uniform(-4, 1, size)
    vector[rng.random(size) < 0.05] = 0.0
    return vector.astype(np.float32)


def through(codec: Codec, vector: np.ndarray) -> np.ndarray:
    """Encoded and decoded inside one compiled program, as in training."""
    return np.asarray(jax.jit(lambda v: codec.decode(codec.encode(v, KEY), v.size))(jnp.asarray(vector)))


def numpy_int8(vector: np.ndarray) -> np.ndarray:
    out = np.empty_like(vector)
    for start in range(0, vector.size, 256):
        block = vector[start : start + 256]
        scale = np.abs(block).max() / np.float32(127)
        out[start : start + 256] = np.rint(block / scale) * scale if scale > 0 else 0.0
    return out


def numpy_top_k(vector: np.ndarray, kept: int) -> np.ndarray:
    out = np.zeros_like(vector)
    largest = np.argsort(-np.abs(vector), kind="stable")[:kept]
    out[largest] = vector[largest]
    return out


ORACLES = {
    "raw": lambda v: v,
    "bf16": lambda v: v.astype(ml_dtypes.bfloat16).astype(np.float32),
    "int8": numpy_int8,
    "top-k": lambda v: numpy_top_k(v, max(1, round(0.1 * v.size))),
    "sign": lambda v: np.where(v >= 0, 1, -1) * np.abs(v).mean(),
}


def test_every_codec_has_an_oracle() -> None:
    assert set(ORACLES) == set(CODECS)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("size", [1, 512, 1000])
def test_round_trip_is_the_formula(name: str, size: int) -> None:
    vector = draw(size, seed=size)
    got = through(CODECS[name].build(), vector)
    assert got.dtype == np.float32 and got.shape == vector.shape
    np.testing.assert_allclose(got, ORACLES[name](vector), rtol=3e-7, atol=1e-12)
    assert CODECS[name].build().lossy or (got == vector).all()


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("raw", 1000, 4000),
        ("bf16", 1000, 2000),
        ("int8", 1000, 1000 + 4 * 4),
        ("int8", 1024, 1024 + 4 * 4),
        ("int8", 1025, 1025 + 4 * 5),
        ("top-k", 1000, 100 * 8),
        ("top-k", 3, 8),
        ("sign", 1000, 125 + 4),
        ("sign", 1001, 126 + 4),
    ],
)
def test_bytes_are_those_of_the_arrays(name: str, size: int, expected: int) -> None:
    codec = CODECS[name].build()
    payload = jax.jit(codec.encode)(jnp.asarray(draw(size)), KEY)
    assert payload_bytes(codec, size) == expected
    assert sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(payload)) == expected


@jax.jit
def bf16_bits(vector: jax.Array) -> jax.Array:
    return Bf16().encode(vector, KEY)


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=64))
def test_bf16_bits_are_those_of_ml_dtypes(numbers: list[float]) -> None:
    vector = np.full(64, numbers[0], np.float32)
    vector[: len(numbers)] = numbers
    with np.errstate(over="ignore"):
        expected = vector.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(np.asarray(bf16_bits(jnp.asarray(vector))), expected)


def test_bf16_ties_go_to_even() -> None:
    halfway = np.array([0x3F808000, 0x3F818000, 0x3F808001], np.uint32).view(np.float32)
    assert np.asarray(bf16_bits(jnp.asarray(halfway))).tolist() == [0x3F80, 0x3F82, 0x3F81]


def test_int8_is_off_by_half_a_step_at_most() -> None:
    vector = draw(1024)
    steps = np.abs(vector).reshape(4, 256).max(1) / 127
    wrong = np.abs(through(Int8Blocks(), vector) - vector).reshape(4, 256)
    assert (wrong <= steps[:, None] * 0.5001).all() and wrong.max() > 0


def test_top_k_keeps_the_stated_share() -> None:
    for share, kept in ((0.25, 25), (0.001, 1), (1.0, 100)):
        np.testing.assert_array_equal(through(TopK(share=share), draw(100)), numpy_top_k(draw(100), kept))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5])
def test_top_k_refuses_an_impossible_share(share: float) -> None:
    with pytest.raises(ValueError, match=f"share {share} is not above 0 and at most 1"):
        TopK(share=share)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(name: str, poison: float) -> None:
    vector = draw(600)
    vector[300] = poison
    codec = CODECS[name].build()
    owed = jnp.full(600, 0.5)
    decoded, error = jax.jit(lambda v: compress(codec, v, owed, KEY))(jnp.asarray(vector))
    assert not np.isfinite(np.asarray(decoded)).all()
    np.testing.assert_array_equal(np.asarray(error), np.asarray(owed))


@pytest.mark.parametrize("name", CODECS)
def test_zeros_stay_zeros(name: str) -> None:
    assert (through(CODECS[name].build(), np.zeros(300, np.float32)) == 0).all()


@pytest.mark.parametrize("name", CODECS)
def test_stacked_agents_are_coded_one_by_one(name: str) -> None:
    codec = CODECS[name].build()
    rows = np.stack([draw(300, seed) for seed in range(3)])
    stacked = jax.jit(jax.vmap(lambda v: codec.decode(codec.encode(v, KEY), 300)))(jnp.asarray(rows))
    np.testing.assert_allclose(np.asarray(stacked), [through(codec, row) for row in rows], rtol=3e-7)


@pytest.mark.parametrize("name", CODECS)
def test_error_feedback_conserves_the_sum_of_updates(name: str) -> None:
    codec = CODECS[name].build()
    updates = jax.random.normal(jax.random.key(1), (60, 500)) * 1e-2

    def one(error: jax.Array, update: jax.Array) -> tuple[jax.Array, jax.Array]:
        decoded, error = compress(codec, update, error, KEY)
        return error, decoded

    error, received = jax.jit(lambda: jax.lax.scan(one, jnp.zeros(500), updates))()
    total = np.asarray(received, np.float64).sum(0) + np.asarray(error, np.float64)
    np.testing.assert_allclose(total, np.asarray(updates, np.float64).sum(0), atol=2e-6)
    assert codec.lossy == bool(np.abs(np.asarray(error)).max() > 0)


def descend(codec: Codec, feedback: bool, steps: int = 3000) -> float:
    """Final distance to the optimum of a quadratic, relative to the first, of three agents' averaged gradients.

    The agents' own optima lie apart in every coordinate, so that each one's largest gradients cancel in the mean.
    """
    size, agents = 40, 3
    rng = np.random.default_rng(0)
    curvature = jnp.asarray(10.0 ** rng.uniform(-0.5, 0.5, size), jnp.float32)
    target = jnp.asarray(rng.normal(size=size), jnp.float32)
    apart = rng.normal(size=(agents, size)) * 20.0
    own = target + jnp.asarray(apart - apart.mean(0), jnp.float32)

    def step(carry: tuple[jax.Array, jax.Array], number: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
        point, errors = carry
        rate = 0.05 / (1.0 + number / 100.0)
        gradients = rate * curvature * (point - own)
        decoded, owed = jax.vmap(lambda g, e: compress(codec, g, e, KEY))(gradients, errors)
        return (point - decoded.mean(0), owed if feedback else errors), None

    start = (jnp.zeros(size), jnp.zeros((agents, size)))
    (point, _), _ = jax.jit(lambda: jax.lax.scan(step, start, jnp.arange(steps)))()
    return float(jnp.linalg.norm(point - target) / jnp.linalg.norm(target))


@pytest.mark.parametrize("codec", [TopK(), Sign()], ids=["top-k", "sign"])
def test_error_feedback_reaches_the_optimum_and_none_does_not(codec: Codec) -> None:
    with_feedback, without = descend(codec, feedback=True), descend(codec, feedback=False)
    assert with_feedback < 0.1
    assert without > 0.5
