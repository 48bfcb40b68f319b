"""An exchange over loopback HTTP: ours beside base64(gzip(pickle)) inside JSON, and ours under load.

    python benchmarks/http_exchange.py

One client sends 1 MiB of float32 parameters, the round closes, and it takes the next ones. Ours is the server and the
client that `dgfrl serve` and `dgfrl join` run, which check what comes, flush it to the disk before it is acknowledged
and write a snapshot at the end of a round; once with the state on the disk and once in memory (/dev/shm), where the
other side has it. That side pickles arrays, or lists of numbers. It trusts both its ends, listens on loopback only,
and is for this measurement alone. Then many clients of ours at once send experience and parameters of 4 KiB for some
rounds; every upload must be counted once.
"""

import base64
import gzip
import pickle
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import tyro
from measure import Claim, Noise, claim_from_repeats, interleave, print_claims, ratios, use_one_thread, write_results

ROWS = 262_144
LOAD_ROWS = 1_024
MEMORY = Path("/dev/shm")
TOKEN = "benchmark-token-of-more-than-32-characters"


@dataclass(frozen=True)
class Options:
    """What to measure."""

    repeats: int = 9
    """Turns that each side takes."""
    exchanges: int = 5
    """Exchanges in a turn."""
    clients: tuple[int, ...] = (50, 500)
    """Clients at once under load, run after run."""
    rounds: tuple[int, ...] = (10, 2)
    """Rounds of each of these runs."""
    serve: tuple[str, ...] = ()
    """Be a server instead, in a process of its own: its kind, clients and folder."""


class Mean:
    """A server's half without learning: parameters are averaged, experience is counted and added up."""

    def __init__(self, agents: int, rows: int, pools: bool):
        from dynamic_graph_fed_rl.deployment.wire import ArraySpec, Schema, parameters_schema

        self.agents, self.rows, self.pools = agents, rows, pools
        self.parameters_schema = parameters_schema(rows)
        experience = Schema("experience", (ArraySpec("reward", (rows,), "float32"),))
        self.experience_schema = experience if pools else None

    def init(self) -> dict[str, np.ndarray]:
        held = np.zeros((self.agents, self.rows), np.float32)
        return {"held": held, "pooled": np.zeros((), np.float32), "rewards": np.zeros((), np.float32)}

    def held(self, state: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.asarray(state["held"])

    def decode(self, batches: Sequence[Mapping[str, np.ndarray] | None]) -> list[float]:
        return [float(batch["reward"][0]) for batch in batches if batch is not None]

    def close(
        self, state: Mapping[str, np.ndarray], own: np.ndarray, arrived: np.ndarray, experience: list[float] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        rewards = experience or []
        mean = own[arrived].mean(0, dtype=np.float32)
        pooled = np.asarray(state["pooled"]) + np.float32(len(rewards))
        total = np.asarray(state["rewards"]) + np.float32(sum(rewards))
        new = {"held": np.where(arrived[:, None], mean, self.held(state)), "pooled": pooled, "rewards": total}
        return new, {"pooled": float(pooled), "rewards": float(total)}


def serve(kind: str, clients: int, folder: Path) -> None:
    """A server of either side until it is told to end; prints its address."""
    if kind == "pickled":
        import uvicorn

        config = uvicorn.Config(pickled_app(), port=0, log_level="warning", access_log=False)
        server = uvicorn.Server(config)

        def tell() -> None:
            while not server.started:
                time.sleep(0.01)
            print(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", flush=True)

        threading.Thread(target=tell, daemon=True).start()
        server.run()
        return
    from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
    from dynamic_graph_fed_rl.deployment.server import create_app
    from dynamic_graph_fed_rl.deployment.serving import run
    from dynamic_graph_fed_rl.deployment.settings import ServerSettings

    settings = ServerSettings(port=0, max_norm_factor=0.0)
    half = Mean(clients, ROWS if kind == "ours" else LOAD_ROWS, kind == "load")
    run(create_app(Coordinator(half, folder, settings)), settings, lambda url: print(url, flush=True))


def pickled_app() -> Any:
    """A server that keeps one client's parameters in memory, pickled on the way."""
    from fastapi import FastAPI
    from pydantic import BaseModel

    app = FastAPI()
    state: dict[str, Any] = {"parameters": None}

    class Upload(BaseModel):
        weights: str

    @app.post("/upload-weights")
    def upload(sent: Upload) -> dict[str, str]:
        state["parameters"] = opened(sent.weights)
        return {"status": "ok"}

    @app.get("/download-params")
    def download() -> dict[str, str]:
        return {"params": wrapped(state["parameters"])}

    return app


def wrapped(parameters: Any) -> str:
    return base64.b64encode(gzip.compress(pickle.dumps(parameters))).decode()


def opened(text: str) -> Any:
    # both ends are this file's own
    return pickle.loads(gzip.decompress(base64.b64decode(text)))


class Running:
    """A server in a process of its own."""

    def __init__(self, kind: str, clients: int, folder: Path):
        words = [sys.executable, __file__, "--serve", kind, str(clients), str(folder)]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        if not self.url:
            raise RuntimeError(f"the server '{kind}' has not started")

    def cpu_seconds(self) -> float:
        """Of the server and this process together."""
        import os

        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + time.process_time()


@contextmanager
def running(kind: str, clients: int, under: Path | None = None) -> Iterator[Running]:
    with tempfile.TemporaryDirectory(dir=under) as folder:
        server = Running(kind, clients, Path(folder))
        try:
            yield server
        finally:
            server.process.terminate()
            server.process.communicate()


class Counted(httpx.HTTPTransport):
    """Counts the bytes of bodies, both ways."""

    bytes = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        self.bytes += len(request.read()) + len(answer.read())
        return answer


def ours(server: Running, transport: Counted) -> Callable[[np.ndarray], np.ndarray]:
    from dynamic_graph_fed_rl.deployment import wire
    from dynamic_graph_fed_rl.deployment.client import Client

    client = Client(server.url, "site-0", TOKEN, transport=transport)
    client.join(client.config()["agreement"])
    schema, rounds = wire.parameters_schema(ROWS), 0

    def exchange(parameters: np.ndarray) -> np.ndarray:
        nonlocal rounds
        client.put_weights(rounds, parameters)
        found = client.params(schema, rounds, 60.0)
        assert found.parameters is not None
        rounds = found.round
        return found.parameters

    return exchange


def pickled(server: Running, transport: Counted) -> Callable[[np.ndarray], np.ndarray]:
    client = httpx.Client(base_url=server.url, timeout=60.0, transport=transport)

    def exchange(parameters: Any) -> Any:
        client.post("/upload-weights", json={"weights": wrapped(parameters)}).raise_for_status()
        return opened(client.get("/download-params").json()["params"])

    return exchange


def pickled_lists(server: Running, transport: Counted) -> Callable[[np.ndarray], np.ndarray]:
    exchange: Callable[[Any], Any] = pickled(server, transport)
    return lambda parameters: np.asarray(exchange(parameters.tolist()), np.float32)


def turns(options: Options, noise: Noise) -> dict[str, list[dict[str, float]]]:
    """Exchanges of both sides in turns, each checked."""
    random = np.random.default_rng(0)

    def side(
        server: Running,
        make: Callable[..., Callable[[np.ndarray], np.ndarray]],
        exchanges: int = options.exchanges,
    ) -> Callable[[], dict[str, float]]:
        transport = Counted()
        exchange = make(server, transport)

        def turn() -> dict[str, float]:
            seconds, before, cpu = [], transport.bytes, server.cpu_seconds()
            for _ in range(exchanges):
                parameters = (0.05 * random.standard_normal(ROWS)).astype(np.float32)
                begun = time.perf_counter()
                received = exchange(parameters)
                seconds.append(time.perf_counter() - begun)
                np.testing.assert_array_equal(received, parameters)
            each = 1 / exchanges
            return {
                "seconds": statistics.median(seconds),
                "cpu_seconds": (server.cpu_seconds() - cpu) * each,
                "bytes": (transport.bytes - before) * each,
            }

        exchange(np.zeros(ROWS, np.float32))
        return turn

    with ExitStack() as servers:
        start = lambda kind, under=None: servers.enter_context(running(kind, 1, under))  # noqa: E731
        sides = {"disk": side(start("ours"), ours)}
        if MEMORY.is_dir():
            sides["memory"] = side(start("ours", MEMORY), ours)
        sides["arrays"] = side(start("pickled"), pickled)
        samples = interleave(sides, options.repeats, noise)
        # seconds an exchange: once is enough
        samples["lists"] = [side(start("pickled"), pickled_lists, exchanges=1)()]
        return samples


def load(clients: int, rounds: int) -> list[Claim]:
    """Many clients at once: whether each upload counted once, and how long it took to be acknowledged."""
    from dynamic_graph_fed_rl.deployment import wire
    from dynamic_graph_fed_rl.deployment.client import Client

    schema = wire.parameters_schema(LOAD_ROWS)
    latencies: list[float] = []
    wrong: list[str] = []

    def work(number: int, url: str) -> None:
        def timed(upload: Callable[[], Any]) -> None:
            begun = time.perf_counter()
            upload()
            latencies.append(time.perf_counter() - begun)

        try:
            with Client(url, f"site-{number}", f"{number:05d}{TOKEN}", tries=50) as client:
                client.join(client.config()["agreement"], number)
                for one in range(rounds):
                    told = wire.pack({"reward": np.full(LOAD_ROWS, number + 1.0, np.float32)})
                    timed(lambda seq=one, body=told: client.put_transitions(seq, body))
                    sent = np.full(LOAD_ROWS, float(number + one), np.float32)
                    timed(lambda at=one, vector=sent: client.put_weights(at, vector))
                    while (found := client.params(schema, one, 30.0)).parameters is None:
                        pass
                    expected = one + (clients - 1) / 2
                    if found.round != one + 1 or not np.allclose(found.parameters, expected):
                        wrong.append(f"site-{number} round {one}: {found.round}, {found.parameters[0]}")
        except Exception as error:
            wrong.append(f"site-{number}: {error}")

    with running("load", clients) as server:
        begun = time.perf_counter()
        threads = [threading.Thread(target=work, args=(number, server.url)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        status = httpx.get(f"{server.url}/v1/status", timeout=60.0).json()
        metrics = httpx.get(f"{server.url}/metrics", timeout=60.0).text
    uploads = clients * rounds
    counted = status["report"]["pooled"]
    exact = not wrong and status["report"]["rewards"] == rounds * clients * (clients + 1) / 2
    told = [(one["next_seq"], one["gaps"], one["backlog"]) for one in status["clients"]]
    exact = exact and counted == uploads and told == [(rounds, 0, 0)] * clients and status["round"] == rounds
    turned_away = next(
        float(line.split()[-1]) for line in metrics.splitlines() if 'rejected_total{reason="too_many"}' in line
    )
    details = {
        "clients": clients,
        "rounds": rounds,
        "seconds": seconds,
        "uploads_a_second": 2 * uploads / seconds,
        "told_to_come_back": turned_away,
        "trouble": wrong[:5],
    }
    cut = sorted(latencies)
    several = {"low": cut[0], "high": cut[-1], "interval": "fastest and slowest upload", "details": details}
    lost = 0.0 if exact else abs(uploads - counted) + len(wrong) + 1.0
    return [
        Claim(
            f"{clients} clients: uploads lost, counted twice or mixed up",
            lost,
            lost,
            lost,
            "uploads",
            "exact",
            bar=0,
            direction="at most",
            details=details,
        ),
        Claim(f"{clients} clients: upload acknowledged, median", statistics.median(cut), unit="s", **several),
        Claim(
            f"{clients} clients: upload acknowledged, 99th percentile", cut[int(0.99 * len(cut))], unit="s", **several
        ),
    ]


def main(options: Options) -> None:
    if options.serve:
        kind, clients, folder = options.serve
        serve(kind, int(clients), Path(folder))
        return
    core = use_one_thread()
    noise = Noise()
    samples = turns(options, noise)
    details = {"core": core, "bytes_of_parameters": 4 * ROWS, "exchanges": options.exchanges}
    claims = []
    for where in [name for name in ("disk", "memory") if name in samples]:
        for clock, name in (("seconds", "wall"), ("cpu_seconds", "CPU")):
            claims.append(
                claim_from_repeats(
                    f"1 MiB up and down, state {'on the' if where == 'disk' else 'in'} {where}: speed over "
                    f"base64(gzip(pickle(arrays))) in JSON, {name} time",
                    ratios(samples["arrays"], samples[where], clock),
                    "x",
                    bar=10.0,
                    details=details,
                )
            )
    theirs, mine = samples["lists"], statistics.median(one["seconds"] for one in samples["disk"])
    claims.append(
        claim_from_repeats(
            "1 MiB up and down, state on the disk: speed over base64(gzip(pickle(lists))) in JSON, wall time",
            [one["seconds"] / mine for one in theirs],
            "x",
            bar=10.0,
            details=details,
        )
    )
    for what in ("arrays", "lists"):
        size = samples["disk"][0]["bytes"] / samples[what][0]["bytes"]
        claims.append(
            Claim(
                f"bytes of bodies over pickled {what}", size, size, size, "x", "exact", bar=0.81, direction="at most"
            )
        )
    claims += [
        claim_from_repeats(f"an exchange, {name}", [1e3 * one["seconds"] for one in rows], "ms")
        for name, rows in samples.items()
    ]
    for clients, rounds in zip(options.clients, options.rounds, strict=True):
        claims += load(clients, rounds)
        noise.sample()
    print_claims("Exchange over loopback HTTP", claims, noise)
    write_results("http_exchange", claims, noise)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
