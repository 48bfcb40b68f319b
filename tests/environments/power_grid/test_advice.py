"""Advice: the policy's set-points in megawatts, checked against what fixed actions must give."""

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.power_grid.build import build
from dynamic_graph_fed_rl.environments.power_grid.network import load_case
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings

UNIT_ROWS = ("1", "2", "3", "4", "5")


class Constant(Controller):
    """The same action in every slot."""

    value: jnp.ndarray

    def initial_memory(self, state, observation):
        assert state is None  # a policy in use has no true state to read
        return None

    def act(self, key, memory, state, observation):
        return jnp.full((*observation.action_mask.shape, 1), self.value), None


def constant(value: float) -> Constant:
    return Constant(jnp.asarray(value))


@pytest.fixture(scope="module")
def advice():
    return build(PowerGridSettings(case="ieee14", scenarios=("normal",)), agents=2).advice


def column(result: dict, name: str) -> np.ndarray:
    return np.array([row[name] for row in result["units"]])


def test_the_example_is_valid_and_zero_follows_the_merit_order(advice) -> None:
    example = advice.example()
    case = load_case("ieee14")
    assert set(example["load_mw"]) == {str(n) for n in case.bus_number[case.load_p_mw != 0]}
    assert tuple(example["set_point_mw"]) == UNIT_ROWS and len(example["lines_out"]) == 1
    result = advice.advise(constant(0.0), example)
    assert np.allclose(column(result, "advised_mw"), column(result, "schedule_mw"), atol=0.01)
    assert all(row["limited_by"] == [] for row in result["units"]) and result["shed"] == []
    assert result["expected"]["advised"] == pytest.approx(result["expected"]["merit_order"], rel=1e-4)
    now = result["now"]
    assert now["served_mw"] == pytest.approx(sum(example["load_mw"].values()), abs=0.05)
    assert now["generation_mw"] - now["losses_mw"] == pytest.approx(now["served_mw"], abs=0.05)
    # the schedule covers the demand to come and the losses
    assert column(result, "schedule_mw").sum() == pytest.approx(
        result["expected"]["merit_order"]["served_mw"] + now["losses_mw"], abs=0.1
    )
    assert [row["region"] for row in result["units"]] == [advice.region[b] + 1 for b in case.gen_bus]


def test_limits_are_named(advice) -> None:
    example = advice.example()
    pushed = advice.advise(constant(3.0), example)
    now, advised, wanted = (column(pushed, name) for name in ("set_point_mw", "advised_mw", "wanted_mw"))
    assert all("range" in row["limited_by"] for row in pushed["units"])
    units = advice.environment.units
    reach = np.asarray(units.ramp_mw_per_min) * advice.environment.minutes
    assert np.allclose(wanted, np.maximum(list(example["available_mw"].values()), 0.0), atol=1.5)
    ramped = wanted - now > reach + 0.02
    assert ramped.any() and np.allclose(advised[ramped], (now + reach)[ramped], atol=0.01)
    assert [("ramp" in row["limited_by"]) for row in pushed["units"]] == ramped.tolist()
    # full action on loads sheds `max_shed` of each
    loads = {row["bus"]: row["shed_mw"] for row in pushed["shed"]}
    assert loads[3] == pytest.approx(0.2 * example["load_mw"]["3"], rel=0.05)


def test_what_is_left_out_is_filled_in(advice) -> None:
    result = advice.advise(constant(0.0), {})
    assert result["minute"] == 720 and result["now"]["served_mw"] > 100
    given = advice.advise(constant(0.0), {"set_point_mw": {"1": 50.0}, "load_mw": {"3": 10.0}})
    assert column(given, "set_point_mw")[0] == 50.0
    assert given["now"]["served_mw"] < result["now"]["served_mw"] - 50


def test_a_line_out_carries_nothing(advice) -> None:
    whole = advice.advise(constant(0.0), {"minute": 600})
    worst = whole["now"]["most_loaded_branch"]
    out = advice.advise(constant(0.0), {"minute": 600, "lines_out": [worst]})
    assert out["now"]["most_loaded_branch"] != worst
    # branch 14 alone feeds bus 8, whose unit is cut off with it
    cut = advice.advise(constant(0.0), {"minute": 600, "lines_out": [14], "set_point_mw": {"5": 10.0}})
    assert cut["now"]["generation_mw"] == pytest.approx(cut["now"]["served_mw"] + cut["now"]["losses_mw"], abs=0.05)


def test_it_is_shown_to_people(advice) -> None:
    console = Console(width=110, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    advice.render(advice.advise(constant(3.0), advice.example()), console)
    shown = console.export_text()
    console.file.close()
    for text in ("thermal", "wind", "ramp", "range", "Shed", "highest loading", "merit order"):
        assert text in shown


@pytest.mark.parametrize(
    ("snapshot", "message"),
    [
        ([], "must be an object"),
        ({"minutes": 3}, "'minutes': unknown; known: minute, load_mw"),
        ({"minute": 1440}, "minute 1440: must lie between 0 and 1439"),
        ({"minute": float("nan")}, "must be a finite number"),
        ({"load_mw": {"99": 1}}, "load_mw '99': is not a bus of case 'ieee14'; known: 1, 2"),
        ({"load_mw": {"1": 1}}, "this bus has no load"),
        ({"load_mw": {"2": -1}}, "must have the sign of"),
        ({"load_mw": {"2": "x"}}, "load_mw '2' 'x': must be a finite number"),
        ({"load_mw": [1]}, "load_mw: must be an object"),
        ({"set_point_mw": {"1": 400}}, "between 0 and 332.4"),
        ({"available_mw": {"6": 1}}, "available_mw '6': is not a unit"),
        ({"lines_out": [21]}, "lines_out 21: must be a branch row of case 'ieee14', 1 to 20"),
        ({"lines_out": "7"}, "must be a list of branch rows"),
        ({"lines_out": list(range(1, 21))}, "at most 8 out at once"),
        ({"available_mw": dict.fromkeys(UNIT_ROWS, 0)}, "blackout"),
    ],
)
def test_what_is_wrong_is_named(advice, snapshot, message) -> None:
    with pytest.raises(ValueError, match=message):
        advice.advise(constant(0.0), snapshot)
