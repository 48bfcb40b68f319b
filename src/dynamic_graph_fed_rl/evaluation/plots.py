"""Learning curves and the policy against the baselines, one PNG each.

Colours are those of Okabe and Ito (2008), told apart with any colour vision. Figures are 1500 pixels wide,
with text sized to be read at 1200. matplotlib is imported when the first figure is drawn.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from jaxtyping import Float

from dynamic_graph_fed_rl.environments.spec import Metric
from dynamic_graph_fed_rl.evaluation.statistics import (
    DO_NOTHING,
    POLICY,
    score_intervals,
    score_undefined_because,
)

POLICY_COLOUR = "#0072B2"
BASELINE_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
NEUTRAL = "#5F6770"
BEST = "#009E73"

WIDTH_INCHES = 10.0
_PIXELS_PER_INCH = 150
_STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": NEUTRAL,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E3E6E9",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.titlesize": 14,
    "figure.titleweight": "bold",
}

_NOT_CURVES = {"round", "env_steps", "return"}
_MOST_PANELS = 12
_SCORE_RANGE = (-60.0, 220.0)


@contextmanager
def figure(path: Path, height_inches: float, title: str) -> Iterator[Any]:
    """A matplotlib `Figure` in the project's style, written to `path` (PNG) at the end of the block."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE):
        drawn = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
        drawn.suptitle(title, x=0.01, ha="left")
        yield drawn
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=_PIXELS_PER_INCH, format="png")


def draw_learning_curves(path: Path, rows: Sequence[Mapping[str, Any]], title: str = "Learning curves") -> None:
    """The return (large) and every constraint cost, loss and other training metric (small) over training.

    `rows` are those of `metrics.jsonl`, one a round, with `round` and if possible `env_steps`. A metric is a
    number or a list with one entry an agent: then the line is the agents' mean and the band their range.
    `cost/...` come first, then `loss/...`, then the rest up to 12 panels; timings (`seconds`, `per_second` in
    the key) are left out. From 60 rounds on, a running mean is drawn over the single rounds.
    """
    if not rows:
        raise ValueError("no rows: learning curves need at least one round in metrics.jsonl")
    steps_known = all("env_steps" in row for row in rows)
    x = np.array([row["env_steps" if steps_known else "round"] for row in rows], dtype=float)
    x_label = "environment steps" if steps_known else "round"
    window = max(1, len(rows) // 30) if len(rows) >= 60 else 1
    small = _curve_names(rows)
    columns = min(4, max(1, len(small)))
    small_rows = math.ceil(len(small) / columns)

    with figure(path, 3.4 + 2.0 * small_rows, title) as drawn:
        grid = drawn.add_gridspec(1 + small_rows, columns, height_ratios=[1.6, *([1.0] * small_rows)], hspace=0.06)
        axes = drawn.add_subplot(grid[0, :])
        several = _draw_curve(axes, x, _curve(rows, "return"), POLICY_COLOUR, window)
        axes.set(title="Return over training", ylabel="return", xlabel=x_label)
        if several or window > 1:
            axes.legend(loc="best")
        for index, name in enumerate(small):
            axes = drawn.add_subplot(grid[1 + index // columns, index % columns])
            kind = name.split("/")[0]
            colour = {"cost": "#D55E00", "loss": "#009E73"}.get(kind, NEUTRAL)
            _draw_curve(axes, x, _curve(rows, name), colour, window)
            axes.set_title(name.replace("/", ": ", 1).replace("_", " "), fontsize=10, fontweight="normal")
            axes.tick_params(labelsize=8.5)
            axes.locator_params(axis="both", nbins=4)
            if index + columns >= len(small):
                axes.set_xlabel(x_label, fontsize=9.5)
        for axes in drawn.axes:
            axes.margins(x=0.01)
            axes.xaxis.set_major_formatter(_engineering())


def draw_comparison(
    path: Path,
    evaluation: Mapping[str, Mapping[str, Any]],
    headline: Metric,
    title: str = "Policy against baselines",
) -> None:
    """Headline metric and score of every controller with 95 % intervals, one column a scenario.

    `evaluation` is that of `summary.json`. A row of panels holds at most three scenarios. A controller so
    much worse than the others that it would press them together is an arrow at the edge, with its number.
    """
    scenarios = list(evaluation)
    if not scenarios:
        raise ValueError("no scenarios: the comparison needs an evaluated run")
    columns = min(3, len(scenarios))
    blocks = [scenarios[start : start + columns] for start in range(0, len(scenarios), columns)]
    order = ordered_controllers(evaluation, headline)
    height = 1.2 + len(blocks) * (1.7 + 0.5 * len(order))
    with figure(path, height, title) as drawn:
        panels = drawn.subplots(2 * len(blocks), columns, squeeze=False)
        for block_index, block in enumerate(blocks):
            for column in range(columns):
                upper, lower = panels[2 * block_index, column], panels[2 * block_index + 1, column]
                if column >= len(block):
                    upper.set_axis_off()
                    lower.set_axis_off()
                    continue
                scenario = block[column]
                _draw_headline(upper, evaluation[scenario], order, headline)
                _draw_scores(lower, evaluation[scenario], order, headline)
                upper.set_title(scenario)
                for axes in (upper, lower):
                    _label_controllers(axes, order, labelled=column == 0)


def ordered_controllers(evaluation: Mapping[str, Mapping[str, Any]], headline: Metric) -> list[str]:
    """All controllers, the policy first, then by their mean rank over the scenarios, best first."""
    ranks: dict[str, list[int]] = {}
    for entry in evaluation.values():
        means = {name: metrics[headline.name]["iqm"] for name, metrics in controllers_of(entry).items()}
        sign = 1.0 if headline.lower_is_better else -1.0
        ranked = sorted(means, key=lambda name: math.inf if means[name] is None else sign * means[name])
        for rank, name in enumerate(ranked):
            ranks.setdefault(name, []).append(rank)
    return sorted(ranks, key=lambda name: (name != POLICY, float(np.mean(ranks[name])), name))


def controllers_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's controllers: what stands in its entry of `summary.json` besides `paired_difference`, `score` and
    `score_zero`."""
    return {name: value for name, value in entry.items() if name not in ("paired_difference", "score", "score_zero")}


def score_zero(entry: Mapping[str, Any]) -> str:
    """The controller whose score is 0."""
    return entry.get("score_zero", DO_NOTHING)


def no_score_because(entry: Mapping[str, Any], headline: Metric) -> str:
    """Why a scenario's entry of `summary.json` holds no score, in a sentence."""
    values = {name: metrics[headline.name]["values"] for name, metrics in controllers_of(entry).items()}
    if any(None in column for column in values.values()):
        return f"no score: {headline.label.lower()} was not measured on every seed"
    reason = score_undefined_because(values, score_zero(entry), lower_is_better=headline.lower_is_better)
    return f"no score: {reason}" if reason else "no score"


def _curve_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    kept = [
        name
        for name in names
        if name not in _NOT_CURVES
        and "seconds" not in name
        and "per_second" not in name
        and np.isfinite(_curve(rows, name)).any()
    ]
    order = {"cost": 0, "loss": 1}
    return sorted(kept, key=lambda name: order.get(name.split("/")[0], 2))[:_MOST_PANELS]


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, "rounds agents"]:
    """One column an agent; NaN where a round has no such number."""
    cells = [np.atleast_1d(_numbers(row.get(name))) for row in rows]
    agents = max(cell.size for cell in cells)
    return np.stack([cell if cell.size == agents else np.full(agents, np.nan) for cell in cells])


def _numbers(value: Any) -> Any:
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError):
        return np.nan


def _draw_curve(axes: Any, x: Any, values: Any, colour: str, window: int) -> bool:
    """Draws the agents' mean and range; True if there are several agents."""
    counted = np.isfinite(values)
    some = counted.any(axis=1)
    x, values = x[some], values[some]
    mean = np.nanmean(values, axis=1)
    several = values.shape[1] > 1
    if several:
        low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0, label="range over agents")
    if window > 1 and mean.size >= window:
        axes.plot(x, mean, color=colour, alpha=0.35, linewidth=0.8)
        smooth = np.convolve(mean, np.full(window, 1 / window), mode="valid")
        axes.plot(x[window - 1 :], smooth, color=colour, linewidth=1.8, label=f"mean of {window} rounds")
    else:
        marker = "o" if mean.size <= 25 else None
        label = "mean over agents" if several else None
        axes.plot(x, mean, color=colour, linewidth=1.8, marker=marker, markersize=3.5, label=label)
    return several


def _draw_headline(axes: Any, entry: Mapping[str, Any], order: Sequence[str], headline: Metric) -> None:
    shown = {
        name: (metrics[headline.name]["iqm"], metrics[headline.name]["low"], metrics[headline.name]["high"])
        for name, metrics in controllers_of(entry).items()
        if metrics[headline.name]["iqm"] is not None
    }
    for row, name in enumerate(order):
        if name not in shown:
            axes.text(0.02, row, "not measured", transform=axes.get_yaxis_transform(), va="center")
    if shown:
        means = np.sort([value for value, _, _ in shown.values()])
        reach = 5.0 * (np.median(means) - (means[0] if headline.lower_is_better else means[-1]))
        low, high = sorted((float(np.median(means) - reach), float(np.median(means) + reach)))
        _draw_dots(axes, order, shown, (low, high) if reach else (-math.inf, math.inf))
    better = "lower" if headline.lower_is_better else "higher"
    axes.set_xlabel(f"{headline.title}\n{better} is better")


def _draw_scores(axes: Any, entry: Mapping[str, Any], order: Sequence[str], headline: Metric) -> None:
    known = {name: value for name, value in entry.get("score", {}).items() if value is not None}
    if not known:
        reason = fill(no_score_because(entry, headline), 30)
        axes.text(0.5, 0.5, reason, transform=axes.transAxes, ha="center", va="center", color=NEUTRAL)
        axes.set_xticks([])
        return
    values = {name: metrics[headline.name]["values"] for name, metrics in controllers_of(entry).items()}
    intervals = score_intervals(values, score_zero(entry), lower_is_better=headline.lower_is_better)
    shown = {}
    for name, value in known.items():
        low, high = intervals.get(name) or (value, value)
        shown[name] = (value, low, high)
    axes.axvline(0, color=NEUTRAL, linewidth=1, linestyle=":")
    axes.axvline(100, color=BEST, linewidth=1.2, linestyle="--")
    _draw_dots(axes, order, shown, _SCORE_RANGE, decimals=1)
    axes.set_xlabel(f"score: 0 is {score_zero(entry)},\n100 the best baseline")


def _draw_dots(
    axes: Any,
    order: Sequence[str],
    shown: Mapping[str, tuple[float, float, float]],
    limits: tuple[float, float],
    decimals: int | None = None,
) -> None:
    """A dot and its interval a row, with its number; an arrow at the edge for a mean outside `limits`."""
    from matplotlib.patheffects import withStroke

    within = [ends for ends in shown.values() if limits[0] <= ends[0] <= limits[1]]
    within = within or list(shown.values())
    left = max(min(end for ends in within for end in ends), limits[0])
    right = min(max(end for ends in within for end in ends), limits[1])
    pad = 0.13 * (right - left) or 0.05 * abs(right) or 1.0
    left, right = left - pad, right + pad
    axes.set_xlim(left, right)
    for row, name in enumerate(order):
        if name not in shown:
            continue
        value, low, high = shown[name]
        policy = name == POLICY
        if left < value < right:
            ends = [max(low, left), min(high, right)]
            axes.plot(ends, [row, row], color=_colour(name), linewidth=4, alpha=0.4, solid_capstyle="butt")
            at, marker, align = value, "D" if policy else "o", "center"
        else:
            below = value <= left
            at = left + 0.15 * pad if below else right - 0.15 * pad
            marker, align = ("<", "left") if below else (">", "right")
        axes.plot([at], [row], marker=marker, color=_colour(name), markersize=6 if policy else 5)
        axes.annotate(
            compact(value, decimals), (at, row), xytext=(0, 6), textcoords="offset points", ha=align,
            va="bottom", fontsize=8.5, color=_colour(name),
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _colour(name: str) -> str:
    return POLICY_COLOUR if name == POLICY else NEUTRAL


def _label_controllers(axes: Any, order: Sequence[str], labelled: bool) -> None:
    axes.set_yticks(range(len(order)), order if labelled else [""] * len(order))
    axes.set_ylim(len(order) - 0.4, -0.8)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    if labelled:
        for label in axes.get_yticklabels():
            if label.get_text() == POLICY:
                label.set(fontweight="bold", color=POLICY_COLOUR)


def compact(value: float, decimals: int | None = None) -> str:
    """A number as a label: four significant digits, thousands separated."""
    if decimals is None:
        decimals = 3 if value == 0 else int(np.clip(3 - math.floor(math.log10(abs(value))), 0, 6))
    return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _engineering() -> Any:
    from matplotlib.ticker import EngFormatter

    return EngFormatter(sep="")
