"""A run folder turned into a report that can be mailed, and the comparison printed in the terminal.

`report/report.md` is written from `summary.json`, `metrics.jsonl` and `config.yaml`; `report/report.html` is
the same text with the pictures inside. A section whose material is missing is left out: a run that was
stopped has no evaluation yet, and not every environment has a map or a day.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic_graph_fed_rl.environments.spec import Metric
from dynamic_graph_fed_rl.evaluation.network_plots import NetworkMap, Timeline, draw_network, draw_timeline
from dynamic_graph_fed_rl.evaluation.plots import (
    compact,
    controllers_of,
    draw_comparison,
    draw_learning_curves,
    no_score_because,
    ordered_controllers,
    score_zero,
)
from dynamic_graph_fed_rl.evaluation.statistics import POLICY

if TYPE_CHECKING:
    from rich.table import Table

TERMINAL_WIDTH = 100
FEWEST_SEEDS = 5

_FACTS = (
    ("environment", "Environment"),
    ("algorithm", "Algorithm"),
    ("federation", "Federation"),
    ("agents", "Agents"),
    ("env_steps", "Environment steps"),
    ("env_steps_per_second", "Environment steps a second"),
    ("wall_seconds", "Wall-clock time (s)"),
    ("first_seed", "First evaluation seed"),
)

_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2329 }}
body {{ max-width: 1100px; margin: 2rem auto; padding: 0 1rem }}
h1, h2, h3 {{ line-height: 1.25 }} h2 {{ margin-top: 2.5rem; border-bottom: 1px solid #d5dade }}
table {{ border-collapse: collapse; font-size: 14px; display: block; overflow-x: auto }}
th, td {{ padding: .3rem .7rem; border-bottom: 1px solid #e3e6e9; font-variant-numeric: tabular-nums }}
th {{ text-align: left; vertical-align: bottom }} tr:hover {{ background: #f4f6f8 }}
td {{ vertical-align: top }} small {{ color: #5f6770; white-space: nowrap }}
img {{ max-width: 100%; height: auto }} pre {{ background: #f4f6f8; padding: 1rem; overflow-x: auto }}
</style>
{body}
</html>
"""


def write_report(run_dir: Path, metrics: Sequence[Metric], headline: str) -> Path:
    """Writes `report/report.md`, `report/report.html` and the PNG pictures; returns the path of the HTML.

    Reads `summary.json`, `metrics.jsonl`, `config.yaml`, `report/map.npz` (a `NetworkMap`) and
    `report/day.npz` (a `Timeline`), each only if it is there. `metrics` says which metrics to show, in order,
    and how; `headline` names the one the controllers are judged by.
    """
    main = _headline(metrics, headline)
    folder = run_dir / "report"
    folder.mkdir(parents=True, exist_ok=True)
    summary = _read_json(run_dir / "summary.json")
    rows = _read_rows(run_dir / "metrics.jsonl")
    evaluation = summary.get("evaluation") or {}
    title = _title(summary, run_dir)

    sections = [f"# {title}", *_run_section(summary, rows)]
    if evaluation:
        sections += _verdict_section(evaluation, main)
        draw_comparison(folder / "comparison.png", evaluation, main)
        sections += [
            "![Policy against baselines](comparison.png)",
            f"Dots are interquartile means over the evaluation seeds, bars their 95 % intervals. "
            f"Upper row: {main.title}; lower row: the score.",
            *_table_sections(evaluation, metrics, main),
        ]
    if any("return" in row for row in rows):
        draw_learning_curves(folder / "learning_curves.png", rows)
        sections += ["## Learning", "![Learning curves](learning_curves.png)"]
    if (folder / "map.npz").exists():
        shown = NetworkMap.load(folder / "map.npz")
        draw_network(folder / "map.png", shown)
        sections += [
            "## Network",
            "![Map of the network](map.png)",
            f"{shown.placed} Edges are as wide as their rating, nodes as large as their demand; tinted areas are "
            "the regions of the agents.",
        ]
    if (folder / "day.npz").exists():
        draw_timeline(folder / "day.png", Timeline.load(folder / "day.npz"))
        sections += [
            "## Over time",
            "![Behaviour over time](day.png)",
            "Dotted lines are the lowest and highest value in the network, dashed red lines what is allowed.",
        ]
    if (run_dir / "config.yaml").exists():
        config = (run_dir / "config.yaml").read_text(encoding="utf-8").strip()
        sections += ["## Configuration", f"```yaml\n{config}\n```"]
    markdown = "\n\n".join(sections) + "\n"
    (folder / "report.md").write_text(markdown, encoding="utf-8")
    (folder / "report.html").write_text(_to_html(markdown, title, folder), encoding="utf-8")
    return folder / "report.html"


def comparison_table(
    evaluation: Mapping[str, Mapping[str, Any]],
    metrics: Sequence[Metric],
    headline: str,
    width: int = TERMINAL_WIDTH,
) -> "Table":
    """The evaluation of `summary.json` as a table of at most `width` columns.

    One block a scenario; the policy first, then the baselines by the headline metric. After the headline with
    its 95 % interval and the score come as many of `metrics` as fit. Below stand the paired differences.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    main = _headline(metrics, headline)
    names = [f"  {name}" for entry in evaluation.values() for name in controllers_of(entry)]
    fixed = [
        ("controller", [*names, *evaluation]),
        (main.title, _column(evaluation, main, significant=4)),
        ("95 % interval", _intervals(evaluation, main, significant=4)),
        ("score", _scores(evaluation)),
    ]
    widths = [max(len(cell) for cell in (*cells, *header.split())) for header, cells in fixed]
    shown: list[tuple[str, list[str]]] = []
    for metric in metrics:
        if metric.name == headline or not _is_measured(evaluation, metric):
            continue
        cells = _column(evaluation, metric)
        widths.append(max(len(cell) for cell in (*cells, *metric.title.split())))
        if sum(widths) + 2 * len(widths) + 1 > width:
            break
        shown.append((metric.title, cells))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left", title_justify="left")
    columns = [*fixed[1:], *shown]
    table.add_column("controller", no_wrap=True, vertical="bottom")
    for (header, _), columns_wide in zip(columns, widths[1:], strict=False):
        table.add_column(header, justify="right", width=columns_wide, vertical="bottom")
    for scenario, entry in evaluation.items():
        table.add_section()
        table.add_row(Text(scenario, style="bold"))
        for name in _sorted_controllers(entry, main):
            at = _position(evaluation, scenario, name)
            style = "bold cyan" if name == POLICY else None
            table.add_row(f"  {name}", *(cells[at] for _, cells in columns), style=style)
    left_out = sum(_is_measured(evaluation, metric) for metric in metrics) - 1 - len(shown)
    notes = [f"{scenario}: {_verdict(entry, main)}" for scenario, entry in evaluation.items()]
    notes += _warnings(evaluation)
    if left_out > 0:
        notes.append(f"{left_out} more metrics: a wider terminal, the report, or evaluate --json.")
    table.caption = Text("\n".join(notes))
    return table


def _run_section(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    facts = [(label, _fact(summary[key])) for key, label in _FACTS if key in summary]
    if summary.get("evaluation"):
        facts.append(("Evaluation seeds", f"{_fewest_seeds(summary['evaluation']):,}"))
    if rows:
        facts.append(("Rounds", f"{len(rows):,}"))
    return [_markdown_table(["", "this run"], [list(fact) for fact in facts])] if facts else []


def _verdict_section(evaluation: Mapping[str, Mapping[str, Any]], main: Metric) -> list[str]:
    better = "lower" if main.lower_is_better else "higher"
    lines = [f"- **{scenario}**: {_verdict(entry, main)}" for scenario, entry in evaluation.items()]
    warnings = _warnings(evaluation)
    zero = " or ".join(dict.fromkeys(map(score_zero, evaluation.values())))
    return [
        "## Result",
        "\n".join(lines),
        *([" ".join(warnings)] if warnings else []),
        f"Judged by {main.title}, {better} is better. Every controller meets the same seeds, none of them "
        "seen in training. Values are interquartile means with their 95 % bootstrap interval over seeds. "
        "Such a mean passes over the best and worst quarter of the seeds, so the worst seed is given too. "
        f"Score: 0 is {zero}, 100 the best baseline a practitioner has today.",
    ]


def _table_sections(
    evaluation: Mapping[str, Mapping[str, Any]], metrics: Sequence[Metric], main: Metric
) -> list[str]:
    shown = [main, *(m for m in metrics if m.name != main.name and _is_measured(evaluation, m))]
    rows = [(metric.title, _with_intervals(evaluation, metric, 3)) for metric in shown[1:]]
    rows = [
        (main.title, _with_intervals(evaluation, main, 4)),
        (f"{main.title}, worst seed", _worst_seeds(evaluation, main)),
        ("Score", _scores(evaluation)),
        *rows,
    ]
    sections = []
    for scenario, entry in evaluation.items():
        names = _sorted_controllers(entry, main)
        positions = [_position(evaluation, scenario, name) for name in names]
        table = [[title, *(cells[at] for at in positions)] for title, cells in rows]
        sections += [f"### Scenario: {scenario}", _markdown_table(["", *names], table)]
    return sections


def _verdict(entry: Mapping[str, Any], main: Metric) -> str:
    """The policy against the best baseline, and its score, in one line."""
    own_score = entry.get("score", {}).get(POLICY)
    scored = no_score_because(entry, main) if own_score is None else f"score {compact(own_score, 1)}"
    difference = entry.get("paired_difference")
    if difference is None or difference["iqm"] is None:
        return scored
    mean, low, high = difference["iqm"], difference["low"], difference["high"]
    baseline = difference["baseline"]
    decimals = _decimals([mean, low, high], 3)
    if low > 0:
        outcome = f"policy beats {baseline} by"
    elif high < 0:
        outcome = f"policy loses to {baseline} by"
        mean, low, high = -mean, -high, -low
    else:
        outcome = f"policy not told apart from {baseline}, difference"
    value = f"{compact(mean, decimals)} {main.unit}".rstrip()
    return f"{outcome} {value} [{compact(low, decimals)} to {compact(high, decimals)}], {scored}"


def _warnings(evaluation: Mapping[str, Mapping[str, Any]]) -> list[str]:
    seeds = _fewest_seeds(evaluation)
    if seeds >= FEWEST_SEEDS:
        return []
    count = "one seed" if seeds == 1 else f"{seeds} seeds"
    return [f"Only {count}: intervals mean little below {FEWEST_SEEDS}."]


def _fewest_seeds(evaluation: Mapping[str, Mapping[str, Any]]) -> int:
    return min(
        len(summary["values"])
        for entry in evaluation.values()
        for metrics in controllers_of(entry).values()
        for summary in metrics.values()
    )


def _headline(metrics: Sequence[Metric], name: str) -> Metric:
    for metric in metrics:
        if metric.name == name:
            return metric
    known = ", ".join(metric.name for metric in metrics)
    raise ValueError(f"headline '{name}': not among the metrics {known}")


def _sorted_controllers(entry: Mapping[str, Any], main: Metric) -> list[str]:
    return ordered_controllers({"": entry}, main)


def _position(evaluation: Mapping[str, Mapping[str, Any]], scenario: str, controller: str) -> int:
    pairs = [(one, name) for one, entry in evaluation.items() for name in controllers_of(entry)]
    return pairs.index((scenario, controller))


def _summaries(evaluation: Mapping[str, Mapping[str, Any]], metric: Metric) -> list[Mapping[str, Any]]:
    """One a scenario and controller, in the order of `_position`; empty where the metric is missing."""
    return [
        metrics.get(metric.name) or {} for entry in evaluation.values() for metrics in controllers_of(entry).values()
    ]


def _is_measured(evaluation: Mapping[str, Mapping[str, Any]], metric: Metric) -> bool:
    return any(summary.get("iqm") is not None for summary in _summaries(evaluation, metric))


def _column(evaluation: Mapping[str, Mapping[str, Any]], metric: Metric, significant: int = 3) -> list[str]:
    means = [summary.get("iqm") for summary in _summaries(evaluation, metric)]
    decimals = _decimals([mean for mean in means if mean is not None], significant)
    return ["-" if mean is None else compact(mean, decimals) for mean in means]


def _intervals(evaluation: Mapping[str, Mapping[str, Any]], metric: Metric, significant: int) -> list[str]:
    summaries = _summaries(evaluation, metric)
    decimals = _decimals([s["iqm"] for s in summaries if s.get("iqm") is not None], significant)
    return [
        "" if s.get("iqm") is None else f"{compact(s['low'], decimals)} to {compact(s['high'], decimals)}"
        for s in summaries
    ]


def _with_intervals(evaluation: Mapping[str, Mapping[str, Any]], metric: Metric, significant: int) -> list[str]:
    means, intervals = _column(evaluation, metric, significant), _intervals(evaluation, metric, significant)
    return [f"{mean} [{ends}]" if ends else mean for mean, ends in zip(means, intervals, strict=True)]


def _worst_seeds(evaluation: Mapping[str, Mapping[str, Any]], main: Metric) -> list[str]:
    columns = [
        [value for value in summary.get("values", ()) if value is not None]
        for summary in _summaries(evaluation, main)
    ]
    worst = [(max if main.lower_is_better else min)(column, default=None) for column in columns]
    decimals = _decimals([value for value in worst if value is not None], 4)
    return ["-" if value is None else compact(value, decimals) for value in worst]


def _scores(evaluation: Mapping[str, Mapping[str, Any]]) -> list[str]:
    values = [entry.get("score", {}).get(name) for entry in evaluation.values() for name in controllers_of(entry)]
    return ["-" if value is None else compact(value, 1) for value in values]


def _decimals(values: Sequence[float], significant: int) -> int:
    """Decimals that show the middle one of the values other than 0 to this many significant digits."""
    sizes = sorted(abs(value) for value in values if value)
    if not sizes:
        return 0
    return min(max(significant - 1 - math.floor(math.log10(sizes[len(sizes) // 2])), 0), 6)


def _fact(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def _title(summary: Mapping[str, Any], run_dir: Path) -> str:
    parts = [str(summary[key]) for key in ("environment", "algorithm", "federation") if key in summary]
    return ", ".join(parts) if parts else run_dir.name


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[header[i].ljust(widths[i]) for i in range(len(header))], rule]
    for row in rows:
        lines.append([row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in range(1, len(row)))])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _to_html(markdown: str, title: str, folder: Path) -> str:
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(markdown)
    # An interval goes under its value, so that a table of many controllers stays on the page.
    body = re.sub(r"(<td[^>]*>[^<\[]*)\[([^<\]]*)\]", r"\1<br><small>\2</small>", body)
    for picture in folder.glob("*.png"):
        content = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{picture.name}"', f'src="data:image/png;base64,{content}"')
    return _HTML.format(title=escape(title), body=body)


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows up to the last whole line: a run killed while writing leaves a torn one."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
