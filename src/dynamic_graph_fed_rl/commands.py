"""What the commands do once their options are known. Imports jax; `cli.py` does not."""

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import equinox as eqx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from dynamic_graph_fed_rl.environments.spec import Metric
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, LearnedPolicy, evaluation_keys, stream_key
from dynamic_graph_fed_rl.evaluation.held_out import compare, episodes_of, judged_by, prove
from dynamic_graph_fed_rl.evaluation.report import TERMINAL_WIDTH, comparison_table, write_report
from dynamic_graph_fed_rl.experiment import Built, Experiment, build, known, with_fields
from dynamic_graph_fed_rl.federation.privacy import epsilon
from dynamic_graph_fed_rl.training import checkpoint, placement, runs
from dynamic_graph_fed_rl.training.progress import Display, Stop
from dynamic_graph_fed_rl.training.trainer import Training

# what a shell reports for a command that Ctrl-C ended
INTERRUPTED = 130


def train(
    experiment: Experiment,
    out: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 10,
    keep: int = 3,
    console: Console | None = None,
) -> int:
    """Train, evaluate on held-out seeds, write the report; returns the exit status.

    Without `out` the folder is `runs/<environment>-<n>`, a new one or, with `resume`, the last one. The first
    Ctrl-C ends training with a checkpoint, the evaluation and the report so far; a second one ends at once.

    Raises:
        ValueError: settings that cannot be, or a run folder that does not fit them.
        FileExistsError: the folder holds something and `resume` is not asked for.
    """
    console = console or Console()
    begun = time.perf_counter()
    for name, value in (("checkpoint_every", checkpoint_every), ("keep", keep)):
        if value < 1:
            raise ValueError(f"{name} {value}: must be at least 1")
    environment = experiment.environment
    newest = runs.latest(environment) if resume else None
    path = out or newest or runs.next_free(environment)
    built = build(experiment)
    trainer = built.trainer
    runner = placement.runner_of(trainer, experiment.agent_map, experiment.devices)
    key = stream_key(TRAINING_STREAM, experiment.seed)
    if not placement.leads():
        return _take_part(runner, trainer.init(key), experiment.rounds, checkpoint_every)
    found = None
    if resume:
        like = eqx.filter_eval_shape(trainer.init, key)
        run, found = runs.resume(path, experiment, like, lambda text: console.print(f"[yellow]{text}[/]"))
    else:
        run = runs.create(path, experiment)
    before_seconds = sum(row["round_seconds"] for _, row in runs.read_rows(run.metrics))
    console.print(f"Run folder: {run.path}", soft_wrap=True)
    done, training = found or (0, None)
    if found:
        console.print(f"Going on after round {done} of {experiment.rounds}.")

    with Stop() as stop:
        display = Display(console, experiment.rounds, built.spec.costs)
        with display.running(done):
            training = trainer.init(key) if training is None else training
            training = runs.learn(
                run,
                runner,
                placement.begin(runner, training),
                experiment.rounds,
                checkpoint_every,
                keep,
                display.update,
                lambda: placement.any_process(stop.asked),
                _privacy_spent(experiment),
            )
            training = placement.end(runner, training)
        stopped = stop.asked
        if stopped:
            # whoever stopped it may not wait for the evaluation
            _conclude(built, run, training, {}, before_seconds + time.perf_counter() - begun)
            console.print(
                f"Stopped after round {int(training.round)}; the checkpoint is saved, --resume goes on from "
                "it. Evaluating what was learned; press Ctrl-C again to leave.",
                soft_wrap=True,
            )
        evaluation = _evaluate(built, training, stop, console, stopped)
        wall_seconds = before_seconds + time.perf_counter() - begun
        summary = _conclude(built, run, training, evaluation, wall_seconds)
        _tell(built, run, summary, console)
        return INTERRUPTED if stop.asked else 0


def _take_part(runner: placement.Runner, training: Training, rounds: int, checkpoint_every: int) -> int:
    """Training in a process that does not lead: it writes and prints nothing."""
    with Stop() as stop:
        begun = placement.begin(runner, training)
        trained = runs.take_part(runner, begun, rounds, checkpoint_every, lambda: placement.any_process(stop.asked))
        placement.end(runner, trained)
        return INTERRUPTED if stop.asked else 0


def _privacy_spent(experiment: Experiment) -> runs.Derived | None:
    """The privacy bound after a round, under differential privacy."""
    exchange = experiment.exchange
    if exchange.privacy != "dp":
        return None
    # the accountant's library is asked for before anything is compiled
    epsilon(exchange.dp_noise, 1, 1.0, exchange.dp_delta)

    def spent(row: Mapping[str, Any]) -> dict[str, float]:
        releases = int(row["federation/releases"])
        return {"federation/epsilon": epsilon(exchange.dp_noise, releases, 1.0, exchange.dp_delta)}

    return spent


def _evaluate(built: Built, training: Training, stop: Stop, console: Console, stopped: bool) -> dict[str, Any]:
    domain, experiment = built.domain, built.experiment
    policy = built.policy(training)
    keys = evaluation_keys(experiment.first_seed, experiment.evaluation_seeds)
    # a stop of the training is not one of the evaluation, which a second signal ends
    stopping = (lambda: False) if stopped else (lambda: stop.asked)
    with _progress(console, len(domain.scenarios) * (1 + len(domain.baselines))) as show:
        return compare(domain, policy, domain.scenarios, keys, show, stopping)


def _conclude(
    built: Built,
    run: runs.RunFolder,
    training: Training,
    evaluation: dict[str, Any],
    wall_seconds: float,
) -> dict[str, Any]:
    """`summary.json` and the report, with what there is."""
    experiment, trainer, domain = built.experiment, built.trainer, built.domain
    spec = built.spec
    rounds = int(training.round)
    rows = [row for _, row in runs.read_rows(run.metrics)]
    speeds = sorted(row["env_steps_per_second"] for row in rows)
    summary = {
        "environment": experiment.environment,
        "algorithm": experiment.algorithm,
        "federation": experiment.federation,
        "agents": trainer.agents,
        "rounds": rounds,
        "env_steps": rows[-1]["env_steps"] if rows else 0,
        # of the median round: the first of a session compiles
        "env_steps_per_second": speeds[len(speeds) // 2] if speeds else None,
        "wall_seconds": wall_seconds,
        "first_seed": experiment.first_seed,
        "evaluation": evaluation,
    }
    content = json.dumps({name: value for name, value in summary.items() if value is not None}, indent=1)
    checkpoint.write_whole(run.summary, content.encode())
    run.report.mkdir(exist_ok=True)
    if evaluation and domain.illustrate is not None:
        policy = built.policy(training)
        keys = evaluation_keys(experiment.first_seed, experiment.evaluation_seeds)
        domain.illustrate(run.report, policy, episodes_of(domain, keys))
    write_report(run.path, judged_by(spec), spec.headline)
    return summary


def _tell(built: Built, run: runs.RunFolder, summary: dict[str, Any], console: Console) -> None:
    spec = built.spec
    if summary["evaluation"]:
        _print_table(summary["evaluation"], judged_by(spec), spec.headline, console)
    speed = summary["env_steps_per_second"]
    if speed is not None:
        console.print(
            f"{summary['env_steps']:,} world steps at {speed:,.0f} a second; "
            f"{summary['wall_seconds']:,.0f} s in all, compilation and evaluation included.",
            soft_wrap=True,
        )
    console.print(f"Report: {run.report / 'report.html'}", soft_wrap=True)


def _print_table(evaluation: dict[str, Any], metrics: Sequence[Metric], headline: str, console: Console) -> None:
    if not console.is_terminal:
        console = Console(file=console.file, width=TERMINAL_WIDTH)
    console.print(comparison_table(evaluation, metrics, headline, console.width))


@contextmanager
def _progress(console: Console, steps: int) -> Iterator[Any]:
    """Yields `show(scenario, controller)`, to be called at the start of each of the steps."""
    bar = Progress(
        TextColumn("evaluating {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=steps)
    started = 0

    def show(scenario: str, controller: str) -> None:
        nonlocal started
        bar.update(task, completed=started, description=f"{controller} in {scenario}")
        started += 1

    with bar:
        yield show


def evaluate(
    run_dir: Path,
    scenario: str | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
    as_json: bool = False,
) -> int:
    """Print the comparison of a run's newest checkpoint with every baseline, as a table or as JSON.

    Raises:
        ValueError: no such run or scenario.
    """
    built, policy = _judged(run_dir, scenario, seeds, first_seed)
    domain, experiment = built.domain, built.experiment
    scenarios = domain.scenarios
    if scenario is not None:
        scenarios = {scenario: known("scenario", scenario, dict(scenarios))}
    keys = evaluation_keys(experiment.first_seed, experiment.evaluation_seeds)
    with _progress(Console(stderr=True), len(scenarios) * (1 + len(domain.baselines))) as show:
        evaluation = compare(domain, policy, scenarios, keys, show, lambda: False)
    _show(evaluation, judged_by(built.spec), built.spec.headline, as_json)
    return 0


def evaluate_elsewhere(
    run_dir: Path,
    scenario: str | None,
    seeds: int | None,
    first_seed: int | None,
    incident: tuple[Sequence[str], float, float],
    as_json: bool,
) -> int:
    """`evaluate` in the domain's independent simulator, there with parts of the network out for a while, if any.

    Raises:
        ValueError: no such run, part or scenario, the domain has no other simulator, or that one failed.
    """
    built, policy = _judged(run_dir, scenario, seeds, first_seed)
    domain, experiment = built.domain, built.experiment
    simulator = domain.simulator
    if simulator is None:
        raise ValueError(
            f"{experiment.environment}: this run's network has no other simulator; traffic on a network of SUMO has "
            "(--network cologne8, or --net and --routes)"
        )
    if incident[0]:
        simulator = simulator.disturbed(*incident)
    numbers = range(experiment.first_seed, experiment.first_seed + experiment.evaluation_seeds)
    with _progress(Console(stderr=True), len(numbers) * (1 + len(domain.baselines))) as show:
        evaluation = prove(domain, simulator, policy, numbers, lambda name, seed: show(f"seed {seed}", name))
    _show(evaluation, simulator.metrics, simulator.headline, as_json)
    return 0


def _judged(
    run_dir: Path, scenario: str | None, seeds: int | None, first_seed: int | None
) -> tuple[Built, LearnedPolicy]:
    """A run's experiment with these changes, and its newest policy."""
    run, experiment = runs.open_run(run_dir)
    changes = {"evaluation_seeds": seeds, "first_seed": first_seed}
    experiment = replace(experiment, **{name: value for name, value in changes.items() if value is not None})
    if scenario is not None and any(field.name == "scenarios" for field in fields(experiment.settings)):
        experiment = with_fields(experiment, {"scenarios": (scenario,)})
    return _load(run, experiment)


def _show(evaluation: dict[str, Any], metrics: Sequence[Metric], headline: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps(evaluation, indent=1))
    else:
        _print_table(evaluation, metrics, headline, Console())


def _load(run: runs.RunFolder, experiment: Experiment) -> tuple[Built, LearnedPolicy]:
    """The experiment built, and the policy of its newest checkpoint.

    Raises:
        ValueError: there is no checkpoint yet.
    """
    built = build(experiment)
    like = eqx.filter_eval_shape(built.trainer.init, stream_key(TRAINING_STREAM, experiment.seed))
    found = checkpoint.newest(run.checkpoints, like, lambda text: print(f"dgfrl: {text}", file=sys.stderr))
    if found is None:
        raise ValueError(f"{run.path}: has no checkpoint yet; train it further with --resume")
    return built, built.policy(found[1])


def act(run_dir: Path, snapshot: str | None = None, example: bool = False, as_json: bool = False) -> int:
    """Print what a run's policy advises for a snapshot, or a valid snapshot to start from.

    `snapshot` is the path of a JSON file, or `-` for standard input.
    """
    run, experiment = runs.open_run(run_dir)
    if not example and snapshot is None:
        raise ValueError("act: needs --input FILE (- for standard input), or --example to print a valid one")
    content: Any = None
    if not example:
        text = sys.stdin.read() if snapshot == "-" else Path(str(snapshot)).read_text()
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{snapshot}: not JSON: {error}") from error
    built, policy = _load(run, experiment)
    advice = built.domain.advice
    if advice is None:
        raise ValueError(f"environment '{experiment.environment}': has no advisory use; power-grid has")
    if example:
        print(json.dumps(advice.example(), indent=1))
        return 0
    result = advice.advise(policy, content)
    if as_json or not sys.stdout.isatty():
        print(json.dumps(result, indent=1))
    else:
        advice.render(result, Console())
    return 0
