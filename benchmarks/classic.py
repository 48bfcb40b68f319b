"""Do the algorithms learn what is known to be learnable? CartPole and Pendulum, five seeds, all in one program.

`python benchmarks/classic.py [PART ...] [--seeds N]` trains the parts named, or all, writes `results/classic.json`
(rows of other parts stay), and draws `docs/images/classic.png` from all that is in it.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from jaxtyping import Float, Int
from learning_curves import Curves, learn, reached
from measure import RESULTS, Claim, machine, print_claims

from dynamic_graph_fed_rl.evaluation.plots import figure
from dynamic_graph_fed_rl.evaluation.statistics import bootstrap_interval, interquartile_mean
from dynamic_graph_fed_rl.experiment import default_experiment

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "classic.png"
EPISODES = 16
POINTS = 24


@dataclass(frozen=True)
class Part:
    """An algorithm with its defaults in an environment, for so many decisions, and the return to end with."""

    environment: str
    algorithm: str
    decisions: int
    bar: float


PARTS = {
    "cartpole-dqn": Part("cartpole", "dqn", 76_800, 475.0),
    "cartpole-pqn": Part("cartpole", "pqn", 307_200, 475.0),
    "pendulum-td3": Part("pendulum", "td3", 30_000, -200.0),
    "pendulum-sac": Part("pendulum", "sac", 20_000, -200.0),
}


@dataclass(frozen=True)
class Options:
    """What to train."""

    parts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Parts by name; none: all."""
    seeds: int = 5
    """Runs of each part."""


def main(options: Options) -> None:
    unknown = [name for name in options.parts if name not in PARTS]
    if unknown:
        raise SystemExit(f"benchmark classic: part '{unknown[0]}': unknown; known: {', '.join(PARTS)}")
    if options.seeds < 1:
        raise SystemExit(f"benchmark classic: seeds {options.seeds}: must be at least 1")
    claims: list[Claim] = []
    for name in options.parts or PARTS:
        claims.append(train(name, PARTS[name], tuple(range(options.seeds))))
        # after every part: what an hour has measured outlives what comes after it
        write([claims[-1]])
    print_claims("Classic control", claims)
    draw(stored())
    print(f"written: {path()}, {PICTURE}")


def train(name: str, part: Part, seeds: tuple[int, ...]) -> Claim:
    """All seeds at once; the figure is the mean return of held-out episodes at the end, over seeds."""
    experiment = default_experiment(part.environment, algorithm=part.algorithm, federation="independent", agents=1)
    in_a_round = experiment.worlds * experiment.decisions_per_round
    rounds = part.decisions // in_a_round
    every = max(1, rounds // POINTS)
    # schedules end with the run, so it has that length from the start, and its last round is judged
    experiment = default_experiment(
        part.environment,
        algorithm=part.algorithm,
        federation="independent",
        agents=1,
        rounds=rounds - rounds % every,
    )
    begun = time.perf_counter()
    curves = learn(experiment, seeds, episodes=EPISODES, every=every)
    last = curves.returns[:, -1]
    low, high = bootstrap_interval(last)
    steps = int(curves.steps[0, -1])
    return Claim(
        claim=f"{part.environment}, {part.algorithm}: return after {steps:,} decisions",
        value=float(interquartile_mean(last)),
        low=low,
        high=high,
        unit="return",
        interval="95 % bootstrap of the interquartile mean over seeds",
        bar=part.bar,
        seeds=seeds,
        details={
            "part": name,
            "environment": part.environment,
            "algorithm": part.algorithm,
            "decisions": curves.steps[0].astype(int).tolist(),
            "returns": np.round(curves.returns, 2).tolist(),
            "seeds_at_the_bar": int((last >= part.bar).sum()),
            "decisions_to_the_bar": first_at(curves, part.bar).tolist(),
            "gradient_steps": experiment.rounds * experiment.learning.gradient_steps,
            "episodes": EPISODES,
            "seconds": round(time.perf_counter() - begun),
        },
    )


def first_at(curves: Curves, bar: float) -> Int[np.ndarray, " seeds"]:
    """Decisions of the first of two evaluations in a row at the bar; -1 for a seed without."""
    column = reached(curves, bar)
    return np.where(column >= 0, curves.steps[np.arange(len(column)), column], -1).astype(int)


def path() -> Path:
    return RESULTS / "classic.json"


def stored() -> list[dict[str, Any]]:
    return json.loads(path().read_text()) if path().exists() else []


def write(claims: Sequence[Claim]) -> None:
    """Put the claims in the place of the former ones of their parts."""
    place = list(PARTS)
    new = [
        asdict(claim) | {"pass": claim.reaches(claim.bar), "machine": machine(), "date": time.strftime("%Y-%m-%d")}
        for claim in claims
    ]
    parts = {row["details"]["part"] for row in new}
    rows = [row for row in stored() if row["details"]["part"] not in parts] + new
    rows.sort(key=lambda row: place.index(row["details"]["part"]))
    RESULTS.mkdir(exist_ok=True)
    path().write_text(json.dumps(rows, indent=2, allow_nan=False) + "\n")


def draw(rows: Sequence[dict[str, Any]]) -> None:
    """A panel an environment: interquartile mean over seeds with its interval, the bar dashed."""
    environments = list(dict.fromkeys(row["details"]["environment"] for row in rows))
    with figure(PICTURE, 3.6, "Returns of held-out episodes while learning") as drawn:
        panels = drawn.subplots(1, len(environments), squeeze=False)[0]
        for axes, environment in zip(panels, environments, strict=True):
            for row in rows:
                details = row["details"]
                if details["environment"] == environment:
                    returns = np.asarray(details["returns"])
                    low, high = band(returns)
                    axes.fill_between(details["decisions"], low, high, alpha=0.2)
                    label = f"{details['algorithm']}, {len(returns)} seeds"
                    axes.plot(details["decisions"], interquartile_mean(returns, axis=0), label=label)
                    axes.axhline(row["bar"], color="0.5", linestyle="--", linewidth=1)
            axes.set(title=environment, xlabel="decisions", ylabel="return")
            axes.legend(loc="lower right")


def band(returns: Float[np.ndarray, "seeds evaluations"]) -> Float[np.ndarray, "2 evaluations"]:
    return np.asarray([bootstrap_interval(column) for column in returns.T]).T


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
