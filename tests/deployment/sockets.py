"""Servers on real sockets of this machine, and connections that fail when they are told to."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI
from served import until


@contextmanager
def on_socket(app: FastAPI) -> Iterator[str]:
    """The address at which the app is served, in a thread, while the block runs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        app.state.server.stop()
        server.should_exit = True
        thread.join()
        listener.close()


class Troubled(httpx.BaseTransport):
    """A connection on which `before` and `after` may fail: they get the number of the request and the request."""

    def __init__(self, before: Callable | None = None, after: Callable | None = None):
        self._below = httpx.HTTPTransport()
        self._before, self._after = before, after
        self.seen: list[tuple[str, str, bytes]] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        number = len(self.seen)
        self.seen.append((request.method, request.url.path, request.read()))
        if self._before is not None:
            self._before(number, request)
        answer = self._below.handle_request(request)
        if self._after is not None:
            # the server has done its part
            answer.read()
            self._after(number, request)
        return answer

    def close(self) -> None:
        self._below.close()


class Time:
    """A clock that moves only when somebody sleeps."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
