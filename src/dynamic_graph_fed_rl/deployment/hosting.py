"""`dgfrl serve`: a server's process, its run folder and, for trying things out, its clients beside it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
from rich.console import Console
from rich.table import Table

from dynamic_graph_fed_rl.deployment import serving
from dynamic_graph_fed_rl.deployment.coordinator import Closed, Coordinator
from dynamic_graph_fed_rl.deployment.halves import ServerHalf
from dynamic_graph_fed_rl.deployment.joining import INTERRUPTED
from dynamic_graph_fed_rl.deployment.server import create_app
from dynamic_graph_fed_rl.deployment.settings import ServerSettings
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import Experiment, to_yaml
from dynamic_graph_fed_rl.federation.sharing import from_vectors
from dynamic_graph_fed_rl.training import checkpoint, runs
from dynamic_graph_fed_rl.training.site import ServerState
from dynamic_graph_fed_rl.training.trainer import Trainer, Training

_LINES_A_RUN = 20
# a client that is asked to end finishes its lot of work and writes a checkpoint
_CLIENT_ENDS_S = 60
_DEV_GIVE_UP_MINUTES = 5


class Recorded(Coordinator):
    """A coordinator that keeps a run folder: a row of `metrics.jsonl` for every round it closes, and the policy.

    `tell` gets every row.
    """

    def __init__(
        self,
        half: ServerHalf,
        run: runs.RunFolder,
        experiment: Experiment,
        settings: ServerSettings,
        tell: Callable[[dict[str, Any]], None],
    ):
        self._run, self._asked, self._tell = run, experiment, tell
        self._trainer = half.trainer
        super().__init__(half, run.path, settings, to_yaml(experiment))
        rows = [(line, row) for line, row in runs.read_rows(run.metrics) if row["round"] <= self.round]
        self._steps = rows[-1][1]["env_steps"] if rows else 0
        checkpoint.write_whole(run.metrics, "".join(line for line, _ in rows).encode())
        self._since = time.perf_counter()

    def close_due(self) -> Closed | None:
        closed = super().close_due()
        if closed is not None:
            self._record(closed)
        return closed

    def _record(self, closed: Closed) -> None:
        now = time.perf_counter()
        worlds = self._trainer.groups[0].worlds
        each = self._trainer.decisions_per_round * worlds.copies * worlds.spec.steps_per_decision
        self._steps += each * len(closed.arrived)
        row = {
            "round": closed.round + 1,
            "env_steps": self._steps,
            "arrived": list(closed.arrived),
            "pooled": closed.pooled,
            "round_seconds": now - self._since,
            "closing_seconds": closed.seconds,
            **closed.report,
        }
        self._since = now
        with self._run.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if row["round"] == self._asked.rounds:
            self.write_policy()
        self._tell(row)

    def write_policy(self) -> None:
        """A checkpoint in the run folder, from which `dgfrl evaluate` takes the policy."""
        training = as_training(self._trainer, stream_key(TRAINING_STREAM, self._asked.seed), self._state)
        checkpoint.save(self._run.checkpoints, training, self.round, keep=2)


def as_training(trainer: Trainer, key: jax.Array, state: ServerState) -> Training:
    """A run's state as far as a server knows it: the agents with what they hold, else as they began."""
    begun = trainer.init(key)
    algorithm = trainer.groups[0].algorithm
    shared = [jax.vmap(algorithm.shared)(begun.learners[0])]
    held = from_vectors(state.held, shared, trainer.share)[0]
    learners = (jax.vmap(algorithm.with_shared)(begun.learners[0], held),)
    known = (state.key, state.round, learners, state.federation, state.server)
    return eqx.tree_at(
        lambda one: (one.key, one.round, one.learners, one.federation, one.server),
        begun,
        known,
        is_leaf=lambda leaf: leaf is None,
    )


def serve(
    experiment: Experiment,
    settings: ServerSettings,
    folder: Path | None = None,
    dev: bool = False,
    console: Console | None = None,
) -> int:
    """Serve until Ctrl-C, or with `dev` until all rounds are done by clients started here; returns the exit status.

    Without `folder` it is `runs/<environment>-<n>`, a new one. One that has served before goes on.

    Raises:
        ValueError: settings that cannot be, or a folder of another experiment or in use.
    """
    console = console or Console()
    serving.refuse_exposure(settings)
    half = ServerHalf(experiment)
    run = _run_folder(folder or runs.next_free(experiment.environment), experiment)
    rounds = experiment.rounds
    coordinator = Recorded(half, run, experiment, settings, lambda row: _tell_round(row, rounds, console))
    clients = _Clients(run.path, half.agents, settings) if dev else None

    def listening(url: str) -> None:
        console.print(f"Serving {url}; folder: {run.path}", soft_wrap=True, highlight=False)
        if coordinator.round:
            console.print(f"Going on after round {coordinator.round} of {rounds}.")
        if clients is not None:
            clients.start(url)
        else:
            secret = " --join-token-file FILE" if settings.join_token else ""
            console.print(
                f"Each of the {half.agents} clients: dgfrl join {url}{secret}", soft_wrap=True, highlight=False
            )

    try:
        _ends_like_interrupt(signal.SIGTERM)
        serving.run(create_app(coordinator), settings, listening)
    except KeyboardInterrupt:
        # this is how it ends
        pass
    finally:
        if clients is not None:
            clients.stop()
        coordinator.close()
    return _conclude(coordinator, run, rounds, clients, console)


def _conclude(
    coordinator: Recorded, run: runs.RunFolder, rounds: int, clients: "_Clients | None", console: Console
) -> int:
    _print_status(coordinator.status(), console)
    done = coordinator.round
    if clients is not None and clients.failed:
        console.print(f"[red]{clients.failed}[/]", soft_wrap=True)
        return 1
    if done < rounds:
        coordinator.write_policy()
        told = f"Stopped in round {done} of {rounds}; `dgfrl serve --state {run.path}` goes on."
        console.print(told, soft_wrap=True, highlight=False)
        return INTERRUPTED
    console.print(f"All rounds are done. The policy: dgfrl evaluate {run.path}", soft_wrap=True, highlight=False)
    return 0


def _run_folder(path: Path, experiment: Experiment) -> runs.RunFolder:
    if not (path / "config.yaml").is_file():
        return runs.create(path, experiment)
    run, stored = runs.open_run(path)
    difference = runs.first_difference(stored, experiment)
    if difference is not None:
        name, before, now = difference
        raise ValueError(f"{path}: {name} is {before} in this run, not {now}; another run needs another folder")
    return run


def _tell_round(row: dict[str, Any], rounds: int, console: Console) -> None:
    done = row["round"]
    if done % max(1, rounds // _LINES_A_RUN) == 0 or done == rounds:
        told = f"round {done}/{rounds}  {len(row['arrived'])} clients  closed in {row['closing_seconds']:.2f} s"
        console.print(told, highlight=False)


def _print_status(status: dict[str, Any], console: Console) -> None:
    table = Table(title=f"Round {status['round']}", title_justify="left")
    columns = ("client", "place", "staleness", "next_seq", "gaps", "backlog")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == "client" else "right")
    for client in status["clients"]:
        table.add_row(*(str(client[column]) for column in columns))
    console.print(table)


def _ends_like_interrupt(number: int) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(number, signal.default_int_handler)


class _Clients:
    """Clients of a server in the same process group's terminal, each a process with a folder of its own."""

    def __init__(self, folder: Path, agents: int, settings: ServerSettings):
        self._folder, self._agents, self._settings = folder / "sites", agents, settings
        self._running: dict[str, subprocess.Popen] = {}
        self.failed: str | None = None

    def start(self, url: str) -> None:
        """One for every place; once all have ended, so does this process's server."""
        environment = dict(os.environ)
        if self._settings.join_token:
            environment["DGFRL_JOIN_TOKEN"] = self._settings.join_token
        for place in range(self._agents):
            name = f"site-{place}"
            folder = self._folder / name
            folder.mkdir(parents=True, exist_ok=True)
            words = ["join", url, "--name", name, "--place", str(place), "--state", str(folder)]
            words += ["--give-up-minutes", str(_DEV_GIVE_UP_MINUTES), "--insecure"]
            words += ["--ca", self._settings.certfile] if self._settings.certfile else []
            with (folder / "log.txt").open("ab") as log:
                self._running[name] = subprocess.Popen(
                    [sys.executable, "-m", "dynamic_graph_fed_rl", *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    # Ctrl-C reaches them through this process, once the server has heard it
                    start_new_session=True,
                )
        threading.Thread(target=self._watch, name="watch-clients", daemon=True).start()

    def _watch(self) -> None:
        waiting = dict(self._running)
        while waiting and self.failed is None:
            time.sleep(0.1)
            for name, process in list(waiting.items()):
                status = process.poll()
                if status is not None:
                    del waiting[name]
                if status not in (None, 0, INTERRUPTED):
                    log = self._folder / name / "log.txt"
                    last = log.read_text(errors="replace").strip().splitlines()[-1:]
                    self.failed = f"{name} has ended with {status}: {' '.join(last)} ({log})"
        os.kill(os.getpid(), signal.SIGINT)

    def stop(self) -> None:
        """Ask all to end, and end those that do not."""
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        end = time.monotonic() + _CLIENT_ENDS_S
        for process in self._running.values():
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
