"""The protocol of docs/server.md, status by status."""

import asyncio
import threading
import time

import httpx
import numpy as np
from fake_half import EXPERIENCE, FakeHalf, parameters, transitions
from served import KINDS, NAMES, TOKENS, until, values

from dynamic_graph_fed_rl.deployment import wire


def test_a_round_from_joining_to_the_next_parameters(serve) -> None:
    served = serve(clients=0)
    config = served.ask("GET", "/v1/config").json()
    assert config == {
        "protocol": 1,
        "experiment": "text",
        "agreement": wire.agreement(wire.parameters_schema(4), EXPERIENCE),
        "agents": 3,
        "pools": True,
        "quorum": 3,
        "deadline": 0,
    }
    for place in range(3):
        assert served.join(place).json() == {
            "client": NAMES[place],
            "token": TOKENS[place],
            "place": place,
            "round": 0,
            "next_seq": 0,
            "returning": False,
            "config": config,
        }
    first = served.params(0)
    assert first.status_code == 200 and first.headers["X-Round"] == "0"
    assert first.headers["Content-Type"] == wire.CONTENT_TYPE
    np.testing.assert_array_equal(values(first), 1.0)
    for place, size in enumerate((1.0, 2.0, 6.0)):
        receipt = served.put(place, "transitions", 0, transitions(size))
        assert receipt.json() == {"seq": 0, "duplicate": False, "next_seq": 1}
        receipt = served.put(place, "weights", 0, parameters(size))
        assert receipt.status_code == 200
        assert receipt.json() == {"round": 0, "duplicate": False, "ticks": 0, "due": place == 2}
    after = served.params(1, "?after=0&wait=10")
    assert after.status_code == 200 and after.headers["X-Round"] == "1"
    np.testing.assert_array_equal(values(after), 3.0)


def test_parameters_are_sent_only_when_there_are_newer_ones(serve) -> None:
    served = serve(clients=3)
    tag = served.params(0).headers["ETag"]
    for query, headers in (("", {"If_None_Match": tag}), ("", {"If_None_Match": f'"x", W/{tag}'}), ("?after=0", {})):
        answer = served.params(0, query, **headers)
        assert (answer.status_code, answer.content, answer.headers["X-Round"]) == (304, b"", "0")
    assert served.params(0, "?after=0&wait=0.01").status_code == 304
    for place in range(3):
        served.put(place, "weights", 0, parameters(2.0))
    answer = served.params(0, "?after=0&wait=10", If_None_Match=tag)
    assert answer.status_code == 200 and answer.headers["ETag"] != tag
    served.refused(served.params(0, "?wait=nan"), 422, "bad_request")
    served.refused(served.params(0, "?after=x"), 422, "bad_request")


def test_many_wait_for_a_round_while_others_are_served(serve) -> None:
    served = serve(clients=3)

    async def talk() -> list[httpx.Response]:
        bearer = {"Authorization": f"Bearer {TOKENS[0]}"}
        waiting = [
            asyncio.create_task(served.asking("GET", "/v1/params?after=0&wait=50", headers=bearer)) for _ in range(60)
        ]
        await asyncio.sleep(0.1)
        for place in range(3):
            assert not any(task.done() for task in waiting)
            body = parameters(2.0)
            headers = {
                "Authorization": f"Bearer {TOKENS[place]}",
                "Content-Type": wire.CONTENT_TYPE,
                wire.DIGEST_HEADER: wire.digest(body),
            }
            path = f"/v1/clients/{NAMES[place]}/weights/0"
            answer = await served.asking("PUT", path, content=body, headers=headers)
            assert answer.status_code == 200
        return await asyncio.gather(*waiting)

    began = time.monotonic()
    assert {answer.headers["X-Round"] for answer in asyncio.run(talk())} == {"1"}
    assert time.monotonic() - began < 20


def test_those_that_wait_are_let_go_when_the_server_stops(serve) -> None:
    served = serve(clients=1)

    async def talk() -> httpx.Response:
        bearer = {"Authorization": f"Bearer {TOKENS[0]}"}
        waiting = asyncio.create_task(served.asking("GET", "/v1/params?after=0&wait=50", headers=bearer))
        await asyncio.sleep(0.1)
        served.server.stop()
        return await waiting

    assert asyncio.run(talk()).status_code == 304


def test_tokens(serve) -> None:
    served = serve()
    before, body, path = served.holds(), parameters(2.0), "/v1/clients/site-0/weights/0"
    answer = served.put(0, "weights", 0, body, Authorization=None)
    served.refused(answer, 401, "unauthorised")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    for value in ("Bearer", "Bearer ", f"Basic {TOKENS[0]}", TOKENS[0], "Bearer x", f"Bearer {TOKENS[0]}x"):
        served.refused(served.put(0, "weights", 0, body, Authorization=value), 401, "unauthorised")
    served.refused(served.put(0, "weights", 0, body, token=TOKENS[1]), 403, "forbidden")
    served.refused(served.ask("PUT", path, content=bytes(10)), 401, "unauthorised")
    served.refused(served.ask("GET", "/v1/params"), 401, "unauthorised")
    served.clock.now += 25 * 3600
    served.refused(served.put(0, "weights", 0, body), 401, "expired")
    served.refused(served.params(0), 401, "expired")
    assert served.holds() == before
    assert served.join(0).json()["returning"] is True
    assert served.put(0, "weights", 0, body).status_code == 200


def test_joining(serve) -> None:
    served = serve(clients=2)
    assert served.join(1).json()["returning"] is True
    served.refused(served.join(1, token=TOKENS[2]), 403, "identity_taken")
    served.refused(served.join(2, agreement="0" * 64), 409, "bad_schema")
    served.refused(served.join(2, protocol=2), 409, "bad_protocol")
    served.refused(served.join(2, place=0), 409, "place_taken")
    for wrong in ({"place": 3}, {"place": "1"}, {"name": "../x"}, {"token": "short"}, {"more": 1}, {"name": None}):
        answer = served.join(2, **wrong)
        served.refused(answer, 422, "bad_request")
        assert "short" not in answer.text
    served.refused(served.ask("POST", "/v1/clients", content=b"{}"), 415, "content_type")
    assert served.join(2, place=2).status_code == 200
    served.refused(served.join(0, name="one-more", token="d" * 43), 409, "no_place_left")


def test_the_join_token_guards_joining_only(serve) -> None:
    served = serve(clients=0, join_token="open sesame")
    for answer in (served.join(0), served.join(0, join_token="open"), served.ask("GET", "/v1/config")):
        served.refused(answer, 401, "unauthorised")
    assert served.join(0, join_token="open sesame").status_code == 200
    assert served.put(0, "weights", 0, parameters(2.0)).status_code == 200
    assert served.ask("GET", "/v1/config", headers={"Authorization": "Bearer open sesame"}).status_code == 200


def test_rounds_that_are_not_open_and_numbers_that_are_not_new(serve) -> None:
    served = serve(clients=3)
    served.refused(served.put(0, "weights", 1, parameters(2.0)), 409, "future_round")
    for kind, body in KINDS.items():
        assert [served.put(0, kind, 0, body).json()["duplicate"] for _ in range(3)] == [False, True, True]
        for place in (1, 2):
            served.put(place, kind, 0, body)
    until(lambda: served.coordinator.round == 1)
    answer = served.put(0, "weights", 0, parameters(2.0))
    served.refused(answer, 409, "stale_round")
    assert answer.json()["round"] == 1
    for seq in (3, 1, 3):
        assert served.put(0, "transitions", seq, transitions(1.0)).status_code == 200
    for number in ("-1", "x", str(2**60)):
        path = f"/v1/clients/site-0/transitions/{number}"
        bearer = {"Authorization": f"Bearer {TOKENS[0]}"}
        served.refused(served.ask("PUT", path, content=b"", headers=bearer), 422, "bad_request")
    assert served.metric('dgfrl_uploads_total{kind="weights"}') == 3
    assert served.metric('dgfrl_uploads_total{kind="transitions"}') == 5
    assert served.metric('dgfrl_duplicates_total{kind="weights"}') == 2
    assert served.metric('dgfrl_duplicates_total{kind="transitions"}') == 3
    assert served.metric('dgfrl_sequence_gaps{client="site-0"}') == 2


def test_a_round_that_is_being_closed(serve, monkeypatch) -> None:
    served = serve(clients=3)
    close, begun, go_on = served.coordinator.half.close, threading.Event(), threading.Event()

    def slow(*arguments):
        begun.set()
        assert go_on.wait(10)
        return close(*arguments)

    monkeypatch.setattr(served.coordinator.half, "close", slow)
    for place in range(3):
        served.put(place, "weights", 0, parameters(2.0))
    assert begun.wait(10)
    # uploads are taken and questions answered while the server learns
    served.refused(served.put(0, "weights", 0, parameters(3.0)), 409, "round_closing")
    assert served.put(0, "transitions", 0, transitions(1.0)).status_code == 200
    assert served.params(0).headers["X-Round"] == "0"
    assert served.ask("GET", "/healthz").status_code == served.ask("GET", "/readyz").status_code == 200
    go_on.set()
    assert served.params(0, "?after=0&wait=10").headers["X-Round"] == "1"
    assert served.coordinator.store.backlog() == {0: 1}


def test_experience_is_refused_where_it_is_not_pooled(serve) -> None:
    served = serve(half=FakeHalf(pools=False))
    served.refused(served.put(0, "transitions", 0, transitions(1.0)), 409, "not_pooled")


def test_status_and_metrics(serve) -> None:
    served = serve(clients=3)
    served.put(0, "transitions", 2, transitions(1.0))
    for place in range(3):
        served.put(place, "weights", 0, parameters(2.0))
    until(lambda: served.coordinator.round == 1)
    served.put(1, "transitions", 0, transitions(1.0))
    served.params(0)
    status = served.ask("GET", "/v1/status").json()
    assert {key: status[key] for key in ("protocol", "round", "agents", "due", "trouble")} == {
        "protocol": 1,
        "round": 1,
        "agents": 3,
        "due": False,
        "trouble": None,
    }
    assert status["report"] == {"server/replay_size": 1.0, "arrived": 3.0}
    assert status["clients"][1] == {
        "client": "site-1",
        "place": 1,
        "expected": True,
        "arrived": False,
        "staleness": 0,
        "next_seq": 1,
        "gaps": 0,
        "backlog": 1,
    }
    sizes = 3 * len(parameters(2.0)) + 2 * len(transitions(1.0))
    for line, value in {
        "dgfrl_round": 1,
        "dgfrl_clients": 3,
        "dgfrl_replay_size": 1,
        'dgfrl_report{name="arrived"}': 3,
        "dgfrl_aggregation_seconds_count": 1,
        "dgfrl_pooled_uploads_total": 1,
        "dgfrl_received_bytes_total": sizes,
        "dgfrl_sent_bytes_total": len(parameters(2.0)),
        'dgfrl_staleness_rounds{client="site-0"}': 0,
        'dgfrl_backlog_uploads{client="site-1"}': 1,
        'dgfrl_rejected_total{reason="bad_digest"}': 0,
    }.items():
        assert served.metric(line) == value, line
    told = served.ask("GET", "/v1/status").text + served.ask("GET", "/metrics").text
    assert not any(token in told for token in TOKENS)


def test_paths_that_are_not_there(serve) -> None:
    served = serve()
    served.refused(served.ask("GET", "/v2/params"), 404, "not_found")
    served.refused(served.ask("POST", "/upload-weights"), 404, "not_found")
    served.refused(served.ask("DELETE", "/v1/params"), 405, "bad_method")
