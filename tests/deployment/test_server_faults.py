"""What a server must bear: bodies that are torn, wrong, endless or hostile, a full disk, its own death."""

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import zstandard
from fake_half import Canary, FakeHalf, parameters, transitions
from served import KINDS, NAMES, TOKENS, until, values

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.training import checkpoint


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("weights", parameters(2.0, rows=5), "bad_shape"),
        ("weights", wire.pack({"parameters": np.ones(4)}), "bad_dtype"),
        ("weights", wire.pack({"other": np.ones(4, np.float32)}), "bad_names"),
        ("weights", parameters([1, np.nan, 1, 1]), "not_finite"),
        ("weights", parameters([1, np.inf, 1, 1]), "not_finite"),
        ("weights", parameters(1000.0), "norm"),
        ("weights", b"", "not_safetensors"),
        ("weights", parameters(2.0)[:-1], "not_safetensors"),
        ("transitions", transitions(2.0, rows=9), "bad_shape"),
        ("transitions", transitions(float("nan")), "not_finite"),
        ("transitions", parameters(2.0), "bad_names"),
    ],
)
def test_content_that_is_not_as_agreed(serve, kind: str, body: bytes, reason: str) -> None:
    served = serve()
    served.put(0, kind, 0, KINDS[kind])
    before = served.holds()
    served.refused(served.put(1, kind, 0, body), 422, reason)
    served.refused(served.put(0, kind, 1 if kind == "transitions" else 0, body), 422, reason)
    assert served.holds() == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte(serve, kind: str) -> None:
    served = serve()
    before, body = served.holds(), KINDS[kind]
    torn = body[:-1] + bytes([body[-1] ^ 1])
    served.refused(served.put(0, kind, 0, torn, **{wire.DIGEST_HEADER: wire.digest(body)}), 422, "bad_digest")
    served.refused(served.put(0, kind, 0, body, **{wire.DIGEST_HEADER: None}), 422, "bad_digest")
    assert served.holds() == before
    assert served.put(0, kind, 0, body).json()["duplicate"] is False


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_body(serve, kind: str) -> None:
    served = serve()
    before, body = served.holds(), KINDS[kind]
    answer = served.put(0, kind, 0, body[:-9], **{wire.DIGEST_HEADER: wire.digest(body)})
    served.refused(answer, 422, "bad_digest")
    answer = served.put(0, kind, 0, body[:-9], **{wire.DIGEST_HEADER: wire.digest(body), "Content-Length": "999"})
    served.refused(answer, 400, "truncated")
    assert served.holds() == before


def test_a_client_that_dies_inside_a_body(serve) -> None:
    served = serve()
    before, body = served.holds(), parameters(2.0)
    said = []

    async def talk() -> None:
        messages = iter(
            [{"type": "http.request", "body": body[:10], "more_body": True}, {"type": "http.disconnect"}],
        )
        headers = {
            "authorization": f"Bearer {TOKENS[0]}",
            "content-type": wire.CONTENT_TYPE,
            wire.DIGEST_HEADER: wire.digest(body),
        }
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "PUT",
            "scheme": "http",
            "path": "/v1/clients/site-0/weights/0",
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }

        async def receive() -> dict:
            return next(messages)

        async def send(message: dict) -> None:
            said.append(message)

        await served.app(scope, receive, send)

    asyncio.run(talk())
    assert said[0]["status"] == 400
    assert served.holds() == before and served.server._uploads.total() == 0


def test_a_body_that_never_ends(serve) -> None:
    served = serve()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000

    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(30)

    headers = {"Authorization": f"Bearer {TOKENS[0]}", "Content-Type": wire.CONTENT_TYPE}
    path = "/v1/clients/site-0/weights/0"
    served.refused(served.ask("PUT", path, content=endless(), headers=headers), 413, "too_large")
    served.refused(served.ask("PUT", path, content=silent(), headers=headers), 408, "too_slow")
    assert served.server._uploads.total() == 0


def test_bodies_too_large_as_sent_or_decompressed(serve) -> None:
    served = serve()
    before, most = served.holds(), wire.parameters_schema(4).max_bytes
    served.refused(served.put(0, "weights", 0, bytes(most + 1)), 413, "too_large")
    bomb = zstandard.ZstdCompressor().compress(bytes(10_000_000))
    assert len(bomb) < most
    served.refused(served.put(0, "weights", 0, bomb, Content_Encoding="zstd"), 413, "too_large")
    assert served.holds() == before
    body = wire.compressed(parameters(2.0))
    assert served.put(0, "weights", 0, body, Content_Encoding="zstd").status_code == 200
    served.refused(served.put(1, "weights", 0, body[:-3], Content_Encoding="zstd"), 422, "not_safetensors")
    served.refused(served.put(1, "weights", 0, bytes(10), Content_Encoding="zstd"), 422, "bad_encoding")
    served.refused(served.put(1, "weights", 0, body, Content_Encoding="gzip"), 415, "content_type")
    served.refused(served.ask("POST", "/v1/clients", json={"name": "x" * 70_000}), 413, "too_large")


def test_a_pickle_is_never_loaded(serve, tmp_path) -> None:
    served = serve(aliases=True)
    canary = tmp_path / "canary"
    body = pickle.dumps(Canary(canary))
    before = served.holds()
    for content_type in ("application/octet-stream", "application/python-pickle", "", None):
        served.refused(served.put(0, "weights", 0, body, Content_Type=content_type), 415, "content_type")
    for kind in KINDS:
        served.refused(served.put(0, kind, 0, body), 422, "not_safetensors")
    bearer = {"Authorization": f"Bearer {TOKENS[0]}"}
    served.refused(served.ask("POST", "/upload-weights", content=body, headers=bearer), 415, "content_type")
    bearer |= {"Content-Type": "application/json"}
    for content in (body, json.dumps({"weights": "H4sIAAAAAAAA/2tgmQAAAA=="}).encode()):
        served.refused(served.ask("POST", "/upload-weights", content=content, headers=bearer), 422, "bad_request")
    assert served.holds() == before and not canary.exists()


@pytest.mark.parametrize(("most", "of_one", "taken"), [(1, 1, 0), (64, 4, 0), (64, 3, 1)])
def test_too_many_at_a_time(serve, most: int, of_one: int, taken: int) -> None:
    """A client may have four uploads under way, which do not keep another's out."""
    served = serve(max_uploads=most)
    go_on = []

    async def slow(body: bytes) -> AsyncIterator[bytes]:
        yield body[:10]
        while not go_on:
            await asyncio.sleep(0.01)
        yield body[10:]

    async def talk() -> list[httpx.Response]:
        body = transitions(1.0)
        headers = {"Content-Type": wire.CONTENT_TYPE, wire.DIGEST_HEADER: wire.digest(body)}

        async def put(place: int, seq: int, content: AsyncIterator[bytes] | bytes) -> httpx.Response:
            bearer = {"Authorization": f"Bearer {TOKENS[place]}"}
            path = f"/v1/clients/{NAMES[place]}/transitions/{seq}"
            return await served.asking("PUT", path, content=content, headers=headers | bearer)

        first = [asyncio.create_task(put(0, seq, slow(body))) for seq in range(of_one)]
        while served.server._uploads.total() < of_one:
            await asyncio.sleep(0.01)
        others = [await put(0, of_one, body), await put(1, 0, body)]
        go_on.append(True)
        return [*await asyncio.gather(*first), *others]

    *first, again, other = asyncio.run(talk())
    assert {answer.status_code for answer in first} == {200}
    if taken:
        assert again.status_code == 200
    else:
        served.refused(again, 429, "too_many")
        assert again.headers["Retry-After"] == "1"
    assert other.status_code == (429 if most == 1 else 200)


def test_experience_that_nobody_learns_from_yet(serve) -> None:
    served = serve(max_backlog=1)
    assert served.put(0, "transitions", 0, transitions(1.0)).status_code == 200
    answer = served.put(0, "transitions", 1, transitions(1.0))
    served.refused(answer, 429, "backlog")
    assert answer.headers["Retry-After"] == "1"
    assert served.put(1, "transitions", 0, transitions(1.0)).status_code == 200


def test_disk_full_on_a_snapshot(serve, monkeypatch, caplog) -> None:
    served = serve(clients=3)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_whole", full)
        for place in range(3):
            assert served.put(place, "weights", 0, parameters(2.0)).status_code == 200
        until(lambda: served.coordinator.trouble)
        ready = served.ask("GET", "/readyz")
        assert ready.status_code == 503 and "No space left" in ready.json()["detail"]
        assert served.metric("dgfrl_trouble") == 1
        # it goes on serving what there is, and taking what it can
        assert served.params(0).status_code == served.ask("GET", "/healthz").status_code == 200
        assert served.put(0, "transitions", 0, transitions(1.0)).status_code == 200
    assert served.params(0, "?after=0&wait=10").headers["X-Round"] == "1"
    assert served.ask("GET", "/readyz").status_code == 200 and served.metric("dgfrl_trouble") == 0
    assert "No space left" in caplog.text


def test_disk_full_on_an_upload(serve) -> None:
    served = serve(half=FakeHalf(rows=100_000))
    database = served.coordinator.store._database
    database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
    body = parameters(2.0, rows=100_000)
    answer = served.put(0, "weights", 0, body)
    served.refused(answer, 507, "not_stored")
    assert served.ask("GET", "/readyz").status_code == 503 and str(served.coordinator.store.folder) not in answer.text
    database.execute(f"PRAGMA max_page_count = {2**30}")
    assert served.put(0, "weights", 0, body).json()["duplicate"] is False
    assert served.ask("GET", "/readyz").status_code == 200


def test_a_round_that_was_due_when_the_server_died_closes_when_it_is_back(serve, monkeypatch) -> None:
    served = serve(clients=3)
    monkeypatch.setattr(served.server.closer, "wake", lambda: None)
    for place in range(3):
        served.put(place, "weights", 0, parameters(2.0))
    served.coordinator.store._database.close()
    served = serve(clients=0)
    until(lambda: served.coordinator.round == 1)
    np.testing.assert_array_equal(values(served.params(0)), 2.0)


def test_no_token_is_ever_logged(serve, caplog) -> None:
    caplog.set_level("DEBUG")
    served = serve(clients=3, join_token="")
    served.put(0, "weights", 0, parameters(2.0), token="wrong" * 10)
    for place in range(3):
        served.put(place, "weights", 0, parameters(2.0))
    assert not any(token in caplog.text for token in [*TOKENS, "wrong" * 10])
