"""What a client says to a server over HTTP, and what it makes of the answers. The protocol is in `docs/server.md`.

Every request may be repeated: uploads are known by round or sequence number. What cannot be answered now raises
`Unavailable`, what will never be raises `NotAccepted`.
"""

import os
import random
import secrets
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from jaxtyping import Float

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.addresses import check_address
from dynamic_graph_fed_rl.deployment.members import Joined

_AGAIN = frozenset({400, 408, 429, 500, 502, 503, 504, 507})
_CONNECT_S, _ANSWER_S = 5.0, 60.0


class Unavailable(Exception):
    """No answer, or one that asks to come back after `asked_s` seconds: the same request may succeed later."""

    def __init__(self, detail: str, reason: str = "no_answer", asked_s: float = 0.0):
        super().__init__(detail)
        self.reason, self.asked_s = reason, asked_s


class NotAccepted(ValueError):
    """Refused for good: what was refused, `reason` as in `wire.STATUS`, and the round that is open at the server."""

    def __init__(self, what: str, status: int, reason: str, detail: str, open_round: int | None):
        super().__init__(f"the server does not accept {what}: {reason}: {detail} ({status})")
        self.status, self.reason, self.open_round = status, reason, open_round


@dataclass(frozen=True)
class Download:
    """The open round, and the parameters it begins with unless they are known already."""

    round: int
    parameters: Float[np.ndarray, " rows"] | None


class Pace:
    """When to try again: pauses that double with every failure in a row, each drawn between nothing and all of it.

    `longest_s` bounds them, but for what the server asks for.
    """

    def __init__(
        self,
        first_s: float = 0.25,
        longest_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
    ):
        self._first_s, self._longest_s = first_s, longest_s
        self._clock, self._sleep, self._draw = clock, sleep, draw
        self._failures, self._until = 0, -float("inf")

    def failed(self, asked_s: float = 0.0) -> None:
        """A request has failed; the server asks to leave it alone for `asked_s` seconds."""
        # beyond 2^30 any pause is longer than the longest
        pause = min(self._longest_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        self._until = self._clock() + asked_s + pause * self._draw()

    def succeeded(self) -> None:
        self._failures, self._until = 0, -float("inf")

    @property
    def left_s(self) -> float:
        """Seconds before the next try."""
        return max(0.0, self._until - self._clock())

    def rest(self, at_most_s: float = float("inf")) -> None:
        """Wait until the next try, or for `at_most_s` seconds of that."""
        if self.left_s > 0:
            self._sleep(min(self.left_s, at_most_s))


class Client:
    """One client of the server at `url`; its methods may be called from several threads.

    A request is tried `tries` times before it raises `Unavailable`; `pace` keeps count beyond that.

    Raises:
        ValueError: an address that is none, or one to which secrets would travel for all to read.
    """

    def __init__(
        self,
        url: str,
        name: str,
        token: str,
        join_token: str = "",
        ca: Path | None = None,
        insecure: bool = False,
        tries: int = 5,
        pace: Pace | None = None,
        transport: httpx.BaseTransport | None = None,
    ):
        local = check_address("url", url, ca, insecure)
        self.url, self.name, self.pace = url.rstrip("/"), name, pace or Pace()
        self._token, self._join_token, self._tries = token, join_token, tries
        self._http = httpx.Client(
            base_url=self.url,
            # certificates take long to load; without TLS there is nothing to verify
            verify=ssl.create_default_context(cafile=ca) if url.startswith("https") else False,
            timeout=httpx.Timeout(_ANSWER_S, connect=_CONNECT_S),
            transport=transport,
            # a proxy stands between networks, never between this machine and itself
            trust_env=not local,
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def config(self) -> dict[str, Any]:
        """What the server hands out to those who would join."""
        return self._json("a look at the configuration", "GET", "/v1/config", self._join_token)

    def join(self, agreement: str, place: int | None = None) -> Joined:
        """Become a member, or be known again; `agreement` is `wire.agreement` of what this side would exchange."""
        asked = {"protocol": wire.PROTOCOL, "agreement": agreement, "name": self.name, "token": self._token}
        answer = self._json(
            f"'{self.name}' as a client", "POST", "/v1/clients", self._join_token, json=asked | {"place": place}
        )
        fields = ("client", "token", "place", "round", "next_seq", "returning")
        return Joined(**{field: answer[field] for field in fields})

    def put_weights(self, rounds: int, parameters: Float[np.ndarray, " rows"]) -> dict[str, Any]:
        """Upload parameters for a round; the receipt says whether that closes it."""
        body = wire.pack({wire.PARAMETERS: parameters})
        return self._put(f"parameters of round {rounds}", f"weights/{rounds}", body, {})

    def put_transitions(self, seq: int, body: bytes) -> dict[str, Any]:
        """Upload experience, a safetensors body, under its sequence number; once this returns the server has it."""
        small = wire.compressed(body)
        encoding = {"Content-Encoding": "zstd"} if len(small) < len(body) else {}
        return self._put(f"experience {seq}", f"transitions/{seq}", small if encoding else body, encoding)

    def _put(self, what: str, path: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
        sent = {"Content-Type": wire.CONTENT_TYPE, wire.DIGEST_HEADER: wire.digest(body), **headers}
        path = f"/v1/clients/{self.name}/{path}"
        return self._json(what, "PUT", path, self._token, content=body, headers=sent)

    def params(self, schema: wire.Schema, after: int | None = None, wait_s: float = 0.0) -> Download:
        """What to go on with: at once, or of a later round than `after` within `wait_s` seconds."""
        query: dict[str, Any] = {} if after is None else {"after": after, "wait": wait_s}
        answer = self._ask(
            "a download of parameters",
            "GET",
            "/v1/params",
            self._token,
            _whole,
            params=query,
            timeout=httpx.Timeout(_ANSWER_S + wait_s, connect=_CONNECT_S),
        )
        found = None
        if answer.status_code != 304:
            found = wire.unpack(answer.content, schema)[wire.PARAMETERS]
        return Download(int(answer.headers["X-Round"]), found)

    def status(self) -> dict[str, Any]:
        """Where the federation stands."""
        return self._json("a look at the status", "GET", "/v1/status", "")

    def _json(self, what: str, method: str, path: str, token: str, **request: Any) -> dict[str, Any]:
        return self._ask(what, method, path, token, lambda answer: None, **request).json()

    def _ask(
        self,
        what: str,
        method: str,
        path: str,
        token: str,
        check: Callable[[httpx.Response], None],
        **request: Any,
    ) -> httpx.Response:
        headers = request.pop("headers", {}) | ({"Authorization": f"Bearer {token}"} if token else {})
        for left in reversed(range(self._tries)):
            self.pace.rest()
            try:
                answer = self._once(what, method, path, headers=headers, **request)
                check(answer)
            except Unavailable as error:
                if error.reason == "backlog":
                    # it empties with the rounds, not with time
                    raise
                self.pace.failed(error.asked_s)
                if not left:
                    raise
            else:
                self.pace.succeeded()
                return answer
        raise AssertionError("a client tries at least once")

    def _once(self, what: str, method: str, path: str, **request: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise ValueError(f"{self.url}: {error}; --ca FILE names the certificates to trust") from error
            raise Unavailable(f"{self.url}: {error or type(error).__name__}") from error
        if answer.status_code < 300 or answer.status_code == 304:
            return answer
        try:
            told = answer.json()
            reason, detail, open_round = told["reason"], str(told["detail"]), told["round"]
        except (ValueError, KeyError, TypeError):
            # not from our server, but from something in front of it
            reason, detail, open_round = "unknown", answer.reason_phrase, None
        if answer.status_code in _AGAIN or reason == "bad_digest":
            stated = answer.headers.get("Retry-After", "")
            asked_s = float(stated) if stated.isdecimal() else 0.0
            raise Unavailable(f"{what}: {reason}: {detail} ({answer.status_code})", reason, asked_s)
        raise NotAccepted(what, answer.status_code, reason, detail, open_round)


def _whole(answer: httpx.Response) -> None:
    """A download that is not what was sent may be asked for again."""
    if answer.status_code == 304:
        return
    try:
        wire.decoded(answer.content, answer.headers.get(wire.DIGEST_HEADER), None, len(answer.content))
    except wire.Refused as error:
        raise Unavailable(f"a download of parameters: {error}", error.reason) from error


def secret_in(path: Path) -> str:
    """The secret in a file that only its owner may read; a new one if there is no file."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(path.name + ".part")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_urlsafe(32))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    return read_secret(path)


def read_secret(path: Path) -> str:
    """The one line in a file.

    Raises:
        ValueError: others than its owner may read it, or it is empty.
    """
    if path.stat().st_mode & 0o077:
        raise ValueError(f"{path}: others may read this secret; chmod 600 it")
    secret = path.read_text().strip()
    if not secret:
        raise ValueError(f"{path}: must hold a secret, is empty")
    return secret
