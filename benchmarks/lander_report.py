"""What is said of runs of LunarLander: claims, a table, and curves.

Seeds and clients are never mixed: a figure is the mean over clients of a seed, then the mean over seeds with its
interval; how far clients lie apart stands beside it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from lander_runs import CRITERIA, per_client
from measure import Claim

from dynamic_graph_fed_rl.evaluation.plots import figure
from dynamic_graph_fed_rl.evaluation.statistics import bootstrap_interval

Rows = Sequence[Mapping[str, Any]]
INTERVAL = "95 % bootstrap of the mean over seeds"
# read from the tables of the published project: one run, spread over its clients, mean of training scores
PUBLISHED = (
    ("local DQN (claimed)", 1, "528", "198,000", "190.2"),
    ("local Double DQN (claimed)", 1, "498", "183,000", "191.9"),
    ("federated averaging, DQN (claimed)", 3, "684", "338,000", "126.9"),
    ("federated averaging, Double DQN (claimed)", 5, "630", "281,741", "151.9"),
    ("dual learner, DQN (claimed)", 3, "406.7", "174,000", "217.9"),
    ("dual learner, Double DQN, no filter (claimed; their best)", 5, "372.8", "170,791", "220.0"),
)


def of_seeds(rows: Rows, what: str, criterion: str) -> tuple[Float[np.ndarray, " seeds"], list[float], int]:
    """Mean over clients of each seed, the spread of its clients (highest less lowest), and how many clients of all
    seeds did not get there (they count with all they had done)."""
    counted = [per_client(row, what, criterion) for row in rows]
    means = np.asarray([values.mean() for values, _ in counted])
    return means, [float(np.ptp(values)) for values, _ in counted], sum(missing for _, missing in counted)


def claim_of(words: str, values: Sequence[float], rows: Rows, unit: str, **fields: Any) -> Claim:
    low, high = bootstrap_interval(values, np.mean)
    return Claim(
        claim=words,
        value=float(np.mean(values)),
        low=low,
        high=high,
        unit=unit,
        interval=INTERVAL,
        seeds=tuple(row["seed"] for row in rows),
        **fields,
    )


def needed_claims(
    name: str, rows: Rows, bars: Mapping[str, float | None], stretch: Mapping[str, float]
) -> list[Claim]:
    """Episodes and decisions of a client until its last 100 training episodes have a mean of 200."""
    claims = []
    for criterion in CRITERIA:
        for what, unit in (("episodes", "episodes a client"), ("steps", "decisions a client")):
            means, spread, missing = of_seeds(rows, what, criterion)
            details = {"per_seed": means.tolist(), "spread_over_clients": spread, "clients_not_there": missing}
            fields = {"bar": bars.get(what), "stretch": stretch.get(what), "direction": "at most", "details": details}
            short = f", at least, as {missing} clients did not get there" if missing else ""
            words = f"{name}: {what} to a mean of 200, {criterion} return{short}"
            claims.append(claim_of(words, means.tolist(), rows, unit, **fields))
    return claims


def mode_claims(rows: Mapping[str, Rows], settings: Mapping[str, Any], judged_at: int | None) -> list[Claim]:
    """With the bars of the settings, unless the runs were too short to be judged (`judged_at` None)."""
    claims = []
    for name in (name for name in settings if name in rows):
        setting = settings[name]
        bars = {what: getattr(setting, what) if judged_at else None for what in ("episodes", "steps", "greedy")}
        stretch = setting.stretch if judged_at else {}
        claims += needed_claims(name, rows[name], bars, stretch)
        judged = [row["greedy"]["episode_return"] for row in rows[name] if row["greedy"]]
        if not judged:
            continue
        after = f"after {judged_at:,} decisions a client" if judged_at else "after a smoke run"
        words = f"{name}: greedy return of held-out episodes {after}"
        claims.append(
            claim_of(words, judged, rows[name], "return", bar=bars["greedy"], stretch=stretch.get("greedy"))
        )
    return claims


def ablation_claims(rows: Mapping[str, Rows]) -> list[Claim]:
    return [claim for name, some in rows.items() for claim in needed_claims(name, some, {}, {})]


def run_claims(rows: Mapping[str, Rows]) -> list[Claim]:
    """One row a run: its clients' mean and extremes, and all that was counted."""
    claims = []
    for name, some in rows.items():
        for row in some:
            values, missing = per_client(row, "episodes", "plain")
            kept = {key: value for key, value in row.items() if key not in ("returns", "seed")}
            claims.append(
                Claim(
                    claim=f"{name}, seed {row['seed']}: episodes to a mean of 200, plain return",
                    value=float(values.mean()),
                    low=float(values.min()),
                    high=float(values.max()),
                    unit="episodes a client",
                    interval="lowest and highest client",
                    seeds=(row["seed"],),
                    details=kept | {"clients_not_there": missing},
                )
            )
    return claims


def markdown(rows: Mapping[str, Rows]) -> str:
    """A line a setting, then those that were published."""
    head = (
        "| setting | clients | seeds | episodes a client, plain | shaped | spread of clients | decisions a client | "
        "greedy at 100,000 | all decisions | gradient steps | MB exchanged | experience kept | minutes |"
    )
    lines = [head, "|---" * head.count(" | ") + "|---|"]
    for name, some in rows.items():
        plain, spread, missing = of_seeds(some, "episodes", "plain")
        shaped, _, short = of_seeds(some, "episodes", "shaped")
        steps, _, _ = of_seeds(some, "steps", "plain")
        judged = [row["greedy"]["episode_return"] for row in some if row["greedy"]]
        clients = some[0]["clients"]
        # until the last client was there, of what the whole run cost
        share = steps / np.asarray([row["client_steps"] for row in some])
        cost = {
            key: float(np.mean(share * [row[key] for row in some]))
            for key in ("total_steps", "gradient_steps", "bytes_exchanged", "training_seconds")
        }
        cells = (
            name,
            str(clients),
            str(len(some)),
            _with_interval(plain, missing),
            _with_interval(shaped, short),
            f"{np.mean(spread):.0f}",
            _with_interval(steps, missing),
            _with_interval(np.asarray(judged), 0) if judged else "",
            f"{cost['total_steps']:,.0f}",
            f"{cost['gradient_steps']:,.0f}",
            f"{cost['bytes_exchanged'] / 1e6:.1f}",
            f"{np.mean([row['pooled_share'] for row in some]):.1%}" if some[0]["pooled_share"] else "",
            f"{cost['training_seconds'] / 60:.1f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    for name, clients, episodes, steps, reward in PUBLISHED:
        lines.append(f"| {name} | {clients} | 1 | | {episodes} | | {steps} | ({reward}) | | | | | |")
    return "\n".join(lines) + "\n"


def _with_interval(values: Float[np.ndarray, " seeds"], missing: int) -> str:
    low, high = bootstrap_interval(values, np.mean)
    least = "at least " if missing else ""
    beside = f"; {missing} not there" if missing else ""
    return f"{least}{values.mean():,.0f} ({low:,.0f} to {high:,.0f}{beside})"


def draw(path: Path, rows: Mapping[str, Rows], every: int = 2_000) -> None:
    """Mean of the last 100 training returns against decisions of a client: mean over clients, then over seeds, and
    the lowest and highest seed; five clients on the left, three and one on the right."""
    with figure(path, 4.2, "LunarLander: mean return of the last 100 training episodes") as drawn:
        left, right = drawn.subplots(1, 2, sharey=True)
        for name, some in rows.items():
            axes = left if some[0]["clients"] == 5 else right
            shortest = min(len(row["curve"]) for row in some)
            curves = np.asarray([row["curve"][:shortest] for row in some], float)
            steps = every * np.arange(1, shortest + 1)
            axes.fill_between(steps, curves.min(0), curves.max(0), alpha=0.15)
            axes.plot(steps, curves.mean(0), label=f"{name}, {len(some)} seeds")
        for axes, title in ((left, "five clients"), (right, "three clients, and one alone")):
            axes.axhline(200, color="0.5", linestyle="--", linewidth=1)
            axes.set(title=title, xlabel="decisions of a client", ylabel="return")
            if axes.lines[:-1]:
                axes.legend(loc="lower right")
