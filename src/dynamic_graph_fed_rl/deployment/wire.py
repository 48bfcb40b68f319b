"""What travels: arrays by name in a safetensors body, with a digest beside it, checked before anything is believed.

Nothing here can execute what it reads. A body passes `decoded` (digest, decompression within a limit) and `unpack`
(names, types, shapes and finiteness as the `Schema` has them), or is `Refused` for one of a closed set of reasons.
"""

import hashlib
import hmac
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors
import zstandard
from safetensors.numpy import load
from safetensors.numpy import save as to_bytes

PROTOCOL = 1
CONTENT_TYPE = "application/x-safetensors"
DIGEST_HEADER = "X-Content-SHA256"
PARAMETERS = "parameters"

STATUS = {
    "truncated": 400,
    "unauthorised": 401,
    "expired": 401,
    "forbidden": 403,
    "identity_taken": 403,
    "not_found": 404,
    "bad_method": 405,
    "too_slow": 408,
    "stale_round": 409,
    "future_round": 409,
    "round_closing": 409,
    "bad_schema": 409,
    "bad_protocol": 409,
    "place_taken": 409,
    "no_place_left": 409,
    "not_pooled": 409,
    "too_large": 413,
    "content_type": 415,
    "bad_request": 422,
    "bad_digest": 422,
    "bad_encoding": 422,
    "not_safetensors": 422,
    "bad_names": 422,
    "bad_dtype": 422,
    "bad_shape": 422,
    "not_finite": 422,
    "norm": 422,
    "too_many": 429,
    "backlog": 429,
    "not_stored": 507,
}
"""HTTP status of every reason for which a message is refused; the reasons are also the labels of the metric."""

# room for what stands around the numbers: in all, and for every array's name, type and shape
_HEADER_BYTES, _NAMED_BYTES = 16 * 1024, 512
# the windows that zstd's levels up to 19 use; a frame that asks for more is refused before memory is given to it
_LARGEST_WINDOW = 2**23


class Refused(Exception):
    """A message that is not accepted: `reason` is a key of `STATUS`, `detail` names what would be right."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail

    @property
    def status(self) -> int:
        return STATUS[self.reason]


@dataclass(frozen=True)
class ArraySpec:
    """An array of a body. A first dimension of None is free: from 1 to the schema's `max_rows`."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


@dataclass(frozen=True)
class Schema:
    """All arrays that a body holds. `title` says what they are (such as the paths of the parameters in a vector)."""

    title: str
    arrays: tuple[ArraySpec, ...]
    max_rows: int = 1

    @property
    def hash(self) -> str:
        """SHA-256 of what both sides must agree on [hexadecimal]."""
        lines = [self.title, str(self.max_rows)]
        lines += [f"{array.name} {list(array.shape)} {np.dtype(array.dtype).str}" for array in self.arrays]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def max_bytes(self) -> int:
        """No body of this form is longer, metadata of the usual kind and a compression that fails included."""
        numbers = (
            np.dtype(array.dtype).itemsize
            * math.prod(self.max_rows if size is None else size for size in array.shape)
            for array in self.arrays
        )
        return _HEADER_BYTES + _NAMED_BYTES * len(self.arrays) + sum(numbers)

    def like(self, rows: int | None = None) -> dict[str, np.ndarray]:
        """Zeros in this form, with so many rows where they are free (default: `max_rows`)."""
        rows = self.max_rows if rows is None else rows
        return {
            array.name: np.zeros([rows if size is None else size for size in array.shape], array.dtype)
            for array in self.arrays
        }


def parameters_schema(rows: int, title: str = "parameter vector") -> Schema:
    """The body of a weights upload or a download: one vector of `rows` numbers."""
    return Schema(title, (ArraySpec(PARAMETERS, (rows,), "float32"),))


def agreement(*schemas: Schema | None) -> str:
    """One hash over all that two sides exchange, which a client shows when it joins."""
    parts = ["none" if schema is None else schema.hash for schema in schemas]
    return hashlib.sha256("\n".join([str(PROTOCOL), *parts]).encode()).hexdigest()


def pack(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors body: raw little-endian numbers behind a JSON header."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return to_bytes(whole, dict(metadata) if metadata else None)


def digest(body: bytes) -> str:
    """SHA-256 of a body as it is sent [hexadecimal]."""
    return hashlib.sha256(body).hexdigest()


def compressed(body: bytes) -> bytes:
    """A body for `Content-Encoding: zstd`. Float32 parameters hardly shrink; experience with repeated rows does."""
    return zstandard.ZstdCompressor(level=3).compress(body)


def decoded(body: bytes, stated: str | None, encoding: str | None, max_bytes: int) -> bytes:
    """The body without its content encoding, after its digest has been checked.

    `stated` is the digest header, over the body as sent; `max_bytes` bounds what decompression may give.

    Raises:
        Refused: bad_digest, content_type (an encoding that is not known), bad_encoding or too_large.
    """
    if stated is None:
        raise Refused("bad_digest", f"header {DIGEST_HEADER} is missing: SHA-256 of the body as sent, in hexadecimal")
    if not hmac.compare_digest(stated.strip().lower().encode(), digest(body).encode()):
        raise Refused("bad_digest", "the body is not what was sent; send it again")
    if encoding in (None, "identity"):
        return body
    if encoding != "zstd":
        raise Refused("content_type", f"Content-Encoding '{encoding[:40]}': must be zstd, or left out")
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(body)
        plain = reader.read(max_bytes + 1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise Refused("bad_encoding", f"not a zstd frame ({error})") from error
    if len(plain) > max_bytes:
        raise Refused("too_large", f"decompresses to more than {max_bytes} bytes")
    return plain


def unpack(body: bytes, schema: Schema) -> dict[str, np.ndarray]:
    """The arrays of a body, which are exactly those of the schema, all finite.

    Raises:
        Refused: not_safetensors, bad_names, bad_dtype, bad_shape or not_finite; names the array.
    """
    try:
        arrays = load(body)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused("not_safetensors", f"the body must be a safetensors file ({error})") from error
    wanted = [array.name for array in schema.arrays]
    if sorted(arrays) != sorted(wanted):
        raise Refused("bad_names", f"arrays {sorted(arrays)[:20]}: must be {sorted(wanted)}")
    rows = None
    for spec in schema.arrays:
        array = arrays[spec.name]
        if array.dtype != np.dtype(spec.dtype):
            raise Refused("bad_dtype", f"'{spec.name}' is {array.dtype}, must be {spec.dtype}")
        free = bool(spec.shape) and spec.shape[0] is None
        if free and array.ndim:
            rows = array.shape[0] if rows is None else rows
        expected = (rows, *spec.shape[1:]) if free else spec.shape
        if array.shape != expected or (free and not 1 <= array.shape[0] <= schema.max_rows):
            shown = ["1 to " + str(schema.max_rows) if size is None else size for size in spec.shape]
            raise Refused("bad_shape", f"'{spec.name}' is {list(array.shape)}, must be {shown}, rows alike in all")
        if np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all():
            bad = int(np.flatnonzero(~np.isfinite(array.reshape(-1)))[0])
            raise Refused("not_finite", f"'{spec.name}' holds NaN or infinity, first at number {bad}")
    return {name: arrays[name] for name in wanted}
