"""The coordinator over HTTP: who may speak, how much, and in which form. The protocol is in `docs/server.md`.

Everything that takes the coordinator's lock or a processor runs in a thread, so that the event loop only ever waits.
"""

import asyncio
import hmac
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.concurrency import run_in_threadpool

from dynamic_graph_fed_rl.deployment import intake, wire
from dynamic_graph_fed_rl.deployment.closing import Closer, News
from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
from dynamic_graph_fed_rl.deployment.metrics import Metrics
from dynamic_graph_fed_rl.deployment.wire import Refused, Schema

LONGEST_WAIT_S = 60.0
JSON = "application/json"
_LARGEST_JSON_BYTES = 64 * 1024
# one client cannot keep the others out
_UPLOADS_A_CLIENT = 4
_RETRY_AFTER_S = 1

Receipt = dict[str, Any]
Form = TypeVar("Form", bound=BaseModel)
# as large as JSON numbers are exact
Number = Annotated[int, Path(ge=0, le=2**53)]


class JoinRequest(BaseModel):
    """Who wants to join, and what it would exchange."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: int
    agreement: str
    name: str
    place: int | None = None
    token: str | None = None


class Server:
    """A coordinator, the thread that closes its rounds, and the intake of what clients send."""

    def __init__(self, coordinator: Coordinator, retry_s: float, receive_s: float):
        self.coordinator, self.settings = coordinator, coordinator.settings
        self.metrics, self.news = Metrics(), News()
        self.closer = Closer(coordinator, self._closed, retry_s)
        self.stopping = False
        self._receive_s, self._uploads = receive_s, Counter[int]()

    def _closed(self, closed: Any) -> None:
        self.metrics.closed(closed)
        self.news.tell()

    def stop(self) -> None:
        """Answer those that wait for the next round, so that the connections can end."""
        self.stopping = True
        self.news.tell()

    def admit(self, request: Request) -> None:
        """Whoever would join must show the join token, where there is one."""
        expected = self.settings.join_token
        if expected and not hmac.compare_digest(intake.bearer(request).encode(), expected.encode()):
            raise Refused("unauthorised", "this is not the join token")

    async def place_of(self, request: Request, client: str | None = None) -> int:
        """The place of the client that sends this."""
        return await run_in_threadpool(self.coordinator.authenticate, intake.bearer(request), client)

    async def json(self, request: Request, form: type[Form]) -> Form:
        """A short body of that form."""
        return read(form, await intake.receive(request, JSON, _LARGEST_JSON_BYTES, self._receive_s))

    async def upload(
        self, request: Request, place: int, kind: str, content_type: str, most: int, take: Callable[[bytes], Receipt]
    ) -> Receipt:
        """Receive a body of at most `most` bytes, hand it to `take` in a thread, and acknowledge."""
        if self._uploads.total() >= self.settings.max_uploads or self._uploads[place] >= _UPLOADS_A_CLIENT:
            raise Refused("too_many", f"{self._uploads.total()} uploads are being taken in; come back")
        self._uploads[place] += 1
        try:
            body = await intake.receive(request, content_type, most, self._receive_s)
            receipt = await run_in_threadpool(take, body)
        finally:
            self._uploads[place] -= 1
        self.metrics.taken(kind, receipt["duplicate"], len(body))
        if receipt.get("due"):
            self.closer.wake()
        return receipt

    async def upload_arrays(
        self, request: Request, place: int, kind: str, schema: Schema, take: Callable[[bytes], Receipt]
    ) -> Receipt:
        """The same for a safetensors body, which `take` gets decompressed."""
        stated, encoding = request.headers.get(wire.DIGEST_HEADER), request.headers.get("content-encoding")

        def decoded(body: bytes) -> Receipt:
            return take(wire.decoded(body, stated, encoding, schema.max_bytes))

        return await self.upload(request, place, kind, wire.CONTENT_TYPE, schema.max_bytes, decoded)

    async def next_params(self, place: int, after: int | None, wait_s: float) -> Any:
        """The client's parameters; None if within `wait_s` there are none of a later round than `after`."""
        with self.news.watch() as news:
            found = await run_in_threadpool(self.coordinator.params, place, after)
            if found is None and wait_s > 0 and not self.stopping:
                # a lease that lapses may make a round due without any message
                self.closer.wake()
                try:
                    await asyncio.wait_for(news.wait(), wait_s)
                except TimeoutError:
                    return None
                found = await run_in_threadpool(self.coordinator.params, place, after)
        return found

    def error(self, error: Refused) -> JSONResponse:
        self.metrics.rejected.labels(error.reason).inc()
        headers = {}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if error.status in (429, 507):
            headers["Retry-After"] = str(_RETRY_AFTER_S)
        content = {"reason": error.reason, "detail": error.detail, "round": self.coordinator.round}
        return JSONResponse(content, error.status, headers)


def create_app(coordinator: Coordinator, retry_s: float = 5.0, receive_s: float = 60.0) -> FastAPI:
    """The server of a coordinator, which the caller closes after it; `app.state.server` is its `Server`.

    It closes a round that is due again after `retry_s` seconds if it could not, and gives a body `receive_s` seconds
    to arrive.
    """
    server = Server(coordinator, retry_s, receive_s)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(server.closer.stop)

    app = FastAPI(title="dgfrl", openapi_url=None, lifespan=lifespan)
    app.state.server = server
    intake.handle_errors(app, server.error)
    _offer_exchange(app, server)
    _offer_insight(app, server)
    if coordinator.settings.aliases:
        from dynamic_graph_fed_rl.deployment.aliases import offer_aliases

        offer_aliases(app, server)
    if coordinator.due:
        server.closer.wake()
    return app


def _offer_exchange(app: FastAPI, server: Server) -> None:
    coordinator = server.coordinator

    @app.get("/v1/config")
    async def config(request: Request) -> dict[str, Any]:
        server.admit(request)
        return coordinator.config()

    @app.post("/v1/clients")
    async def join(request: Request) -> dict[str, Any]:
        server.admit(request)
        asked = await server.json(request, JoinRequest)
        joined = await run_in_threadpool(
            coordinator.join, asked.name, asked.agreement, asked.protocol, asked.token, asked.place
        )
        return asdict(joined) | {"config": coordinator.config()}

    @app.put("/v1/clients/{client}/weights/{rounds}")
    async def weights(client: str, rounds: Number, request: Request) -> dict[str, Any]:
        place = await server.place_of(request, client)

        def take(body: bytes) -> Receipt:
            return coordinator.upload_weights(place, rounds, body)

        return await server.upload_arrays(request, place, "weights", coordinator.half.parameters_schema, take)

    @app.put("/v1/clients/{client}/transitions/{seq}")
    async def transitions(client: str, seq: Number, request: Request) -> dict[str, Any]:
        place = await server.place_of(request, client)

        def take(body: bytes) -> Receipt:
            return coordinator.upload_transitions(place, seq, body)

        return await server.upload_arrays(request, place, "transitions", coordinator.pooled_schema, take)

    @app.get("/v1/params")
    async def params(
        request: Request, after: int | None = None, wait: Annotated[float, Query(ge=0, allow_inf_nan=False)] = 0.0
    ) -> Response:
        place = await server.place_of(request)
        found = await server.next_params(place, after, min(wait, LONGEST_WAIT_S))
        headers = {"X-Round": str(coordinator.round), "Cache-Control": "private, no-cache"}
        if found is None:
            return Response(None, 304, headers)
        tag = f'"{found.round}-{found.sha256[:16]}"'
        headers |= {"X-Round": str(found.round), "ETag": tag}
        if tag in request.headers.get("if-none-match", "").replace("W/", "").split(", "):
            return Response(None, 304, headers)
        server.metrics.sent_bytes.inc(len(found.body))
        headers[wire.DIGEST_HEADER] = found.sha256
        return Response(found.body, 200, headers, wire.CONTENT_TYPE)


def _offer_insight(app: FastAPI, server: Server) -> None:
    coordinator = server.coordinator

    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    async def ready() -> JSONResponse:
        trouble = coordinator.trouble
        content = {"status": "ready" if trouble is None else "trouble", "detail": trouble}
        return JSONResponse(content, 200 if trouble is None else 503)

    @app.get("/v1/status")
    async def status() -> dict[str, Any]:
        return await run_in_threadpool(coordinator.status)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        text = await run_in_threadpool(server.metrics.text, coordinator)
        return PlainTextResponse(text, media_type=CONTENT_TYPE_LATEST)


def read(form: type[Form], body: bytes) -> Form:
    """A JSON body of that form.

    Raises:
        Refused: bad_request.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise Refused("bad_request", intake.told(error.errors())) from error
