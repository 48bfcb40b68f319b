"""A client's requests: what is tried again and what is not, under which number, and what it keeps until then."""

import logging
import stat

import httpx
import numpy as np
import pytest
from fake_half import FakeHalf, parameters, transitions
from sockets import Time, Troubled, on_socket

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.client import Client, NotAccepted, Pace, Unavailable, read_secret, secret_in
from dynamic_graph_fed_rl.deployment.outbox import Outbox

TOKEN = "t" * 43
URL = "http://127.0.0.1:1"
SCHEMA = wire.parameters_schema(4)


def client_with(answers, time: Time, tries: int = 5, draw: float = 1.0) -> tuple[Client, list[httpx.Request]]:
    """A client whose server gives these answers, one after the other, the last one for ever."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        found = answers[min(len(asked), len(answers)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    pace = Pace(clock=time, sleep=time.sleep, draw=lambda: draw)
    return Client(URL, "site-0", TOKEN, tries=tries, pace=pace, transport=httpx.MockTransport(answer)), asked


def error(status: int, reason: str, **headers: str) -> httpx.Response:
    content = {"reason": reason, "detail": "so it is", "round": 3}
    return httpx.Response(
        status, json=content, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )


DONE = httpx.Response(200, json={"seq": 7, "duplicate": False, "next_seq": 8})


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("late"),
        httpx.RemoteProtocolError("cut off"),
        error(400, "truncated"),
        error(422, "bad_digest"),
        error(429, "too_many"),
        error(507, "not_stored"),
        httpx.Response(502, text="<html>a proxy"),
        httpx.Response(500),
    ],
)
def test_what_may_get_better_is_tried_again_under_the_same_number(failure) -> None:
    time = Time()
    client, asked = client_with([failure, failure, DONE], time)
    assert client.put_transitions(7, transitions(2.0))["next_seq"] == 8
    assert len(asked) == 3
    assert {request.url.path for request in asked} == {"/v1/clients/site-0/transitions/7"}
    bodies = {request.content for request in asked}
    assert len(bodies) == 1
    assert {request.headers[wire.DIGEST_HEADER] for request in asked} == {wire.digest(bodies.pop())}
    # each pause is drawn between nothing and twice the one before
    assert time.slept == [0.25, 0.5]


def test_pauses_double_up_to_a_bound_and_go_on_from_call_to_call() -> None:
    time = Time()
    client, asked = client_with([httpx.ConnectError("refused")], time, tries=6)
    for _ in range(2):
        with pytest.raises(Unavailable, match="refused"):
            client.status()
    assert len(asked) == 12
    assert time.slept == [0.25, 0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30]
    client, _ = client_with([httpx.ConnectError("refused")], time, draw=0.0)
    with pytest.raises(Unavailable):
        client.status()
    assert len(time.slept) == 11


def test_the_server_may_ask_for_a_longer_pause() -> None:
    time = Time()
    client, asked = client_with([error(429, "too_many", Retry_After="17"), DONE], time)
    client.put_transitions(7, transitions(2.0))
    assert len(asked) == 2 and time.slept == [17.25]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (401, "unauthorised"),
        (403, "forbidden"),
        (409, "bad_schema"),
        (413, "too_large"),
        (415, "content_type"),
        (422, "not_finite"),
        (422, "norm"),
    ],
)
def test_what_will_not_get_better_is_said_and_not_tried_again(status, reason) -> None:
    client, asked = client_with([error(status, reason)], Time())
    with pytest.raises(NotAccepted, match=f"does not accept parameters of round 2: {reason}: so it is") as refusal:
        client.put_weights(2, np.zeros(4, np.float32))
    assert len(asked) == 1
    assert (refusal.value.status, refusal.value.reason, refusal.value.open_round) == (status, reason, 3)


def test_a_backlog_is_told_at_once_and_slows_nothing_down() -> None:
    time = Time()
    client, asked = client_with([error(429, "backlog", Retry_After="9"), DONE], time)
    with pytest.raises(Unavailable) as refusal:
        client.put_transitions(7, transitions(2.0))
    client.put_weights(3, np.zeros(4, np.float32))
    assert refusal.value.reason == "backlog" and len(asked) == 2 and not time.slept


def test_a_download_with_a_flipped_byte_is_asked_for_again() -> None:
    body = parameters(2.0)
    headers = {"X-Round": "4", wire.DIGEST_HEADER: wire.digest(body)}
    flipped = body[:-1] + bytes([body[-1] ^ 1])
    wrong, right = (httpx.Response(200, content=one, headers=headers) for one in (flipped, body))
    client, asked = client_with([wrong, right], Time())
    found = client.params(SCHEMA, 3, 5.0)
    assert found.round == 4 and found.parameters is not None and (found.parameters == 2.0).all()
    assert len(asked) == 2 and dict(asked[0].url.params) == {"after": "3", "wait": "5.0"}


def test_a_lost_receipt_is_a_duplicate_and_counted_once(serve) -> None:
    served = serve(1, FakeHalf(agents=1))
    lost: set[str] = set()

    def lose(number: int, request: httpx.Request) -> None:
        if request.method == "PUT" and request.url.path not in lost:
            lost.add(request.url.path)
            raise httpx.ReadError("the receipt is lost")

    with on_socket(served.app) as url, Client(url, "site-0", "a" * 43, transport=Troubled(after=lose)) as client:
        assert client.put_transitions(0, transitions(2.0)) == {"seq": 0, "duplicate": True, "next_seq": 1}
        try:
            assert client.put_weights(0, np.full(4, 3.0, np.float32))["duplicate"]
        except NotAccepted as refusal:
            # the first try has closed the round meanwhile
            assert refusal.reason == "stale_round"
        found = client.params(SCHEMA, 0, 10.0)
    assert len(lost) == 2 and found.round == 1
    assert found.parameters is not None and (found.parameters == 3.0).all()
    assert int(served.coordinator._state["pooled"]) == 1


def test_no_secret_is_written_anywhere(serve, caplog, tmp_path) -> None:
    served = serve(0, join_token="j" * 40)
    caplog.set_level(logging.DEBUG)
    token = secret_in(tmp_path / "new" / "token")
    with (
        on_socket(served.app) as url,
        Client(url, "site-0", token, "j" * 40) as client,
        Client(url, "site-0", "s" * 43, "j" * 40) as impostor,
        Client(url, "site-1", "s" * 43) as stranger,
    ):
        assert client.join(served.coordinator.agreement).place == 0
        assert client.config()["agreement"] == served.coordinator.agreement
        with pytest.raises(NotAccepted, match="identity_taken") as refusal:
            impostor.join(served.coordinator.agreement)
        with pytest.raises(NotAccepted, match="unauthorised"):
            stranger.config()
    for secret in (token, "j" * 40, "s" * 43):
        assert secret not in caplog.text + str(refusal.value) + repr(client)


def test_a_secret_is_made_once_for_its_owner_only(tmp_path) -> None:
    path = tmp_path / "site" / "token"
    secret = secret_in(path)
    assert len(secret) >= 40 and secret_in(path) == secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and list(path.parent.iterdir()) == [path]
    path.chmod(0o640)
    with pytest.raises(ValueError, match="others may read this secret; chmod 600 it"):
        read_secret(path)
    path.chmod(0o600)
    path.write_text("")
    with pytest.raises(ValueError, match="must hold a secret"):
        secret_in(path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:5050", "must be such as http://127.0.0.1:5050"),
        ("ftp://server", "must be such as"),
        ("http://server.example:5050", "could be read on the way; use https, or --insecure"),
    ],
)
def test_addresses_that_cannot_be_are_refused(url, message) -> None:
    with pytest.raises(ValueError, match=message):
        Client(url, "site-0", TOKEN)
    if url.startswith("http:"):
        Client(url, "site-0", TOKEN, insecure=True).close()


def test_the_queue_survives_a_restart_with_its_numbers(tmp_path) -> None:
    path = tmp_path / "outbox.sqlite"
    box = Outbox(path, 3)
    box.begin_at(5)
    for lot in range(2):
        box.put(4, lot, b"%d" % lot)
    with pytest.raises(ValueError, match="in use by another process"):
        Outbox(path, 3)
    box.close()
    box = Outbox(path, 3)
    assert box.first() == (5, b"0") == box.first()
    box.drop(5)
    assert box.first() == (6, b"1")
    box.drop(6)
    box.close()
    box = Outbox(path, 3)
    box.begin_at(3)
    assert box.first() is None and len(box) == 0
    assert box.has_told(4, 1) and box.has_told(3, 9) and not box.has_told(4, 2) and not box.has_told(5, 0)
    for lot in range(3):
        box.put(5, lot, b"")
    assert box.first() == (7, b"") and box.full
    with pytest.raises(ValueError, match="holds 3 uploads already"):
        box.put(6, 0, b"")
    box.forget_rounds()
    assert not box.has_told(0, 0) and len(box) == 3
    box.close()
