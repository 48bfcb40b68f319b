"""What a person sees of a training run, and how they stop it."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dynamic_graph_fed_rl.environments.spec import Column

# where nobody watches, a line for every part of the run instead of a bar
_LINES_A_RUN = 20


class Stop:
    """Turns the first Ctrl-C (or SIGTERM) into a wish to stop at a good moment, the second into an end."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "Stop":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Display:
    """A bar with time left and, below it, speed, return and costs; plain lines where there is no terminal."""

    def __init__(self, console: Console, rounds: int, costs: tuple[Column, ...]) -> None:
        self._console, self._rounds, self._costs = console, rounds, costs
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            expand=True,
        )
        self._figures = Text(style="dim")

    @contextmanager
    def running(self, done: int) -> Iterator[None]:
        """Shown while the block runs, from round `done` on."""
        self._task = self._bar.add_task("compiling", total=self._rounds, completed=done)
        if not self._console.is_terminal:
            self._console.print(f"Training from round {done} to {self._rounds}; the first one compiles.")
            yield
            return
        with Live(Group(self._bar, self._figures), console=self._console, refresh_per_second=4):
            yield

    def update(self, row: Mapping[str, Any]) -> None:
        """After each round, with its row of `metrics.jsonl`."""
        done = row["round"]
        figures = self.figures(row)
        self._bar.update(self._task, completed=done, description="training")
        self._figures.plain = figures
        if not self._console.is_terminal:
            every = max(1, self._rounds // _LINES_A_RUN)
            if done % every == 0 or done == self._rounds:
                self._console.print(f"round {done}/{self._rounds}  {figures}", highlight=False, soft_wrap=True)

    def figures(self, row: Mapping[str, Any]) -> str:
        """Speed, mean return and costs of a round, for people."""
        rewards = [np.nan if value is None else value for value in row["return"]]
        parts = [f"{row['env_steps_per_second']:,.0f} world steps/s", f"return {np.mean(rewards):.4g}"]
        for column in self._costs:
            value = row[f"cost/{column.name}"]
            unit = "" if column.unit == "1" else f" {column.unit}"
            parts.append(f"{column.name} {np.nan if value is None else value:.3g}{unit}")
        if row.get("federation/rejected"):
            parts.append(f"rejected updates {row['federation/rejected']:.0f}")
        if "federation/epsilon" in row:
            parts.append(f"epsilon {row['federation/epsilon']:.3g}")
        if row.get("away"):
            parts.append(f"without the server, {row['queued']} uploads waiting")
        return "  ".join(parts)
