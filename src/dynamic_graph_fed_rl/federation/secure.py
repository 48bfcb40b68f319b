"""Secure aggregation by pairwise masks: the server learns the sum of the updates and no single one.

Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", against a server that
follows the protocol, and without its recovery step: who takes part is fixed before anybody masks, and a sender that
then fails spoils the round. The research kind, not audited: seeds of 64 bits and masks from JAX's threefry, which is
not a cryptographic generator; every party has to run the same JAX.
"""

import os
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, UInt32

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator

_PURPOSE = b"dynamic-graph-fed-rl pairwise mask 1"


def fresh_keys(agents: int) -> list[bytes]:
    """A private key for every agent: 32 random bytes, as X25519 wants them (RFC 7748, section 6.1)."""
    return [os.urandom(32) for _ in range(agents)]


def public_key(private_key: bytes) -> bytes:
    """What an agent tells the others, 32 bytes.

    Raises:
        ValueError: `private_key` is not 32 bytes, or the extra `secure` is not installed.
    """
    x25519, _ = _cryptography()
    return x25519.X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def pair_seed(private_key: bytes, other_public_key: bytes) -> UInt32[np.ndarray, " 2"]:
    """The 64-bit seed that this agent shares with another and nobody else knows, as two words.

    X25519 (RFC 7748), then HKDF-SHA256 (RFC 5869) bound to both public keys.

    Raises:
        ValueError: a key is not 32 bytes, the other key is one that would give the secret away, or the extra `secure`
            is not installed.
    """
    x25519, derive = _cryptography()
    own = x25519.X25519PrivateKey.from_private_bytes(private_key)
    try:
        secret = own.exchange(x25519.X25519PublicKey.from_public_bytes(other_public_key))
    except ValueError as error:
        raise ValueError(f"secure aggregation: public key {other_public_key.hex()} is not an X25519 key") from error
    both = sorted((own.public_key().public_bytes_raw(), other_public_key))
    return np.frombuffer(derive(secret, _PURPOSE + b"".join(both), 8), ">u4").astype(np.uint32)


def agree(private_keys: Sequence[bytes]) -> UInt32[np.ndarray, "A A 2"]:
    """The seeds of all pairs, `[i, j]` what `i` shares with `j`; zeros on the diagonal.

    For simulation, where one process plays all agents; a real one calls `pair_seed` with the public keys it was
    sent. A (A - 1) / 2 key exchanges.

    Raises:
        ValueError: as `pair_seed`.
    """
    public = [public_key(one) for one in private_keys]
    agents = len(private_keys)
    seeds = np.zeros((agents, agents, 2), np.uint32)
    for i in range(agents):
        for j in range(i):
            seeds[i, j] = seeds[j, i] = pair_seed(private_keys[i], public[j])
    return seeds


def fixed_point(values: Float[Array, " P"], senders: int, fraction_bits: int) -> Int32[Array, " P"]:
    """`values` in steps of 2^-`fraction_bits`, cut off where the sum over `senders` could leave 32 bits."""
    limit = (2**31 - 1) // senders
    largest = np.float32(limit)
    if int(largest) > limit:
        largest = np.nextafter(largest, np.float32(0))
    return jnp.clip(jnp.round(values * 2.0**fraction_bits), -largest, largest).astype(jnp.int32)


def pair_mask(seed: UInt32[Array, " 2"], round_number: Int[Array, ""], size: int) -> UInt32[Array, " P"]:
    """The words that both agents of a pair derive for one round, and for no other."""
    key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), round_number)
    return jax.random.bits(key, (size,), jnp.uint32)


def protect(
    numbers: Int32[Array, " P"],
    index: Int[Array, ""],
    seeds: UInt32[Array, "A 2"],
    active: Bool[Array, " A"],
    round_number: Int[Array, ""],
) -> UInt32[Array, " P"]:
    """What agent `index` sends: its numbers plus the masks it shares with later agents, minus those with earlier.

    Modulo 2^32, so that over all the active the masks cancel to the last bit and each row alone is uniformly random.
    `seeds` are the agent's own row of `agree`. One mask in memory at a time.
    """

    def add(total: UInt32[Array, " P"], other: Int[Array, ""]) -> tuple[UInt32[Array, " P"], None]:
        def masked() -> UInt32[Array, " P"]:
            mask = pair_mask(seeds[other], round_number, numbers.size)
            return jnp.where(index < other, total + mask, total - mask)

        return jax.lax.cond(active[other] & (other != index), masked, lambda: total), None

    start = jax.lax.bitcast_convert_type(numbers, jnp.uint32)
    return jax.lax.scan(add, start, jnp.arange(active.size))[0]


class SecureState(eqx.Module):
    """Rounds masked so far, and the seeds of all pairs."""

    round_number: Int32[Array, ""]
    seeds: UInt32[Array, "A A 2"]


class SecureMean(Aggregator):
    """The mean of those present, taken from masked fixed-point sums. Not audited; see the module.

    All agents are played here: each masks its own row with all others active (`protect`), the rows are added modulo
    2^32, and the sum is decoded. Equal weights: a weight above 0 counts as 1. A round with a single sender is
    skipped (the update is 0), since its sum would be that sender's update. Numbers are rounded to
    2^-`fraction_bits` and cut off at 2^(31 - `fraction_bits`) / A, 1638 for 20 agents; `saturated` is the share of
    the numbers that were.

    Time grows with A^2 P, memory with A P: for tens of agents. For a server, which sees the whole sum: neighbours
    that each add up other rows under the same masks could take one sum from another.

    Raises:
        ValueError: `seeds` is not `[A, A, 2]`, or `fraction_bits` is not in 0..30.
    """

    sees_single_updates: ClassVar[bool] = False
    seeds: UInt32[Array | np.ndarray, "agents others words"]
    fraction_bits: int = eqx.field(static=True, default=16)

    def __check_init__(self) -> None:
        shape = self.seeds.shape
        if len(shape) != 3 or shape[0] != shape[1] or shape[2] != 2:
            raise ValueError(f"secure aggregation: seeds have the shape {shape}, not [A, A, 2] (see `agree`)")
        if not 0 <= self.fraction_bits <= 30:
            raise ValueError(f"secure aggregation: {self.fraction_bits} fraction bits: must be 0 to 30")

    def init(self, size: int) -> SecureState:
        return SecureState(jnp.zeros((), jnp.int32), jnp.asarray(self.seeds))

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: SecureState,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], SecureState, dict[str, Float[Array, ""]]]:
        senders, size = updates.shape
        if senders != state.seeds.shape[0]:
            raise ValueError(f"secure aggregation: {senders} senders, but seeds for {state.seeds.shape[0]}")
        active = weights > 0

        def receive(total: UInt32[Array, " P"], index: Int[Array, ""]) -> tuple[UInt32[Array, " P"], Int[Array, ""]]:
            numbers = fixed_point(updates[index], senders, self.fraction_bits)

            def masked() -> UInt32[Array, " P"]:
                return total + protect(numbers, index, state.seeds[index], active, state.round_number)

            cut = (jnp.abs(updates[index]) > (2.0**31 - 1) / senders / 2.0**self.fraction_bits).sum()
            return jax.lax.cond(active[index], masked, lambda: total), jnp.where(active[index], cut, 0)

        total, cut = jax.lax.scan(receive, jnp.zeros(size, jnp.uint32), jnp.arange(senders))
        present = active.sum()
        sums = jax.lax.bitcast_convert_type(total, jnp.int32).astype(updates.dtype) * 2.0**-self.fraction_bits
        update = jnp.where(present > 1, sums / jnp.maximum(present, 1), 0.0)
        report = {"saturated": cut.sum() / (jnp.maximum(present, 1) * size).astype(updates.dtype)}
        return update, SecureState(state.round_number + 1, state.seeds), report

    def tolerance(self, senders: int) -> int:
        return 0


def _cryptography():
    try:
        from cryptography.hazmat.primitives.asymmetric import x25519
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise ValueError(
            "secure aggregation needs the library cryptography: pip install 'dynamic-graph-fed-rl[secure]'"
        ) from error

    def derive(secret: bytes, purpose: bytes, length: int) -> bytes:
        return HKDF(algorithm=SHA256(), length=length, salt=None, info=purpose).derive(secret)

    return x25519, derive
