"""A body is taken as sent, exactly as agreed and finite, or refused by name; reading one executes nothing."""

import pickle
import struct

import numpy as np
import pytest
import zstandard
from fake_half import Canary
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.wire import ArraySpec, Refused, Schema

MANY = 10_000
EXPERIENCE = Schema(
    "transitions",
    (ArraySpec("observation", (None, 3), "float32"), ArraySpec("action", (None,), "int32")),
    max_rows=8,
)


def vector(size: int = 5) -> np.ndarray:
    return np.linspace(-1, 1, size, dtype=np.float32)


FIVE = wire.parameters_schema(5)


def refusal(body: bytes, schema: Schema = FIVE) -> str:
    with pytest.raises(Refused) as refused:
        wire.unpack(body, schema)
    assert refused.value.detail
    return refused.value.reason


def decoding(body: bytes, stated: str | None, encoding: str | None = None, most: int = MANY) -> str:
    with pytest.raises(Refused) as refused:
        wire.decoded(body, stated, encoding, most)
    return refused.value.reason


def test_every_bit_of_an_array_survives() -> None:
    sent = np.frombuffer(np.random.default_rng(0).bytes(400), np.float32)
    sent = np.where(np.isfinite(sent), sent, np.float32(-0.0)).astype(np.float32)
    got = wire.unpack(wire.pack({"parameters": sent}), wire.parameters_schema(100))["parameters"]
    assert got.tobytes() == sent.tobytes()


def test_a_megabyte_has_less_than_a_kilobyte_around_it() -> None:
    assert len(wire.pack({"parameters": np.zeros(2**18, np.float32)})) < 2**20 + 1000


def test_arrays_that_are_not_contiguous_travel_as_they_read() -> None:
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    got = wire.unpack(wire.pack({"t": table.T}), Schema("", (ArraySpec("t", (4, 3), "float32"),)))["t"]
    np.testing.assert_array_equal(got, table.T)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (vector(4), "bad_shape"),
        (vector(6), "bad_shape"),
        (vector()[None], "bad_shape"),
        (np.float32(1.0), "bad_shape"),
        (vector().astype(np.float64), "bad_dtype"),
        (vector().astype(np.float16), "bad_dtype"),
        (np.arange(5), "bad_dtype"),
        (np.asarray([0, 1, np.nan, 3, 4], np.float32), "not_finite"),
        (np.asarray([0, 1, 2, 3, -np.inf], np.float32), "not_finite"),
    ],
)
def test_an_array_must_be_as_agreed(array: np.ndarray, reason: str) -> None:
    assert refusal(wire.pack({"parameters": np.asarray(array)})) == reason


def test_other_names_are_refused() -> None:
    assert refusal(wire.pack({"weights": vector()})) == "bad_names"
    assert refusal(wire.pack({"parameters": vector(), "more": vector()})) == "bad_names"
    assert refusal(wire.pack({})) == "bad_names"


@given(st.binary(max_size=200))
def test_no_bytes_at_all_are_anything_but_refused(body: bytes) -> None:
    assert refusal(body) in ("not_safetensors", "bad_names")


@given(st.integers(0, 400), st.integers(0, 7))
def test_a_flipped_bit_does_not_pass_the_digest(place: int, bit: int) -> None:
    body = wire.pack({"parameters": vector(100)})
    torn = bytearray(body)
    torn[place] ^= 1 << bit
    assert decoding(bytes(torn), wire.digest(body)) == "bad_digest"


@given(st.integers(0, 100))
def test_a_truncated_body_is_refused_even_with_a_digest_of_its_own(kept: int) -> None:
    body = wire.pack({"parameters": vector()})
    part = body[: len(body) * kept // 101]
    assert decoding(part, wire.digest(body)) == "bad_digest"
    assert refusal(wire.decoded(part, wire.digest(part), None, MANY)) == "not_safetensors"


def test_a_header_that_asks_for_terabytes_is_refused() -> None:
    header = b'{"parameters":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    assert refusal(struct.pack("<Q", len(header)) + header) == "not_safetensors"
    assert refusal(struct.pack("<Q", 2**62) + header) == "not_safetensors"


@pytest.mark.parametrize("dtype", ["BF16", "F8_E4M3", "NONE"])
def test_types_that_numpy_has_not_are_refused(dtype: str) -> None:
    size = {"BF16": 10}.get(dtype, 5)
    header = f'{{"parameters":{{"dtype":"{dtype}","shape":[5],"data_offsets":[0,{size}]}}}}'.encode()
    assert refusal(struct.pack("<Q", len(header)) + header + bytes(size)) in ("not_safetensors", "bad_dtype")


def test_a_pickle_is_never_loaded(tmp_path) -> None:
    canary = tmp_path / "canary"
    body = pickle.dumps(Canary(canary))
    assert refusal(body) == "not_safetensors"
    assert not canary.exists()
    # the canary does sing where pickles are loaded
    pickle.loads(body).close()
    assert canary.exists()


def test_the_digest_must_be_there_and_may_be_in_capitals() -> None:
    assert decoding(b"abc", None) == "bad_digest"
    assert decoding(b"abc", "") == "bad_digest"
    assert decoding(b"abc", "é") == "bad_digest"
    assert wire.decoded(b"abc", wire.digest(b"abc").upper(), None, MANY) == b"abc"


def test_zstd_is_undone_after_the_digest_of_what_was_sent() -> None:
    plain = bytes(5000)
    sent = wire.compressed(plain)
    assert len(sent) < 100
    assert wire.decoded(sent, wire.digest(sent), "zstd", MANY) == plain
    assert wire.decoded(plain, wire.digest(plain), "identity", MANY) == plain
    assert decoding(sent, wire.digest(sent), "gzip") == "content_type"
    assert decoding(plain, wire.digest(plain), "zstd") == "bad_encoding"


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_bomb_is_stopped_at_the_limit(says_its_size: bool) -> None:
    bomb = zstandard.ZstdCompressor(write_content_size=says_its_size).compress(bytes(200_000_000))
    assert len(bomb) < 20_000
    assert decoding(bomb, wire.digest(bomb), "zstd") == "too_large"


def test_a_frame_that_wants_a_huge_window_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    frame = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    body = frame.compress(bytes(1000)) + frame.flush()
    assert decoding(body, wire.digest(body), "zstd") == "bad_encoding"


def test_free_rows_are_alike_in_all_arrays_and_bounded() -> None:
    def batch(rows: int, actions: int) -> bytes:
        return wire.pack({"observation": np.ones((rows, 3), np.float32), "action": np.ones(actions, np.int32)})

    got = wire.unpack(batch(4, 4), EXPERIENCE)
    assert list(got) == ["observation", "action"] and got["action"].shape == (4,)
    for rows, actions in ((4, 3), (0, 0), (9, 9)):
        assert refusal(batch(rows, actions), EXPERIENCE) == "bad_shape"
    scalar = wire.pack({"observation": np.ones((4, 3), np.float32), "action": np.asarray(1, np.int32)})
    assert refusal(scalar, EXPERIENCE) == "bad_shape"


def test_the_hash_tells_schemas_apart() -> None:
    base = wire.parameters_schema(5)
    others = [
        wire.parameters_schema(6),
        wire.parameters_schema(5, "another network of the same size"),
        Schema(base.title, (ArraySpec("parameters", (5,), "float16"),)),
        Schema(base.title, (ArraySpec("weights", (5,), "float32"),)),
        Schema(base.title, base.arrays, max_rows=2),
        EXPERIENCE,
    ]
    assert len({schema.hash for schema in [base, *others]}) == 7
    assert base.hash == wire.parameters_schema(5).hash
    assert len({wire.agreement(base, None), wire.agreement(base, EXPERIENCE), wire.agreement(others[0], None)}) == 3


def test_the_largest_body_of_a_schema_is_within_its_limit() -> None:
    for schema in (EXPERIENCE, FIVE, wire.parameters_schema(2**20)):
        body = wire.pack(schema.like())
        wire.unpack(body, schema)
        noise = np.random.default_rng(0).bytes(len(body))
        assert max(len(body), len(wire.compressed(noise))) < schema.max_bytes < 2 * len(body) + 20_000
    wire.unpack(wire.pack(EXPERIENCE.like(1)), EXPERIENCE)


def test_every_reason_is_a_client_error_but_a_full_disk() -> None:
    assert {reason for reason, status in wire.STATUS.items() if not 400 <= status < 500} == {"not_stored"}
