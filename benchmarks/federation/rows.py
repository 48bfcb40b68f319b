"""Rows of the federation's benchmark: a claim with its figure, interval and bar; their table and their JSON."""

import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from measure import RESULTS, Noise, machine
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dynamic_graph_fed_rl.evaluation.statistics import bootstrap_interval, interquartile_mean

BOOTSTRAP = "95 % bootstrap interval over seeds"


@dataclass(frozen=True)
class Row:
    """A measured figure beside the bar it has to reach; without a bar it is reported and nothing is decided.

    `low` and `high` enclose `value`, and `interval` says what they are; None where there is one figure only.
    `seeds` is how many independent repetitions stand behind the figure. `decided_by="interval"` asks the whole
    interval to reach the bar. `source` is where a published figure comes from, such as "read from a plot".
    """

    claim: str
    value: float
    low: float | None = None
    high: float | None = None
    bar: float | None = None
    seeds: int | None = None
    unit: str = ""
    interval: str = ""
    stretch: float | None = None
    direction: Literal["at least", "at most"] = "at least"
    decided_by: Literal["value", "interval"] = "value"
    note: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        for name in ("value", "low", "high", "bar", "stretch"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"row '{self.claim}': {name} is {number}; a reported figure must be finite")
        if self.decided_by == "interval" and None in (self.low, self.high):
            raise ValueError(f"row '{self.claim}': decided by its interval, but has none")

    def reaches(self, bar: float | None) -> bool | None:
        """Whether the figure reaches `bar`; None where there is no bar."""
        if bar is None:
            return None
        worst = self.low if self.direction == "at least" else self.high
        figure = self.value if self.decided_by == "value" or worst is None else worst
        return figure >= bar if self.direction == "at least" else figure <= bar


def row_from_seeds(
    claim: str,
    values: Sequence[float],
    statistic: Callable[..., Any] = interquartile_mean,
    **fields: Any,
) -> Row:
    """A row whose value is the interquartile mean (or `statistic(values, axis=-1)`) of one value a seed.

    For a difference between two sides give the differences, seed by seed.
    """
    low, high = bootstrap_interval(values, statistic)
    value = float(statistic(values, axis=-1))
    return Row(claim, value, low, high, seeds=len(values), interval=BOOTSTRAP, **fields)


def results_path(quick: bool) -> Path:
    """Where rows are kept; a smoke run never touches real results."""
    return RESULTS / ("federation-quick.json" if quick else "federation.json")


def write(path: Path, part: str, rows: Sequence[Row], noise: Noise, order: Sequence[str] = ()) -> None:
    """Put a part's rows in the place of its former ones, parts as in `order`; the others' rows stay.

    Raises:
        ValueError: the file is there and is not a list of rows.
    """
    surroundings = {"machine": machine(), "noise": noise.summary(), "date": time.strftime("%Y-%m-%d")}
    new = [{"part": part} | asdict(row) | {"pass": row.reaches(row.bar)} | surroundings for row in rows]
    kept = [row for row in _stored(path) if row["part"] != part]
    place = {name: number for number, name in enumerate(order)}
    content = sorted(kept + new, key=lambda row: place.get(row["part"], len(place)))
    path.parent.mkdir(parents=True, exist_ok=True)
    # another part's hours of work stand in this file: it is replaced whole or not at all
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".json", delete=False) as file:
        file.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def _stored(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        rows = json.loads(path.read_text())
        if all("part" in row for row in rows):
            return rows
    except (json.JSONDecodeError, TypeError):
        pass
    raise ValueError(f"{path}: not a list of benchmark rows, each with its part; move it away to start anew")


def print_table(title: str, rows: Sequence[tuple[str, Row]], console: Console | None = None) -> None:
    """One table of `(part, row)`: figure, interval, bar and whether it is reached; notes under the claim."""
    table = Table(title=title, title_justify="left")
    table.add_column("part", no_wrap=True)
    table.add_column("claim", overflow="fold")
    for heading in ("value", "low", "high", "bar", "reached", "seeds"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = None
    for part, row in rows:
        if last not in (None, part):
            table.add_section()
        said = escape(f"{row.claim} [{row.unit}]" if row.unit else row.claim)
        aside = "; ".join(text for text in (row.note, row.source) if text)
        verdict = {None: "-", True: "[green]yes[/]", False: "[red]no[/]"}[row.reaches(row.bar)]
        if row.reaches(row.bar) and row.reaches(row.stretch):
            verdict = "[green]stretch[/]"
        sign = "≥ " if row.direction == "at least" else "≤ "
        table.add_row(
            part if part != last else "",
            said + (f"\n[dim]{escape(aside)}[/]" if aside else ""),
            *map(_number, (row.value, row.low, row.high)),
            "-" if row.bar is None else sign + _number(row.bar),
            verdict,
            "-" if row.seeds is None else f"{row.seeds:,}",
        )
        last = part
    console = console or Console(width=max(120, Console().width))
    console.print(table)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
