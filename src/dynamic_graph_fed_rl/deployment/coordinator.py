"""The server's state machine: who is in, what has been uploaded, when a round closes, what each goes on with.

All that clients send comes through here, under one lock; the learning itself runs beside it, so that uploads go on
while a round is aggregated. Nothing depends on the order in which the uploads of a round arrive, nor on seconds.
"""

import statistics
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, PyTree

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.half import ServerSide
from dynamic_graph_fed_rl.deployment.members import Joined, Members
from dynamic_graph_fed_rl.deployment.settings import ServerSettings
from dynamic_graph_fed_rl.deployment.store import WINDOW, NotStored, Store, Waiting
from dynamic_graph_fed_rl.deployment.wire import Refused, Schema
from dynamic_graph_fed_rl.training import checkpoint

# snapshots that stay: the one in use, and the next while it is not in use yet
_KEPT = 2
# updates whose sizes say what is usual, and how many of them must be known before they do
_NORMS, _FEWEST_NORMS = 64, 8
# a federation that has all but converged must still admit a client that moves on: share of the parameters' own size
_LEAST_USUAL = 1e-3


@dataclass(frozen=True)
class Parameters:
    """What a client goes on with: a body to send, and its digest."""

    round: int
    body: bytes
    sha256: str


@dataclass(frozen=True)
class Closed:
    """A round that has been closed: who was in it, how long it took [s] and what the learning reports."""

    round: int
    arrived: tuple[int, ...]
    pooled: int
    seconds: float
    report: dict[str, float]


class Coordinator:
    """A server's state in `folder`, opened where it was left. Its methods may be called from any thread.

    `experiment` is the text from which clients build their half; `clock` gives wall time [s], for leases only.

    Raises:
        ValueError: settings that cannot be, or a folder that is in use or belongs to another federation.
    """

    def __init__(
        self,
        half: ServerSide,
        folder: Path,
        settings: ServerSettings,
        experiment: str = "",
        clock: Callable[[], float] = time.time,
    ):
        _refuse_contradictions(settings, half.agents)
        self.half, self.settings, self.experiment = half, settings, experiment
        self.agreement = wire.agreement(half.parameters_schema, half.experience_schema)
        self._members = Members(half.agents, settings.lease_hours * 3600, clock)
        self._lock, self._closing = threading.Lock(), threading.Lock()
        self._trouble: dict[str, str] = {}
        self._last: Closed | None = None
        self.store = Store(folder, self.agreement)
        try:
            self._restore()
        except BaseException:
            self.store.close()
            raise

    def _restore(self) -> None:
        state = self.half.init()
        if self.store.round is None:
            self.store.open_round(0, self._written(state, 0))
        else:
            self.store.snapshot()
            found = checkpoint.newest(self.store.snapshots, state, warnings.warn)
            if found is None or found[0] != self.store.round:
                raise ValueError(f"{self.store.snapshots}: the snapshot of round {self.store.round} is damaged")
            state = found[1]
        self._members.all |= {client.place: client for client in self.store.clients()}
        self._waiting = self.store.waiting()
        self._backlog = self.store.backlog()
        self._norms = self.store.norms
        self._move(self.store.round or 0, state)

    def _written(self, state: PyTree, to: int) -> Path:
        return self.store.write_snapshot(lambda folder, rounds: checkpoint.save(folder, state, rounds, _KEPT), to)

    def _move(self, to: int, state: PyTree) -> None:
        self._round, self._state = to, state
        self._held = np.asarray(self.half.held(state), np.float32)
        self._bodies: dict[int, Parameters] = {}

    def close(self) -> None:
        """Let go of the state folder, once a round that is being closed has been."""
        with self._closing, self._lock:
            self.store.close()

    @property
    def round(self) -> int:
        """The open round."""
        return self._round

    @property
    def trouble(self) -> str | None:
        """Why the server cannot do all of its work now, if so."""
        return "; ".join(list(self._trouble.values())) or None

    def config(self) -> dict[str, Any]:
        """What a client must know to build its half."""
        return {
            "protocol": wire.PROTOCOL,
            "experiment": self.experiment,
            "agreement": self.agreement,
            "agents": self.half.agents,
            "pools": self.half.pools,
            "quorum": self.settings.quorum or self.half.agents,
            "deadline": self.settings.deadline,
        }

    def join(
        self, name: str, agreement: str, protocol: int, token: str | None = None, place: int | None = None
    ) -> Joined:
        """A place for a client: the one it has, the one it asks for, or the lowest that is free.

        Raises:
            Refused: bad_protocol, bad_schema, bad_request, identity_taken, place_taken or no_place_left.
            NotStored: the disk is full.
        """
        if protocol != wire.PROTOCOL:
            raise Refused("bad_protocol", f"protocol {protocol}: this server speaks {wire.PROTOCOL}")
        if agreement != self.agreement:
            raise Refused("bad_schema", "other parameters or experience than this federation's; see /v1/config")
        with self._lock:
            client, token, returning = self._members.admitted(name, token, place, self._round)
            self._kept("upload", lambda: self.store.put_client(client))
            self._members.all[client.place] = client
            return Joined(name, token, client.place, self._round, client.highest + 1, returning)

    def authenticate(self, token: str, name: str | None = None) -> int:
        """The place of the client whose token this is, which must be `name`'s if that is given; renews its lease.

        Raises:
            Refused: unauthorised, expired or forbidden.
        """
        with self._lock:
            return self._members.authenticate(token, name)

    def upload_weights(self, place: int, rounds: int, body: bytes) -> dict[str, Any]:
        """Take a client's parameters for the open round; on the disk when this returns. Returns the receipt.

        Raises:
            Refused: the body is not as agreed, its round is not open, or it has moved too far.
            NotStored: the disk is full.
        """
        vector = wire.unpack(body, self.half.parameters_schema)[wire.PARAMETERS]
        raw = vector.tobytes()
        sha256 = wire.digest(raw)
        with self._lock:
            before = self._waiting.get(place)
            if rounds == self._round and before is not None and before.sha256 == sha256:
                return {"round": rounds, "duplicate": True, "ticks": before.ticks, "due": self._is_due()}
            if rounds != self._round:
                reason = "stale_round" if rounds < self._round else "future_round"
                raise Refused(reason, f"round {rounds}: round {self._round} is open; download its parameters")
            if self._is_due():
                raise Refused("round_closing", f"round {rounds} is closing; download the parameters after it")
            norm = self._checked_norm(place, vector)
            waiting = Waiting(place, sha256, 0 if before is None else before.ticks + 1, norm)
            lease = self._members[place].lease_until
            self._kept("upload", lambda: self.store.put_weights(waiting, raw, lease))
            self._waiting[place] = waiting
            return {"round": rounds, "duplicate": False, "ticks": waiting.ticks, "due": self._is_due()}

    def _checked_norm(self, place: int, vector: Float[np.ndarray, " rows"]) -> float:
        """Length of the update; a length of no precedent is refused."""
        held = self._held[place]
        with np.errstate(over="ignore"):
            norm, size = _length(vector - held), _length(held)
        usual = size
        if len(self._norms) >= _FEWEST_NORMS:
            usual = max(statistics.median(self._norms), _LEAST_USUAL * size)
        limit = self.settings.max_norm_factor * usual
        if 0 < limit < norm:
            raise Refused("norm", f"the parameters have moved by {norm:.3g}, must be at most {limit:.3g}")
        return norm

    @property
    def pooled_schema(self) -> Schema:
        """What a client uploads of its experience.

        Raises:
            Refused: not_pooled.
        """
        if self.half.experience_schema is None:
            raise Refused("not_pooled", "this federation exchanges parameters only")
        return self.half.experience_schema

    def upload_transitions(self, place: int, seq: int, body: bytes) -> dict[str, Any]:
        """Take a client's experience; on the disk when this returns. Returns the receipt.

        Raises:
            Refused: experience is not pooled, the body is not as agreed, or too many of them wait.
            NotStored: the disk is full.
        """
        wire.unpack(body, self.pooled_schema)
        with self._lock:
            client = self._members[place]
            duplicate = self.store.has_transitions(place, seq)
            if not duplicate:
                waiting = self._backlog.get(place, 0)
                if waiting >= self.settings.max_backlog:
                    raise Refused("backlog", f"{waiting} uploads wait to be pooled; come back after the next round")
                self._kept("upload", lambda: self.store.put_transitions(place, seq, body, client.lease_until))
                self._backlog[place] = waiting + 1
                gaps = client.gaps + max(0, seq - client.highest - 1)
                client = self._members.update(place, highest=max(client.highest, seq), gaps=gaps)
            return {"seq": seq, "duplicate": duplicate, "next_seq": client.highest + 1}

    def params(self, place: int, after: int | None = None) -> Parameters | None:
        """What the client at a place goes on with; None if that is not of a later round than `after`."""
        with self._lock:
            if after is not None and self._round <= after:
                return None
            if place not in self._bodies:
                body = wire.pack({wire.PARAMETERS: self._held[place]})
                self._bodies[place] = Parameters(self._round, body, wire.digest(body))
            return self._bodies[place]

    @property
    def due(self) -> bool:
        """Whether the open round has all that it waits for."""
        with self._lock:
            return self._is_due()

    def _is_due(self) -> bool:
        quorum, arrived = self.settings.quorum, set(self._waiting)
        if not arrived or len(arrived) < quorum or len(self._members.all) < (quorum or self.half.agents):
            return False
        late = 0 < self.settings.deadline <= max(waiting.ticks for waiting in self._waiting.values())
        return late or self._expected() <= arrived

    def _expected(self) -> set[int]:
        return self._members.expected(self._round - self.settings.absent_after)

    def close_due(self) -> Closed | None:
        """Close the open round if it is due: aggregate, learn, write the snapshot, and go on to the next.

        What goes in was frozen when the round became due, in the order of places; a process killed in here closes
        the same round again. One thread at a time; uploads of experience go on meanwhile.

        Raises:
            NotStored: the disk is full; the round stays due, the parameters of before are served.
        """
        with self._closing:
            with self._lock:
                if not self._is_due():
                    return None
                state, own, waiting = self._state, self._held.copy(), dict(sorted(self._waiting.items()))
                for place, raw in self.store.weights().items():
                    own[place] = np.frombuffer(raw, np.float32)
                batches = self.store.oldest_transitions()
            began = time.perf_counter()
            arrived = np.isin(np.arange(self.half.agents), list(waiting))
            try:
                state, report = self.half.close(state, own, arrived, self._experience(batches))
                to = self._round + 1
                path = self._written(state, to)
                pooled = [(place, seq) for place, (seq, _) in batches.items()]
                norms = [*self._norms, *(one.norm for one in waiting.values())][-_NORMS:]
                with self._lock:
                    self.store.open_round(to, path, norms, waiting, pooled)
                    self._norms, self._waiting, self._backlog = norms, {}, self.store.backlog()
                    for place in waiting:
                        self._members.update(place, last_round=to - 1)
                    self._move(to, state)
            except Exception as error:
                self._trouble["close"] = f"round {self._round} cannot be closed: {error}"
                raise
            self._trouble.pop("close", None)
            numbers = {name: float(value) for name, value in report.items()}
            self._last = Closed(to - 1, tuple(waiting), len(pooled), time.perf_counter() - began, numbers)
            return self._last

    def _experience(self, batches: Mapping[int, tuple[int, bytes]]) -> PyTree:
        schema = self.half.experience_schema
        if schema is None:
            return None
        taken = {place: wire.unpack(body, schema) for place, (_, body) in batches.items()}
        return self.half.decode([taken.get(place) for place in range(self.half.agents)])

    def _kept(self, work: str, write: Callable[[], None]) -> None:
        """Write to the store, and remember whether that works."""
        try:
            write()
        except NotStored as error:
            self._trouble[work] = str(error)
            raise
        self._trouble.pop(work, None)

    def status(self) -> dict[str, Any]:
        """Where the federation stands, for people and for metrics."""
        with self._lock:
            expected = self._expected()
            return {
                "protocol": wire.PROTOCOL,
                "round": self._round,
                "agents": self.half.agents,
                "due": self._is_due(),
                "trouble": self.trouble,
                "report": {} if self._last is None else self._last.report,
                "clients": [
                    {
                        "client": client.name,
                        "place": place,
                        "expected": place in expected,
                        "arrived": place in self._waiting,
                        "staleness": self._round - 1 - client.last_round,
                        "next_seq": client.highest + 1,
                        "gaps": client.gaps,
                        "backlog": self._backlog.get(place, 0),
                    }
                    for place, client in sorted(self._members.all.items())
                ],
            }


def _length(vector: Float[np.ndarray, " rows"]) -> float:
    """In single precision, a twentieth of the work; what overflows is infinitely long."""
    return float(np.sqrt(np.dot(vector, vector)))


def _refuse_contradictions(settings: ServerSettings, agents: int) -> None:
    if not 0 <= settings.quorum <= agents:
        raise ValueError(f"quorum {settings.quorum}: must be from 1 to the {agents} agents, or 0 for all of them")
    if settings.deadline < 0 or (settings.deadline and not settings.quorum):
        raise ValueError(f"deadline {settings.deadline}: needs a quorum that it may close a round with")
    if settings.absent_after < 1:
        raise ValueError(f"absent_after {settings.absent_after}: must be at least 1 round")
    if not 1 <= settings.max_backlog <= WINDOW:
        raise ValueError(f"max_backlog {settings.max_backlog}: must be from 1 to {WINDOW} uploads")
    if settings.lease_hours <= 0 or settings.max_norm_factor < 0:
        raise ValueError("lease_hours must be above 0, max_norm_factor at least 0")
