"""The command `dgfrl peer`: an owner's half of an experiment at a node that averages with its neighbours."""

import json
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Console

from dynamic_graph_fed_rl.deployment import serving
from dynamic_graph_fed_rl.deployment.addresses import check_address, is_loopback
from dynamic_graph_fed_rl.deployment.client import read_secret
from dynamic_graph_fed_rl.deployment.gossiping import Limits, Vector
from dynamic_graph_fed_rl.deployment.neighbours import Neighbour
from dynamic_graph_fed_rl.deployment.node import Node
from dynamic_graph_fed_rl.deployment.peer import Peer, create_app
from dynamic_graph_fed_rl.deployment.peer_settings import PeerSettings
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import Experiment, build, default_experiment
from dynamic_graph_fed_rl.training import checkpoint, runs
from dynamic_graph_fed_rl.training.progress import Display
from dynamic_graph_fed_rl.training.site import Site, SiteState
from dynamic_graph_fed_rl.training.trainer import Training

INTERRUPTED = 130
_KEPT = 2


class SiteLearner:
    """`peer.Learner` of the owner at `place`, with its optimiser, replay and worlds.

    `alone` is the experiment of a run with this agent only, of which `training` is a state.

    Raises:
        ValueError: the experiment cannot be divided among nodes; says why.
    """

    def __init__(self, experiment: Experiment, place: int):
        _refuse(experiment, place)
        experiment = replace(experiment, federation="independent")
        self.alone = replace(experiment, agents=1)
        self._site = Site.of(build(experiment).trainer, jnp.asarray(place, jnp.int32))
        self._state = self._site.init(stream_key(TRAINING_STREAM, experiment.seed))
        self._federation = build(self.alone).trainer.federation.init(self._rows())
        self.start: Vector = np.asarray(self._rows()[0])
        self.costs = self._site.group.worlds.spec.costs

    def _rows(self) -> Float[Array, "1 size"]:
        return self._site.vector(self._state.learners)[None]

    def work(self, vector: Vector, round: int) -> tuple[Vector, dict[str, Any]]:
        self.go_on(vector, round)
        self._state, after, _, figures = self._site.work(self._state, jnp.zeros((), jnp.int32))
        steps = self._site.group.world_steps(jnp.ones(1, bool), self._site.decisions)
        return np.asarray(after), jax.device_get(figures) | {"world_steps": int(steps)}

    def go_on(self, vector: Vector, round: int) -> None:
        """Begin that round with these parameters."""
        self._state = self._site.receive(self._state, jnp.asarray(vector), jnp.asarray(round, jnp.int32))

    def training(self) -> Training:
        own = self._state
        return Training(own.key, own.round, (own.learners,), (own.actors,), self._federation)

    def restore(self, training: Training) -> None:
        """Go on from a `training` that was kept."""
        self._state = SiteState(training.key, training.round, training.learners[0], training.actors[0])


def _refuse(experiment: Experiment, place: int) -> None:
    if experiment.federation != "gossip":
        raise ValueError(f"federation '{experiment.federation}': peers have no server; theirs is gossip")
    if place >= experiment.agents:
        raise ValueError(f"place {place}: must be below --agents, {experiment.agents}")
    usual = default_experiment(experiment.environment, algorithm=experiment.algorithm).exchange
    for one in fields(usual):
        value = getattr(experiment.exchange, one.name)
        if one.name != "share" and value != getattr(usual, one.name):
            raise ValueError(f"{one.name} {value!r}: has no meaning for a peer, whose neighbours are its overlay")


class _Record:
    """A node's folder, in the form of a run folder; nothing is kept without one."""

    def __init__(self, folder: Path | None, learner: SiteLearner, console: Console):
        self._run, self._learner, self._steps = None, learner, 0
        if folder is None:
            return
        if (folder / "config.yaml").is_file():
            self._run, stored = runs.open_run(folder)
            if stored != learner.alone:
                raise ValueError(f"{folder}: has taken part in another experiment; use another folder")
            like = jax.eval_shape(learner.training)
            found = checkpoint.newest(self._run.checkpoints, like, lambda text: console.print(text))
            if found is not None:
                learner.restore(found[1])
            rows = runs.read_rows(self._run.metrics)
            self._steps = rows[-1][1]["env_steps"] if rows else 0
        else:
            self._run = runs.create(folder, learner.alone)

    def add(self, round: int, figures: Mapping[str, Any], outcomes: Sequence[str], seconds: float) -> dict[str, Any]:
        row = runs.row_of(round, self._steps, figures, seconds)
        rejected = sum(outcome not in ("done", "light", "no_connection") for outcome in outcomes)
        row |= {"outcomes": list(outcomes), "federation/rejected": rejected}
        self._steps = row["env_steps"]
        if self._run is not None:
            with self._run.metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def keep(self, round: int) -> None:
        if self._run is not None:
            checkpoint.save(self._run.checkpoints, self._learner.training(), round, _KEPT)


def peer(experiment: Experiment, settings: PeerSettings, console: Console | None = None) -> int:
    """Listen, learn and average until the rounds are done; returns the exit status.

    The first Ctrl-C ends after the round under way; the same command goes on from the state folder.

    Raises:
        ValueError: settings that cannot be, a folder of another node, or a neighbour that cannot be one.
        OSError: the address is taken.
    """
    console = console or Console()
    settings.check()
    token = "" if settings.token_file is None else read_secret(settings.token_file)
    listening = settings.serving(token)
    if not (token or settings.insecure or is_loopback(listening.host)):
        raise ValueError(f"listen {settings.listen}: other machines could send; give --token-file, or --insecure")
    serving.refuse_exposure(listening)
    urls = settings.urls
    for url in urls:
        check_address("neighbour", url, settings.ca, settings.insecure)
    learner = SiteLearner(experiment, settings.place)
    record = _Record(settings.state, learner, console)
    limits = Limits(settings.max_norm_factor, float(experiment.agents))
    title = f"{experiment.algorithm} {experiment.exchange.share}"
    node = Node(settings.method, learner.start, settings.place, title, settings.state, limits)
    neighbours = [Neighbour(url, node, token, settings.ca, settings.insecure) for url in urls]
    own = Peer(node, neighbours, token, settings.patience, settings.max_body_bytes, experiment.seed)
    try:
        _serve(own, learner, record, experiment, settings, console)
        learner.go_on(node.estimate, node.round)
        record.keep(node.round)
    finally:
        own.close()
    done = node.round >= experiment.rounds
    console.print(f"{node.round} of {experiment.rounds} rounds", highlight=False)
    if settings.state is not None:
        told = f"dgfrl evaluate {settings.state}" if done else "the same command goes on from there"
        console.print(f"Folder: {settings.state}; {told}", soft_wrap=True, highlight=False)
    return 0 if done else INTERRUPTED


def _serve(
    own: Peer, learner: SiteLearner, record: _Record, experiment: Experiment, settings: PeerSettings, console: Console
) -> None:
    """Answer in this thread and learn in another, until that has ended."""
    display = Display(console, experiment.rounds, learner.costs)
    failures: list[BaseException] = []
    last = time.perf_counter()

    def show(round: int, figures: Mapping[str, Any], outcomes: Sequence[str]) -> None:
        nonlocal last
        now = time.perf_counter()
        display.update(record.add(round, figures, outcomes, now - last))
        last = now
        if round % settings.checkpoint_every == 0:
            record.keep(round)

    def live() -> None:
        try:
            for trouble in own.gather(settings.wait_s):
                console.print(f"Goes on without a neighbour: {trouble}", soft_wrap=True, highlight=False)
            with display.running(own.node.round):
                own.run(learner, experiment.rounds, settings.exchanges, show)
            if not own.stopping:
                own.linger(settings.wait_s)
        except BaseException as error:  # noqa: BLE001 - raised again where the command can tell it
            failures.append(error)
        finally:
            if not own.stopping:
                # the server listens in the main thread, where signals arrive
                signal.raise_signal(signal.SIGTERM)

    living = threading.Thread(target=live, name="learn", daemon=True)

    def tell(url: str) -> None:
        node = own.node
        console.print(f"Node {node.place} of {experiment.agents} at {url}, {node.method}", soft_wrap=True)
        living.start()

    serving.run(create_app(own), settings.serving(own.token), tell)
    own.stop()
    if living.ident is not None:
        living.join()
    if failures:
        raise failures[0]
