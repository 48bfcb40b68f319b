"""A node of a federation without a server: its state, each change of which is stored before it counts."""

import json
import secrets
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.database import open_database
from dynamic_graph_fed_rl.deployment.gossiping import (
    LARGEST,
    METHODS,
    Answer,
    Arrays,
    Averaging,
    Declined,
    Limits,
    Vector,
)
from dynamic_graph_fed_rl.deployment.store import NotStored
from dynamic_graph_fed_rl.deployment.wire import Refused

LEDGER_FORMAT = 1
# names that nobody needs any more are kept too; a member that makes up new ones is stopped here
_MOST_SENDERS = 1024


class Ledger:
    """The state of one node in a folder, replaced whole or not at all; in memory without a folder.

    Raises:
        ValueError: the folder is in use by another process, or cannot be read.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        path = ":memory:" if folder is None else folder / "peer.sqlite"
        self._database = open_database(path)
        self._database.execute("CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value BLOB NOT NULL)")

    def close(self) -> None:
        self._database.close()

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
        """Arrays and facts as they were saved last; None before the first time."""
        rows = dict(self._database.execute("SELECT key, value FROM state"))
        if not rows:
            return None
        return safetensors.numpy.load(rows["arrays"]), json.loads(rows["facts"])

    def save(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """
        Raises:
            NotStored: the disk takes nothing; what was saved before is still there.
        """
        rows = [("arrays", wire.pack(arrays)), ("facts", json.dumps(facts).encode())]
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO state VALUES (?, ?)", rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            try:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
            except sqlite3.Error:
                pass
            raise NotStored(f"{self.folder}: {error}") from error


class Node:
    """What a node holds, says and answers; its methods may be called from several threads.

    `incarnation` is its name, made when its state began: a node that comes back with its state is the same one, and
    one that has lost it is another. `round` counts rounds of learning.

    Raises:
        ValueError: the ledger is of a node that exchanges something else, or has another place.
    """

    def __init__(
        self, method: str, start: Vector, place: int = 0, title: str = "", folder: Path | None = None,
        limits: Limits | None = None,
    ):  # fmt: skip
        kind = METHODS[method]
        self.method, self.place, self.size, self.limits = method, place, start.size, limits or Limits()
        self.schema, self.answer_schema = kind.sends(start.size, title), kind.answers(start.size)
        self.agreement = wire.agreement(self.schema, self.answer_schema)
        self.trouble: str | None = None
        self.finished = False
        self._lock, self._waiting = threading.Lock(), False
        self._ledger = Ledger(folder)
        found = self._ledger.load()
        if found is None:
            self._begin(secrets.token_hex(16), 0)
            self._state: Averaging = kind(start.astype(np.float64))
            with self._lock:
                self._become(self._state)
            return
        arrays, facts = found
        for name, own in (("format", LEDGER_FORMAT), ("agreement", self.agreement), ("place", place)):
            if facts[name] != own:
                self.close()
                raise ValueError(f"{folder}: its {name} is {facts[name]}, this node's is {own}; use another folder")
        self._begin(facts["incarnation"], facts["round"])
        self._state = kind.restored(arrays, facts)

    def _begin(self, incarnation: str, round: int) -> None:
        self.incarnation, self.round = incarnation, round

    def close(self) -> None:
        with self._lock:
            self._ledger.close()

    def _become(self, state: Averaging, round: int | None = None) -> None:
        """The lock is held."""
        round = self.round if round is None else round
        arrays, facts = state.stored()
        own = {"format": LEDGER_FORMAT, "agreement": self.agreement, "place": self.place, "round": round}
        try:
            self._ledger.save(arrays, facts | own | {"incarnation": self.incarnation})
        except NotStored as error:
            self.trouble = str(error)
            raise
        self._state, self.round, self.trouble = state, round, None

    @property
    def state(self) -> Averaging:
        return self._state

    @property
    def estimate(self) -> Vector:
        """The parameters to go on with."""
        return self._state.estimate.astype(np.float32)

    def learned(self, before: Vector, after: Vector) -> bool:
        """A round of learning has led from one estimate to another; False if it led to NaN, infinity or beyond
        `LARGEST`, and is forgotten. What others have sent meanwhile stays.
        """
        sound = bool((np.abs(after) < LARGEST).all())
        change = after.astype(np.float64) - before
        with self._lock:
            self._become(self._state.learned(change) if sound else self._state, self.round + 1)
        return sound

    def offer(self, to: str) -> tuple[int, Arrays] | None:
        """Number and content of a message to a node, stored before it may be sent; None if there is none to give.

        `answered` or `failed` must follow.
        """
        with self._lock:
            state, one, arrays = self._state.offered(to)
            if one is None:
                return None
            if state is not self._state:
                self._become(state)
            self._waiting = True
            return one.number, arrays

    def answered(self, to: str, number: int, arrays: Arrays) -> None:
        """
        Raises:
            Refused: the answer is not believed.
            NotStored: it could not be kept; the message stays open.
        """
        with self._lock:
            self._waiting = False
            state = self._state.answered(to, number, arrays, self.limits)
            if state is not self._state:
                self._become(state)

    def failed(self, to: str, number: int, certain: bool) -> None:
        """An attempt had no answer; `certain` if it was not taken in."""
        with self._lock:
            self._waiting = False
            state = self._state.failed(to, number, certain)
            if to in state.open:
                # a stored message counts as doubtful anyhow
                self._state = state
            elif state is not self._state:
                self._become(state)

    def receive(self, sender: str, number: int, to: str, agreement: str, body: bytes) -> Answer:
        """Take a message in, once; it is stored when this returns.

        Raises:
            Refused: what it is, whom it is for, or that this node cannot answer now.
            NotStored: it could not be kept, and has not been taken in.
        """
        if agreement != self.agreement:
            raise Refused("bad_schema", "this node exchanges something else: method, algorithm or sizes differ")
        if to != self.incarnation:
            raise Declined("other_node", f"the node here is {self.incarnation}, of place {self.place}")
        if sender == self.incarnation:
            raise Declined("other_node", "a node does not send to itself")
        arrays = wire.unpack(body, self.schema)
        with self._lock:
            known = self._state.known(sender, number)
            if self._waiting and self._state.exclusive and not known:
                raise Declined("busy", "this node waits for an answer itself; ask again")
            if not known and self._state.senders() >= _MOST_SENDERS:
                raise Refused("too_many", f"{_MOST_SENDERS} nodes have sent to this one; it takes no further ones")
            state, answer = self._state.received(sender, number, arrays, self.limits)
            if state is not self._state:
                self._become(state)
            return answer

    def greeting(self) -> dict[str, Any]:
        """What a neighbour must know before it sends."""
        return {
            "protocol": wire.PROTOCOL,
            "agreement": self.agreement,
            "method": self.method,
            "place": self.place,
            "incarnation": self.incarnation,
            "round": self.round,
            "finished": self.finished,
        }

    def status(self) -> dict[str, Any]:
        state = self._state
        return self.greeting() | {
            "weight": state.mass,
            "reserved": state.reserved,
            "open": len(state.open),
            "doubtful": sum(one.doubtful for one in state.open.values()),
            "trouble": self.trouble,
        }
