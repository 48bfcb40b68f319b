"""A server in the test's process, and what clients say to it; no socket is opened."""

import asyncio
import time
from pathlib import Path

import httpx
import numpy as np
from fake_half import FakeHalf, parameters, transitions

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
from dynamic_graph_fed_rl.deployment.server import create_app
from dynamic_graph_fed_rl.deployment.settings import ServerSettings

TOKENS = ["a" * 43, "b" * 43, "c" * 43]
NAMES = ["site-0", "site-1", "site-2"]
KINDS = {"weights": parameters(2.0), "transitions": transitions(2.0)}


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


class Served:
    """A server in this process, and what clients say to it."""

    def __init__(self, folder: Path, clients: int = 2, half: FakeHalf | None = None, **options):
        self.clock = Clock()
        self.coordinator = Coordinator(half or FakeHalf(), folder, ServerSettings(**options), "text", self.clock)
        self.app = create_app(self.coordinator, retry_s=0.02, receive_s=0.5)
        self.server = self.app.state.server
        for place in range(clients):
            assert self.join(place).status_code == 200

    def ask(self, method: str, path: str, **request) -> httpx.Response:
        return asyncio.run(self.asking(method, path, **request))

    async def asking(self, method: str, path: str, **request) -> httpx.Response:
        transport = httpx.ASGITransport(app=self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **request)

    def join(self, number: int, **changed) -> httpx.Response:
        asked = {
            "protocol": 1,
            "agreement": self.coordinator.agreement,
            "name": NAMES[number],
            "token": TOKENS[number],
        }
        bearer = changed.pop("join_token", None)
        headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
        return self.ask("POST", "/v1/clients", json=asked | changed, headers=headers)

    def put(
        self, place: int, kind: str, number: int, body: bytes, token: str | None = None, **headers: str | None
    ) -> httpx.Response:
        sent: dict[str, str | None] = {
            "Authorization": f"Bearer {token or TOKENS[place]}",
            "Content-Type": wire.CONTENT_TYPE,
            wire.DIGEST_HEADER: wire.digest(body),
        }
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        kept = {name: value for name, value in sent.items() if value is not None}
        return self.ask("PUT", f"/v1/clients/{NAMES[place]}/{kind}/{number}", content=body, headers=kept)

    def params(self, place: int, query: str = "", **headers: str) -> httpx.Response:
        sent = {"Authorization": f"Bearer {TOKENS[place]}"} | {k.replace("_", "-"): v for k, v in headers.items()}
        return self.ask("GET", f"/v1/params{query}", headers=sent)

    def metric(self, line: str) -> float:
        text = self.ask("GET", "/metrics").text
        return float(next(one for one in text.splitlines() if one.startswith(line + " ")).rpartition(" ")[2])

    def holds(self) -> tuple:
        """All that an upload could have changed."""
        store = self.coordinator.store
        return self.coordinator.round, store.weights(), store.backlog(), [c.highest for c in store.clients()]

    def refused(self, answer: httpx.Response, status: int, reason: str) -> None:
        assert (answer.status_code, answer.json()["reason"]) == (status, reason), answer.text
        assert set(answer.json()) == {"reason", "detail", "round"}
        assert answer.json()["round"] == self.coordinator.round
        assert self.metric(f'dgfrl_rejected_total{{reason="{reason}"}}') >= 1


def until(condition) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "did not come about"
        time.sleep(0.005)


def values(answer: httpx.Response) -> np.ndarray:
    """The parameters of an answer, whole."""
    assert answer.headers[wire.DIGEST_HEADER] == wire.digest(answer.content)
    return wire.unpack(answer.content, wire.parameters_schema(4))[wire.PARAMETERS]
