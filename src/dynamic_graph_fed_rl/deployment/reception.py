"""The coordinator over HTTP: who may speak, how much, and in which form. The protocol is in `docs/server.md`.

Everything that takes the coordinator's lock or a processor runs in a thread, so that the event loop only ever waits.
"""

import asyncio
import hmac
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
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


class Reception:
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


def read(form: type[Form], body: bytes) -> Form:
    """A JSON body of that form.

    Raises:
        Refused: bad_request.
    """
    try:
        return form.model_validate_json(body)
    except ValidationError as error:
        raise Refused("bad_request", intake.told(error.errors())) from error
