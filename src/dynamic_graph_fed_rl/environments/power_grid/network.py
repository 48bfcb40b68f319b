"""What a power grid is: buses, generators and branches of a case, its regions and its loads.

Five IEEE cases are shipped (`data/README.md` says where they come from); any MATPOWER `.m` file can be read
besides. NumPy only.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int

from dynamic_graph_fed_rl.environments.power_grid.matpower import read_matpower
from dynamic_graph_fed_rl.environments.power_grid.regions import grow_regions

_DATA = Path(__file__).parent / "data"
SHIPPED_CASES = ("ieee14", "ieee30", "ieee57", "ieee118", "ieee300")

PQ, PV, REFERENCE, ISOLATED = 1, 2, 3, 4


@dataclass(frozen=True, eq=False)
class Case:
    """One grid at one operating point, in the conventions of MATPOWER.

    Rows are in file order, out-of-service rows included. Buses are referred to by index (0 to buses - 1);
    `bus_number` holds the numbers of the file.
    """

    name: str
    base_mva: float
    bus_number: Int[np.ndarray, "buses"]
    bus_type: Int[np.ndarray, "buses"]
    """As in the file: 1 PQ, 2 PV, 3 reference, 4 isolated."""
    load_p_mw: Float[np.ndarray, "buses"]
    load_q_mvar: Float[np.ndarray, "buses"]
    shunt_g_mw: Float[np.ndarray, "buses"]
    """Consumed at 1 p.u. voltage."""
    shunt_b_mvar: Float[np.ndarray, "buses"]
    """Injected at 1 p.u. voltage."""
    vm_pu: Float[np.ndarray, "buses"]
    va_degree: Float[np.ndarray, "buses"]
    base_kv: Float[np.ndarray, "buses"]
    gen_bus: Int[np.ndarray, "generators"]
    """Bus index."""
    gen_p_mw: Float[np.ndarray, "generators"]
    gen_q_mvar: Float[np.ndarray, "generators"]
    gen_vm_pu: Float[np.ndarray, "generators"]
    gen_p_min_mw: Float[np.ndarray, "generators"]
    gen_p_max_mw: Float[np.ndarray, "generators"]
    gen_on: Bool[np.ndarray, "generators"]
    cost_c2: Float[np.ndarray, "generators"]
    """[$/MW2h]"""
    cost_c1: Float[np.ndarray, "generators"]
    """[$/MWh]"""
    cost_c0: Float[np.ndarray, "generators"]
    """[$/h]"""
    branch_from: Int[np.ndarray, "branches"]
    """Bus index; the tap side of a transformer."""
    branch_to: Int[np.ndarray, "branches"]
    r: Float[np.ndarray, "branches"]
    """Series resistance [p.u.]."""
    x: Float[np.ndarray, "branches"]
    """Series reactance [p.u.]."""
    b: Float[np.ndarray, "branches"]
    """Total charging susceptance [p.u.]."""
    tap: Float[np.ndarray, "branches"]
    """Off-nominal ratio, 1 for a line."""
    shift_degree: Float[np.ndarray, "branches"]
    rate_mva: Float[np.ndarray, "branches"]
    """Long-term rating, 0 where there is none."""
    branch_on: Bool[np.ndarray, "branches"]
    fixed_load_buses: tuple[int, ...] = ()
    """Bus numbers whose load is a fixed injection and cannot be shed."""

    @property
    def buses(self) -> int:
        return len(self.bus_number)

    @property
    def branches(self) -> int:
        return len(self.branch_from)

    @property
    def generators(self) -> int:
        return len(self.gen_bus)

    @cached_property
    def live(self) -> Bool[np.ndarray, "buses"]:
        """Buses of the largest connected network of in-service branches, isolated (type 4) buses left out.

        Of networks of equal size the one holding the lowest bus index counts.
        """
        connected = self.closed
        label = np.arange(self.buses)
        while True:
            lowest = np.minimum(label[self.branch_from], label[self.branch_to])[connected]
            updated = label.copy()
            np.minimum.at(updated, self.branch_from[connected], lowest)
            np.minimum.at(updated, self.branch_to[connected], lowest)
            updated = updated[updated]
            if np.array_equal(updated, label):
                break
            label = updated
        size = np.bincount(label[self.bus_type != ISOLATED], minlength=self.buses)
        return (label == np.argmax(size)) & (self.bus_type != ISOLATED)

    @cached_property
    def closed(self) -> Bool[np.ndarray, "branches"]:
        """Branches in service with neither end isolated."""
        isolated = self.bus_type == ISOLATED
        return self.branch_on & ~isolated[self.branch_from] & ~isolated[self.branch_to]


def load_case(name_or_path: str | Path) -> Case:
    """A shipped case by name, or any MATPOWER `.m` file by path.

    Raises:
        ValueError: unknown name (the message lists the known ones), or a malformed file (naming the line).
        FileNotFoundError: a path ending in `.m` that does not exist.
    """
    name = str(name_or_path)
    if name in SHIPPED_CASES:
        return _read_json(_DATA / f"{name}.json")
    path = Path(name_or_path)
    if path.suffix != ".m":
        raise ValueError(
            f"case '{name}': unknown; known: {', '.join(SHIPPED_CASES)}, or a path to a MATPOWER .m file"
        )
    if not path.is_file():
        raise FileNotFoundError(f"case '{name}': no such file; shipped cases: {', '.join(SHIPPED_CASES)}")
    return Case(name=path.stem, **read_matpower(path))


def sheddable_load_buses(case: Case) -> Int[np.ndarray, "loads"]:
    """Indices of the buses whose load may be shed: positive load and not a fixed injection.

    On ieee118 these are the 91 loads of the original IEEE data; the other 8 of MATPOWER's 99 are generators
    with negative output that its conversion turned into loads.
    """
    sheddable = (case.load_p_mw > 0.0) & ~np.isin(case.bus_number, case.fixed_load_buses)
    return np.flatnonzero(sheddable)


def known_partitions(case: Case) -> dict[str, Int[np.ndarray, "buses"]]:
    """Published or hand-checked regions of a shipped case by name, each as region index of every bus."""
    if case.name != "ieee118":
        return {}
    stored = json.loads((_DATA / "ieee118_regions.json").read_text())
    return {name: np.asarray(region, dtype=np.int64) for name, region in stored["partitions"].items()}


def partition(case: Case, regions: int | str) -> Int[np.ndarray, "buses"]:
    """Region of every bus: a known partition by name, or `regions` connected regions of similar size.

    A number is computed by deterministic region growing and local search that keeps the number of tie lines
    and the imbalance of sizes small. Buses outside the largest connected network belong to region 0.

    Raises:
        ValueError: unknown name, fewer than one region, or more regions than connected buses.
    """
    if isinstance(regions, str):
        known = known_partitions(case)
        if regions not in known:
            raise ValueError(
                f"partition '{regions}': unknown for case '{case.name}'; "
                f"known: {', '.join(known) or 'none'}, or a number of regions"
            )
        return known[regions]
    nodes = np.flatnonzero(case.live)
    if regions < 1:
        raise ValueError(f"{regions} regions asked for; at least 1 needed")
    if regions > len(nodes):
        raise ValueError(
            f"{regions} regions asked for, but case '{case.name}' has {len(nodes)} connected buses; "
            f"ask for at most {len(nodes)}"
        )
    position = np.full(case.buses, -1)
    position[nodes] = np.arange(len(nodes))
    ends = np.stack([position[case.branch_from], position[case.branch_to]], axis=1)
    edges = ends[case.closed & (ends >= 0).all(axis=1)]
    region = np.zeros(case.buses, dtype=np.int64)
    region[nodes] = grow_regions(len(nodes), edges, regions)
    return region


def tie_lines(case: Case, region: Int[np.ndarray, "buses"]) -> Int[np.ndarray, "ties"]:
    """Rows of the in-service branches that join two regions."""
    return np.flatnonzero(case.closed & (region[case.branch_from] != region[case.branch_to]))


_KINDS = {"bus_number": np.int64, "bus_type": np.int64, "gen_bus": np.int64, "gen_on": np.bool_}
_KINDS |= {"branch_from": np.int64, "branch_to": np.int64, "branch_on": np.bool_}


def _read_json(path: Path) -> Case:
    stored = json.loads(path.read_text())
    columns = {
        name: np.asarray(value, dtype=_KINDS.get(name, np.float64))
        for name, value in stored.items()
        if name not in ("name", "base_mva", "fixed_load_buses")
    }
    return Case(
        name=stored["name"],
        base_mva=float(stored["base_mva"]),
        fixed_load_buses=tuple(stored["fixed_load_buses"]),
        **columns,
    )
