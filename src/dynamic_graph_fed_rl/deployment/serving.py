"""A server on a socket: where it may listen, TLS, and an end that cuts nobody off."""

import ipaddress
import signal
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import httpx
import uvicorn
from fastapi import FastAPI

from dynamic_graph_fed_rl.deployment.addresses import is_address, is_loopback
from dynamic_graph_fed_rl.deployment.settings import ServerSettings

# what is under way at the end gets so long [s]
_GRACE_S = 10
# between two rounds a client's connection is idle; longer than any it will be asked to wait
_KEEP_ALIVE_S = 75


class _Announced(uvicorn.Server):
    """Tells when it listens, and lets go of those that wait for the next round when it is asked to end."""

    def __init__(self, config: uvicorn.Config, listening: Callable[[], None], release: Callable[[], None]):
        super().__init__(config)
        self._listening, self._release = listening, release

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._release()
        # not remembered, or the signal would be raised again and end the process before the state folder is closed
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def run(app: FastAPI, settings: ServerSettings, tell: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; `tell` gets the address once it listens there.

    Raises:
        ValueError: an address that may not be listened at like this; names what is missing.
        OSError: the address is taken.
    """
    refuse_exposure(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.certfile or None,
        ssl_keyfile=settings.keyfile or None,
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GRACE_S,
    )
    ipv6 = is_address(settings.host) and ipaddress.ip_address(settings.host).version == 6
    address = (settings.host, settings.port)
    with socket.create_server(address, family=socket.AF_INET6 if ipv6 else socket.AF_INET) as listener:
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ipv6 else settings.host
        url = f"{'https' if settings.certfile else 'http'}://{host}:{port}"
        server = _Announced(config, lambda: tell(url), app.state.server.stop)
        server.run(sockets=[listener])


def refuse_exposure(settings: ServerSettings) -> None:
    """Other machines may only connect over TLS and with a join token, unless `insecure` says otherwise.

    Raises:
        ValueError: names what is missing.
    """
    if bool(settings.certfile) != bool(settings.keyfile):
        raise ValueError("certfile and keyfile: give both or neither")
    for path in (settings.certfile, settings.keyfile):
        if path and not Path(path).is_file():
            raise ValueError(f"{path}: no such file; TLS needs a certificate chain and its key as PEM files")
    if settings.insecure or is_loopback(settings.host):
        return
    missing = [
        f"--{option}"
        for option, value in (
            ("certfile", settings.certfile),
            ("keyfile", settings.keyfile),
            ("join-token-file", settings.join_token),
        )
        if not value
    ]
    if missing:
        raise ValueError(
            f"host {settings.host}: other machines could connect; give {', '.join(missing)}, "
            "or --insecure on a network where nobody listens"
        )


def wait_until_ready(url: str, timeout_s: float, verify: ssl.SSLContext | bool = True) -> None:
    """Return once the server at `url` says that it is ready.

    Raises:
        TimeoutError: it has not within `timeout_s` seconds.
    """
    end = time.monotonic() + timeout_s
    with httpx.Client(verify=verify, timeout=5.0) as client:
        while True:
            try:
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            if time.monotonic() > end:
                raise TimeoutError(f"{url}: not ready after {timeout_s:g} s")
            time.sleep(0.05)
