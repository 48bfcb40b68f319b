"""A client's process: learn, send, wait for the next round's parameters, go on from them.

While the server cannot be reached the client goes on learning; what it would have sent waits on its disk. Killed at
any moment and started again, it is the same client and repeats no upload under another number.
"""

import json
import os
import platform
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from rich.console import Console

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.addresses import check_address
from dynamic_graph_fed_rl.deployment.client import (
    Client,
    Download,
    NotAccepted,
    Unavailable,
    read_secret,
    secret_in,
)
from dynamic_graph_fed_rl.deployment.halves import ServerHalf, named
from dynamic_graph_fed_rl.deployment.members import Joined
from dynamic_graph_fed_rl.deployment.outbox import Outbox
from dynamic_graph_fed_rl.deployment.settings import ClientSettings
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import from_yaml
from dynamic_graph_fed_rl.training import checkpoint, runs
from dynamic_graph_fed_rl.training.progress import Display, Stop
from dynamic_graph_fed_rl.training.site import Site, SiteState

INTERRUPTED = 130
# a download is asked for again after so long [s], so that Ctrl-C is heard
_POLL_S, _GLANCE_S = 5.0, 0.2
_MOST_HERE = 1000
_MOVED_ON = ("stale_round", "round_closing", "future_round")
_LAPSED = ("expired", "unauthorised")

Answer = TypeVar("Answer")
OnLot = Callable[[dict[str, Any]], None]


class Kept(eqx.Module):
    """What a client goes on from: its half of the round, how many lots of the round's work it has done, and the
    parameters after the last of them."""

    site: SiteState
    lots: Int[Array, ""]
    vector: Float[Array, " rows"]


class Member:
    """A client that has joined, with its half of the rounds and its folder.

    A round's work is done once, as a lot; further lots are done only while the server cannot be reached, at most
    `ahead`, or while it counts them to close a round without those who are late (`deadline`).
    """

    def __init__(
        self,
        client: Client,
        half: ServerHalf,
        seed: int,
        joined: Joined,
        deadline: int,
        folder: Path,
        outbox: Outbox,
        settings: ClientSettings,
        on_lot: OnLot,
    ):
        self._client, self._half, self._deadline, self._outbox = client, half, deadline, outbox
        self._settings, self._on_lot = settings, on_lot
        self._checkpoints, self._metrics = folder / "checkpoints", folder / "metrics.jsonl"
        self._place, self._key = joined.place, stream_key(TRAINING_STREAM, seed)
        self._site = Site.of(half.trainer, jnp.asarray(joined.place, jnp.int32))
        self._sent = self._due = self._lapsed = False
        # whether further lots bring the deadline nearer: what is the same as before does not count
        self._counted = True
        self._away_since: float | None = None
        outbox.begin_at(joined.next_seq)
        self._restore()
        if joined.round < self.round:
            self._begin_anew()
        elif joined.round > self.round and self._lots == 0:
            # nothing to send for a round that is over
            self._sent = self._due = True

    def _restore(self) -> None:
        like = eqx.filter_eval_shape(self._begun)
        found = checkpoint.newest(self._checkpoints, like, warnings.warn)
        kept = self._begun() if found is None else found[1]
        self._state, self._lots, self._vector = kept.site, int(kept.lots), np.asarray(kept.vector)
        self.round = int(self._state.round)
        rows = [(line, row) for line, row in runs.read_rows(self._metrics) if row["round"] <= self.round + 1]
        self._steps = rows[-1][1]["env_steps"] if rows else 0
        checkpoint.write_whole(self._metrics, "".join(line for line, _ in rows).encode())

    def _begun(self) -> Kept:
        return Kept(self._site.init(self._key), jnp.zeros((), jnp.int32), jnp.zeros(self._half.rows))

    def take_part(self, rounds: int, stopping: Callable[[], bool]) -> None:
        """Until so many rounds are done, or `stopping()`; then leaves a checkpoint.

        Raises:
            NotAccepted: the server refuses what it is sent; says what and why.
            ValueError: it could not be reached for as long as the settings allow.
        """
        while self.round < rounds and not stopping():
            if self._lots == 0 and not self._sent:
                self._work()
            self._exchange(stopping)
        self._save()

    @property
    def away(self) -> bool:
        """Whether the server could not be reached the last time."""
        return self._away_since is not None

    def _work(self) -> None:
        """A lot of work; its experience is queued, unless it was done only to count."""
        begun = time.perf_counter()
        lot = self._lots
        self._state, vector, told, figures = self._site.work(self._state, jnp.asarray(lot, jnp.int32))
        self._vector, figures = np.asarray(vector), jax.device_get(figures)
        tells = self._half.pools and (lot == 0 or self.away) and not self._outbox.has_told(self.round, lot)
        untold = tells and self._outbox.full
        if tells and not untold:
            arrays = {name: np.asarray(leaf) for name, leaf in named(told).items()}
            self._outbox.put(self.round, lot, wire.pack(arrays))
        self._lots, self._sent = lot + 1, False
        if lot == 0 and self.round % self._settings.checkpoint_every == 0:
            self._save()
        group = self._half.trainer.groups[0]
        steps = int(group.world_steps(jnp.ones(1, bool), self._half.trainer.decisions_per_round))
        figures |= {"world_steps": steps}
        row = runs.row_of(self.round + 1, self._steps, figures, time.perf_counter() - begun)
        self._steps = row["env_steps"]
        row |= {"lot": lot, "queued": len(self._outbox), "untold": untold, "away": self.away}
        with self._metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._on_lot(row)

    def _save(self) -> None:
        kept = Kept(self._state, jnp.asarray(self._lots, jnp.int32), jnp.asarray(self._vector))
        checkpoint.save(self._checkpoints, kept, self.round, keep=2)

    def _exchange(self, stopping: Callable[[], bool]) -> None:
        """Send what there is to send, and take the next round's parameters if it has begun."""
        try:
            if self._lapsed:
                self._rejoin()
            self._send_experience()
            self._send_weights()
            overtime = self._deadline > 0 and self._counted and not self._due
            wait_s = 0.0 if overtime else _POLL_S
            found = self._client.params(self._half.parameters_schema, self.round, wait_s)
        except Unavailable:
            self._do_without(stopping)
            return
        except NotAccepted as error:
            if error.reason not in _LAPSED or self._lapsed:
                raise
            self._lapsed = True
            return
        self._away_since, self._lapsed = None, False
        if found.round < self.round:
            self._begin_anew()
        elif found.parameters is not None:
            self._receive(found)
        elif overtime:
            self._work()

    def _send_experience(self) -> None:
        while (upload := self._outbox.first()) is not None:
            try:
                self._client.put_transitions(*upload)
            except Unavailable as error:
                if error.reason == "backlog":
                    return
                raise
            self._outbox.drop(upload[0])

    def _send_weights(self) -> None:
        if self._sent:
            return
        try:
            receipt = self._client.put_weights(self.round, self._vector)
            self._due, self._counted = receipt["due"], self._lots == 1 or not receipt["duplicate"]
        except NotAccepted as error:
            if error.reason not in _MOVED_ON:
                raise
            self._due = True
        self._sent = True

    def _receive(self, found: Download) -> None:
        received, rounds = jnp.asarray(found.parameters), jnp.asarray(found.round, jnp.int32)
        self._state = self._site.receive(self._state, received, rounds)
        self.round, self._lots, self._sent, self._due = found.round, 0, False, False

    def _begin_anew(self) -> None:
        """The server is at an earlier round than it was: somebody has put it back."""
        self._outbox.forget_rounds()
        self._state = self._site.init(self._key)
        self.round, self._lots, self._sent, self._due = 0, 0, False, False
        try:
            self._receive(self._client.params(self._half.parameters_schema))
        except Unavailable:
            # its round is learned when it answers
            return

    def _rejoin(self) -> None:
        schemas = self._half.parameters_schema, self._half.experience_schema
        joined = self._client.join(wire.agreement(*schemas), self._place)
        self._outbox.begin_at(joined.next_seq)
        self._sent = False

    def _do_without(self, stopping: Callable[[], bool]) -> None:
        """Learn on, or rest, until it is time to try again."""
        now = time.monotonic()
        self._away_since = self._away_since or now
        most_s = 60 * self._settings.give_up_minutes
        if 0 < most_s < now - self._away_since:
            raise ValueError(f"{self._client.url}: not reached for {self._settings.give_up_minutes:g} minutes")
        while self._client.pace.left_s > 0 and not stopping():
            waits = self._half.pools and self._outbox.full
            if self._lots <= self._settings.ahead and not waits:
                self._work()
            else:
                self._client.pace.rest(_GLANCE_S)


def join(url: str, settings: ClientSettings, console: Console | None = None) -> int:
    """Join the server at `url` and take part until its rounds are done; returns the exit status.

    The first Ctrl-C ends after the lot that is being worked on, with a checkpoint; a second one ends at once.

    Raises:
        ValueError: settings that cannot be, a folder of another federation, or what the server refuses for good.
    """
    console = console or Console()
    for name, least in (("checkpoint_every", 1), ("queue", 1), ("ahead", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} {getattr(settings, name)}: must be at least {least}")
    check_address("url", url, settings.ca, settings.insecure)
    secret = join_token(settings.join_token_file)
    name, folder, outbox = _seat(settings)
    try:
        token = secret_in(settings.token_file or folder / "token")
        with Client(url, name, token, secret, settings.ca, settings.insecure, tries=1) as client, Stop() as stop:
            return _join(client, settings, folder, outbox, stop, console)
    finally:
        outbox.close()


def _seat(settings: ClientSettings) -> tuple[str, Path, Outbox]:
    """Name, folder and queue of this client; where no name is given, the first of this machine's that is not in use.

    Raises:
        ValueError: another process uses the folder.
    """
    machine = re.sub(r"[^A-Za-z0-9._-]", "-", platform.node())[:56] or "site"
    names = [settings.name] if settings.name else [machine, *(f"{machine}-{n}" for n in range(2, _MOST_HERE))]
    for name in names:
        folder = settings.state or Path("sites") / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return name, folder, Outbox(folder / "outbox.sqlite", settings.queue)
        except ValueError:
            if settings.state or name == names[-1]:
                raise
    raise AssertionError("there is at least one name")


def _join(
    client: Client, settings: ClientSettings, folder: Path, outbox: Outbox, stop: Stop, console: Console
) -> int:
    config = _reached(client, client.config, stop, console)
    if config["protocol"] != wire.PROTOCOL:
        raise ValueError(f"{client.url}: speaks protocol {config['protocol']}, this version {wire.PROTOCOL}")
    _remember(folder, config["experiment"])
    experiment = from_yaml(folder / "config.yaml")
    half = ServerHalf(experiment)
    agreement = wire.agreement(half.parameters_schema, half.experience_schema)
    joined = _reached(client, lambda: client.join(agreement, settings.place), stop, console)
    console.print(
        f"{'Back' if joined.returning else 'Joined'} as {joined.client}, place {joined.place} of {half.agents}; "
        f"folder: {folder}",
        soft_wrap=True,
    )
    display = Display(console, experiment.rounds, half.trainer.groups[0].worlds.spec.costs)
    last: dict[str, Any] = {}

    def show(row: dict[str, Any]) -> None:
        last.update(row)
        display.update(row)

    member = Member(client, half, experiment.seed, joined, config["deadline"], folder, outbox, settings, show)
    with display.running(member.round):
        member.take_part(experiment.rounds, lambda: stop.asked)
    told = f"{joined.client}: {member.round} of {experiment.rounds} rounds"
    if last:
        told += f"; the last: {display.figures(last)}"
    console.print(told, soft_wrap=True)
    if member.round < experiment.rounds:
        console.print(
            f"Stopped; the checkpoint is saved. The same command goes on from it ({folder}).", soft_wrap=True
        )
        return INTERRUPTED
    console.print("All rounds are done; the policy is in the server's run folder.")
    return 0


def join_token(path: Path | None) -> str:
    """The secret that a server asks of those who join; empty where it asks none."""
    return read_secret(path) if path is not None else os.environ.get("DGFRL_JOIN_TOKEN", "")


def _reached(client: Client, ask: Callable[[], Answer], stop: Stop, console: Console) -> Answer:
    """The answer, however often it must be asked for."""
    said = False
    while True:
        try:
            return ask()
        except Unavailable as error:
            if not said:
                console.print(f"{error}; trying again until it answers", soft_wrap=True, highlight=False)
            said = True
        while client.pace.left_s > 0:
            if stop.asked:
                raise KeyboardInterrupt
            client.pace.rest(_GLANCE_S)


def _remember(folder: Path, experiment: str) -> None:
    """The experiment that this folder takes part in, in which it began.

    Raises:
        ValueError: it has begun in another one.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        checkpoint.write_whole(path, experiment.encode())
    elif path.read_text() != experiment:
        raise ValueError(f"{folder}: has taken part in another experiment; name another folder with --state")
