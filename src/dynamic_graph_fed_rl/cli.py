"""The command `dgfrl`. Neither help nor a wrong option waits for jax: it is imported when there is work."""

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.experiment import Experiment

_HELP = """usage: dgfrl COMMAND [OPTIONS]

Federated reinforcement learning for networks that keep changing.

  train ENV         learn, evaluate on held-out seeds beside today's rules, write a report
  evaluate RUN      compare a run's policy with every baseline again, on seeds of your choice
  act RUN           one snapshot in, the advised set-points out
  power-flow CASE   solve one grid case and print it
  list              environments, scenarios, baselines, algorithms, federations
  benchmark [NAME]  run a benchmark; without NAME, list them
  serve ENV         be the server of a federation over HTTP
  join URL          be one of its clients
  peer ENV          be one of several nodes that average without a server

dgfrl COMMAND --help tells a command's options with their defaults. DGFRL_CACHE_DIR moves the folder of
compiled programs, DGFRL_DEBUG=1 shows where in the code an error arose. DGFRL_COORDINATOR=HOST:PORT,
DGFRL_PROCESSES=N and DGFRL_PROCESS=I make N processes train together (see docs/trainer.md).
"""

_TRAIN_HELP = """usage: dgfrl {command} ENV [OPTIONS]

ENV is one of {environments}. Without it, these are the options for {shown}:
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its status: 2 for what the user can put right, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    warnings.formatwarning = lambda message, *_, **__: f"dgfrl: warning: {message}\n"
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": _train,
        "evaluate": _evaluate,
        "act": _act,
        "power-flow": _power_flow,
        "list": _list,
        "benchmark": _benchmark,
        "serve": _serve,
        "join": _join,
        "peer": _peer,
    }
    if not words or words[0] in ("-h", "--help"):
        print(_HELP, end="")
        sys.exit(0 if words else 2)
    if words[0] == "--version":
        from importlib.metadata import version

        print(version("dynamic-graph-fed-rl"))
        sys.exit(0)
    try:
        if words[0] not in commands:
            raise ValueError(f"command '{words[0]}': unknown; known: {', '.join(commands)}")
        status = commands[words[0]](words[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # whoever read our output has left; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except KeyboardInterrupt:
        print("dgfrl: ended; a run goes on from its last checkpoint with --resume", file=sys.stderr)
        status = 130
    except (ValueError, OSError) as error:
        if os.environ.get("DGFRL_DEBUG"):
            raise
        print(f"dgfrl: error: {' '.join(str(error).split())}", file=sys.stderr)
        status = 2
    sys.exit(status)


def _train(words: list[str]) -> int:
    from dynamic_graph_fed_rl.options import Settings, Train, parse

    out = _early(words, "--out")
    base, words = _base("train", words, lambda env, how: _stored(env, how, out) if "--resume" in words else None)
    options = parse(Train, words, f"train {base.environment}", Train(Settings.of(base)))
    experiment = options.settings.experiment()
    _keep_compiled_programs()
    _join_processes()
    from dynamic_graph_fed_rl import commands

    return commands.train(experiment, options.out, options.resume, options.checkpoint_every, options.keep)


def _serve(words: list[str]) -> int:
    from dataclasses import replace

    from dynamic_graph_fed_rl.options import Serve, Settings, parse

    state = _early(words, "--state")
    there = state is not None and (Path(state) / "config.yaml").is_file()
    base, words = _base("serve", words, lambda env, how: _stored(env, how, state) if there else None)
    options = parse(Serve, words, f"serve {base.environment}", Serve(Settings.of(base)))
    experiment = options.settings.experiment()
    _keep_compiled_programs()
    from dynamic_graph_fed_rl.deployment import hosting, joining

    server = replace(options.server, join_token=joining.join_token(options.join_token_file))
    return hosting.serve(experiment, server, options.state, options.dev)


def _join(words: list[str]) -> int:
    from dynamic_graph_fed_rl.options import Join, parse

    options = parse(Join, words, "join")
    _keep_compiled_programs()
    from dynamic_graph_fed_rl.deployment import joining

    return joining.join(options.url, options.client)


def _peer(words: list[str]) -> int:
    from dataclasses import replace

    from dynamic_graph_fed_rl.options import Peer, Settings, parse

    base, words = _base("peer", words, lambda env, how: None)
    base = replace(base, federation="gossip")
    options = parse(Peer, words, f"peer {base.environment}", Peer(Settings.of(base)))
    experiment = options.settings.experiment()
    _keep_compiled_programs()
    from dynamic_graph_fed_rl.deployment import peering

    return peering.peer(experiment, options.peer)


def _base(
    command: str, words: list[str], stored: "Callable[[str | None, str | None], Experiment | None]"
) -> "tuple[Experiment, list[str]]":
    """What stands where no option is given, and the words after the environment's name.

    `stored` gives the experiment of the run to go on with, from the environment and algorithm that are asked for.
    """
    from dynamic_graph_fed_rl.algorithms.settings import ALGORITHMS
    from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
    from dynamic_graph_fed_rl.experiment import default_experiment, from_yaml, known

    asks_help = "-h" in words or "--help" in words
    environment = None
    if words and not words[0].startswith("-"):
        environment, words = words[0], words[1:]
        known("environment", environment, ENVIRONMENTS)

    config = _early(words, "--config")
    algorithm = _early(words, "--algorithm") or None
    if algorithm is not None:
        known("algorithm", algorithm, ALGORITHMS)
    chosen = {} if algorithm is None else {"algorithm": algorithm}
    if asks_help:
        base = default_experiment(environment or next(iter(ENVIRONMENTS)), **chosen)
        if environment is None:
            names = ", ".join(ENVIRONMENTS)
            print(_TRAIN_HELP.format(command=command, environments=names, shown=base.environment))
    elif config is not None:
        base = from_yaml(config, environment, algorithm)
    elif (found := stored(environment, algorithm)) is not None:
        base = found
    elif environment is None:
        raise ValueError(f"{command}: name an environment first; known: {', '.join(ENVIRONMENTS)}")
    else:
        base = default_experiment(environment, **chosen)
    return base, words


def _early(words: list[str], name: str) -> str | None:
    """The value of an option that must be known before the others can be parsed."""
    for word, following in pairwise([*words, ""]):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.removeprefix(f"{name}=")
    return None


def _stored(environment: str | None, algorithm: str | None, out: str | None) -> "Experiment":
    """The experiment of the run to go on with; the environment's defaults where there is none yet."""
    from dynamic_graph_fed_rl.experiment import default_experiment
    from dynamic_graph_fed_rl.training.runs import latest, open_run

    path = Path(out) if out is not None else latest(environment) if environment else None
    if path is not None and (path / "config.yaml").is_file():
        stored = open_run(path)[1]
        if environment not in (None, stored.environment):
            raise ValueError(f"{path}: is a run of environment '{stored.environment}', not '{environment}'")
        if algorithm not in (None, stored.algorithm):
            raise ValueError(f"{path}: is a run of algorithm '{stored.algorithm}', not '{algorithm}'")
        return stored
    if environment is None:
        raise ValueError("train --resume: name the run's folder with --out, or its environment")
    return default_experiment(environment, **({} if algorithm is None else {"algorithm": algorithm}))


def _evaluate(words: list[str]) -> int:
    from dynamic_graph_fed_rl.options import Evaluate, parse

    options = parse(Evaluate, words, "evaluate")
    if options.close and not options.in_sumo:
        raise ValueError("evaluate: --close is for --in-sumo; of the dynamics choose a --scenario with closures")
    _keep_compiled_programs()
    from dynamic_graph_fed_rl import commands

    chosen = options.scenario, options.seeds, options.first_seed
    if options.in_sumo:
        incident = options.close, options.close_from_s, options.close_until_s
        return commands.evaluate_elsewhere(options.run, *chosen, incident, options.json)
    return commands.evaluate(options.run, *chosen, options.json)


def _act(words: list[str]) -> int:
    from dynamic_graph_fed_rl.options import Act, parse

    options = parse(Act, words, "act")
    _keep_compiled_programs()
    from dynamic_graph_fed_rl import commands

    return commands.act(options.run, options.input, options.example, options.json)


def _power_flow(words: list[str]) -> int:
    from dynamic_graph_fed_rl.options import PowerFlow, parse

    options = parse(PowerFlow, words, "power-flow")
    outages = options.outages()
    _keep_compiled_programs()
    from dynamic_graph_fed_rl.environments.power_grid.network import load_case
    from dynamic_graph_fed_rl.environments.power_grid.study import render, solve

    result = solve(load_case(options.case), options.mode, outages)
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        render(result)
    return 0 if result["converged"] else 1


def _list(words: list[str]) -> int:
    if "-h" in words or "--help" in words:
        print("usage: dgfrl list\n\nEnvironments, scenarios, baselines, algorithms, federations, a line each.")
        return 0
    if words:
        raise ValueError(f"list: takes no options, got '{words[0]}'")
    _keep_compiled_programs()
    from rich.console import Console

    from dynamic_graph_fed_rl.algorithms.settings import ALGORITHMS
    from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
    from dynamic_graph_fed_rl.experiment import build, default_experiment
    from dynamic_graph_fed_rl.federation.aggregators.registry import AGGREGATORS
    from dynamic_graph_fed_rl.federation.attacks import ATTACKS
    from dynamic_graph_fed_rl.federation.codecs import CODECS
    from dynamic_graph_fed_rl.federation.overlay import OVERLAYS
    from dynamic_graph_fed_rl.federation.settings import FEDERATIONS

    console = Console(highlight=False)

    def section(title: str, lines: dict[str, str]) -> None:
        console.print(f"[bold]{title}[/]")
        width = max(map(len, lines))
        for name, text in lines.items():
            console.print(f"  {name:{width}}  {text}", markup=False, soft_wrap=True)

    section("Environments", {name: entry.help for name, entry in ENVIRONMENTS.items()})
    section("Algorithms", {name: entry.help for name, entry in ALGORITHMS.items()})
    section("Federations", FEDERATIONS)
    section("Overlays (gossip)", {name: entry.help for name, entry in OVERLAYS.items()})
    section("Aggregators", {name: entry.help for name, entry in AGGREGATORS.items()})
    section("Codecs", {name: entry.help for name, entry in CODECS.items()})
    section("Attacks (experiments)", {name: entry.help for name, entry in ATTACKS.items()})
    for name in ENVIRONMENTS:
        try:
            domain = build(default_experiment(name)).domain
        except ValueError as error:  # an extra that is not installed
            section(f"Scenarios of {name}", {"-": str(error)})
            continue
        section(f"Scenarios of {name}", {one: domain.help.get(one, "") for one in domain.scenarios})
        section(f"Baselines of {name}", {one: domain.help.get(one, "") for one in domain.baselines})
    return 0


def _benchmark(words: list[str]) -> int:
    from dynamic_graph_fed_rl import benchmark

    if not words or words[0] in ("-h", "--help"):
        print(f"{'usage: dgfrl benchmark [NAME [OPTIONS]]' if words else 'Benchmarks'}\n\n{benchmark.listing()}")
        return 0
    name = words[0]
    if name in benchmark.SCRIPTS:
        return benchmark.run_script(name, words[1:])
    if name != benchmark.FEDERATION:
        known = ", ".join([*benchmark.SCRIPTS, benchmark.FEDERATION])
        raise ValueError(f"benchmark '{name}': unknown; known: {known}")
    from dynamic_graph_fed_rl.options import BenchmarkFederation, parse

    options = parse(BenchmarkFederation, words[1:], f"benchmark {name}")
    _keep_compiled_programs()
    return benchmark.run_federation(options.parts, options.quick, options.seeds)


def _join_processes() -> None:
    """One training in several processes, where `DGFRL_COORDINATOR=HOST:PORT` says so.

    Raises:
        ValueError: not told how many processes there are, or which of them this one is.
    """
    coordinator = os.environ.get("DGFRL_COORDINATOR")
    if not coordinator:
        return
    asked = [os.environ.get(name, "") for name in ("DGFRL_PROCESSES", "DGFRL_PROCESS")]
    if not all(one.isdecimal() for one in asked) or not int(asked[1]) < int(asked[0]):
        raise ValueError(
            f"DGFRL_PROCESSES '{asked[0]}', DGFRL_PROCESS '{asked[1]}': beside DGFRL_COORDINATOR they must say how "
            "many processes train together and which one this is, counted from 0"
        )
    from dynamic_graph_fed_rl.training.placement import join_processes

    join_processes(coordinator, int(asked[0]), int(asked[1]))


def _keep_compiled_programs() -> None:
    """Compiled programs outlive the process: a second run of the same shape starts at once.

    Must come before jax is imported. `DGFRL_CACHE_DIR` names the folder; jax's own variables are respected.
    """
    own = os.environ.get("DGFRL_CACHE_DIR")
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if own:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = own
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(user / "dynamic-graph-fed-rl" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")
