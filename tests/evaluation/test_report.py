import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from dynamic_graph_fed_rl.environments.spec import Metric
from dynamic_graph_fed_rl.evaluation.network_plots import NetworkMap, Panel, Timeline, layout
from dynamic_graph_fed_rl.evaluation.report import comparison_table, write_report
from dynamic_graph_fed_rl.evaluation.statistics import summarise_scenario

METRICS = (
    Metric("operating_cost", "Operating cost", "$/MWh"),
    Metric("unserved_mwh", "Unserved energy", "MWh"),
    Metric("overload_mvah", "Overload", "MVAh"),
    Metric("voltage_violation_bus_hours", "Voltage violations", "bus-h"),
    Metric("survival_steps", "Survival", "steps", lower_is_better=False),
    Metric("co2_tonnes", "CO2", "t"),
    Metric("moved_mw", "Moved", "MW"),
    Metric("decision_latency_seconds", "Decision latency", "s"),
)
MEANS = {"do-nothing": 40.0, "policy": 30.2, "random": 2500.0, "merit-order": 33.0, "dc-opf": 28.0}
PICTURES = {"comparison.png", "learning_curves.png", "map.png", "day.png"}


def _evaluation(seeds=8, gap=1.0):
    generator = np.random.default_rng(0)
    scenarios = {}
    for number, scenario in enumerate(("normal", "peak")):
        shared = generator.normal(size=seeds)
        results = {}
        for name, mean in MEANS.items():
            cost = 33.0 + gap * (mean - 33.0) + number + shared + 0.1 * generator.normal(size=seeds)
            rest = {metric.name: generator.gamma(2.0, 3.0, seeds) for metric in METRICS[1:]}
            results[name] = {"operating_cost": cost, **rest}
        scenarios[scenario] = summarise_scenario(results, "operating_cost")
    return scenarios


def _write_run(folder, evaluation):
    generator = np.random.default_rng(1)
    facts = {"environment": "power-grid", "algorithm": "ppo", "federation": "server", "agents": 4}
    facts |= {
        "env_steps": 640_000,
        "env_steps_per_second": 5123.4,
        "wall_seconds": 125.0,
        "first_seed": 10**6,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps({**facts, "evaluation": evaluation}))
    (folder / "config.yaml").write_text("federation: server\nlearning_rate: 0.0003\n")
    rows = [
        {
            "round": number,
            "env_steps": 10_000 * (number + 1),
            "return": generator.normal(number, 1.0, 4).tolist(),
            "cost/overload": 1.0 / (number + 1),
            "loss/value": float("nan") if number == 0 else 0.5,
            "round_seconds": 2.0,
        }
        for number in range(64)
    ]
    torn = '{"round": 64, "env_st'
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)


def _network():
    edges = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 0], [1, 4]])
    return NetworkMap(
        positions=layout(5, edges),
        edges=edges,
        edge_loading_percent=np.array([10.0, 70.0, 99.0, 140.0, np.nan, 50.0]),
        edge_rating=np.array([100.0, 100.0, 200.0, 400.0, 0.0, 100.0]),
        edge_in_service=np.array([True, True, True, True, True, False]),
        region=np.array([0, 0, 1, 1, 0]),
        node_demand=np.array([10.0, 0.0, 50.0, 20.0, 0.0]),
        node_is_source=np.array([True, False, False, False, True]),
        title="Grid at noon",
        demand_unit="MW",
        region_names=("north", "south"),
    )


def _timeline():
    hours = np.arange(0.0, 24.0, 0.5)
    band = np.stack([0.95 + 0 * hours, 1.0 + 0.01 * np.sin(hours), 1.05 + 0 * hours], axis=1)
    return Timeline(
        hours,
        {"policy/voltage": band, "do-nothing/voltage": band - 0.01, "shared/demand": 4000 + 100 * hours},
        (Panel("Voltage", "p.u.", ("voltage",), (0.94, 1.06)), Panel("Demand", "MW", ("demand",))),
        events={"line out": 9.5},
    )


@pytest.fixture(scope="module")
def full_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "full"
    _write_run(folder, _evaluation())
    _network().save(folder / "report" / "map.npz")
    _timeline().save(folder / "report" / "day.npz")
    write_report(folder, METRICS, "operating_cost")
    return folder


def _print(evaluation, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison_table(evaluation, METRICS, "operating_cost", width))
    return console.export_text()


def test_report_has_every_section_and_the_numbers(full_run):
    text = (full_run / "report" / "report.md").read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    assert headings == [
        "power-grid, ppo, server", "Result", "Scenario: normal", "Scenario: peak", "Learning", "Network",
        "Over time", "Configuration",
    ]  # fmt: skip
    assert "learning_rate: 0.0003" in text
    assert re.search(r"\| Rounds +\| +64 \|", text)
    for scenario, entry in _evaluation().items():
        section = text.split(f"Scenario: {scenario}")[1]
        cost = entry["policy"]["operating_cost"]
        expected = f"{cost['iqm']:.2f} [{cost['low']:.2f} to {cost['high']:.2f}]"
        assert re.search(r"Operating cost \(\$/MWh\) +\| +" + re.escape(expected), section)
        assert f"{max(entry['random']['operating_cost']['values']):,.2f}" in section
        assert f"{entry['score']['dc-opf']:.1f}" in section


def test_html_carries_its_pictures_and_the_same_tables(full_run):
    page = (full_run / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert not re.search(r'src="(?!data:)', page)
    assert page.count("<table>") == 3
    cost = _evaluation()["normal"]["policy"]["operating_cost"]
    assert f"{cost['iqm']:.2f} <br><small>{cost['low']:.2f} to {cost['high']:.2f}</small>" in page


def test_pictures_are_wide_enough_and_not_blank(full_run):
    assert {path.name for path in (full_run / "report").glob("*.png")} == PICTURES
    for name in PICTURES:
        pixels = imread(full_run / "report" / name)
        assert pixels.shape[1] == 1500
        assert pixels[..., :3].std() > 0.05


def test_report_leaves_out_what_a_run_lacks(tmp_path):
    write_report(tmp_path / "empty", METRICS, "operating_cost")
    assert (tmp_path / "empty" / "report" / "report.md").read_text() == "# empty\n"
    _write_run(tmp_path / "stopped", {})
    write_report(tmp_path / "stopped", METRICS, "operating_cost")
    text = (tmp_path / "stopped" / "report" / "report.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Learning", "Configuration"]


def test_report_of_another_domain(tmp_path):
    """A metric where more is better, one seed, a single baseline, an unmeasured metric."""
    results = {
        "policy": {"length": [480.0], "energy": [np.nan]},
        "do-nothing": {"length": [9.0], "energy": [1.0]},
        "random": {"length": [22.0], "energy": [1.0]},
    }
    entry = summarise_scenario(results, "length", lower_is_better=False)
    (tmp_path / "summary.json").write_text(json.dumps({"environment": "cart", "evaluation": {"only": entry}}))
    metrics = (Metric("length", "Length", "", False), Metric("energy", "Energy", "J"))
    write_report(tmp_path, metrics, "length")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "policy beats random by 458 [458 to 458]" in text
    assert "Only one seed" in text
    assert "Length, higher is better" in text


def test_terminal_table_lines_up_in_its_width_and_holds_the_numbers():
    evaluation = _evaluation()
    text = _print(evaluation)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100
    rows = [line for line in text.splitlines() if re.match(r" +(policy|dc-opf|random|merit|do-)", line)]
    assert len({len(line.rstrip()) for line in rows}) == 1
    assert [row.split()[0] for row in rows[:5]] == ["policy", "dc-opf", "merit-order", "do-nothing", "random"]
    for entry, row in zip(evaluation.values(), (rows[0], rows[5]), strict=True):
        cost = entry["policy"]["operating_cost"]
        cells = [f"{cost['iqm']:.2f}", f"{cost['low']:.2f}", "to", f"{cost['high']:.2f}"]
        assert row.split()[1:6] == [*cells, f"{entry['score']['policy']:.1f}"]
    difference = evaluation["normal"]["paired_difference"]
    assert f"normal: policy beats merit-order by {difference['iqm']:.2f} $/MWh" in text
    assert "more metrics: a wider terminal, the report" in text
    assert "Decision" in _print(evaluation, width=160)


def test_verdicts_of_a_loss_a_draw_and_no_score():
    evaluation = _evaluation()
    costs = {name: np.array(evaluation["normal"][name]["operating_cost"]["values"]) for name in MEANS}
    shift = np.array([1.0, -1.0] * 4)
    cases = {
        "loses to merit-order by 1.0": costs["merit-order"] + 1.0 + 0.01 * shift,
        "not told apart from merit-order, difference": costs["merit-order"] + shift,
    }
    for expected, policy in cases.items():
        results = {name: {"operating_cost": cost} for name, cost in {**costs, "policy": policy}.items()}
        assert expected in _print({"normal": summarise_scenario(results, "operating_cost")})
    undefined = " ".join(_print(_evaluation(gap=0.04)).split())
    assert "no score: the best baseline (merit-order) is only" in undefined


def test_headline_must_be_a_known_metric(tmp_path):
    with pytest.raises(ValueError, match="headline 'profit': not among the metrics operating_cost"):
        write_report(tmp_path, METRICS, "profit")


def test_map_and_timeline_survive_the_disk(tmp_path):
    for saved, kind in ((_network(), NetworkMap), (_timeline(), Timeline)):
        saved.save(tmp_path / "record.npz")
        loaded = kind.load(tmp_path / "record.npz")
        for name, value in vars(saved).items():
            np.testing.assert_equal(vars(loaded)[name], value)


def test_layout_draws_hop_distances_and_repeats():
    ring = np.array([[node, (node + 1) % 12] for node in range(12)])
    positions = layout(12, ring)
    np.testing.assert_array_equal(positions, layout(12, ring))
    radius = np.linalg.norm(positions - positions.mean(0), axis=1)
    assert radius.std() < 0.02 * radius.mean()
    lengths = np.linalg.norm(np.diff(positions[ring], axis=1)[:, 0], axis=1)
    assert lengths.std() < 0.05 * lengths.mean()
    with pytest.raises(ValueError, match="nodes are 0 to 3"):
        layout(4, np.array([[0, 7]]))


@pytest.mark.parametrize(("nodes", "edges"), [(0, []), (1, []), (2, []), (4, []), (6, [[0, 1], [2, 3]])])
def test_layout_keeps_nodes_apart_without_connections(nodes, edges):
    positions = layout(nodes, np.array(edges, dtype=int).reshape(-1, 2))
    assert positions.shape == (nodes, 2)
    apart = np.linalg.norm(positions[:, None] - positions[None], axis=-1) + 10 * np.eye(nodes)
    assert apart.min(initial=10.0) > 0.1


def test_importing_the_report_loads_neither_jax_nor_a_plotting_library():
    code = (
        "import sys, dynamic_graph_fed_rl.evaluation.report;"
        "print([m for m in ('jax', 'matplotlib', 'scipy', 'networkx') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
