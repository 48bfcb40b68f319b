"""How an update is made small before it travels.

A codec turns one float32 vector of P numbers into the arrays that would be sent, and back. Pure functions, so that
a simulation trains through them; what a lossy codec drops is kept by the sender and added to its next update
(`compress`).
"""

import abc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int8, PRNGKeyArray, PyTree, UInt8, UInt16, UInt32

_BLOCK = 256


class Codec(eqx.Module):
    """`decode(encode(vector))` is the vector where the codec is not `lossy`, an approximation where it is.

    A vector with a NaN or an infinity in it never decodes to finite numbers only, so that a receiver can refuse it.
    """

    lossy: ClassVar[bool]

    @abc.abstractmethod
    def encode(self, vector: Float[Array, " P"], key: PRNGKeyArray) -> PyTree[Array]:
        """The arrays exactly as they would travel: dtype and size are what is counted."""

    @abc.abstractmethod
    def decode(self, payload: PyTree[Array], size: int) -> Float[Array, " P"]:
        """The receiver's vector of `size` numbers."""


class Raw(Codec):
    """The float32 numbers themselves: 4 bytes a number."""

    lossy: ClassVar[bool] = False

    def encode(self, vector: Float[Array, " P"], key: PRNGKeyArray) -> Float32[Array, " P"]:
        return vector.astype(jnp.float32)

    def decode(self, payload: Float32[Array, " P"], size: int) -> Float[Array, " P"]:
        return payload


class Bf16(Codec):
    """The upper half of each float32, rounded to nearest, ties to even: 2 bytes a number, error up to 2^-9 of it.

    Numbers beyond 3.39e38 become infinite, as in every bfloat16 (Kalamkar et al. 2019, arXiv:1905.12322).
    """

    lossy: ClassVar[bool] = True

    # on the bits: a pair of dtype conversions would be cancelled by the compiler, and the loss with it
    def encode(self, vector: Float[Array, " P"], key: PRNGKeyArray) -> UInt16[Array, " P"]:
        bits = jax.lax.bitcast_convert_type(vector.astype(jnp.float32), jnp.uint32)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return jnp.where(jnp.isnan(vector), 0x7FC0, upper).astype(jnp.uint16)

    def decode(self, payload: UInt16[Array, " P"], size: int) -> Float[Array, " P"]:
        return jax.lax.bitcast_convert_type(payload.astype(jnp.uint32) << 16, jnp.float32)


class Quantised(eqx.Module):
    """Whole numbers from -127 to 127, and what one step is worth in each block of 256 of them."""

    steps: Int8[Array, " P"]
    scales: Float32[Array, " blocks"]


class Int8Blocks(Codec):
    """Whole multiples of a 127th of the largest magnitude among 256 neighbours: 1 byte a number, 4 a block.

    Rounds to nearest (the bias goes into the error memory), so a number is off by at most half a step. Blocks of
    fixed length need no knowledge of the layers (Dettmers et al. 2022, arXiv:2110.02861).
    """

    lossy: ClassVar[bool] = True

    def encode(self, vector: Float[Array, " P"], key: PRNGKeyArray) -> Quantised:
        blocks = _blocks(vector.astype(jnp.float32))
        scales = jnp.abs(blocks).max(1) / 127.0
        # not `scales > 0`: a NaN stays in the scale and shows after decoding
        steps = jnp.round(blocks / jnp.where(scales == 0, 1.0, scales)[:, None])
        return Quantised(jnp.clip(steps, -127, 127).astype(jnp.int8).ravel()[: vector.size], scales)

    def decode(self, payload: Quantised, size: int) -> Float[Array, " P"]:
        blocks = _blocks(payload.steps.astype(jnp.float32)) * payload.scales[:, None]
        return blocks.ravel()[:size]


class Sparse(eqx.Module):
    """Which numbers, and what they are."""

    indices: UInt32[Array, " k"]
    values: Float32[Array, " k"]


class TopK(Codec):
    """The `share` of the numbers with the largest magnitudes, exactly; the others are 0: 8 bytes a kept number.

    Useful with the error memory only (Stich et al. 2018, arXiv:1809.07599).

    Raises:
        ValueError: `share` is not in (0, 1].
    """

    lossy: ClassVar[bool] = True
    share: float = eqx.field(static=True, default=0.1)

    def __check_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise ValueError(f"codec top-k: share {self.share} is not above 0 and at most 1")

    def kept(self, size: int) -> int:
        """Numbers kept of `size`: at least one."""
        return min(size, max(1, round(self.share * size)))

    def encode(self, vector: Float[Array, " P"], key: PRNGKeyArray) -> Sparse:
        values = vector.astype(jnp.float32)
        _, indices = jax.lax.top_k(jnp.abs(values), self.kept(vector.size))
        return Sparse(indices.astype(jnp.uint32), values[indices])

    def decode(self, payload: Sparse, size: int) -> Float[Array, " P"]:
        return jnp.zeros(size, jnp.float32).at[payload.indices].set(payload.values)


class Signs(eqx.Module):
    """One bit a number (set: not negative), eight to a byte, and the magnitude that all of them share."""

    bits: UInt8[Array, " bytes"]
    scale: Float32[Array, ""]


class Sign(Codec):
    """The signs, times the mean magnitude: 1 bit a number and 4 bytes.

    Scaled signs with error memory converge where bare signs need not (Karimireddy et al. 2019, arXiv:1901.09847);
    the mean of K decoded vectors is a vote weighted by magnitude (majority vote: Bernstein et al. 2018,
    arXiv:1802.04434).
    """

    lossy: ClassVar[bool] = True

    def encode(self, vector: Float[Array, " P"], key: PRNGKeyArray) -> Signs:
        return Signs(jnp.packbits(vector >= 0), jnp.abs(vector).mean().astype(jnp.float32))

    def decode(self, payload: Signs, size: int) -> Float[Array, " P"]:
        return jnp.where(jnp.unpackbits(payload.bits, count=size) == 1, payload.scale, -payload.scale)


@dataclass(frozen=True)
class Entry:
    """`build(**options) -> Codec`, every option with a default; `options` maps them to fields of the settings."""

    help: str
    build: Callable[..., Codec]
    options: Mapping[str, str] = field(default_factory=dict)


CODECS = {
    "raw": Entry("float32 as it is: 4 bytes a number, nothing lost", Raw),
    "bf16": Entry("bfloat16: 2 bytes a number", Bf16),
    "int8": Entry("whole numbers of 8 bits with one scale for every 256 numbers: 1 byte a number", Int8Blocks),
    "top-k": Entry(
        "the share of largest magnitudes (default a tenth), with their places: 8 bytes a kept one",
        TopK,
        {"share": "kept_share"},
    ),
    "sign": Entry("signs and one magnitude: 1 bit a number", Sign),
}


def payload_bytes(codec: Codec, size: int) -> int:
    """Bytes that travel for a vector of `size` float32 numbers, without the transport's own."""
    vector = jax.ShapeDtypeStruct((size,), jnp.float32)
    payload = jax.eval_shape(codec.encode, vector, jax.eval_shape(lambda: jax.random.key(0)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(payload))


def compress(
    codec: Codec, vector: Float[Array, " P"], error: Float[Array, " P"], key: PRNGKeyArray
) -> tuple[Float[Array, " P"], Float[Array, " P"]]:
    """What the receiver gets, and what the sender still owes: together they are `vector + error`.

    Error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv:1901.09847): whatever a codec drops is sent
    later, so that the sum of all that was received trails the sum of all updates by one error only. The error of
    a codec that is not lossy is 0. Where what is owed is not finite, neither is what the receiver gets, and the
    sender's `error` stays as it was.
    """
    owed = vector + error
    decoded = codec.decode(codec.encode(owed, key), vector.size)
    left = owed - decoded
    return decoded, jnp.where(jnp.isfinite(left).all(), left, error)


def _blocks(vector: Float[Array, " P"]) -> Float[Array, "blocks 256"]:
    """Rows of 256, the last filled up with 0."""
    count = math.ceil(vector.size / _BLOCK)
    return jnp.pad(vector, (0, count * _BLOCK - vector.size)).reshape(count, _BLOCK)
