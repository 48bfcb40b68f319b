"""What a server must not lose: who has joined, and every upload it has acknowledged, until a snapshot holds it.

A folder with an SQLite database (write-ahead log, flushed to the disk at every commit) and snapshots of the learning
state beside it. A method that returns has committed; one that raises has changed nothing. A round closes in two
steps: the new snapshot is written whole, then one transaction names it and forgets the uploads that went into it. A
process killed between the two finds the old snapshot named and the uploads still there, and closes the round again.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dynamic_graph_fed_rl.deployment.database import open_database

STORE_FORMAT = 1
WINDOW = 1024
"""How many sequence numbers below a client's highest are told apart: still missing, or received before."""

Write = Callable[[Path, int], Path]
"""Writes a state as the snapshot of that round into the folder, whole or not at all, and returns its path."""

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE clients (
    place INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, token_sha256 TEXT NOT NULL, lease_until REAL NOT NULL,
    last_round INTEGER NOT NULL, gaps INTEGER NOT NULL);
CREATE TABLE weights (
    place INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, ticks INTEGER NOT NULL, norm REAL NOT NULL, body BLOB NOT NULL);
CREATE TABLE transitions (place INTEGER, seq INTEGER, body BLOB, PRIMARY KEY (place, seq)) WITHOUT ROWID;
"""


class NotStored(Exception):
    """The disk is full or broken: nothing was changed, and nothing may be acknowledged."""


@dataclass(frozen=True)
class Client:
    """A member of the federation. Its lease is wall time [s since 1970], all else counts rounds and uploads.

    `last_round` is the last round that closed with it (or before it joined); `gaps` counts the sequence numbers
    that were skipped when they were due; `highest` is the highest one received at its place, -1 before the first,
    which the store knows by itself.
    """

    place: int
    name: str
    token_sha256: str
    lease_until: float
    last_round: int
    gaps: int = 0
    highest: int = -1


@dataclass(frozen=True)
class Waiting:
    """A weights upload of the open round; `ticks` counts how often it has been replaced by a newer one."""

    place: int
    sha256: str
    ticks: int
    norm: float


class Store:
    """State folder of one server; a second process that opens it is refused.

    Raises:
        ValueError: the folder is in use, of another format, or was made for another `agreement` (what a server and
            its clients exchange); names it.
    """

    def __init__(self, folder: Path, agreement: str):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.snapshots = folder / "snapshots"
        self.snapshots.mkdir(exist_ok=True)
        # one thread at a time is the caller's lock
        self._database = open_database(folder / "server.sqlite")
        try:
            self._open(agreement)
        except BaseException:
            self._database.close()
            raise

    def _open(self, agreement: str) -> None:
        if not self._database.execute("SELECT 1 FROM sqlite_master").fetchone():
            with self._transaction():
                for statement in _TABLES.strip().split(";\n"):
                    self._database.execute(statement)
                self._set(format=STORE_FORMAT, agreement=agreement, norms="[]")
        for key, value in (("format", str(STORE_FORMAT)), ("agreement", agreement)):
            stored = self._get(key)
            if stored != value:
                raise ValueError(
                    f"{self.folder}: its {key} is {stored}, this server's is {value}; use another folder"
                )

    def close(self) -> None:
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._database.execute("BEGIN IMMEDIATE")
            yield
            self._commit()
        except sqlite3.OperationalError as error:
            self._roll_back()
            if (error.sqlite_errorname or "").startswith(("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY")):
                raise NotStored(f"{self.folder}: {error}") from error
            raise
        except BaseException:
            self._roll_back()
            raise

    def _commit(self) -> None:
        self._database.execute("COMMIT")

    def _roll_back(self) -> None:
        if self._database.in_transaction:
            self._database.execute("ROLLBACK")

    def _get(self, key: str) -> str | None:
        row = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def _set(self, **values: object) -> None:
        self._database.executemany(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, str(value)) for key, value in values.items()]
        )

    @property
    def round(self) -> int | None:
        """The open round, whose predecessor's snapshot is the state; None before the first snapshot."""
        stored = self._get("round")
        return None if stored is None else int(stored)

    @property
    def norms(self) -> list[float]:
        """Sizes of the latest updates that went into closed rounds, oldest first."""
        return json.loads(self._get("norms") or "[]")

    def clients(self) -> list[Client]:
        """By place."""
        rows = self._database.execute(
            "SELECT place, name, token_sha256, lease_until, last_round, gaps, "
            "(SELECT coalesce(max(seq), -1) FROM transitions WHERE place = clients.place) "
            "FROM clients ORDER BY place"
        )
        return [Client(*row) for row in rows]

    def put_client(self, client: Client) -> None:
        """A new client, or a known one's new lease. Whoever had the place leaves it, and its uploads to it."""
        with self._transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO clients VALUES (?, ?, ?, ?, ?, ?)",
                (
                    client.place,
                    client.name,
                    client.token_sha256,
                    client.lease_until,
                    client.last_round,
                    client.gaps,
                ),
            )

    def waiting(self) -> dict[int, Waiting]:
        """Weights of the open round, by place."""
        rows = self._database.execute("SELECT place, sha256, ticks, norm FROM weights ORDER BY place")
        return {row[0]: Waiting(*row) for row in rows}

    def weights(self) -> dict[int, bytes]:
        """Bodies of the open round's weights, by place."""
        return dict(self._database.execute("SELECT place, body FROM weights ORDER BY place"))

    def put_weights(self, waiting: Waiting, body: bytes, lease_until: float) -> None:
        """An upload for the open round, in place of an older one from there; renews the lease."""
        with self._transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO weights VALUES (?, ?, ?, ?, ?)",
                (waiting.place, waiting.sha256, waiting.ticks, waiting.norm, body),
            )
            self._renew(waiting.place, lease_until)

    def has_transitions(self, place: int, seq: int) -> bool:
        """Whether this upload has been received before, as far as `WINDOW` reaches; older ones count as received."""
        row = self._database.execute(
            "SELECT max(seq) - ?1 >= ?2 OR max(seq = ?1) FROM transitions WHERE place = ?3", (seq, WINDOW, place)
        ).fetchone()
        return bool(row[0])

    def put_transitions(self, place: int, seq: int, body: bytes, lease_until: float) -> None:
        """Experience that waits to be pooled, under a sequence number not received before; renews the lease."""
        with self._transaction():
            self._database.execute(
                "UPDATE clients SET gaps = gaps + max(0, ?1 - 1 - "
                "(SELECT coalesce(max(seq), -1) FROM transitions WHERE place = ?2)) WHERE place = ?2",
                (seq, place),
            )
            self._database.execute("INSERT INTO transitions VALUES (?, ?, ?)", (place, seq, body))
            self._database.execute(
                "DELETE FROM transitions WHERE place = ?1 AND body IS NULL AND "
                "seq <= (SELECT max(seq) FROM transitions WHERE place = ?1) - ?2",
                (place, WINDOW),
            )
            self._renew(place, lease_until)

    def _renew(self, place: int, lease_until: float) -> None:
        self._database.execute("UPDATE clients SET lease_until = ? WHERE place = ?", (lease_until, place))

    def backlog(self) -> dict[int, int]:
        """How many transitions uploads wait to be pooled, by place."""
        return dict(
            self._database.execute("SELECT place, count(*) FROM transitions WHERE body IS NOT NULL GROUP BY place")
        )

    def oldest_transitions(self) -> dict[int, tuple[int, bytes]]:
        """Of every place that has any, the upload with the lowest sequence number that waits to be pooled."""
        rows = self._database.execute(
            "SELECT place, seq, body FROM transitions AS one WHERE seq = (SELECT min(seq) FROM transitions "
            "WHERE place = one.place AND body IS NOT NULL) ORDER BY place"
        )
        return {place: (seq, body) for place, seq, body in rows}

    def write_snapshot(self, write: Write, to: int) -> Path:
        """The first step of closing a round: the state that round `to` begins with, in a file of its own.

        Touches no table, so that uploads may go on meanwhile.

        Raises:
            NotStored: the disk is full; what has been written of the file is removed.
        """
        try:
            return write(self.snapshots, to)
        except OSError as error:
            for part in self.snapshots.glob("*.part"):
                part.unlink(missing_ok=True)
            raise NotStored(f"{self.snapshots}: {error}") from error

    def open_round(
        self,
        to: int,
        snapshot: Path,
        norms: Sequence[float] = (),
        arrived: Iterable[int] = (),
        pooled: Iterable[tuple[int, int]] = (),
    ) -> None:
        """The second step: name the snapshot, forget the weights of the round before, mark what was pooled.

        `norms` replaces the sizes kept of updates; `arrived` are places, `pooled` places and sequence numbers.
        """
        with self._transaction():
            self._set(round=to, snapshot=snapshot.name, norms=json.dumps(list(norms)))
            self._database.execute("DELETE FROM weights")
            self._database.executemany(
                "UPDATE clients SET last_round = ? WHERE place = ?", [(to - 1, place) for place in arrived]
            )
            self._database.executemany("UPDATE transitions SET body = NULL WHERE place = ? AND seq = ?", list(pooled))

    def snapshot(self) -> Path:
        """The snapshot of the open round. Files that no transaction has named are deleted.

        Raises:
            ValueError: it is not there; nothing else can take its place.
        """
        name = self._get("snapshot")
        assert name is not None, "no round has been opened yet"
        named = self.snapshots / name
        if not named.is_file():
            raise ValueError(f"{named}: is missing; put it back from a copy, or use another folder")
        for path in self.snapshots.iterdir():
            # longer numbers are later ones
            if (len(path.name), path.name) > (len(name), name):
                path.unlink()
        return named
