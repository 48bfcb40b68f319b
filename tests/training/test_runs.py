"""A run folder is never overwritten, and a run that was stopped goes on as if it had not been."""

import dataclasses
import json

import equinox as eqx
import jax
import numpy as np
import pytest

from dynamic_graph_fed_rl.experiment import build, default_experiment
from dynamic_graph_fed_rl.training import checkpoint, runs

TINY = default_experiment(
    "cartpole", agents=2, worlds=4, decisions_per_round=8, width=8, layers=1, epochs=1, minibatches=2,
    time_limit=20, rounds=6, evaluation_seeds=2,
)  # fmt: skip


def refuse(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


@pytest.fixture(scope="module")
def trainer():
    return build(TINY).trainer


def train(run, trainer, training, rounds=TINY.rounds, every=2, stopping=lambda: False):
    return runs.learn(run, trainer, training, rounds, every, 3, lambda row: None, stopping)


def arrays(run) -> tuple[int, dict[str, bytes]]:
    rounds, found = checkpoint.read(checkpoint.checkpoints(run.checkpoints)[0])
    return rounds, {name: value.tobytes() for name, value in found.items()}


def repeatable_rows(run) -> list[dict]:
    rows = [row for _, row in runs.read_rows(run.metrics)]
    return [{k: v for k, v in row.items() if "seconds" not in k and "per_second" not in k} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, trainer):
    run = runs.create(tmp_path_factory.mktemp("runs") / "whole", TINY)
    train(run, trainer, trainer.init(jax.random.key(0)))
    return run


def test_rows_and_checkpoints_of_a_run(uninterrupted, trainer) -> None:
    rows = [row for _, row in runs.read_rows(uninterrupted.metrics)]
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5, 6]
    # 8 decisions in 4 worlds of each of 2 owners, one step a decision
    assert [row["env_steps"] for row in rows] == [64 * n for n in range(1, 7)]
    assert all(row["return"] == [1.0, 1.0] for row in rows)  # a step of CartPole is worth 1
    assert all(row["env_steps_per_second"] == 64 / row["round_seconds"] for row in rows)
    names = [path.name for path in checkpoint.checkpoints(uninterrupted.checkpoints)]
    assert names == [f"round-{n:06d}.safetensors" for n in (6, 4, 2)]


def test_stopped_and_resumed_is_the_run_never_stopped(tmp_path, trainer, uninterrupted) -> None:
    run = runs.create(tmp_path / "run", TINY)
    seen = []
    train(run, trainer, trainer.init(jax.random.key(0)), every=100, stopping=lambda: len(seen) or seen.append(1))
    assert arrays(run)[0] == 1  # a stop saves, whatever the interval
    # what a kill leaves behind: rounds after the checkpoint, and half a line
    with run.metrics.open("a") as file:
        file.write(json.dumps({"round": 2, "return": "of the killed process"}) + '\n{"round": 3, "ret')
    like = eqx.filter_eval_shape(trainer.init, jax.random.key(0))
    again, found = runs.resume(run.path, TINY, like, refuse)
    assert found is not None and found[0] == 1
    assert [row["round"] for row in repeatable_rows(again)] == [1]
    train(again, trainer, found[1])
    assert arrays(again) == arrays(uninterrupted)
    assert repeatable_rows(again) == repeatable_rows(uninterrupted)


def test_a_stop_before_the_first_checkpoint_starts_over(tmp_path) -> None:
    run = runs.create(tmp_path / "run", TINY)
    run.metrics.write_text('{"round": 1}\n{"round": 2}\n')
    again, found = runs.resume(run.path, TINY, None, refuse)
    assert found is None and again.metrics.read_text() == ""


@pytest.mark.parametrize("left", [[], ["run.json"], ["run.json", "config.yaml.part"]])
def test_a_folder_killed_before_it_had_a_configuration_is_begun_anew(tmp_path, left) -> None:
    for name in left:
        (tmp_path / name).write_text("{}")
    said: list[str] = []
    run, found = runs.resume(tmp_path, TINY, None, said.append)
    assert found is None and runs.open_run(run.path)[1] == TINY and "nothing to resume" in said[0]


def test_nothing_is_overwritten(tmp_path) -> None:
    runs.create(tmp_path, TINY)  # an empty folder will do
    with pytest.raises(FileExistsError, match="--resume"):
        runs.create(tmp_path, TINY)
    stranger = tmp_path / "other"
    stranger.mkdir()
    (stranger / "thesis.tex").write_text("")
    with pytest.raises(FileExistsError, match="exists already"):
        runs.create(stranger, TINY)
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        runs.resume(stranger, TINY, None, refuse)


def test_a_changed_field_is_named(tmp_path) -> None:
    runs.create(tmp_path, TINY)
    learning = dataclasses.replace(TINY.learning, clip=0.37)
    changed = dataclasses.replace(TINY, learning=learning)
    with pytest.raises(ValueError, match=r"clip is .* in this run, not 0\.37"):
        runs.resume(tmp_path, changed, None, refuse)
    assert runs.first_difference(TINY, TINY) is None


def test_another_format_is_refused(tmp_path) -> None:
    runs.create(tmp_path, TINY)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match=r"format 99; this version reads format 2"):
        runs.open_run(tmp_path)


def test_default_folders_count_up(tmp_path) -> None:
    assert runs.latest("cartpole", tmp_path) is None
    assert runs.next_free("cartpole", tmp_path).name == "cartpole-1"
    for name in ("cartpole-2", "cartpole-10", "cartpole-x", "power-grid-30"):
        (tmp_path / name).mkdir()
    assert runs.next_free("cartpole", tmp_path).name == "cartpole-11"
    latest = runs.latest("cartpole", tmp_path)
    assert latest is not None and latest.name == "cartpole-10"


def test_what_is_not_finite_is_null() -> None:
    metrics = {
        "reward": np.array([np.nan, 1.0], np.float32), "terminated": np.array([0, 2]), "world": {}, "federation": {},
        "learning": {"loss": np.float32(np.inf)}, "cost": {"overload": np.float32(0.1)}, "ended": np.array([1, 2]),
        "world_steps": 10,
    }  # fmt: skip
    row = runs.row_of(3, 20, metrics, 0.5)
    assert row["return"] == [None, 1.0] and row["learning/loss"] is None and row["terminated"] == [0, 2]
    assert np.float32(json.loads(json.dumps(row))["cost/overload"]) == np.float32(0.1)
    assert (row["env_steps"], row["env_steps_per_second"]) == (30, 20.0)


def test_a_crowd_is_told_by_its_percentiles() -> None:
    """A row stays small whatever the number of agents; who has no finite figure is left out."""
    reward = np.append(np.random.default_rng(0).permutation(10_001), np.nan).astype(np.float32)
    metrics = {
        "reward": reward, "terminated": np.zeros(len(reward), np.int32), "ended": np.arange(101), "world": {},
        "federation": {}, "cost": {}, "learning": {"loss": np.full(len(reward), np.nan)}, "world_steps": 1,
    }  # fmt: skip
    row = runs.row_of(1, 0, metrics, 1.0)
    assert row["return"] == pytest.approx([100.0 * percent for percent in range(101)])
    assert row["learning/loss"] == [None] * 101
    assert row["ended"] == list(range(101))
