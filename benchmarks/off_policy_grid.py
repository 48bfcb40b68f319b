"""How many world steps do GraphSAC and GraphTD3 need for the score that PPO ends with? On the power grid.

`python benchmarks/off_policy_grid.py [--case ieee30] [--seeds N] [--rounds N]` trains each algorithm with its
defaults on the case and judges it as it goes on held-out days of the normal scenario. It writes
`results/off_policy_grid.json` (one entry a case) and draws `docs/images/off_policy_grid.png`.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from federation.grid_scores import Judge
from measure import RESULTS, Claim, machine, print_claims
from run_log import RunLog

from dynamic_graph_fed_rl.evaluation.plots import figure
from dynamic_graph_fed_rl.evaluation.statistics import bootstrap_interval, interquartile_mean
from dynamic_graph_fed_rl.experiment import build, default_experiment

ALGORITHMS = ("ppo", "sac", "td3")
POINTS = 12
PICTURE = RESULTS.parents[1] / "docs" / "images" / "off_policy_grid.png"


@dataclass(frozen=True)
class Options:
    """What to train, and how long."""

    case: str = "ieee30"
    """Grid; ieee118 takes about an hour a seed of all three on two cores."""
    agents: int = 2
    """Regions, one learner each."""
    seeds: int = 5
    """Runs of each algorithm."""
    rounds: int = 240
    """Rounds of each; those of the off-policy algorithms have half as many world steps."""
    days: int = 10
    """Held-out days that every judgement plays."""
    log: Path = RESULTS.parents[1] / "runs" / "off-policy-grid.jsonl"
    """Where each run is written as soon as it ends; what is in it is not run again."""


def main(options: Options) -> None:
    log = RunLog(options.log, ("case", "rounds", "days", "agents", "algorithm", "seed"))
    own = {"case": options.case, "rounds": options.rounds, "days": options.days, "agents": options.agents}
    curves: dict[str, list[dict[str, Any]]] = {name: [] for name in ALGORITHMS}
    for seed in range(options.seeds):
        for name, runs in curves.items():
            known = own | {"algorithm": name, "seed": seed}
            runs.append(log.get(known, partial(train, name, options, seed)))
    entry = {"case": options.case, "rounds": options.rounds, "days": options.days, "curves": curves}
    claims = [compare(name, curves, options) for name in ALGORITHMS]
    path = RESULTS / "off_policy_grid.json"
    kept = [one for one in json.loads(path.read_text()) if one["case"] != options.case] if path.exists() else []
    rows = [claim.__dict__ | {"pass": claim.reaches(claim.bar)} for claim in claims]
    entry |= {"claims": rows, "machine": machine(), "date": time.strftime("%Y-%m-%d")}
    path.write_text(json.dumps([*kept, entry], indent=1) + "\n")
    print_claims(f"Off-policy on {options.case}", claims)
    draw(entry)


def train(algorithm: str, options: Options, seed: int) -> dict[str, Any]:
    """World steps and scores of one run, judged `POINTS` times."""
    experiment = default_experiment(
        "power-grid",
        algorithm=algorithm,
        case=options.case,
        agents=options.agents,
        rounds=options.rounds,
        scenarios=("normal",),
        seed=seed,
    )
    built = build(experiment)
    judge = Judge(built.domain, options.days)
    training, steps, begun = built.trainer.init(jax.random.key(seed)), 0, time.perf_counter()
    curve: dict[str, Any] = {"steps": [], "scores": []}
    every = max(1, options.rounds // POINTS)
    for number in range(1, options.rounds + 1):
        training, metrics = built.trainer.run_round(training)
        steps += int(metrics["world_steps"])
        if number % every == 0:
            curve["steps"].append(steps)
            curve["scores"].append(round(judge.scores(built.policy(training))["normal"], 3))
            print(f"{algorithm} seed {seed}: {steps:,} steps, score {curve['scores'][-1]}", flush=True)
    return curve | {"seconds": round(time.perf_counter() - begun)}


def compare(algorithm: str, curves: dict[str, list[dict[str, Any]]], options: Options) -> Claim:
    """World steps after which the mean score first reaches that which PPO ends with, over PPO's; infinity: never."""
    scores = {name: np.mean([run["scores"] for run in runs], axis=0) for name, runs in curves.items()}
    final = scores["ppo"][-1]
    good = np.flatnonzero(scores[algorithm] >= final)
    needed = curves[algorithm][0]["steps"][good[0]] / curves["ppo"][0]["steps"][-1] if len(good) else 1e9
    last = np.array([run["scores"][-1] for run in curves[algorithm]])
    low, high = bootstrap_interval(last) if len(last) > 1 else (float(last[0]), float(last[0]))
    return Claim(
        claim=f"{options.case}, {algorithm}: share of PPO's world steps to PPO's final score (1e9: not reached)",
        value=float(needed),
        low=float(needed),
        high=float(needed),
        unit="1",
        interval="none; from the mean over seeds",
        bar=None if algorithm == "ppo" else 0.5,
        direction="at most",
        seeds=tuple(range(options.seeds)),
        details={"final_score": float(interquartile_mean(last)), "final_low": low, "final_high": high},
    )


def draw(entry: dict[str, Any]) -> None:
    with figure(PICTURE, 4.0, f"{entry['case']}: scores while learning, mean and range over seeds") as drawn:
        axes = drawn.subplots()
        for name, runs in entry["curves"].items():
            scores = np.array([run["scores"] for run in runs])
            steps = np.array(runs[0]["steps"]) / 1e6
            axes.plot(steps, scores.mean(0), label=name, marker="o", markersize=3)
            axes.fill_between(steps, scores.min(0), scores.max(0), alpha=0.2)
        axes.axhline(100, color="0.5", linewidth=0.8, linestyle="--")
        axes.set(xlabel="world steps (millions)", ylabel="score on held-out days (100: best rule in use)")
        axes.legend()


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
