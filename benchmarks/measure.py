"""What every benchmark shares: one thread, interleaved repeats, noise, claims, and results as JSON.

A speed is a ratio between two sides that ran in turns on the same machine. CPU time is the clock, because
other work on the machine stretches wall time several times more than CPU time.
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from peers import ONE_THREAD

RESULTS = Path(__file__).parent / "results"

_XLA_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclass(frozen=True)
class Claim:
    """A measured figure beside the bar it has to reach.

    `low` and `high` enclose `value`; what they are (extremes of repeats, bootstrap interval) stands in
    `interval`. `decided_by="interval"` asks the whole interval to reach the bar. Without a bar the figure is
    reported and nothing is decided.
    """

    claim: str
    value: float
    low: float
    high: float
    unit: str
    interval: str
    bar: float | None = None
    stretch: float | None = None
    direction: Literal["at least", "at most"] = "at least"
    decided_by: Literal["value", "interval"] = "value"
    repeats: int | None = None
    seeds: tuple[int, ...] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def reaches(self, bar: float | None) -> bool | None:
        """Whether the figure reaches `bar`; None where there is no bar."""
        if bar is None:
            return None
        if self.direction == "at least":
            return (self.value if self.decided_by == "value" else self.low) >= bar
        return (self.value if self.decided_by == "value" else self.high) <= bar


def claim_from_repeats(claim: str, samples: Sequence[float], unit: str, **fields: Any) -> Claim:
    """A claim whose value is the median of `samples`, and whose interval their lowest and highest."""
    return Claim(
        claim=claim,
        value=statistics.median(samples),
        low=min(samples),
        high=max(samples),
        unit=unit,
        interval="lowest and highest repeat",
        repeats=len(samples),
        **fields,
    )


def ratios(ours: Sequence[Mapping[str, float]], peer: Sequence[Mapping[str, float]], rate: str) -> list[float]:
    """Ratio of one rate in each repeat, so that a slow minute of the machine weighs on both sides."""
    return [mine[rate] / theirs[rate] for mine, theirs in zip(ours, peer, strict=True)]


def use_one_thread() -> int | None:
    """Keep this process and its children on one core and every numeric library on one thread.

    Returns the core, or None where the system cannot pin. XLA reads its flags once, so this goes first.
    """
    if "jax" in sys.modules:
        raise RuntimeError("jax is already imported: call use_one_thread() before anything imports it")
    os.environ.update(ONE_THREAD)
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_XLA_ONE_THREAD}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if not hasattr(os, "sched_setaffinity"):
        return None
    core = max(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    return core


class Stopwatch:
    """Wall and CPU seconds of this process inside a `with` block."""

    def __enter__(self) -> "Stopwatch":
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_seconds = time.perf_counter() - self._wall
        self.cpu_seconds = time.process_time() - self._cpu


def rates(stopwatch: Stopwatch, **counts: float) -> dict[str, float]:
    """`NAME_per_cpu_second` and `NAME_per_second` of every count, with the times behind them."""
    rows = {"cpu_seconds": stopwatch.cpu_seconds, "wall_seconds": stopwatch.wall_seconds}
    for name, count in counts.items():
        rows[f"{name}_per_cpu_second"] = count / stopwatch.cpu_seconds
        rows[f"{name}_per_second"] = count / stopwatch.wall_seconds
    return rows


class Noise:
    """How busy the machine was: its load, and what one fixed piece of work cost at every repeat."""

    def __init__(self) -> None:
        self._loads: list[float] = []
        self._cpu: list[float] = []
        self._waiting: list[float] = []

    def sample(self) -> None:
        with Stopwatch() as stopwatch:
            sum(i * i for i in range(400_000))
        self._cpu.append(stopwatch.cpu_seconds)
        self._waiting.append(stopwatch.wall_seconds / stopwatch.cpu_seconds)
        self._loads.append(os.getloadavg()[0])

    def summary(self) -> dict[str, float]:
        """`fixed_work_spread`: dearest over cheapest CPU time of the same work (1 is quiet);
        `wall_over_cpu`: its median wall time over CPU time (1 means the core was ours alone)."""
        return {
            "load_average_lowest": min(self._loads),
            "load_average_highest": max(self._loads),
            "fixed_work_spread": round(max(self._cpu) / min(self._cpu), 3),
            "wall_over_cpu": round(statistics.median(self._waiting), 3),
        }


def interleave(
    sides: Mapping[str, Callable[[], dict[str, float]]], repeats: int, noise: Noise
) -> dict[str, list[dict[str, float]]]:
    """Measure every side once a repeat, in turns; every second repeat in reverse order."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for repeat in range(repeats):
        noise.sample()
        names = list(sides)
        for name in names if repeat % 2 == 0 else names[::-1]:
            samples[name].append(sides[name]())
    noise.sample()
    return samples


def machine() -> dict[str, Any]:
    """Processor, cores (all, and those this process may use), system, Python and numeric libraries."""
    versions = {}
    for package in ("jax", "jaxlib", "equinox", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores_used": usable,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def write_results(name: str, claims: Sequence[Claim], noise: Noise | None = None, in_part: bool = False) -> Path:
    """Write `results/NAME.json`: a list of claims, each with `pass`, the machine and its noise. `in_part`: what the
    file holds of other claims stays."""
    surroundings = {"machine": machine(), "noise": noise.summary() if noise else None}
    rows = [
        asdict(claim) | {"pass": claim.reaches(claim.bar)} | surroundings | {"date": time.strftime("%Y-%m-%d")}
        for claim in claims
    ]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    if in_part and path.is_file():
        own = {claim.claim for claim in claims}
        rows = [row for row in json.loads(path.read_text()) if row["claim"] not in own] + rows
    path.write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n")
    return path


def print_claims(title: str, claims: Sequence[Claim], noise: Noise | None = None) -> None:
    """Print the claims as a table, and how noisy the machine was under it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("claim", overflow="fold")
    for heading in ("value", "low", "high", "bar", "stretch", "reached"):
        table.add_column(heading, justify="right")
    for claim in claims:
        reached = claim.reaches(claim.bar)
        verdict = {None: "-", True: "[green]yes[/]", False: "[red]no[/]"}[reached]
        if reached and claim.reaches(claim.stretch):
            verdict = "[green]stretch[/]"
        numbers = (claim.value, claim.low, claim.high, claim.bar, claim.stretch)
        table.add_row(f"{claim.claim} [{claim.unit}]".replace("[", r"\["), *map(_number, numbers), verdict)
    console = Console(width=max(110, Console().width))
    console.print(table)
    if noise:
        console.print("noise: " + ", ".join(f"{key} {value:.2f}" for key, value in noise.summary().items()))


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
