"""Nodes over real sockets: they average to the true mean, survive each other's end, and take in nothing unsound."""

import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.gossiping import METHODS, SUM, WEIGHT, Limits, PushSum
from dynamic_graph_fed_rl.deployment.neighbours import Mismatch, Neighbour, exchange
from dynamic_graph_fed_rl.deployment.node import Node
from dynamic_graph_fed_rl.deployment.peer import Peer, create_app
from dynamic_graph_fed_rl.deployment.peer_settings import PeerSettings

TOKEN = "a-secret-of-all-nodes-0123456789-abcd"
ALL = {place: tuple((place + i) % 5 for i in range(1, 5)) for place in range(5)}


class Still:
    """A learner that learns nothing; all wait for each other before every round."""

    def __init__(self, together: int = 1):
        self._barrier = threading.Barrier(together)

    def work(self, vector: np.ndarray, round: int) -> tuple[np.ndarray, dict[str, float]]:
        self._barrier.wait(timeout=60)
        return vector, {}


class Running:
    """A node that listens at a port of this machine, as in a process of its own."""

    def __init__(self, place: int, listener: socket.socket, urls: list[str], start: np.ndarray, **options):
        self.listener = listener
        method, folder = options.get("method", "push-sum"), options.get("folder")
        self.node = Node(method, start, place, "vectors", folder, Limits())
        neighbours = [Neighbour(url, self.node, TOKEN, answer_s=options.get("answer_s", 30.0)) for url in urls]
        self.peer = Peer(self.node, neighbours, TOKEN, max_body_bytes=100_000)
        config = uvicorn.Config(create_app(self.peer), log_level="warning", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self.thread.start()
        self.url = url_of(listener)

    def end(self) -> None:
        """Without a farewell."""
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()
        self.listener.close()
        self.peer.close()


def listening(port: int = 0) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen()
    return listener


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def nodes(method: str, starts: np.ndarray, overlay: dict[int, tuple[int, ...]], stack: ExitStack) -> list[Running]:
    listeners = [listening() for _ in starts]
    started = []
    for place, start in enumerate(starts):
        urls = [url_of(listeners[other]) for other in overlay[place]]
        one = Running(place, listeners[place], urls, start, method=method)
        stack.callback(one.end)
        started.append(one)
    return started


def average(running: list[Running], rounds: int) -> np.ndarray:
    """Estimates `[nodes, size]` after all have done so many further rounds at the same time."""
    still = Still(len(running))
    until = running[0].node.round + rounds
    threads = [threading.Thread(target=one.peer.run, args=(still, until)) for one in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(one.node.round == until for one in running)
    return np.stack([one.node.state.estimate for one in running])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


STARTS = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("method", METHODS)
def test_five_nodes_average_to_the_true_mean(method: str, stack: ExitStack) -> None:
    running = nodes(method, STARTS, ALL, stack)
    estimates = average(running, 40)
    np.testing.assert_allclose(estimates, np.tile(STARTS.mean(0), (5, 1)), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_four_agree_after_the_fifth_is_lost_for_good(method: str, stack: ExitStack) -> None:
    running = nodes(method, STARTS, ALL, stack)
    average(running, 2)
    stack.pop_all()
    survivors, lost = running[:4], running[4]
    lost.end()
    for one in survivors:
        stack.callback(one.end)
    totals = sum(one.node.state.vector for one in survivors), sum(one.node.state.mass for one in survivors)
    estimates = average(survivors, 45)
    np.testing.assert_allclose(estimates, np.tile(estimates[0], (4, 1)), atol=1e-6)
    # nothing was under way when it ended, so that nothing is reserved for it
    assert sum(one.node.state.mass for one in survivors) == totals[1]
    np.testing.assert_allclose(estimates[0], totals[0] / totals[1], atol=1e-6)
    assert any(one.peer.status()["neighbours_lost"] for one in survivors)


def test_a_directed_ring_reaches_the_true_mean(stack: ExitStack) -> None:
    running = nodes("push-sum", STARTS, {place: ((place + 1) % 5,) for place in range(5)}, stack)
    np.testing.assert_allclose(average(running, 85), np.tile(STARTS.mean(0), (5, 1)), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("killed", ["sender", "recipient", "both"])
def test_killed_between_taking_in_and_answering_nothing_counts_twice(
    method: str, killed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipient stores the message and answers nothing; whoever is killed comes back at the same address."""
    with ExitStack() as stack:
        listeners = [listening(), listening()]
        urls = list(map(url_of, listeners))
        ports = [one.getsockname()[1] for one in listeners]
        starts = STARTS[:2]

        def start(place: int, listener: socket.socket) -> Running:
            folder = tmp_path / str(place)
            return Running(place, listener, [urls[1 - place]], starts[place], method=method, folder=folder)

        pair = [start(place, listeners[place]) for place in range(2)]
        for place in range(2):
            stack.callback(lambda place=place: pair[place].end())
        receive = pair[1].node.receive
        with monkeypatch.context() as patch:

            def receive_and_fail(*message) -> None:
                receive(*message)
                raise RuntimeError("the power is off")

            patch.setattr(pair[1].node, "receive", receive_and_fail)
            assert exchange(pair[0].node, pair[0].peer.neighbours[0]) == "in_doubt"
        assert pair[0].node.status()["doubtful"] == 1
        for place in {"sender": [0], "recipient": [1], "both": [0, 1]}[killed]:
            pair[place].end()
            pair[place] = start(place, listening(ports[place]))
        for _ in range(3):
            assert exchange(pair[0].node, pair[0].peer.neighbours[0]) == "done"
        states = [one.node.state for one in pair]
        assert sum(state.mass for state in states) == 2.0
        np.testing.assert_allclose(sum(state.vector for state in states), starts.sum(0), atol=1e-12)
        assert not states[0].open


def test_a_node_that_lost_its_state_is_another_and_gets_no_old_half(stack: ExitStack) -> None:
    running = nodes("push-sum", STARTS[:2], {0: (1,), 1: (0,)}, stack)
    sender, (there,) = running[0].node, running[0].peer.neighbours
    to = there.greet()
    assert sender.offer(to) is not None
    sender.failed(to, 0, certain=False)
    stack.pop_all()
    stack.callback(running[0].end)
    port = running[1].listener.getsockname()[1]
    running[1].end()
    other = Running(1, listening(port), [running[0].url], STARTS[1])
    stack.callback(other.end)
    assert exchange(sender, there) == "other_node"
    assert exchange(sender, there) == "done"
    assert other.node.state.mass == 1.25, "half of what is left, and not what is reserved for the first"
    assert sender.state.reserved == 0.5 and sender.state.mass == 0.25


def body(**arrays: np.ndarray) -> bytes:
    return wire.pack({SUM: np.zeros(7, np.float32), WEIGHT: np.asarray([0.5])} | arrays)


@pytest.fixture(scope="module")
def one() -> Iterator[Running]:
    running = Running(0, listening(), ["http://127.0.0.1:9"], STARTS[0])
    yield running
    running.end()


def put(one: Running, sent: bytes, number: int = 0, **headers: str | None) -> httpx.Response:
    usual: dict[str, str | None] = {
        "Authorization": f"Bearer {TOKEN}",
        "Content-Type": wire.CONTENT_TYPE,
        wire.DIGEST_HEADER: wire.digest(sent),
        "X-Recipient": one.node.incarnation,
        "X-Agreement": one.node.agreement,
    }
    chosen = usual | {name.replace("_", "-"): value for name, value in headers.items()}
    kept = {name: value for name, value in chosen.items() if value is not None}
    return httpx.put(f"{one.url}/v1/gossip/{'ab' * 16}/{number}", content=sent, headers=kept, trust_env=False)


class Canary:
    """A pickle that leaves a file behind when it is read."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[Callable, tuple]:
        return Path.touch, (self._path,)


@pytest.mark.parametrize(
    ("sent", "headers", "status", "reason"),
    [
        (body(sum=np.asarray([0, 0, np.nan, 0, 0, 0, 0], np.float32)), {}, 422, "not_finite"),
        (body(sum=np.asarray([0, 0, np.inf, 0, 0, 0, 0], np.float32)), {}, 422, "not_finite"),
        (body(weight=np.asarray([np.nan])), {}, 422, "not_finite"),
        (body(weight=np.asarray([-0.5])), {}, 422, "norm"),
        (body(sum=np.full(7, 1e4, np.float32)), {}, 422, "norm"),
        (body(sum=np.zeros(8, np.float32)), {}, 422, "bad_shape"),
        (body(sum=np.zeros(7)), {}, 422, "bad_dtype"),
        (body(more=np.zeros(1)), {}, 422, "bad_names"),
        (body()[:-1], {}, 422, "not_safetensors"),
        (body(), {wire.DIGEST_HEADER: wire.digest(b"else")}, 422, "bad_digest"),
        (body(), {wire.DIGEST_HEADER: None}, 422, "bad_digest"),
        (body(), {"Authorization": None}, 401, "unauthorised"),
        (body(), {"Authorization": "Bearer guess"}, 401, "unauthorised"),
        (body(), {"Content_Type": "application/octet-stream"}, 415, "content_type"),
        (body(), {"Content_Encoding": "br"}, 415, "content_type"),
        (body(sum=np.zeros(30_000, np.float32)), {}, 413, "too_large"),
        (wire.compressed(bytes(10**7)), {"Content_Encoding": "zstd"}, 413, "too_large"),
        (body(), {"X_Recipient": "0" * 32}, 409, "other_node"),
        (body(), {"X_Agreement": "0" * 64}, 409, "bad_schema"),
    ],
)
def test_what_is_unsound_is_refused_and_changes_nothing(one, sent: bytes, headers, status: int, reason: str) -> None:
    answer = put(one, sent, **headers)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    state = one.node.state
    assert state.mass == 1.0 and isinstance(state, PushSum) and not state.taken
    np.testing.assert_array_equal(state.vector, STARTS[0])


def test_a_pickle_is_never_read(one, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for content_type in (wire.CONTENT_TYPE, "application/octet-stream"):
        answer = put(one, pickle.dumps(Canary(canary)), Content_Type=content_type)
        assert answer.status_code in (415, 422)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))
    assert canary.exists(), "the canary sings when it is read"


def test_insight_needs_no_token_and_parameters_do(one) -> None:
    with httpx.Client(base_url=one.url, trust_env=False) as client:
        assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
        status = client.get("/v1/status").json()
        assert status["weight"] == 1.0 and status["round"] == 0 and status["trouble"] is None
        assert client.get("/v1/params").status_code == client.get("/v1/gossip").status_code == 401
        shown = client.get("/v1/params", headers={"Authorization": f"Bearer {TOKEN}"})
        got = wire.unpack(shown.content, wire.parameters_schema(7))[wire.PARAMETERS]
        np.testing.assert_array_equal(got, STARTS[0].astype(np.float32))
        rejected = client.put(f"/v1/gossip/{'ab' * 16}/0").json()["reason"]
        text = client.get("/metrics").text
        assert rejected == "unauthorised" and 'dgfrl_peer_rejected_total{reason="unauthorised"}' in text
        assert "dgfrl_peer_weight 1.0" in text
        assert client.get("/nothing").json()["reason"] == "not_found"
        assert client.put("/v1/gossip/UPPER/0").json()["reason"] in ("bad_request", "unauthorised")


def test_nodes_that_cannot_be_neighbours_are_told_apart(one) -> None:
    for method, place, told in (("pairwise", 1, "method is push-sum"), ("push-sum", 0, "its own --place")):
        node = Node(method, STARTS[1], place, "vectors")
        there = Neighbour(one.url, node, TOKEN)
        with pytest.raises(Mismatch, match=told):
            there.greet()
        there.close()
        node.close()


def test_a_half_for_a_node_that_is_not_there_stays_with_its_sender() -> None:
    node, closed = Node("push-sum", STARTS[0], 0), listening()
    there = Neighbour(url_of(closed), node)
    closed.close()
    there.incarnation = "f" * 32
    assert exchange(node, there) == "no_connection"
    assert node.state.mass == 1.0 and not node.state.open
    there.failures = 3
    assert [there.due(round, patience=3) for round in range(4)] == [True, False, False, True]
    there.close()
    node.close()


def test_an_answer_that_does_not_come_leaves_a_doubt() -> None:
    node, silent = Node("push-sum", STARTS[0], 0), listening()
    there = Neighbour(url_of(silent), node, answer_s=0.2)
    there.incarnation = "f" * 32
    begun = time.monotonic()
    assert exchange(node, there) == "in_doubt"
    assert time.monotonic() - begun < 5
    assert node.state.mass == node.state.reserved == 0.5
    silent.close()
    there.incarnation = "f" * 32
    assert exchange(node, there) == "no_connection"
    assert node.state.reserved == 0.5, "the first attempt may still have arrived"
    there.close()
    node.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"listen": "5060"}, "HOST:PORT"),
        ({"listen": "127.0.0.1:70000"}, "HOST:PORT"),
        ({"place": -1}, "place"),
        ({"patience": 0}, "patience"),
        ({"wait_s": float("nan")}, "wait_s"),
    ],
)
def test_settings_that_cannot_be_are_named(options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PeerSettings(**options).check()


def test_neighbours_must_be_several_addresses_over_which_no_secret_leaks() -> None:
    for given in ("", "http://127.0.0.1:1,http://127.0.0.1:1/"):
        with pytest.raises(ValueError, match="neighbours"):
            PeerSettings(neighbours=given).urls  # noqa: B018 - the property checks
    node = Node("push-sum", STARTS[0])
    for url, told in (("ftp://a:1", "must be such as"), ("http://10.0.0.1:5060", "use https")):
        with pytest.raises(ValueError, match=told):
            Neighbour(url, node)
    Neighbour("http://10.0.0.1:5060", node, insecure=True).close()
    node.close()
