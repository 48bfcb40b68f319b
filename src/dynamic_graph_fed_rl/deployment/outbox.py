"""What a client has not got rid of yet: uploads of experience, in order, until the server acknowledges them."""

from pathlib import Path

from dynamic_graph_fed_rl.deployment.database import open_database

_TABLES = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS uploads (seq INTEGER PRIMARY KEY, body BLOB NOT NULL);
"""


class Outbox:
    """A queue of at most `capacity` uploads in the file at `path`; what has been put there survives a kill.

    An upload gets its sequence number when it is put in, and keeps it however often it is sent. Experience is known
    by the round and the lot of work in it that it is from, and is put in once: whoever repeats work after a kill
    tells it no second time.

    Raises:
        ValueError: another process has it open.
    """

    def __init__(self, path: Path, capacity: int):
        self.capacity = capacity
        self._database = open_database(path)
        self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")

    def close(self) -> None:
        self._database.close()

    def __len__(self) -> int:
        return self._database.execute("SELECT count(*) FROM uploads").fetchone()[0]

    @property
    def full(self) -> bool:
        return len(self) >= self.capacity

    def begin_at(self, seq: int) -> None:
        """The server has received all below this number from whoever had the place before."""
        self._set("next_seq", max(seq, self._get("next_seq", 0)))

    def forget_rounds(self) -> None:
        """Rounds are counted anew."""
        self._database.execute("DELETE FROM meta WHERE name IN ('round', 'lot')")

    def has_told(self, rounds: int, lot: int) -> bool:
        """Whether the experience of this lot, or of a later one, has been put in before."""
        return (rounds, lot) <= (self._get("round", -1), self._get("lot", -1))

    def put(self, rounds: int, lot: int, body: bytes) -> None:
        """Queue the experience of a lot of work under the next sequence number.

        Raises:
            ValueError: the queue is full.
        """
        if self.full:
            raise ValueError(f"outbox: holds {self.capacity} uploads already")
        seq = self._get("next_seq", 0)
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("INSERT INTO uploads VALUES (?, ?)", (seq, body))
            for name, value in (("next_seq", seq + 1), ("round", rounds), ("lot", lot)):
                self._set(name, value)

    def first(self) -> tuple[int, bytes] | None:
        """The oldest upload, with its number."""
        return self._database.execute("SELECT seq, body FROM uploads ORDER BY seq LIMIT 1").fetchone()

    def drop(self, seq: int) -> None:
        """An upload has been acknowledged."""
        self._database.execute("DELETE FROM uploads WHERE seq = ?", (seq,))

    def _get(self, name: str, default: int) -> int:
        row = self._database.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else row[0]

    def _set(self, name: str, value: int) -> None:
        self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, value))
