"""`dgfrl benchmark`: what it lists and refuses, what it writes, and that a partial run keeps other rows."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from dynamic_graph_fed_rl import benchmark
from dynamic_graph_fed_rl.cli import main

REQUIRED = {"claim", "value", "low", "high", "bar", "pass", "seeds", "machine", "part", "note", "source"}


def status_of(words: str) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(words.split())
    return int(exit_info.value.code or 0)


@pytest.fixture
def results(tmp_path, monkeypatch) -> Path:
    """The folder that results go to in this test."""
    monkeypatch.syspath_prepend(str(benchmark.folder()))
    from federation import rows

    monkeypatch.setattr(rows, "RESULTS", tmp_path)
    return tmp_path


@pytest.fixture
def parts(results, monkeypatch) -> SimpleNamespace:
    """Two parts that report `figure`, instead of the real ones."""
    import federation
    from federation.rows import Row

    state = SimpleNamespace(figure=1.0, asked=[])

    def run(quick: bool, seeds: int | None) -> list[Row]:
        state.asked.append((quick, seeds))
        return [Row("a figure", state.figure, bar=2.0)]

    module = ModuleType("federation.fake")
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "federation.fake", module)
    fake = {name: federation.Part(f"shows {name}", "2", "fake") for name in ("first", "second")}
    monkeypatch.setattr(federation, "PARTS", fake)
    return state


def stored(path: Path) -> list[tuple[str, float, bool]]:
    return [(row["part"], row["value"], row["pass"]) for row in json.loads(path.read_text())]


def test_lists_every_benchmark_in_a_line(capsys) -> None:
    assert status_of("benchmark") == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ("power-env-speed", "training-speed", "federation", "random-mdp"):
        assert sum(line.strip().startswith(f"{name} ") for line in lines) == 1
    for name in benchmark.SCRIPTS:
        assert (benchmark.folder() / f"{name.replace('-', '_')}.py").is_file()


def test_listing_and_help_need_neither_jax_nor_numpy() -> None:
    for words in ("benchmark", "benchmark --help", "benchmark federation --help"):
        code = (
            "import sys; from dynamic_graph_fed_rl.cli import main\n"
            "try: main(sys.argv[1:])\n"
            "finally: assert not {'jax', 'numpy', 'matplotlib'} & set(sys.modules), 'slow imports'"
        )
        done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "benchmark speed",
            f"benchmark 'speed': unknown; known: {', '.join(benchmark.SCRIPTS)}, federation",
        ),
        ("benchmark federation random-mdp venus", "part 'venus': unknown; known: random-mdp"),
        ("benchmark federation random-mdp --seeds 0", "seeds 0: must be at least 1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, message, results, capsys) -> None:
    assert status_of(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == "" and not list(results.iterdir())


def test_without_the_checkout_it_says_where_to_get_it(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "site-packages" / "dynamic_graph_fed_rl" / "b.py"))
    assert status_of("benchmark") == 2
    assert "get the repository and run `pip install -e .`" in capsys.readouterr().err


def test_a_script_gets_its_options_and_its_status_is_ours(monkeypatch, tmp_path) -> None:
    shutil.copytree(benchmark.folder() / "federation", tmp_path / "benchmarks" / "federation")
    script = tmp_path / "benchmarks" / "power_env_speed.py"
    script.write_text("import sys; sys.exit(int(sys.argv[2]))")
    monkeypatch.setattr(benchmark, "__file__", str(tmp_path / "src" / "package" / "benchmark.py"))
    assert status_of("benchmark power-env-speed --repeats 3") == 3


def test_a_partial_run_replaces_its_own_rows_only(parts, results, capsys) -> None:
    assert status_of("benchmark federation") == 0
    parts.figure = 3.0
    assert status_of("benchmark federation first --seeds 4") == 0
    path = results / "federation.json"
    assert stored(path) == [("first", 3.0, True), ("second", 1.0, False)]
    assert status_of("benchmark federation second --quick") == 0
    assert stored(path)[1] == ("second", 1.0, False)
    assert stored(results / "federation-quick.json") == [("second", 3.0, True)]
    assert parts.asked == [(False, None), (False, None), (False, 4), (True, None)]
    assert "a figure" in capsys.readouterr().out
    # nothing but the results, no temporary files
    assert len(list(results.iterdir())) == 2


def test_a_foreign_results_file_is_not_overwritten(parts, results, capsys) -> None:
    path = results / "federation.json"
    path.write_text('["mine"]')
    assert status_of("benchmark federation first") == 2
    assert "not a list of benchmark rows" in capsys.readouterr().err
    assert path.read_text() == '["mine"]'


def test_rows_know_whether_they_reach_their_bar(results) -> None:
    from federation.rows import Row, row_from_seeds

    row = row_from_seeds("score", [1.0, 2.0, 3.0, 100.0], bar=2.2, decided_by="interval", direction="at least")
    assert row.value == 2.5 and row.seeds == 4
    assert row.low is not None and row.high is not None and row.low < 2.2 < row.value < row.high
    assert row.reaches(row.bar) is False
    assert row_from_seeds("score", [1.0, 2.0, 6.0], np.mean, bar=2.9).reaches(2.9) is True
    assert Row("time", 5.0, bar=6.0, direction="at most").reaches(6.0) is True
    assert Row("time", 5.0).reaches(None) is None
    with pytest.raises(ValueError, match="'time': value is nan"):
        Row("time", float("nan"))
    with pytest.raises(ValueError, match="has none"):
        Row("time", 1.0, decided_by="interval")


def test_random_mdp_agrees_with_its_oracle_and_the_published_code(results, capsys) -> None:
    assert status_of("benchmark federation random-mdp --quick") == 0
    rows = json.loads((results / "federation-quick.json").read_text())
    assert all(set(row) >= REQUIRED and row["part"] == "random-mdp" for row in rows)
    oracle, published, seconds, *objectives = rows
    assert oracle["value"] < 1e-9 and published["value"] < 1e-8 and seconds["pass"] is None
    assert len(objectives) == 16
    for row in objectives:
        assert row["low"] < row["value"] < row["high"] and row["seeds"] == seconds["seeds"]
