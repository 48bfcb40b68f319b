"""Taking in what arrives over HTTP: who sends it, whole and in time, and answers to what is refused."""

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from dynamic_graph_fed_rl.deployment.store import NotStored
from dynamic_graph_fed_rl.deployment.wire import Refused


def bearer(request: Request) -> str:
    """The token that a request shows.

    Raises:
        Refused: unauthorised.
    """
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Refused("unauthorised", "header Authorization: must be 'Bearer' and a token")
    return token.strip()


async def receive(request: Request, content_type: str, most: int, receive_s: float) -> bytes:
    """A body as sent, not longer than `most` bytes nor on its way for ever.

    Raises:
        Refused: content_type, too_large, too_slow or truncated.
    """
    sent_as = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent_as != content_type:
        raise Refused("content_type", f"Content-Type '{sent_as[:80]}': must be {content_type}")
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > most:
        raise Refused("too_large", f"{stated[:20]} bytes: must be at most {most}")
    body = bytearray()
    try:
        async with asyncio.timeout(receive_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise Refused("too_large", f"must be at most {most} bytes")
    except TimeoutError as error:
        raise Refused("too_slow", f"the body has not arrived within {receive_s:g} s") from error
    except ClientDisconnect as error:
        raise Refused("truncated", "the connection ended inside the body") from error
    if stated.isdecimal() and len(body) != int(stated):
        raise Refused("truncated", f"{len(body)} bytes of {stated} have arrived")
    return bytes(body)


def handle_errors(app: FastAPI, answer: Callable[[Refused], JSONResponse]) -> None:
    """Whatever is refused, here or by the framework, is answered in one form."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return answer(error)

    @app.exception_handler(NotStored)
    async def not_stored(request: Request, error: NotStored) -> JSONResponse:
        return answer(Refused("not_stored", "the disk takes nothing now; try again later"))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return answer(Refused("bad_request", told(error.errors())))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        reason = "bad_method" if error.status_code == 405 else "not_found"
        return answer(Refused(reason, f"{request.method} {request.url.path[:200]}: {error.detail}"))


def told(errors: Any) -> str:
    """What is wrong with a request, without what was in it: it may be a secret."""
    return "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in errors[:5])
