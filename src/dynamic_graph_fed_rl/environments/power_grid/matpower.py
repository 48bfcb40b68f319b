"""Reading MATPOWER case files: text to checked tables, every refusal naming the file and the line.

Format: MATPOWER User's Manual, appendix B "Data File Format", version 2.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

_TABLES = ("bus", "gen", "branch", "gencost")
_MIN_COLUMNS = {"bus": 10, "gen": 10, "branch": 11, "gencost": 5}
_OPENING = re.compile(r"^\s*(?:\w+\.)?(bus|gen|branch|gencost)\s*=\s*\[")
_BASE = re.compile(r"^\s*(?:\w+\.)?baseMVA\s*=\s*([^;]*)")
_OTHER_ASSIGNMENT = re.compile(r"^\s*\w+\.(bus|gen|branch|gencost|baseMVA)\b\s*(\(|=)")
# The two unit conversions that MATPOWER's own distribution-system files end with, blanks removed.
_OHM_TO_PER_UNIT = re.compile(
    r"^\w+\.branch\(:,\[BR_R,?BR_X\]\)=\w+\.branch\(:,\[BR_R,?BR_X\]\)/\(Vbase\^2/Sbase\);?$"
)
_KW_TO_MW = re.compile(r"^\w+\.bus\(:,\[PD,?QD\]\)=\w+\.bus\(:,\[PD,?QD\]\)/1e3;?$")


class CaseFileError(ValueError):
    """A case file that cannot be read; the message is `file:line: what was wrong; what would be right`."""


@dataclass
class _Table:
    rows: np.ndarray  # [rows, columns]
    lines: list[int]  # line of each row in the file


def read_matpower(path: Path) -> dict[str, Any]:
    """Read a MATPOWER `.m` file into the fields of `network.Case` (without `name`).

    Piecewise-linear costs are replaced by their least-squares convex quadratic, with a warning. A missing
    `gencost` gives costs of zero. A tap of 0 (a line) becomes 1; an infinite rating becomes 0 (none).
    Polynomial terms above the second degree are refused, as are statements that alter the tables, except the
    ohm and kW conversions that MATPOWER's own distribution cases end with.

    Raises:
        CaseFileError: malformed or inconsistent content.
    """
    base_mva, tables, conversions = _scan(path)
    for name in ("bus", "gen", "branch"):
        if name not in tables:
            raise CaseFileError(f"{path}: no table 'mpc.{name} = [...]'; bus, gen and branch are required")
    bus, gen, branch = tables["bus"].rows, tables["gen"].rows, tables["branch"].rows
    if not len(bus):
        raise CaseFileError(f"{path}: table 'mpc.bus' is empty")
    _require_numbers(path, "bus", tables["bus"], range(10))
    _require_numbers(path, "gen", tables["gen"], (0, 1, 2, 5, 7))
    _require_numbers(path, "branch", tables["branch"], (0, 1, 2, 3, 4, 8, 9, 10))
    if "kw" in conversions:
        bus[:, 2:4] /= 1e3
    if "ohm" in conversions:
        branch[:, 2:4] /= bus[0, 9] ** 2 / base_mva

    index = _bus_index(path, tables["bus"])
    gen_bus = _endpoints(path, "gen", tables["gen"], 0, index)
    branch_from = _endpoints(path, "branch", tables["branch"], 0, index)
    branch_to = _endpoints(path, "branch", tables["branch"], 1, index)
    branch_on = branch[:, 10] > 0
    for row in range(len(branch)):
        if branch_from[row] == branch_to[row]:
            _refuse(path, tables["branch"].lines[row], "branch connects a bus to itself; give two buses")
        if branch_on[row] and branch[row, 2] == 0.0 and branch[row, 3] == 0.0:
            _refuse(path, tables["branch"].lines[row], "branch in service has r = x = 0; give an impedance")
    rate = np.where(np.isfinite(branch[:, 5]), branch[:, 5], 0.0)
    costs = _costs(path, tables.get("gencost"), gen)
    return {
        "base_mva": base_mva,
        "bus_number": bus[:, 0].astype(np.int64),
        "bus_type": bus[:, 1].astype(np.int64),
        "load_p_mw": bus[:, 2],
        "load_q_mvar": bus[:, 3],
        "shunt_g_mw": bus[:, 4],
        "shunt_b_mvar": bus[:, 5],
        "vm_pu": bus[:, 7],
        "va_degree": bus[:, 8],
        "base_kv": bus[:, 9],
        "gen_bus": gen_bus,
        "gen_p_mw": gen[:, 1],
        "gen_q_mvar": gen[:, 2],
        "gen_vm_pu": gen[:, 5],
        "gen_p_min_mw": gen[:, 9],
        "gen_p_max_mw": gen[:, 8],
        "gen_on": gen[:, 7] > 0,
        "cost_c2": costs[:, 0],
        "cost_c1": costs[:, 1],
        "cost_c0": costs[:, 2],
        "branch_from": branch_from,
        "branch_to": branch_to,
        "r": branch[:, 2],
        "x": branch[:, 3],
        "b": branch[:, 4],
        "tap": np.where(branch[:, 8] == 0.0, 1.0, branch[:, 8]),
        "shift_degree": branch[:, 9],
        "rate_mva": rate,
        "branch_on": branch_on,
    }


def _refuse(path: Path, line: int, message: str) -> NoReturn:
    raise CaseFileError(f"{path}:{line}: {message}")


def _logical_lines(path: Path) -> list[tuple[int, str]]:
    """Lines without comments, each with its number; `...` joins a line to the next."""
    lines: list[tuple[int, str]] = []
    in_block = False
    pending, pending_line = "", 0
    for number, raw in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        stripped = raw.strip()
        if stripped in ("%{", "%}"):
            in_block = stripped == "%{"
            continue
        if in_block:
            continue
        text = raw.split("%", 1)[0]
        if "..." in text:
            pending += text.split("...", 1)[0] + " "
            pending_line = pending_line or number
            continue
        lines.append((pending_line or number, pending + text))
        pending, pending_line = "", 0
    if pending:
        lines.append((pending_line, pending))
    return lines


def _scan(path: Path) -> tuple[float, dict[str, _Table], set[str]]:
    base_mva: float | None = None
    tables: dict[str, _Table] = {}
    conversions: set[str] = set()
    lines = iter(_logical_lines(path))
    for number, text in lines:
        opening, base = _OPENING.match(text), _BASE.match(text)
        if opening:
            name = opening.group(1)
            tables[name] = _read_table(path, name, number, text[opening.end() :], lines)
        elif base:
            base_mva = _base_mva(path, number, base.group(1).strip())
        elif _OHM_TO_PER_UNIT.match(re.sub(r"\s", "", re.sub(r"BR_R\s+BR_X", "BR_R,BR_X", text))):
            conversions.add("ohm")
        elif _KW_TO_MW.match(re.sub(r"\s", "", text)):
            conversions.add("kw")
        elif _OTHER_ASSIGNMENT.match(text):
            _refuse(
                path,
                number,
                f"statement '{text.strip()}' alters the data; save the case with its final numbers",
            )
    if base_mva is None:
        raise CaseFileError(f"{path}: no 'mpc.baseMVA = ...'; the system base in MVA is required")
    return base_mva, tables, conversions


def _base_mva(path: Path, line: int, text: str) -> float:
    try:
        numerator, _, denominator = text.partition("/")
        value = float(numerator) / (float(denominator) if denominator else 1.0)
    except (ValueError, ZeroDivisionError):
        _refuse(path, line, f"baseMVA '{text}' is not a number; for example 'mpc.baseMVA = 100;'")
    if not (np.isfinite(value) and value > 0.0):
        _refuse(path, line, f"baseMVA is {value}; it must be positive")
    return value


def _read_table(path: Path, name: str, first_line: int, rest: str, lines) -> _Table:
    rows: list[list[float]] = []
    numbers: list[int] = []
    line, text = first_line, rest
    while True:
        body, closed, _ = text.partition("]")
        for part in body.split(";"):
            words = part.replace(",", " ").split()
            if not words:
                continue
            rows.append([_number(path, line, name, word) for word in words])
            numbers.append(line)
            if len(rows[-1]) != len(rows[0]):
                _refuse(path, line, f"{name} row has {len(rows[-1])} columns, the rows above have {len(rows[0])}")
            if len(rows[-1]) < _MIN_COLUMNS[name]:
                _refuse(
                    path,
                    line,
                    f"{name} row has {len(rows[-1])} columns, at least {_MIN_COLUMNS[name]} needed",
                )
        if closed:
            break
        following = next(lines, None)
        if following is None:
            _refuse(path, first_line, f"table '{name}' is never closed; end it with '];'")
        line, text = following
        if "=" in text:
            _refuse(path, line, f"table '{name}' of line {first_line} is not closed before this statement")
    width = len(rows[0]) if rows else _MIN_COLUMNS[name]
    return _Table(np.asarray(rows, dtype=np.float64).reshape(len(rows), width), numbers)


def _number(path: Path, line: int, name: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        _refuse(path, line, f"{name} row holds '{word}', which is not a number")


def _require_numbers(path: Path, name: str, table: _Table, columns: Sequence[int]) -> None:
    finite = np.isfinite(table.rows[:, list(columns)])
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        _refuse(path, table.lines[row], f"{name} column {columns[column] + 1} is not finite; give a number")


def _bus_index(path: Path, table: _Table) -> dict[int, int]:
    index: dict[int, int] = {}
    for row, (number, kind) in enumerate(table.rows[:, :2]):
        if number != int(number) or number < 0:
            _refuse(path, table.lines[row], f"bus number {number:g} is not a whole number")
        if int(number) in index:
            _refuse(path, table.lines[row], f"bus number {number:g} appears twice; bus numbers must be unique")
        if kind not in (1, 2, 3, 4):
            _refuse(path, table.lines[row], f"bus type {kind:g}; 1 PQ, 2 PV, 3 reference or 4 isolated expected")
        index[int(number)] = row
    return index


def _endpoints(path: Path, name: str, table: _Table, column: int, index: dict[int, int]) -> np.ndarray:
    for row, number in enumerate(table.rows[:, column]):
        if number not in index:
            _refuse(path, table.lines[row], f"{name} row names bus {number:g}, which is not in the bus table")
    return np.asarray([index[int(number)] for number in table.rows[:, column]], dtype=np.int64)


def _costs(path: Path, table: _Table | None, gen: np.ndarray) -> np.ndarray:
    """Quadratic cost coefficients (c2 [$/MW2h], c1 [$/MWh], c0 [$/h]) of each generator."""
    if table is None:
        return np.zeros((len(gen), 3))
    if len(table.rows) not in (len(gen), 2 * len(gen)):
        raise CaseFileError(
            f"{path}: gencost has {len(table.rows)} rows for {len(gen)} generators; one row a generator "
            "(or two, with reactive costs) expected"
        )
    costs = np.zeros((len(gen), 3))
    fitted: list[int] = []
    for row, values in enumerate(table.rows[: len(gen)]):
        line, kind, count = table.lines[row], values[0], int(values[3])
        data = values[4 : 4 + (2 * count if kind == 1 else count)]
        if kind not in (1, 2):
            _refuse(path, line, f"cost model {kind:g}; 1 piecewise linear or 2 polynomial expected")
        if count < 1 or len(data) < (2 * count if kind == 1 else count) or not np.isfinite(data).all():
            _refuse(path, line, f"gencost announces {count} cost terms but does not give them as numbers")
        if kind == 1:
            costs[row] = _quadratic_fit(data[0::2], data[1::2])
            fitted.append(line)
        else:
            if np.any(data[:-3] != 0.0):
                _refuse(path, line, "cost polynomial above the second degree; give at most c2, c1, c0")
            kept = data[-3:]
            costs[row, 3 - len(kept) :] = kept
    if fitted:
        warnings.warn(
            f"{path}: piecewise-linear costs of {len(fitted)} generators (first at line {fitted[0]}) "
            "replaced by their least-squares convex quadratic",
            stacklevel=4,
        )
    return costs


def _quadratic_fit(power_mw: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Least-squares convex quadratic through the break points, sampled evenly so that long pieces count."""
    if len(power_mw) < 2 or np.any(np.diff(power_mw) <= 0.0):
        return np.array([0.0, 0.0, cost[0]])
    samples = np.linspace(power_mw[0], power_mw[-1], 101)
    values = np.interp(samples, power_mw, cost)
    fit = np.polyfit(samples, values, 2)
    return fit if fit[0] >= 0.0 else np.concatenate([[0.0], np.polyfit(samples, values, 1)])
