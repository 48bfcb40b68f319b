"""A node over HTTP: what others may ask of it, and the loop in which it learns and averages. See `docs/peers.md`."""

import asyncio
import hmac
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
from fastapi import FastAPI, Path, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from starlette.concurrency import run_in_threadpool

from dynamic_graph_fed_rl.deployment import intake, wire
from dynamic_graph_fed_rl.deployment.gossiping import STATUS, Vector
from dynamic_graph_fed_rl.deployment.neighbours import (
    AGREEMENT_HEADER,
    RECIPIENT_HEADER,
    Mismatch,
    Neighbour,
    NotTaken,
    exchange,
)
from dynamic_graph_fed_rl.deployment.node import Node
from dynamic_graph_fed_rl.deployment.store import NotStored
from dynamic_graph_fed_rl.deployment.wire import Refused

# messages that are taken in at a time; a node has few neighbours
_AT_ONCE = 16
_RECEIVE_S = 60.0
_RETRY_AFTER_S = 1
# a node that waits for another's answer has it within milliseconds
_BUSY_TRIES, _BUSY_PAUSE_S = 8, 0.02
_POLL_S = 0.25

Number = Annotated[int, Path(ge=0, le=2**53)]
Name = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]


@runtime_checkable
class Learner(Protocol):
    """What happens at a node between two exchanges."""

    def work(self, vector: Vector, round: int) -> tuple[Vector, Mapping[str, float]]:
        """The parameters after a round that begins with these, and figures."""
        ...


class PeerMetrics:
    """What a node tells Prometheus about itself."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.received = self._counter("received", "Messages taken in, without duplicates.")
        self.duplicates = self._counter("duplicates", "Messages received before.")
        self.rejected = self._counter("rejected", "Messages refused.", "reason")
        self.received_bytes = self._counter("received_bytes", "Bodies of messages, as sent.")
        self.sent = self._counter("sent", "Messages sent, by what came of them.", "outcome")
        self._gauges = {
            name: Gauge(f"dgfrl_peer_{name}", text, registry=self.registry)
            for name, text in (
                ("round", "Rounds of learning done."),
                ("weight", "How much this node counts in the mean."),
                ("reserved", "Weight in messages without an answer."),
                ("open", "Messages without an answer."),
                ("neighbours_lost", "Neighbours that are only tried now and then."),
                ("trouble", "1 while the node's state cannot be stored."),
            )
        }
        for reason in STATUS:
            self.rejected.labels(reason)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"dgfrl_peer_{name}", text, labels, registry=self.registry)

    def text(self, status: Mapping[str, Any]) -> bytes:
        """All of them in Prometheus' text format."""
        for name, gauge in self._gauges.items():
            gauge.set(status[name] is not None if name == "trouble" else status[name])
        return generate_latest(self.registry)


class Peer:
    """A node, its neighbours, and what the two do in turn. `stop` ends it after the round under way."""

    def __init__(
        self,
        node: Node,
        neighbours: Sequence[Neighbour],
        token: str = "",
        patience: int = 3,
        max_body_bytes: int = 64 * 2**20,
        seed: int = 0,
    ):
        self.node, self.neighbours, self.metrics = node, neighbours, PeerMetrics()
        self.max_body_bytes = max_body_bytes
        self.token, self._patience, self._seed = token, patience, seed
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def close(self) -> None:
        for neighbour in self.neighbours:
            neighbour.close()
        self.node.close()

    def admit(self, request: Request) -> None:
        """Whoever sends must show the secret of the overlay, where there is one."""
        if self.token and not hmac.compare_digest(intake.bearer(request).encode(), self.token.encode()):
            raise Refused("unauthorised", "this is not the token of these nodes")

    def status(self) -> dict[str, Any]:
        lost = sum(one.failures >= self._patience for one in self.neighbours)
        return self.node.status() | {"neighbours": [one.url for one in self.neighbours], "neighbours_lost": lost}

    def gather(self, wait_s: float) -> list[str]:
        """Wait for all neighbours, at most `wait_s` seconds; returns what is wrong with those that are not there.

        Raises:
            Mismatch: one of them can never be a neighbour.
        """
        end, missing = time.monotonic() + wait_s, {one.url: "not asked yet" for one in self.neighbours}
        while missing and not self.stopping:
            for neighbour in self.neighbours:
                if neighbour.url not in missing:
                    continue
                try:
                    neighbour.greet()
                    del missing[neighbour.url]
                except NotTaken as error:
                    missing[neighbour.url] = str(error)
            if time.monotonic() > end:
                break
            if missing:
                self._stopping.wait(_POLL_S)
        return list(missing.values())

    def gossip(self, turn: int) -> str:
        """One message to a neighbour drawn by seed, place, round and `turn`; returns what came of it."""
        round = self.node.round
        due = [one for one in self.neighbours if one.due(round, self._patience)]
        if not due:
            return "nobody"
        drawn = np.random.default_rng([self._seed, self.node.place, round, turn]).integers(len(due))
        for left in reversed(range(_BUSY_TRIES)):
            outcome = exchange(self.node, due[drawn])
            if outcome != "busy" or not left or self.stopping:
                break
            # two that ask each other must not do so in step
            time.sleep(random.uniform(0, _BUSY_PAUSE_S * (_BUSY_TRIES - left)))
        self.metrics.sent.labels(outcome).inc()
        return outcome

    def run(
        self,
        learner: Learner,
        rounds: int,
        exchanges: int = 1,
        show: Callable[[int, Mapping[str, float], Sequence[str]], None] = lambda *_: None,
    ) -> None:
        """Learn and average until round `rounds`, or until `stop`; `show` gets the round, figures and outcomes."""
        node = self.node
        while node.round < rounds and not self.stopping:
            before = node.estimate
            after, figures = learner.work(before, node.round)
            while True:
                try:
                    sound = node.learned(before, after)
                    break
                except NotStored:
                    # what was learned is kept until the disk takes it again
                    if self._stopping.wait(_RETRY_AFTER_S):
                        return
            outcomes = [self.gossip(turn) for turn in range(exchanges)]
            show(node.round, figures, outcomes if sound else ["not_finite", *outcomes])

    def linger(self, wait_s: float) -> None:
        """Go on averaging until all neighbours that are there have finished too, at most `wait_s` seconds."""
        self.node.finished = True
        end = time.monotonic() + wait_s
        while not self.stopping:
            waiting = False
            for neighbour in self.neighbours:
                exchange(self.node, neighbour)
                try:
                    neighbour.greet()
                    waiting |= not neighbour.finished
                except (NotTaken, Mismatch):
                    pass
            if not waiting or time.monotonic() > end:
                return
            self._stopping.wait(_POLL_S)


def create_app(peer: Peer, receive_s: float = _RECEIVE_S) -> FastAPI:
    """What others may ask of a node; a body has `receive_s` seconds to arrive. The caller closes the peer."""
    app = FastAPI(title="dgfrl peer", openapi_url=None)
    # whoever ends the server ends the peer
    app.state.server = peer
    node, at_once = peer.node, asyncio.Semaphore(_AT_ONCE)

    def refused(error: Refused) -> JSONResponse:
        peer.metrics.rejected.labels(error.reason).inc()
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        if error.status in (429, 507):
            headers["Retry-After"] = str(_RETRY_AFTER_S)
        content = {"reason": error.reason, "detail": error.detail, "round": node.round}
        return JSONResponse(content, error.status, headers)

    intake.handle_errors(app, refused)

    @app.get("/v1/gossip")
    async def greeting(request: Request) -> dict[str, Any]:
        peer.admit(request)
        return node.greeting()

    @app.put("/v1/gossip/{sender}/{number}")
    async def message(sender: Name, number: Number, request: Request) -> Response:
        peer.admit(request)
        headers = request.headers
        if at_once.locked():
            raise Refused("too_many", f"{_AT_ONCE} messages are being taken in; come back")

        def take(sent: bytes) -> Response:
            body = wire.decoded(
                sent, headers.get(wire.DIGEST_HEADER), headers.get("content-encoding"), peer.max_body_bytes
            )
            to, agreement = headers.get(RECIPIENT_HEADER, ""), headers.get(AGREEMENT_HEADER, "")
            answer = node.receive(sender, number, to, agreement, body)
            (peer.metrics.duplicates if answer.duplicate else peer.metrics.received).inc()
            peer.metrics.received_bytes.inc(len(sent))
            if node.answer_schema is None:
                return JSONResponse({"number": number, "duplicate": answer.duplicate})
            packed = wire.pack(answer.arrays)
            return Response(packed, 200, {wire.DIGEST_HEADER: wire.digest(packed)}, wire.CONTENT_TYPE)

        async with at_once:
            sent = await intake.receive(request, wire.CONTENT_TYPE, peer.max_body_bytes, receive_s)
            return await run_in_threadpool(take, sent)

    @app.get("/v1/params")
    async def params(request: Request) -> Response:
        peer.admit(request)
        packed = wire.pack({wire.PARAMETERS: node.estimate})
        headers = {wire.DIGEST_HEADER: wire.digest(packed), "X-Round": str(node.round)}
        return Response(packed, 200, headers | {"Cache-Control": "private, no-cache"}, wire.CONTENT_TYPE)

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        content = {"status": "ready" if node.trouble is None else "trouble", "detail": node.trouble}
        return JSONResponse(content, 200 if node.trouble is None else 503)

    @app.get("/v1/status")
    async def status() -> dict[str, Any]:
        return peer.status()

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(peer.metrics.text(peer.status()), media_type=CONTENT_TYPE_LATEST)

    return app
