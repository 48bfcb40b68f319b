"""Secure aggregation: seeds that two share and a third has not, masks that cancel, rows that tell nothing."""

import hmac
import importlib.util
import struct
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from dynamic_graph_fed_rl.federation.secure import (
    SecureMean,
    agree,
    fixed_point,
    fresh_keys,
    pair_mask,
    pair_seed,
    protect,
    public_key,
)

AGENTS, SIZE = 5, 200
KEY = jax.random.key(0)
cryptography = pytest.mark.skipif(
    importlib.util.find_spec("cryptography") is None, reason="the extra secure is not installed"
)


def some_seeds(agents: int = AGENTS, seed: int = 0) -> np.ndarray:
    """Seeds as `agree` would give them, without any key exchange."""
    words = np.random.default_rng(seed).integers(0, 2**32, (agents, agents, 2), np.uint32)
    seeds = np.where(np.tri(agents, dtype=bool)[:, :, None], words, words.transpose(1, 0, 2))
    seeds[np.arange(agents), np.arange(agents)] = 0
    return seeds


def draw(seed: int = 0, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(AGENTS, size)).astype(np.float32)


@jax.jit
def exchanged(updates: jax.Array, weights: jax.Array, rounds_before: int = 0) -> tuple[jax.Array, jax.Array, dict]:
    rule = SecureMean(some_seeds())
    state = rule.init(SIZE)
    state = type(state)(state.round_number + rounds_before, state.seeds)
    update, state, report = rule(updates, weights, jnp.zeros(SIZE), state, KEY)
    return update, state.round_number, report


def numpy_sum(updates: np.ndarray, present: np.ndarray) -> np.ndarray:
    """The fixed-point sum of those present with no mask at all, in 64-bit whole numbers."""
    limit = (2**31 - 1) // len(updates)
    return np.clip(np.rint(updates[present].astype(np.float64) * 2**16), -limit, limit).astype(np.int64).sum(0)


@jax.jit
def rows_sent(numbers: jax.Array, active: jax.Array, round_number: int) -> jax.Array:
    """All rows `[A, P]` as the agents would send them."""
    seeds = jnp.asarray(some_seeds())
    one = lambda index: protect(numbers[index], index, seeds[index], active, jnp.asarray(round_number))  # noqa: E731
    return jax.lax.map(one, jnp.arange(AGENTS))


@given(st.lists(st.booleans(), min_size=AGENTS, max_size=AGENTS), st.integers(0, 2**31 - 1))
def test_masks_cancel_to_the_bit(active: list[bool], round_number: int) -> None:
    numbers = np.random.default_rng(round_number).integers(-(2**31), 2**31, (AGENTS, SIZE), np.int32)
    rows = np.asarray(rows_sent(jnp.asarray(numbers), jnp.asarray(active), round_number))
    total = rows[active].astype(np.uint32).sum(0, dtype=np.uint32)
    np.testing.assert_array_equal(total, numbers[active].view(np.uint32).sum(0, dtype=np.uint32))
    masked = (rows != numbers.view(np.uint32)).mean(1)
    assert sum(active) < 2 or (masked[active] > 0.9).all()


@given(st.lists(st.booleans(), min_size=AGENTS, max_size=AGENTS).filter(lambda who: sum(who) > 1), st.integers(0, 9))
def test_the_sum_is_exactly_that_of_plain_fixed_point_numbers(who: list[bool], seed: int) -> None:
    present = np.array(who)
    weights = jnp.asarray(np.where(present, 0.5 + np.arange(AGENTS), 0.0), jnp.float32)
    update, rounds, _ = exchanged(jnp.asarray(draw(seed)), weights, seed)
    # whole numbers below 2^24 come back exactly from a float32 mean
    total = np.rint(np.asarray(update, np.float64) * present.sum() * 2**16)
    np.testing.assert_array_equal(total, numpy_sum(draw(seed), present))
    np.testing.assert_allclose(np.asarray(update), draw(seed)[present].mean(0), atol=2.0**-17 + 1e-6)
    assert int(rounds) == seed + 1


def test_a_masked_row_alone_is_uniformly_random() -> None:
    """The bytes of a constant update: one value before, all 256 equally often after, unlike in the next round."""
    size = 1 << 14
    numbers = jnp.broadcast_to(fixed_point(jnp.full(size, 0.25), AGENTS, 16), (AGENTS, size))
    active = jnp.ones(AGENTS, bool)
    first, second = (np.asarray(rows_sent(numbers, active, number)) for number in (0, 1))
    for row in (*first, *second):
        counts = np.bincount(row.view(np.uint8), minlength=256)
        assert chisquare(counts).pvalue > 1e-4
    plain = np.bincount(np.asarray(numbers[0]).view(np.uint8), minlength=256)
    assert chisquare(plain).pvalue < 1e-100
    # words of two independent uniform rows agree once in 2^32
    assert (first != second).mean() > 0.999
    assert (first[0] != first[1]).mean() > 0.999


def test_who_knows_all_but_one_seed_still_sees_noise() -> None:
    """Three others pooling what they share with agent 0 are left with the mask of the fourth."""
    size, active, seeds = 1 << 14, jnp.ones(AGENTS, bool), jnp.asarray(some_seeds())
    number = jnp.asarray(3)
    mask = jax.jit(lambda seed: pair_mask(seed, number, size))
    row = jax.jit(protect)(jnp.zeros(size, jnp.int32), jnp.asarray(0), seeds[0], active, number)
    for other in (1, 2, 3):
        row = row - mask(seeds[0, other])
    assert chisquare(np.bincount(np.asarray(row).view(np.uint8), minlength=256)).pvalue > 1e-4
    np.testing.assert_array_equal(np.asarray(row), np.asarray(mask(seeds[0, 4])))


@given(
    st.integers(1, 5000),
    st.integers(0, 30),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_the_sum_over_all_senders_fits_32_bits(senders: int, fraction_bits: int, value: float) -> None:
    number = int(fixed_point(jnp.full(1, value), senders, fraction_bits)[0])
    assert abs(number) * senders <= 2**31 - 1
    exact = value * 2.0**fraction_bits
    if abs(exact) < (2**31 - 1) // senders * 0.999:
        assert abs(number - exact) <= 0.5 + abs(exact) * 2.0**-23
    else:
        assert abs(number) >= (2**31 - 1) // senders * 0.998 and (number > 0) == (value > 0)


def test_numbers_cut_off_are_counted() -> None:
    updates = np.zeros((AGENTS, SIZE), np.float32)
    updates[1, :50] = 1e6
    updates[2] = 1e6
    _, _, report = exchanged(jnp.asarray(updates), jnp.array([1.0, 1.0, 0.0, 1.0, 1.0]))
    assert float(report["saturated"]) == pytest.approx(50 / (4 * SIZE))


@pytest.mark.parametrize("present", [[], [2]])
def test_a_lone_sender_is_not_laid_open(present: list[int]) -> None:
    weights = np.zeros(AGENTS, np.float32)
    weights[present] = 1.0
    update, _, _ = exchanged(jnp.asarray(draw()), jnp.asarray(weights))
    assert not np.asarray(update).any()


def test_finer_steps_come_nearer() -> None:
    wrong = []
    for bits in (6, 20):
        rule = SecureMean(some_seeds(), fraction_bits=bits)
        update, _, _ = eqx.filter_jit(rule)(
            jnp.asarray(draw()), jnp.ones(AGENTS), jnp.zeros(SIZE), rule.init(SIZE), KEY
        )
        wrong.append(float(jnp.abs(update - draw().mean(0)).max()))
    assert 2.0**-7 >= wrong[0] > 1000 * wrong[1]


def test_needs_no_single_updates_and_bears_no_byzantine_sender() -> None:
    assert not SecureMean.sees_single_updates and SecureMean(some_seeds()).tolerance(AGENTS) == 0


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"seeds have the shape \(3, 4, 2\)"):
        SecureMean(np.zeros((3, 4, 2), np.uint32))
    with pytest.raises(ValueError, match="31 fraction bits"):
        SecureMean(some_seeds(), fraction_bits=31)
    rule = SecureMean(some_seeds())
    with pytest.raises(ValueError, match="3 senders, but seeds for 5"):
        rule(jnp.zeros((3, 4)), jnp.ones(3), jnp.zeros(4), rule.init(4), KEY)


@cryptography
def test_two_parties_derive_one_seed_and_a_third_another() -> None:
    alice, bob, eve = fresh_keys(3)
    seed = pair_seed(alice, public_key(bob))
    np.testing.assert_array_equal(seed, pair_seed(bob, public_key(alice)))
    for wrong in (pair_seed(eve, public_key(bob)), pair_seed(eve, public_key(alice))):
        assert (seed != wrong).any()


@cryptography
def test_seeds_follow_rfc_7748_and_rfc_5869() -> None:
    """The worked example of RFC 7748, section 6.1, its shared secret put through HKDF written out."""
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice_public = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    bob_public = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    secret = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert public_key(bob) == bob_public
    extracted = hmac.digest(bytes(32), secret, "sha256")
    purpose = b"dynamic-graph-fed-rl pairwise mask 1" + alice_public + bob_public
    expanded = hmac.digest(extracted, purpose + b"\x01", "sha256")
    assert pair_seed(bob, alice_public).tolist() == list(struct.unpack(">2I", expanded[:8]))


@cryptography
def test_seeds_of_all_pairs_are_symmetric_and_distinct() -> None:
    keys = fresh_keys(4)
    seeds = agree(keys)
    np.testing.assert_array_equal(seeds, seeds.transpose(1, 0, 2))
    np.testing.assert_array_equal(seeds[1, 3], pair_seed(keys[3], public_key(keys[1])))
    assert len({tuple(seeds[i, j]) for i in range(4) for j in range(i)}) == 6
    assert not seeds[np.arange(4), np.arange(4)].any()


@cryptography
def test_bad_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        public_key(b"short")
    with pytest.raises(ValueError, match="public key 0000.* is not an X25519 key"):
        pair_seed(fresh_keys(1)[0], bytes(32))


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(ValueError, match=r"pip install 'dynamic-graph-fed-rl\[secure\]'"):
        agree(fresh_keys(2))
