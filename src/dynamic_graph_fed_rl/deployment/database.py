"""How everything here that must survive a kill keeps it: one SQLite file, of one process."""

import sqlite3
from pathlib import Path


def open_database(path: Path | str) -> sqlite3.Connection:
    """The database in a file, written ahead and flushed to the disk at every commit; `:memory:` for none.

    Transactions are the caller's to write out, and so is a lock where several threads use it.

    Raises:
        ValueError: the file is none, or another process has it open.
    """
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.0)
    try:
        # bodies are large: a megabyte is written in two thirds of the time that pages of 4 KiB take
        database.execute("PRAGMA page_size = 16384")
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        # the write takes the lock that keeps others out
        database.execute("BEGIN IMMEDIATE")
        database.execute("COMMIT")
    except sqlite3.DatabaseError as error:
        database.close()
        raise ValueError(f"{path}: cannot be opened, or is in use by another process ({error})") from error
    return database
