"""The command line: help without jax, one clear line for what is wrong, and a whole small run."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from dynamic_graph_fed_rl.cli import main
from dynamic_graph_fed_rl.experiment import default_experiment
from dynamic_graph_fed_rl.federation.privacy import epsilon
from dynamic_graph_fed_rl.training import checkpoint, runs

_SMALL = (
    "--agents 2 --worlds 4 --decisions-per-round 8 --width 8 --layers 1 --epochs 1 --minibatches 2 "
    "--time-limit 20 --evaluation-seeds 3"
)
SMALL = _SMALL.split()
COMMANDS = ["train", "train power-grid", "train cartpole", "train drift", "evaluate", "act", "power-flow", "list"]
COMMANDS += ["serve", "serve cartpole", "join", "peer cartpole"]


def status_of(words: str | list[str]) -> int:
    with pytest.raises(SystemExit) as exit_info:
        main(words.split() if isinstance(words, str) else words)
    return int(exit_info.value.code or 0)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_is_quick_and_needs_no_jax(command) -> None:
    code = (
        "import sys; sys.argv[0] = 'dgfrl'; from dynamic_graph_fed_rl.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'jax', 'equinox', 'numpy', 'matplotlib'} & set(sys.modules), 'slow imports'"
    )
    taken = []
    for _ in range(2):  # the first may write bytecode
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", code, *command.split(), "--help"], capture_output=True, text=True
        )
        taken.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
        assert f"dgfrl {command}".strip() in done.stdout
    assert min(taken) < (0.5 if not command else 3.0)


def test_help_shows_meanings_and_defaults(capsys) -> None:
    assert status_of("train power-grid --help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    default = f"(default: {default_experiment('power-grid').learning.learning_rate})"
    for text in ("--learning-rate FLOAT", "Adam's step size", default, "--case STR", "--resume"):
        assert text in shown
    assert "--time-limit" not in shown and "--environment" not in shown


def test_the_algorithm_chooses_the_options(capsys) -> None:
    assert status_of("train drift --algorithm reinforce --help") == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    default = f"(default: {default_experiment('drift', algorithm='reinforce').learning.learning_rate})"
    for text in (default, "--first-difficulty FLOAT", "--proximal FLOAT"):
        assert text in shown
    assert "--clip FLOAT" not in shown and "--trace" not in shown
    assert status_of("train drift --algorithm=a2c --help") == 0
    shown = capsys.readouterr().out
    assert "--trace FLOAT" in shown and "--clip FLOAT" not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fly", "command 'fly': unknown; known: train, evaluate, act, power-flow, list"),
        ("train venus", "environment 'venus': unknown; known: power-grid, traffic, cartpole"),
        ("train", "name an environment first; known: power-grid, traffic, cartpole"),
        ("train cartpole --agents 0", "agents 0: must be at least 1"),
        ("train cartpole --agent-map loop --devices 2", "agent_map 'loop' with devices 2: agents by themselves"),
        ("train power-grid --agent-map loop", "those of 'power-grid' act in one together"),
        ("serve", "serve: name an environment first; known: power-grid, traffic, cartpole"),
        ("serve cartpole --federation gossip", "over HTTP must be server, shared, hybrid"),
        ("serve cartpole --host 0.0.0.0", "give --certfile, --keyfile, --join-token"),
        ("join ftp://server", "url 'ftp://server': must be such as http://127.0.0.1:5050"),
        ("join http://server.example", "could be read on the way; use https, or --insecure"),
        ("join http://127.0.0.1 --queue 0", "queue 0: must be at least 1"),
        ("train drift --algorithm ddpg", "algorithm 'ddpg': unknown; known: ppo, a2c, reinforce"),
        ("train drift --difficulty-spacing -0.2", "agent 3 would have difficulty -0.1; must be above 0"),
        ("train drift --algorithm reinforce --proximal 1", "proximal 1.0: does nothing in a round of one gradient"),
        ("train cartpole --keep 0", "keep 0: must be at least 1"),
        ("train power-grid --case ieee14 --agents 15", "has 14 connected buses"),
        ("train power-grid --case ieee15", "known: ieee14, ieee30, ieee57, ieee118, ieee300"),
        ("train power-grid --case ieee14 --radius -1", "radius -1: must be at least 0"),
        ("train cartpole --config absent.yaml", "absent.yaml"),
        ("train --resume", "name the run's folder with --out"),
        ("evaluate nowhere", "nowhere: not a run folder"),
        ("act nowhere --example", "nowhere: not a run folder"),
        ("power-flow ieee15", "case 'ieee15': unknown; known: ieee14"),
        ("power-flow absent.m", "absent.m': no such file"),
        ("power-flow ieee14 --outage 7,x", "outage '7,x': must be branch rows"),
        ("power-flow ieee14 --outage 21", "outage 21: case 'ieee14' has no such branch row; rows are 1 to 20"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(words, message, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert status_of(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("dgfrl: error: ") and captured.err.count("\n") == 1
    assert captured.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--agnts 3", "--federation star", "--agents many"])
def test_wrong_options_exit_with_2(option, capsys) -> None:
    assert status_of(f"train cartpole {option}") == 2
    assert "--agents" in capsys.readouterr().err or option.startswith("--federation")


def test_power_flow_json(capsys) -> None:
    assert status_of("power-flow ieee14 --json") == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["converged"] and len(whole["buses"]) == 14 and len(whole["branches"]) == 20
    assert status_of("power-flow ieee14 --json --mode dc --outage 3,7") == 0
    cut = json.loads(capsys.readouterr().out)
    assert [row["p_from_mw"] == 0.0 for row in cut["branches"]][:7] == [False, False, True, False, False, False, True]


def test_power_flow_that_does_not_converge(capsys, tmp_path) -> None:
    text = (Path(__file__).parents[1] / "examples" / "my_grid.m").read_text()
    assert "    30   1     85    25 " in text
    heavy = tmp_path / "heavy.m"
    heavy.write_text(text.replace("    30   1     85    25 ", "    30   1     8500  2500 "))
    assert status_of(["power-flow", str(heavy), "--json"]) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["converged"] is False and result["max_mismatch_pu"] > 1e-3


def test_list_names_everything(capsys) -> None:
    assert status_of("list") == 0
    shown = capsys.readouterr().out
    for name in ("power-grid", "cartpole", "ppo", "server", "gossip", "ptdf-redispatch", "outages", "dc-opf"):
        assert any(line.strip().startswith(f"{name} ") and len(line.split()) > 3 for line in shown.splitlines())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A whole run of 60 rounds, in this process."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert status_of(["train", "cartpole", *SMALL, "--rounds", "60", "--out", str(folder)]) == 0
    return folder


def without_clocks(value):
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if "seconds" not in k and "per_second" not in k}
        return {k: without_clocks(v) for k, v in kept.items()}
    return value


def repeatable(folder: Path) -> tuple:
    rows = [without_clocks(row) for _, row in runs.read_rows(folder / "metrics.jsonl")]
    rounds, arrays = checkpoint.read(checkpoint.checkpoints(folder / "checkpoints")[0])
    summary = without_clocks(json.loads((folder / "summary.json").read_text()))
    return rows, rounds, {name: value.tobytes() for name, value in arrays.items()}, summary


def test_a_run_leaves_its_folder(finished, capsys) -> None:
    assert {path.name for path in finished.iterdir()} == {
        "run.json", "config.yaml", "metrics.jsonl", "checkpoints", "summary.json", "report"
    }  # fmt: skip
    for name in ("report.md", "report.html", "learning_curves.png", "comparison.png"):
        assert (finished / "report" / name).stat().st_size > 500
    summary = json.loads((finished / "summary.json").read_text())
    assert (summary["environment"], summary["algorithm"], summary["federation"]) == ("cartpole", "ppo", "server")
    assert (summary["agents"], summary["env_steps"], summary["first_seed"]) == (2, 60 * 64, 0)
    entry = summary["evaluation"]["standard"]
    assert set(entry) == {
        "policy", "do-nothing", "random", "lean-correction", "score", "score_zero", "paired_difference"
    }  # fmt: skip
    figures = entry["policy"]["episode_return"]
    assert len(figures["values"]) == 3 and figures["low"] <= figures["iqm"] <= figures["high"]
    assert entry["random"]["decision_latency_seconds"]["iqm"] > 0
    assert len(runs.read_rows(finished / "metrics.jsonl")) == 60
    assert len(checkpoint.checkpoints(finished / "checkpoints")) == 3


def test_evaluate_prints_what_the_summary_holds(finished, capsys) -> None:
    assert status_of(["evaluate", str(finished), "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)
    stored = json.loads((finished / "summary.json").read_text())["evaluation"]
    assert without_clocks(evaluation) == without_clocks(stored)
    assert status_of(["evaluate", str(finished), "--json", "--first-seed", "1", "--scenario", "standard"]) == 0
    moved = json.loads(capsys.readouterr().out)["standard"]["policy"]["episode_return"]["values"]
    assert moved[:2] == stored["standard"]["policy"]["episode_return"]["values"][1:]
    assert status_of(["evaluate", str(finished), "--scenario", "storm"]) == 2
    assert "scenario 'storm': unknown; known: standard" in capsys.readouterr().err
    assert status_of(["evaluate", str(finished), "--in-sumo"]) == 2
    assert "cartpole: this run's network has no other simulator" in capsys.readouterr().err
    assert status_of(["evaluate", str(finished), "--close", "street"]) == 2
    assert "--close is for --in-sumo" in capsys.readouterr().err


def test_a_run_is_not_overwritten_nor_changed(finished, capsys) -> None:
    before = repeatable(finished)
    assert status_of(["train", "cartpole", "--out", str(finished)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert status_of(["train", "cartpole", "--out", str(finished), "--resume", "--discount", "0.5"]) == 2
    assert (
        f"discount is {default_experiment('cartpole').learning.discount} in this run, not 0.5"
        in capsys.readouterr().err
    )
    assert status_of(["act", str(finished), "--example"]) == 2
    assert "no advisory use" in capsys.readouterr().err
    assert repeatable(finished) == before


def test_reinforce_from_the_command_line_and_from_its_file(tmp_path, capsys) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    words = "train drift --algorithm reinforce --agents 2 --rounds 1 --worlds 2 --time-limit 5 --width 4"
    small = [*words.split(), "--decisions-per-round", "5", "--evaluation-seeds", "2"]
    assert status_of([*small, "--out", str(first)]) == 0
    summary = json.loads((first / "summary.json").read_text())
    assert (summary["environment"], summary["algorithm"]) == ("drift", "reinforce")
    assert {"do-nothing", "random", "push-back"} < set(summary["evaluation"]["standard"])
    config = (first / "config.yaml").read_text()
    assert "algorithm: reinforce\n" in config and "\nclip:" not in config
    assert status_of(["train", "--config", str(first / "config.yaml"), "--out", str(second)]) == 0
    assert (second / "config.yaml").read_text() == config
    assert status_of(["train", "drift", "--algorithm", "ppo", "--resume", "--out", str(first)]) == 2
    assert "is a run of algorithm 'reinforce', not 'ppo'" in capsys.readouterr().err


def test_privacy_is_accounted_for_while_training(tmp_path, capsys) -> None:
    private = ["--privacy", "dp", "--dp-noise", "10", "--rounds", "3", "--evaluation-seeds", "2"]
    assert status_of(["train", "cartpole", *SMALL, *private, "--out", str(tmp_path / "private")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "private" / "metrics.jsonl").read_text().splitlines()]
    spent = [row["federation/epsilon"] for row in rows]
    # three Gaussian mechanisms of noise 10 are one of noise 10 / sqrt(3)
    assert spent == sorted(spent) and spent[-1] == pytest.approx(epsilon(10 / 3**0.5, 1, 1.0, 1e-5))
    assert f"epsilon {spent[-1]:.3g}" in capsys.readouterr().out


def test_a_configuration_file_gives_the_same_run(finished, tmp_path) -> None:
    config, again = str(finished / "config.yaml"), tmp_path / "again"
    assert status_of(["train", "--config", config, "--out", str(again)]) == 0
    assert (again / "config.yaml").read_text() == (finished / "config.yaml").read_text()
    assert repeatable(again) == repeatable(finished)
    shorter = tmp_path / "shorter"
    assert status_of(["train", "cartpole", "--config", config, "--rounds", "1", "--out", str(shorter)]) == 0
    stored = yaml.safe_load((shorter / "config.yaml").read_text())
    assert (stored["rounds"], stored["width"], stored["environment"]) == (1, 8, "cartpole")


LONG = ["train", "cartpole", *SMALL, "--rounds", "400", "--checkpoint-every", "7", "--out"]


def stop_midway(folder: Path, number: signal.Signals) -> subprocess.Popen:
    """Starts a run in a process of its own and sends it a signal after a few rounds."""
    command = [sys.executable, "-m", "dynamic_graph_fed_rl", *LONG, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(runs.read_rows(folder / "metrics.jsonl")) < 10:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    return process


def test_killed_and_resumed_is_the_run_never_killed(tmp_path, capsys) -> None:
    killed = stop_midway(tmp_path / "killed", signal.SIGKILL)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "summary.json").exists()
    assert status_of(["train", "cartpole", "--resume", "--out", str(tmp_path / "killed")]) == 0
    assert "Going on after round" in capsys.readouterr().out
    assert status_of([*LONG, str(tmp_path / "whole")]) == 0
    assert repeatable(tmp_path / "killed") == repeatable(tmp_path / "whole")


def test_an_interrupt_ends_with_checkpoint_evaluation_and_report(tmp_path) -> None:
    folder = tmp_path / "run"
    process = stop_midway(folder, signal.SIGINT)
    output, errors = process.communicate()
    assert process.returncode == 130, errors
    assert "Stopped after round" in output and "Traceback" not in errors
    rows = runs.read_rows(folder / "metrics.jsonl")
    rounds, _ = checkpoint.read(checkpoint.checkpoints(folder / "checkpoints")[0])
    assert 10 <= rounds == len(rows) < 400
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["rounds"] == rounds and "policy" in summary["evaluation"]["standard"]
    assert "Learning" in (folder / "report" / "report.md").read_text()


@pytest.mark.parametrize("number", ["", "2", "one"])
def test_a_process_that_does_not_know_its_number_is_refused(number, monkeypatch, capsys) -> None:
    for name, value in (("COORDINATOR", "127.0.0.1:1"), ("PROCESSES", "2"), ("PROCESS", number)):
        monkeypatch.setenv(f"DGFRL_{name}", value)
    assert status_of(["train", "cartpole", *SMALL]) == 2
    assert f"DGFRL_PROCESS '{number}'" in capsys.readouterr().err


def test_more_devices_than_there_are_leave_no_folder(tmp_path, capsys) -> None:
    assert status_of(["train", "cartpole", *SMALL, "--devices", "4096", "--out", str(tmp_path / "run")]) == 2
    assert "devices 4096: there" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
