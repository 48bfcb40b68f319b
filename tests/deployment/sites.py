"""Small federations of real learners over HTTP, and the same in one process to compare them with."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

import equinox as eqx
import httpx
import jax
import numpy as np
from sockets import on_socket

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.client import Client, Pace
from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
from dynamic_graph_fed_rl.deployment.halves import ServerHalf
from dynamic_graph_fed_rl.deployment.joining import Member
from dynamic_graph_fed_rl.deployment.outbox import Outbox
from dynamic_graph_fed_rl.deployment.server import create_app
from dynamic_graph_fed_rl.deployment.settings import ClientSettings, ServerSettings
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import Experiment, default_experiment
from dynamic_graph_fed_rl.training.site import InTurn
from dynamic_graph_fed_rl.training.trainer import Training

AGENTS, ROUNDS = 3, 3
_SMALL = {
    "agents": AGENTS,
    # of which only some are run; the learning rate falls to 0 over all of them
    "rounds": 12,
    "worlds": 2,
    "decisions_per_round": 8,
    "width": 8,
    "layers": 1,
    "time_limit": 20,
    "memory": "none",
}
_PPO = {"epochs": 1, "minibatches": 1}
_DQN = {
    "algorithm": "dqn",
    "updates": 2,
    "batch_size": 4,
    "warm_up": 8,
    "replay": 64,
    "steps": 2,
    "server_updates": 2,
    "update_delay": 2,
}


@cache
def experiment(federation: str) -> Experiment:
    learning = _PPO if federation == "server" else _DQN
    return default_experiment("cartpole", federation=federation, **_SMALL, **learning)


@cache
def half(federation: str) -> ServerHalf:
    return ServerHalf(experiment(federation))


@cache
def reference(federation: str) -> Training:
    """The state after all rounds, one agent after the other in this process."""
    trainer = half(federation).trainer
    training = trainer.init(stream_key(TRAINING_STREAM, experiment(federation).seed))
    for _ in range(ROUNDS):
        training, _ = InTurn(trainer).run_round(training)
    return training


def held_by(one: ServerHalf, training: Training) -> list[bytes]:
    """What each agent holds, as it would travel."""
    state = eqx.filter_eval_shape(one.init)
    assert state.held.shape == (one.agents, one.rows)
    algorithm = one.trainer.groups[0].algorithm
    leaves = jax.tree.leaves(jax.vmap(algorithm.shared)(training.learners[0]))
    rows = np.concatenate([np.asarray(leaf).reshape(one.agents, -1) for leaf in leaves], axis=1)
    return [row.tobytes() for row in rows.astype(np.float32)]


class Federation:
    """A server on a socket, and its members' folders."""

    def __init__(self, federation: str, folder: Path, url: str, coordinator: Coordinator):
        self.half, self.folder, self.url, self.coordinator = half(federation), folder, url, coordinator
        self.seed = experiment(federation).seed
        self.rows: dict[int, list[dict[str, Any]]] = {place: [] for place in range(AGENTS)}

    @contextmanager
    def member(self, place: int, transport: httpx.BaseTransport | None = None, pace: Pace | None = None, **settings):
        """The member at a place, where it left off."""
        folder = self.folder / f"site-{place}"
        folder.mkdir(exist_ok=True)
        kept = ClientSettings(**{"checkpoint_every": 1, **settings})
        outbox = Outbox(folder / "outbox.sqlite", kept.queue)
        client = Client(self.url, folder.name, str(place) * 40, tries=1, pace=pace, transport=transport)
        try:
            joined = client.join(wire.agreement(self.half.parameters_schema, self.half.experience_schema), place)
            told = self.rows[place].append
            deadline = self.coordinator.settings.deadline
            yield Member(client, self.half, self.seed, joined, deadline, folder, outbox, kept, told)
        finally:
            outbox.close()
            client.close()

    def all_take_part(self, works: Sequence[Callable[[], None]]) -> None:
        """Each in a thread of its own, to its end."""
        failures: list[BaseException] = []

        def run(work: Callable[[], None]) -> None:
            try:
                work()
            except BaseException as error:
                failures.append(error)

        threads = [Thread(target=run, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def plain(self, place: int) -> Callable[[], None]:
        def work() -> None:
            with self.member(place) as member:
                member.take_part(ROUNDS, lambda: False)

        return work

    def metrics(self) -> str:
        return httpx.get(f"{self.url}/metrics").text

    def held(self) -> list[bytes]:
        found = [self.coordinator.params(place) for place in range(AGENTS)]
        schema = self.half.parameters_schema
        return [wire.unpack(one.body, schema)[wire.PARAMETERS].tobytes() for one in found if one is not None]


@contextmanager
def federation(name: str, folder: Path, **options):
    folder.mkdir(exist_ok=True)
    coordinator = Coordinator(half(name), folder / "state", ServerSettings(**options), "experiment")
    try:
        with on_socket(create_app(coordinator)) as url:
            yield Federation(name, folder, url, coordinator)
    finally:
        coordinator.close()
