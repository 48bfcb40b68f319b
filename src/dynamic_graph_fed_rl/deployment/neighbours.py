"""What a node says to a neighbour over HTTP, and what it makes of the answers: done, not taken, or in doubt."""

import ssl
from pathlib import Path
from typing import Any

import httpx

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.addresses import check_address
from dynamic_graph_fed_rl.deployment.gossiping import STATUS, Arrays
from dynamic_graph_fed_rl.deployment.node import Node
from dynamic_graph_fed_rl.deployment.store import NotStored
from dynamic_graph_fed_rl.deployment.wire import Refused

RECIPIENT_HEADER, AGREEMENT_HEADER = "X-Recipient", "X-Agreement"
_CONNECT_S = 5.0


class NotTaken(Exception):
    """This attempt has changed nothing at the neighbour; `reason` is one of `STATUS`, or no_connection."""

    def __init__(self, reason: str, detail: str):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class InDoubt(Exception):
    """The attempt may have arrived, or may still do so."""


class Mismatch(ValueError):
    """The node at an address cannot be a neighbour; says why."""


class Neighbour:
    """The node at `url`, spoken to by one thread. `incarnation` is None until it is known who that is."""

    def __init__(
        self, url: str, node: Node, token: str = "", ca: Path | None = None, insecure: bool = False,
        answer_s: float = 30.0,
    ):  # fmt: skip
        local = check_address("neighbour", url, ca, insecure)
        self.url, self.failures, self.incarnation, self.finished = url, 0, None, False
        self._node = node
        answers = node.answer_schema
        self._longest_answer = 64 * 1024 + (0 if answers is None else 4 * node.size)
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            verify=True if ca is None else ssl.create_default_context(cafile=str(ca)),
            timeout=httpx.Timeout(answer_s, connect=_CONNECT_S),
            # on a connection left over from before, the end of the other side would be a doubt instead of a certainty
            limits=httpx.Limits(max_keepalive_connections=0),
            # a proxy stands between networks, never between this machine and itself
            trust_env=not local,
        )

    def close(self) -> None:
        self._http.close()

    def due(self, round: int, patience: int) -> bool:
        """Whether to send to it in this round: always, or now and then where it has not answered for long."""
        return self.failures < patience or round % patience == 0

    def greet(self) -> str:
        """Learn who is there.

        Raises:
            NotTaken: nobody, or nobody that answers.
            Mismatch: another kind of node.
        """
        self.incarnation = None
        try:
            told = httpx.Response(200, content=self._ask("GET", "/v1/gossip")).json()
            agrees = told["agreement"] == self._node.agreement and told["protocol"] == wire.PROTOCOL
            method, place, incarnation = str(told["method"]), int(told["place"]), str(told["incarnation"])
            finished = bool(told["finished"])
        except InDoubt as error:
            raise NotTaken("no_connection", str(error)) from error
        except (ValueError, KeyError, TypeError) as error:
            raise Mismatch(f"neighbour {self.url}: not a node of this kind ({error})") from error
        own = self._node
        if not agrees:
            raise Mismatch(
                f"neighbour {self.url}: it exchanges something else (its method is {method}, this node's is "
                f"{own.method}; else algorithm or sizes differ); start both with the same options"
            )
        if place == own.place:
            raise Mismatch(f"neighbour {self.url}: has place {place}, as this node; give each its own --place")
        self.incarnation, self.finished = incarnation, finished
        return incarnation

    def send(self, to: str, number: int, arrays: Arrays) -> Arrays:
        """A message and its answer.

        Raises:
            NotTaken: it was not taken in.
            InDoubt: nobody can tell.
        """
        body = wire.pack(arrays)
        headers = {
            "Content-Type": wire.CONTENT_TYPE,
            wire.DIGEST_HEADER: wire.digest(body),
            RECIPIENT_HEADER: to,
            AGREEMENT_HEADER: self._node.agreement,
        }
        path = f"/v1/gossip/{self._node.incarnation}/{number}"
        answer = self._ask("PUT", path, content=body, headers=headers)
        if self._node.answer_schema is None:
            return {}
        try:
            return wire.unpack(answer, self._node.answer_schema)
        except Refused as error:
            raise InDoubt(f"{self.url}: its answer: {error}") from error

    def _ask(self, method: str, path: str, **request: Any) -> bytes:
        try:
            with self._http.stream(method, path, **request) as answer:
                content = b""
                for chunk in answer.iter_bytes():
                    content += chunk
                    if len(content) > self._longest_answer:
                        raise InDoubt(f"{self.url}: its answer is longer than {self._longest_answer} bytes")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            # no connection, so that nothing has been sent
            raise NotTaken("no_connection", f"{self.url}: {error or type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise InDoubt(f"{self.url}: {error or type(error).__name__}") from error
        if answer.status_code == 200:
            stated = answer.headers.get(wire.DIGEST_HEADER)
            if stated is not None and stated != wire.digest(content):
                raise InDoubt(f"{self.url}: its answer is not what was sent")
            return content
        try:
            told = httpx.Response(answer.status_code, content=content).json()
            reason, detail = told["reason"], str(told["detail"])
        except (ValueError, KeyError, TypeError):
            reason, detail = "", answer.reason_phrase
        if STATUS.get(reason) != answer.status_code:
            # not from a node, but from something in front of it, or from one that failed within
            raise InDoubt(f"{self.url}: {answer.status_code} {detail[:200]}")
        raise NotTaken(reason, f"{self.url}: {detail[:500]}")


def exchange(node: Node, neighbour: Neighbour) -> str:
    """Send a neighbour one message, and make of its answer what can be; never raises for what happens on the way.

    Returns done, light (there is too little to halve), in_doubt, not_stored, mismatch, no_connection or another
    reason for which it was not taken.
    """
    try:
        to = neighbour.incarnation or neighbour.greet()
    except NotTaken as error:
        neighbour.failures += 1
        return error.reason
    except Mismatch:
        neighbour.failures += 1
        return "mismatch"
    try:
        offered = node.offer(to)
    except NotStored:
        return "not_stored"
    if offered is None:
        return "light"
    number, arrays = offered
    certain = False
    try:
        node.answered(to, number, neighbour.send(to, number, arrays))
    except NotTaken as error:
        outcome, certain = error.reason, True
    except (InDoubt, Refused):
        outcome = "in_doubt"
    except NotStored:
        outcome = "not_stored"
    else:
        neighbour.failures = 0
        return "done"
    try:
        node.failed(to, number, certain)
    except NotStored:
        # still open, and sent again
        outcome = "not_stored"
    if outcome != "busy":
        neighbour.failures += 1
        neighbour.incarnation = None
    return outcome
