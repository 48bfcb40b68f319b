"""Loading of cases and splitting into regions."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypower.api import case118
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dynamic_graph_fed_rl.environments.power_grid.network import (
    SHIPPED_CASES,
    load_case,
    partition,
    sheddable_load_buses,
    tie_lines,
)
from dynamic_graph_fed_rl.environments.power_grid.regions import grow_regions

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_grid.m"

SMALL = """function mpc = small
mpc.version = '2';   % a comment with = [ in it
mpc.baseMVA = 1e2;
%{
mpc.bus = [ this block is a comment ];
%}
mpc.bus = [ 7, 3, 0, 0, 0, 0, 1, 1.02, 5, 220, 1, 1.1, 0.9;
    100 1 5e1 -1.5E1 1 ...
        2 1 1 0 220 1 1.1 0.9   % continued
    42 2 10 5 0 0 1 1 0 110 1 1.1 0.9
    9 4 30 10 0 0 1 1 0 110 1 1.1 0.9 ];
mpc.bus_name = { 'one'; 'two [1;2'; };
mpc.gen = [
    7  60 0 99 -99 1.02 100 1 90 0;
    42 5  0 99 -99 1.01 100 0 50 0;
    42 20 0 99 -99 1.00 100 1 50 10;
];
mpc.branch = [
    7   100 0.01 0.1 0.02 Inf 0 0 0    0  1 -360 360;
    100 42  0.02 0.2 0    40  0 0 0.95 30 1 -360 360;
    7   42  0.02 0.2 0    0   0 0 0    0  0 -360 360;
    42  9   0.02 0.2 0    0   0 0 0    0  1 -360 360;
];
mpc.gencost = [
    2 0 0 3 0.1 20 5;
    2 0 0 2 30 7 0;
    2 0 0 1 8 0 0;
];
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "small.m"
    path.write_text(text)
    return path


def region_is_connected(case, region, number):
    member = region == number
    inside = case.closed & member[case.branch_from] & member[case.branch_to]
    ends = case.branch_from[inside], case.branch_to[inside]
    matrix = coo_array((np.ones(inside.sum()), ends), shape=(case.buses, case.buses))
    labels = connected_components(matrix, directed=False)[1]
    return len(set(labels[member])) == 1


def test_quirks_of_the_format(tmp_path):
    case = load_case(write(tmp_path, SMALL))
    assert case.base_mva == 100.0
    np.testing.assert_array_equal(case.bus_number, [7, 100, 42, 9])
    np.testing.assert_array_equal(case.load_p_mw, [0, 50, 10, 30])
    np.testing.assert_array_equal(case.load_q_mvar, [0, -15, 5, 10])
    np.testing.assert_array_equal([case.shunt_g_mw[1], case.shunt_b_mvar[1]], [1, 2])
    np.testing.assert_array_equal(case.branch_from, [0, 1, 0, 2])
    np.testing.assert_array_equal(case.gen_bus, [0, 2, 2])
    np.testing.assert_array_equal(case.gen_on, [True, False, True])
    np.testing.assert_array_equal(case.branch_on, [True, True, False, True])
    np.testing.assert_array_equal(case.tap, [1, 0.95, 1, 1])
    np.testing.assert_array_equal(case.rate_mva, [0, 40, 0, 0])
    np.testing.assert_array_equal(case.cost_c2, [0.1, 0, 0])
    np.testing.assert_array_equal(case.cost_c1, [20, 30, 0])
    np.testing.assert_array_equal(case.cost_c0, [5, 7, 8])
    # Bus 9 is isolated although a branch in service leads to it.
    np.testing.assert_array_equal(case.live, [True, True, True, False])
    np.testing.assert_array_equal(case.closed, [True, True, False, False])


MALFORMED = {
    "not a number": ("7  60 0 99", "7  6o 0 99", 14, "'6o'"),
    "too few columns": ("42 20 0 99 -99 1.00 100 1 50 10;", "42 20 0;", 16, "3 columns"),
    "unknown bus": ("7   42  0.02", "7   43  0.02", 21, "bus 43"),
    "bus twice": ("9 4 30 10", "7 4 30 10", 11, "twice"),
    "bus type": ("9 4 30 10", "9 5 30 10", 11, "bus type 5"),
    "cubic cost": ("2 0 0 3 0.1 20 5;\n", "2 0 0 4 0.1 20 5 1;\n", 25, "second degree"),
    "no impedance": ("7   100 0.01 0.1 ", "7   100 0    0   ", 19, "r = x = 0"),
    "loop": ("100 42  0.02", "42 42  0.02", 20, "itself"),
    "never closed": ("];\nmpc.gencost", "\nmpc.gencost", 24, "not closed"),
    "altered": (
        "mpc.gencost",
        "mpc.gen(:, PMAX) = 2 * mpc.gen(:, PMAX);\nmpc.gencost",
        24,
        "alters the data",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_file_names_the_line(tmp_path, kind):
    old, new, line, message = MALFORMED[kind]
    text = SMALL.replace(old, new)
    assert text != SMALL
    if kind == "cubic cost":
        text = text.replace("2 0 0 2 30 7 0;", "2 0 0 2 30 7 0 0;").replace("2 0 0 1 8 0 0;", "2 0 0 1 8 0 0 0;")
    with pytest.raises(ValueError, match=rf"small\.m:{line}: .*{re.escape(message)}"):
        load_case(write(tmp_path, text))


@pytest.mark.parametrize("table", ["bus", "gen", "branch"])
def test_missing_table_is_named(tmp_path, table):
    with pytest.raises(ValueError, match=f"mpc.{table}"):
        load_case(write(tmp_path, SMALL.replace(f"mpc.{table} = [", f"mpc.other_{table} = [")))


def test_piecewise_linear_costs_are_fitted_with_a_warning(tmp_path):
    # Points of 0.1 p^2 + 20 p + 5 at 0, 50, 100: the fit of the two chords stays close to the parabola.
    text = SMALL.replace("2 0 0 3 0.1 20 5;", "1 0 0 3 0 5 50 1255 100 3005;")
    text = text.replace("2 0 0 2 30 7 0;", "2 0 0 2 30 7 0 0 0 0;").replace("1 8 0 0;", "1 8 0 0 0 0 0;")
    with pytest.warns(UserWarning, match="line 25"):
        case = load_case(write(tmp_path, text))
    power = np.array([0.0, 25.0, 50.0, 75.0, 100.0])
    fitted = case.cost_c2[0] * power**2 + case.cost_c1[0] * power + case.cost_c0[0]
    np.testing.assert_allclose(fitted, 0.1 * power**2 + 20 * power + 5, atol=80)
    assert case.cost_c2[0] > 0


def test_ohm_and_kilowatt_conversions(tmp_path):
    ending = (
        "Vbase = mpc.bus(1, BASE_KV) * 1e3;\nSbase = mpc.baseMVA * 1e6;\n"
        "mpc.branch(:, [BR_R BR_X]) = mpc.branch(:, [BR_R BR_X]) / (Vbase^2 / Sbase);\n"
        "mpc.bus(:, [PD, QD]) = mpc.bus(:, [PD, QD]) / 1e3;\n"
    )
    plain, converted = load_case(write(tmp_path, SMALL)), load_case(write(tmp_path, SMALL + ending))
    np.testing.assert_allclose(converted.x, plain.x / (220.0**2 / 100.0))
    np.testing.assert_allclose(converted.load_p_mw, plain.load_p_mw / 1e3)
    np.testing.assert_array_equal(converted.b, plain.b)


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(ValueError, match="'ieee119'.*ieee14, ieee30, ieee57, ieee118, ieee300"):
        load_case("ieee119")
    with pytest.raises(FileNotFoundError, match="missing.m"):
        load_case(tmp_path / "missing.m")


@pytest.mark.parametrize(
    ("name", "sizes", "load_mw"),
    [
        ("ieee14", (14, 5, 20), 259.0),
        ("ieee30", (30, 6, 41), 283.4),
        ("ieee57", (57, 7, 80), 1250.8),
        ("ieee118", (118, 54, 186), 4242.0),
        ("ieee300", (300, 69, 411), 23525.85),
    ],
)
def test_shipped_cases_are_the_published_ones(name, sizes, load_mw):
    case = load_case(name)
    assert (case.buses, case.generators, case.branches) == sizes
    assert case.load_p_mw.sum() == pytest.approx(load_mw)
    assert case.live.all() and (case.rate_mva > 0).all()


def test_ieee118_is_the_real_one():
    case = load_case("ieee118")
    pypower = case118()
    np.testing.assert_array_equal(case.load_p_mw, pypower["bus"][:, 2])
    np.testing.assert_array_equal(case.x, pypower["branch"][:, 3])
    np.testing.assert_array_equal(case.gen_p_max_mw, pypower["gen"][:, 8])
    np.testing.assert_allclose(case.cost_c2, pypower["gencost"][:, 4], rtol=1e-5)
    sheddable = sheddable_load_buses(case)
    assert len(sheddable) == 91
    rest = set(case.bus_number[case.load_p_mw > 0]) - set(case.bus_number[sheddable])
    assert rest == {8, 24, 72, 73, 91, 99, 113, 116}


@pytest.mark.parametrize(
    ("name", "sizes", "ties"), [("ieee118-4", [31, 27, 27, 33], 16), ("nrel-3", [42, 47, 29], 12)]
)
def test_known_partitions(name, sizes, ties):
    case = load_case("ieee118")
    region = partition(case, name)
    assert np.bincount(region).tolist() == sizes
    assert len(tie_lines(case, region)) == ties
    assert all(region_is_connected(case, region, number) for number in range(len(sizes)))


@pytest.mark.parametrize("name", [*SHIPPED_CASES, EXAMPLE])
@pytest.mark.parametrize("regions", [1, 2, 4, 7])
def test_computed_partitions_are_connected_and_balanced(name, regions):
    case = load_case(name)
    started = time.process_time()
    region = partition(case, regions)
    assert time.process_time() - started < 3.0
    sizes = np.bincount(region, minlength=regions)
    assert len(sizes) == regions and sizes.min() >= 1
    assert all(region_is_connected(case, region, number) for number in range(regions))
    assert sizes.max() <= 2 * case.buses / regions
    np.testing.assert_array_equal(region, partition(case, regions))


def test_impossible_partitions_are_refused():
    case = load_case("ieee14")
    with pytest.raises(ValueError, match="15 regions.*at most 14"):
        partition(case, 15)
    with pytest.raises(ValueError, match="at least 1"):
        partition(case, 0)
    with pytest.raises(ValueError, match="'nrel-3'.*unknown for case 'ieee14'"):
        partition(case, "nrel-3")


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.integers(1, 25), st.data())
def test_regions_of_random_networks_are_connected(nodes, regions, data):
    regions = min(regions, nodes)
    tree = [(data.draw(st.integers(0, node - 1)), node) for node in range(1, nodes)]
    edges = np.array(tree)
    region = grow_regions(nodes, edges, regions)
    assert set(region) == set(range(regions))
    cut = region[edges[:, 0]] != region[edges[:, 1]]
    # On a tree, connected regions are exactly as many as the edges between them, plus one.
    assert cut.sum() == regions - 1
