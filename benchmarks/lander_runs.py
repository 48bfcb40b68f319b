"""Runs of federated LunarLander: what each client needs until its last 100 training episodes are good, a run a line.

A finished run is written to a JSON-lines file at once; one that is in it already is not run again.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Bool, Float
from run_log import RunLog

from dynamic_graph_fed_rl.evaluation.evaluate import (
    TRAINING_STREAM,
    LearnedPolicy,
    evaluation_keys,
    run_episodes,
    stream_key,
)
from dynamic_graph_fed_rl.experiment import Built, build, default_experiment
from dynamic_graph_fed_rl.federation.settings import POOLED
from dynamic_graph_fed_rl.training.trainer import Training

WINDOW, GOOD = 100, 200.0
"""Episodes whose mean return must reach this; that of the published table."""
JUDGED_AT, LAST = 100_000, 120_000
"""Decisions of a client after which its policy is judged greedily, and after which a run ends at the latest."""
EPSILON_DECISIONS = 3_000
GREEDY_EPISODES = 100
# eight features, the choice and the reward as 32 bits each, and two flags; the successor is the next row
BYTES_A_DECISION = 42
CRITERIA = {"plain": "episode_return", "shaped": "shaped_return"}


@dataclass(frozen=True)
class Variant:
    """A setting of the benchmark by name: fields of the experiment that are not the environment's defaults."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    greedy: bool = True


def experiment_of(variant: Variant, decisions: int = LAST) -> Any:
    """The experiment of a run of so many decisions of each client."""
    chosen = variant.fields
    a_round = chosen.get("decisions_per_round", 500)
    lessons = {"lessons": a_round // 4} | chosen
    return default_experiment(
        "lunar-lander",
        **{"rounds": decisions // a_round, "exploration_share": min(1.0, EPSILON_DECISIONS / decisions)} | lessons,
    )


class Scores:
    """Returns of each client's training episodes, in the order of their ends, by both criteria."""

    def __init__(self, clients: int) -> None:
        self.ends: list[list[int]] = [[] for _ in range(clients)]
        self.returns: dict[str, list[list[float]]] = {name: [[] for _ in range(clients)] for name in CRITERIA}
        self._open = {name: np.zeros(clients) for name in CRITERIA}
        self._decisions = 0

    def add(self, rows: dict[str, Float[np.ndarray, "T clients"]], ended: Bool[np.ndarray, "T clients"]) -> None:
        """What a round brought, a decision a row."""
        for t, over in enumerate(ended):
            self._decisions += 1
            for name, metric in CRITERIA.items():
                self._open[name] += rows[metric][t]
            for client in np.flatnonzero(over):
                self.ends[client].append(self._decisions)
                for name in CRITERIA:
                    self.returns[name][client].append(float(self._open[name][client]))
                    self._open[name][client] = 0.0

    def reached(self, criterion: str, client: int) -> int | None:
        """The first episode, counted from 1, with which the last 100 have a mean of 200; None: not yet."""
        returns = np.asarray(self.returns[criterion][client])
        if len(returns) < WINDOW:
            return None
        good = np.convolve(returns, np.full(WINDOW, 1.0 / WINDOW), "valid") >= GOOD
        return int(good.argmax()) + WINDOW if good.any() else None

    def done(self) -> bool:
        return all(self.reached(name, client) for name in CRITERIA for client in range(len(self.ends)))

    def figures(self) -> dict[str, Any]:
        """By criterion the episodes and decisions that each client needed, None where it was not enough."""
        clients = range(len(self.ends))
        needed = {name: [self.reached(name, client) for client in clients] for name in CRITERIA}
        steps = {
            name: [self.ends[client][count - 1] if count else None for client, count in enumerate(counts)]
            for name, counts in needed.items()
        }
        return {"episodes": needed, "steps": steps, "episodes_in_all": [len(one) for one in self.ends]}

    def curve(self, every: int) -> Float[np.ndarray, " points"]:
        """Mean over clients of the mean of the last 100 returns (of all, before that) every so many decisions."""
        points = []
        for at in range(every, self._decisions + 1, every):
            means = []
            for ends, returns in zip(self.ends, self.returns["plain"], strict=True):
                count = int(np.searchsorted(ends, at, side="right"))
                means.append(np.mean(returns[max(0, count - WINDOW) : count]) if count else np.nan)
            points.append(np.nanmean(means) if not np.isnan(means).all() else np.nan)
        return np.asarray(points)


def run(built: Built, variant: Variant, seed: int, quick: bool = False) -> dict[str, Any]:
    """One training: until every client has reached both criteria, and no less than the greedy judgement asks for."""
    experiment, trainer = built.experiment, built.trainer
    begun = time.perf_counter()
    training = trainer.init(stream_key(TRAINING_STREAM, seed))
    scores, greedy, learning = Scores(trainer.agents), None, 0.0
    judged_at = min(JUDGED_AT // experiment.decisions_per_round, experiment.rounds)
    pooled = 0.0
    for number in range(1, experiment.rounds + 1):
        started = time.perf_counter()
        training, metrics = trainer.run_round(training)
        metrics = jax.device_get(metrics)
        learning += time.perf_counter() - started
        rows = metrics["scores"]
        scores.add({name: rows[name][..., 0] for name in CRITERIA.values()}, rows["ended"][..., 0].T)
        pooled += float(metrics.get("server", {}).get("pooled", 0.0))
        if variant.greedy and number == judged_at:
            greedy = judge(built, training, seed, 4 if quick else GREEDY_EPISODES)
        if scores.done() and (number >= judged_at or not variant.greedy):
            break
    decisions = number * experiment.decisions_per_round
    return {
        "variant": variant.name,
        "seed": seed,
        "clients": trainer.agents,
        **scores.figures(),
        "greedy": greedy,
        "client_steps": decisions,
        "total_steps": decisions * trainer.agents,
        "gradient_steps": gradient_steps(built, number),
        "bytes_exchanged": bytes_exchanged(built, number),
        "pooled_share": pooled / (decisions * trainer.agents),
        "curve": [None if np.isnan(point) else round(float(point), 1) for point in scores.curve(2_000)],
        "returns": {name: [np.round(one, 2).tolist() for one in rows] for name, rows in scores.returns.items()},
        "seconds": round(time.perf_counter() - begun, 1),
        "training_seconds": round(learning, 1),
        "date": time.strftime("%Y-%m-%d"),
    }


def judge(built: Built, training: Training, seed: int, episodes: int) -> dict[str, Any]:
    """Greedy returns of held-out episodes: of the one policy that all hold, or of each client's own."""
    alone = built.experiment.federation == "independent"
    count = built.trainer.agents if alone else 1
    learners = jax.tree.map(lambda leaf: leaf[:count], training.learners[0])
    policy = LearnedPolicy(built.trainer.groups[0].algorithm, learners)
    keys = evaluation_keys(1_000 * seed, episodes)
    figures = run_episodes(policy, built.domain.scenarios["standard"], count, keys)
    return {name: round(float(np.mean(values)), 2) for name, values in figures.items()}


def gradient_steps(built: Built, rounds: int) -> int:
    """Of all clients and the server; the first rounds, before there is enough to learn from, count as well."""
    trainer = built.trainer
    group = trainer.groups[0]
    of_clients = trainer.agents * group.lessons * group.algorithm.updates if group.learns else 0
    return rounds * (of_clients + (trainer.pool.algorithm.updates if trainer.pool else 0))


def bytes_exchanged(built: Built, rounds: int) -> int:
    """Parameters as 32-bit numbers up and down at every exchange, and where experience is pooled, that going up."""
    experiment, trainer = built.experiment, built.trainer
    if experiment.federation == "independent":
        return 0
    shapes = eqx.filter_eval_shape(trainer.init, stream_key(TRAINING_STREAM, 0)).learners[0].networks
    parameters = sum(4 * leaf.size for leaf in jax.tree.leaves(shapes))
    exchanges = rounds // (experiment.exchange.clocks or (1,))[0]
    ways = 1 if experiment.federation == "shared" else 2
    decisions = rounds * experiment.decisions_per_round * trainer.agents
    experience = BYTES_A_DECISION * decisions if experiment.federation in POOLED else 0
    return exchanges * ways * parameters + experience


def run_all(
    variants: Iterable[Variant], seeds: Sequence[int], log: Path, quick: bool = False
) -> list[dict[str, Any]]:
    """The runs of these variants and seeds, those that are missing in the log being run now."""
    variants, runs = list(variants), log_of(log)
    for variant in variants:
        missing = [seed for seed in seeds if (variant.name, seed) not in runs.rows()]
        if not missing:
            continue
        experiment = experiment_of(variant, 2_000 if quick else LAST)
        built = build(experiment)
        built = replace(built, trainer=replace(built.trainer, keep_scores=True))
        for seed in missing:
            row = run(built, variant, seed, quick)
            runs.append(row)
            print(summary(row), flush=True)
    rows = runs.rows()
    return [rows[variant.name, seed] for variant in variants for seed in seeds]


def summary(row: dict[str, Any]) -> str:
    needed = {name: f"{row['episodes'][name]} at {row['steps'][name]}" for name in CRITERIA}
    return (
        f"{row['variant']}, seed {row['seed']}: episodes {needed}; greedy {row['greedy']}; "
        f"{row['client_steps']:,} decisions in {row['seconds']:.0f} s"
    )


def log_of(path: Path) -> RunLog:
    """Runs by variant and seed."""
    return RunLog(path, ("variant", "seed"))


def per_client(row: dict[str, Any], what: str, criterion: str) -> tuple[Float[np.ndarray, " clients"], int]:
    """Episodes or steps that each client needed, and how many clients did not get there: those count with what they
    had done at the end, which is too few."""
    ends = row["episodes_in_all"] if what == "episodes" else [row["client_steps"]] * row["clients"]
    values = [end if one is None else one for one, end in zip(row[what][criterion], ends, strict=True)]
    return np.asarray(values, float), sum(one is None for one in row[what][criterion])
