"""The paths of the global server. The protocol is in `docs/server.md`."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import FastAPI, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict
from starlette.concurrency import run_in_threadpool

from dynamic_graph_fed_rl.deployment import intake, wire
from dynamic_graph_fed_rl.deployment.aliases import offer_aliases
from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
from dynamic_graph_fed_rl.deployment.reception import LONGEST_WAIT_S, Receipt, Reception

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


def create_app(coordinator: Coordinator, retry_s: float = 5.0, receive_s: float = 60.0) -> FastAPI:
    """The server of a coordinator, which the caller closes after it; `app.state.server` is its `Reception`.

    It closes a round that is due again after `retry_s` seconds if it could not, and gives a body `receive_s` seconds
    to arrive.
    """
    server = Reception(coordinator, retry_s, receive_s)

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
        offer_aliases(app, server)
    if coordinator.due:
        server.closer.wake()
    return app


def _offer_exchange(app: FastAPI, server: Reception) -> None:
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


def _offer_insight(app: FastAPI, server: Reception) -> None:
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
