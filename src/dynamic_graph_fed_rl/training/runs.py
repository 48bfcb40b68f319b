"""The edge of training: the folder that a run lives in, and the loop that fills it.

A run folder holds `run.json` (its format), `config.yaml` (the experiment), `metrics.jsonl` (one line a round)
and `checkpoints/`. A run that was stopped at any moment goes on from its newest checkpoint as if it had never
stopped.
"""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from dynamic_graph_fed_rl.experiment import Experiment, from_yaml, to_yaml
from dynamic_graph_fed_rl.training import checkpoint
from dynamic_graph_fed_rl.training.placement import Runner, whole
from dynamic_graph_fed_rl.training.trainer import Training

RUN_FORMAT = 2
# agents whose figures stand in a line of metrics.jsonl one by one; ten thousand would make it a megabyte
SINGLY = 101

Warn = Callable[[str], None]
Derived = Callable[[Mapping[str, Any]], dict[str, float]]


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report"


def next_free(environment: str, under: Path = Path("runs")) -> Path:
    """`runs/<environment>-<n>` with the lowest n above all there are."""
    return under / f"{environment}-{max(_numbers(environment, under), default=0) + 1}"


def latest(environment: str, under: Path = Path("runs")) -> Path | None:
    """The folder that `next_free` gave last, if any."""
    numbers = _numbers(environment, under)
    return under / f"{environment}-{max(numbers)}" if numbers else None


def _numbers(environment: str, under: Path) -> list[int]:
    endings = (path.name.removeprefix(f"{environment}-") for path in under.glob(f"{environment}-*"))
    return [int(ending) for ending in endings if ending.isdecimal()]


def create(path: Path, experiment: Experiment) -> RunFolder:
    """A new run folder with the experiment's configuration; an existing empty folder will do.

    Raises:
        FileExistsError: the folder holds something, which is never overwritten.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already; go on with it by --resume, or name another with --out")
    path.mkdir(parents=True, exist_ok=True)
    return _begin(path, experiment)


def _begin(path: Path, experiment: Experiment) -> RunFolder:
    run = RunFolder(path)
    checkpoint.write_whole(path / "run.json", json.dumps({"format": RUN_FORMAT}).encode())
    checkpoint.write_whole(run.config, to_yaml(experiment).encode())
    return run


def open_run(path: Path) -> tuple[RunFolder, Experiment]:
    """An existing run folder and its experiment.

    Raises:
        FileNotFoundError: no run there.
        ValueError: a run folder of another format.
    """
    run = RunFolder(path)
    if not run.config.is_file():
        raise FileNotFoundError(f"{path}: not a run folder (no config.yaml in it)")
    try:
        stored = json.loads((path / "run.json").read_text()).get("format")
    except (OSError, ValueError, AttributeError):
        stored = None
    if stored != RUN_FORMAT:
        raise ValueError(f"{path}: run folder of format {stored}; this version reads format {RUN_FORMAT}")
    return run, from_yaml(run.config)


def resume(
    path: Path, experiment: Experiment, like: PyTree, warn: Warn
) -> tuple[RunFolder, tuple[int, PyTree] | None]:
    """The run folder and its newest training state, None if it stopped before the first checkpoint.

    Rows of `metrics.jsonl` after the checkpoint are dropped: their rounds will run again. A folder that was
    killed before it held a configuration is begun anew.

    Raises:
        ValueError: the folder's configuration is not the experiment's; names the first field that differs.
    """
    started = path.is_dir() and any(not name.name.startswith(("run.json", "config.yaml.")) for name in path.iterdir())
    if not started:
        warn(f"{path}: nothing to resume there, starting the run")
        path.mkdir(parents=True, exist_ok=True)
        return _begin(path, experiment), None
    run, stored = open_run(path)
    difference = first_difference(stored, experiment)
    if difference is not None:
        name, before, now = difference
        raise ValueError(
            f"{path}: {name} is {before} in this run, not {now}; a changed run needs a new folder (--out)"
        )
    found = checkpoint.newest(run.checkpoints, like, warn)
    rows = read_rows(run.metrics)
    kept = [line for line, row in rows if found is not None and row["round"] <= found[0]]
    checkpoint.write_whole(run.metrics, "".join(kept).encode())
    return run, found


def first_difference(stored: Experiment, asked: Experiment) -> tuple[str, Any, Any] | None:
    """Name and both values of the first field in which two experiments differ."""

    def flat(experiment: Experiment) -> dict[str, Any]:
        parts = (experiment, experiment.settings, experiment.learning, experiment.exchange)
        return {field.name: getattr(part, field.name) for part in parts for field in fields(part)}

    before, now = flat(stored), flat(asked)
    names = (name for name in {**before, **now} if name not in ("settings", "learning", "exchange"))
    for name in names:
        if before.get(name) != now.get(name):
            return name, before.get(name), now.get(name)
    return None


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Whole lines of a metrics file and what they hold; a killed process may leave a torn last one."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):
            break
        rows.append((line, json.loads(line)))
    return rows


def row_of(rounds: int, steps_before: int, metrics: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """A line of `metrics.jsonl`: what `Trainer.run_round` measured, flat, and how long it took."""
    steps = int(metrics["world_steps"])
    row: dict[str, Any] = {"round": rounds, "env_steps": steps_before + steps}
    row["return"] = _plain(metrics["reward"])
    for group in ("cost", "learning", "server", "federation", "world"):
        row |= {f"{group}/{name}": _plain(value) for name, value in metrics.get(group, {}).items()}
    for name in ("terminated", "ended"):
        row[name] = _plain(metrics[name])
    row["round_seconds"] = seconds
    row["env_steps_per_second"] = steps / seconds
    return row


def _plain(value: Any) -> Any:
    """Numbers and lists as JSON knows them: what is not finite becomes null.

    Of more than `SINGLY` agents the percentiles from 0 to 100, of those that are finite.
    """
    value = np.asarray(value)
    if value.ndim == 1 and value.size > SINGLY:
        finite = value[np.isfinite(value)]
        value = np.percentile(finite if finite.size else np.full(1, np.nan), np.arange(101))
    value = value.tolist()
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def learn(
    run: RunFolder,
    trainer: Runner,
    training: Training,
    rounds: int,
    checkpoint_every: int,
    keep: int,
    on_round: Callable[[dict[str, Any]], None],
    stopping: Callable[[], bool],
    derived: Derived | None = None,
) -> Training:
    """Train until `rounds` are done or `stopping()`; a row a round, a checkpoint every few and at the end.

    `derived` gives further entries of a row.
    """
    done = int(training.round)
    saved = done if checkpoint.checkpoints(run.checkpoints) else -1
    rows = read_rows(run.metrics)
    steps = rows[-1][1]["env_steps"] if rows else 0
    with run.metrics.open("a", encoding="utf-8") as file:

        def save() -> int:
            # the rows must be on the disk before the checkpoint that stands for them
            os.fsync(file.fileno())
            checkpoint.save(run.checkpoints, whole(trainer, training), done, keep)
            return done

        while done < rounds and not stopping():
            start = time.perf_counter()
            training, metrics = trainer.run_round(training)
            metrics = jax.device_get(metrics)
            done += 1
            row = row_of(done, steps, metrics, time.perf_counter() - start)
            steps = row["env_steps"]
            if derived is not None:
                row |= derived(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
            if done % checkpoint_every == 0:
                saved = save()
            on_round(row)
        if saved != done:
            save()
    return training


def take_part(
    trainer: Runner,
    training: Training,
    rounds: int,
    checkpoint_every: int,
    stopping: Callable[[], bool],
) -> Training:
    """The rounds of `learn` in a process that writes nothing: it takes part in all that the one that writes does."""
    done = int(training.round)
    saved = done or -1
    while done < rounds and not stopping():
        training, _ = trainer.run_round(training)
        done += 1
        if done % checkpoint_every == 0:
            whole(trainer, training)
            saved = done
    if saved != done:
        whole(trainer, training)
    return training
