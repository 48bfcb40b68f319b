"""Runs that take long, a line each: a benchmark that was cut off goes on where it was."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RunLog:
    """The runs in a JSON-lines file, known by what they hold under `key`."""

    def __init__(self, path: Path, key: tuple[str, ...]):
        self.path, self.key = path, key

    def rows(self) -> dict[tuple[Any, ...], Row]:
        """All runs by their key; a torn line, of a process that was killed, is left out."""
        rows = {}
        for line in self.path.read_text().splitlines() if self.path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            rows[tuple(row[name] for name in self.key)] = row
        return rows

    def append(self, row: Row) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # in one write, so that the lines of two processes do not mix, and apart from a line that was cut off
        with self.path.open("ab", buffering=0) as file:
            file.write(f"\n{json.dumps(row)}\n".encode())

    def get(self, known: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> Row:
        """The run of that key, which is run now if it is not in the file; `known` has the key's values."""
        found = self.rows().get(tuple(known[name] for name in self.key))
        if found is None:
            found = {**known, **run()}
            self.append(found)
        return found
