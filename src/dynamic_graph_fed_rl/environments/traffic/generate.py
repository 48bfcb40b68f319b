"""Networks of any size with their demand: a grid of streets, or a city grown at random. No SUMO needed.

Streets have two lanes each way: kerb lane for right and straight, the other for straight and left. At a signal,
opposite approaches share a phase in which left turns yield, followed by one in which these alone are green.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from scipy.spatial import Delaunay

from dynamic_graph_fed_rl.environments.traffic.demand import WINDOW_S
from dynamic_graph_fed_rl.environments.traffic.network import (
    PROTECTED,
    RED,
    VEHICLE_SPACE_M,
    YIELDING,
    Demand,
    Network,
)
from dynamic_graph_fed_rl.environments.traffic.rules import critical_loads

BLOCK_M = 200.0
SPEED_M_S = 13.9
GENERATED = ("grid", "city")
MOST_LEGS = 4
TRIPS_PER_LINK = 20
# a rush hour's four quarters
_COURSE = (0.85, 1.1, 1.15, 0.9)


@dataclass(frozen=True)
class Streets:
    """Crossings, the first of which have signals, and streets between them, one way each."""

    position_m: Float[np.ndarray, "crossings 2"]
    signals: int
    ends: Int[np.ndarray, "links 2"]


def generated(kind: str, signals: int, load: float, duration_s: float, seed: int) -> tuple[Network, Demand]:
    """A `grid` of so many signals (the nearest rectangle that holds as many), or a `city`.

    `load` is the share of its capacity that one in ten signals exceeds.

    Raises:
        ValueError: fewer than one signal.
    """
    if signals < 1:
        raise ValueError(f"signals {signals}: a generated network needs at least 1")
    rng = np.random.default_rng(seed)
    streets = _grid(signals) if kind == "grid" or signals < MOST_LEGS else _city(signals, rng)
    network = _network(f"{kind}-{signals}", streets)
    return network, _demand(network, load, duration_s, rng)


def _both_ways(pairs: list[tuple[int, int]]) -> Int[np.ndarray, "links 2"]:
    return np.array(sorted({(a, b) for a, b in pairs} | {(b, a) for a, b in pairs}))


def _grid(signals: int) -> Streets:
    rows = max(r for r in range(1, int(np.sqrt(signals)) + 1) if signals % r == 0)
    columns = signals // rows
    place = {(r, c): r * columns + c for r in range(rows) for c in range(columns)}
    position = [(c * BLOCK_M, r * BLOCK_M) for r, c in place]
    pairs = []
    for (r, c), here in place.items():
        for step in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            other = place.get((r + step[0], c + step[1]))
            if other is None:
                other = len(position)
                position.append(((c + step[1]) * BLOCK_M, (r + step[0]) * BLOCK_M))
            pairs.append((here, other))
    return Streets(np.array(position), signals, _both_ways(pairs))


def _city(signals: int, rng: np.random.Generator) -> Streets:
    """Crossings at random, but not too close; the shortest streets that connect all, then further ones while a
    crossing has fewer than four; stubs lead out of the town at crossings that still have fewer than three."""
    points = np.zeros((0, 2))
    side = BLOCK_M * np.sqrt(signals)
    closest = 0.6 * BLOCK_M
    while len(points) < signals:
        candidate = rng.uniform(0.0, side, 2)
        if not len(points) or np.linalg.norm(points - candidate, axis=1).min() > closest:
            points = np.vstack([points, candidate])
    corners = Delaunay(points).simplices
    pairs = {tuple(sorted((int(t[i]), int(t[j])))) for t in corners for i, j in ((0, 1), (1, 2), (0, 2))}
    length = {pair: float(np.linalg.norm(points[pair[0]] - points[pair[1]])) for pair in pairs}
    weight = coo_array((list(length.values()), tuple(zip(*length, strict=True))), shape=(signals, signals))
    tree = minimum_spanning_tree(weight.tocsr()).tocoo()
    chosen = {tuple(sorted((int(a), int(b)))) for a, b in zip(tree.row, tree.col, strict=True)}
    legs = np.bincount(np.array(sorted(chosen)).ravel(), minlength=signals)
    for pair in sorted(length, key=lambda p: (length[p], p)):
        if pair not in chosen and (legs[list(pair)] < MOST_LEGS).all() and length[pair] < 2.0 * BLOCK_M:
            chosen.add(pair)
            legs[list(pair)] += 1
    position, streets = points, [(a, b) for a, b in chosen]
    for here in np.flatnonzero(legs < 3):
        away = points[here] - points.mean(0)
        for i in range(3 - legs[here]):
            turn = np.pi / 4 * i
            rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            stub = points[here] + rotation @ (away / max(np.linalg.norm(away), 1.0)) * BLOCK_M
            streets.append((int(here), len(position)))
            position = np.vstack([position, stub])
    return Streets(position, signals, _both_ways(streets))


def _network(name: str, streets: Streets) -> Network:
    start, end = streets.position_m[streets.ends[:, 0]], streets.position_m[streets.ends[:, 1]]
    length = np.linalg.norm(end - start, axis=1)
    heading = np.arctan2(*(end - start).T[::-1])
    links = len(length)
    turns = [
        (a, b)
        for a in range(links)
        for b in range(links)
        if streets.ends[a, 1] == streets.ends[b, 0] and streets.ends[a, 0] != streets.ends[b, 1]
    ]
    lane, turn, bend = [], [], []
    for t, (a, b) in enumerate(turns):
        degrees = np.rad2deg((heading[b] - heading[a] + np.pi) % (2 * np.pi) - np.pi)
        lanes = {-1: (0,), 0: (0, 1), 1: (1,)}[int(degrees > 45) - int(degrees < -45)]
        # a leg with fewer exits than three must leave no lane without one
        for i in lanes if sum(x == a for x, _ in turns) > 1 else (0, 1):
            lane.append(2 * a + i)
            turn.append(t)
            bend.append(degrees)
    movement_lane, movement_turn = np.array(lane), np.array(turn)
    turn_from, turn_to = np.array(turns).T
    origin = movement_lane // 2
    signal = streets.ends[origin, 1]
    plans = [_phases(np.flatnonzero(streets.ends[:, 1] == s), heading) for s in range(streets.signals)]
    most = max(len(plan) for plan in plans)
    green = np.full((len(lane), most), RED)
    left = np.array(bend) > 45
    for m in range(len(lane)):
        for k, (approaches, only_left) in enumerate(plans[signal[m]]):
            if origin[m] in approaches and (left[m] or not only_left):
                alone = only_left or len(approaches) == 1
                green[m, k] = PROTECTED if alone or not left[m] else YIELDING
    foes = tuple(
        tuple(
            f
            for f in np.flatnonzero((signal == signal[m]) & (origin != origin[m]) & ~left).tolist()
            if (green[m] == YIELDING)[green[f] == PROTECTED].any()
        )
        if (green[m] == YIELDING).any()
        else ()
        for m in range(len(lane))
    )
    program = np.zeros((streets.signals, most))
    for s, plan in enumerate(plans):
        program[s, : len(plan)] = [10.0 if only_left else 25.0 for _, only_left in plan]
    ends = np.where(streets.ends < streets.signals, streets.ends, -1)
    return Network(
        name=name,
        signal_id=tuple(str(s) for s in range(streets.signals)),
        signal_xy_m=streets.position_m[: streets.signals],
        phase_states=tuple(
            tuple("".join("rgG"[level] for level in green[signal == s, k]) for k in range(len(plan)))
            for s, plan in enumerate(plans)
        ),
        program_s=program,
        clearance_s=np.where(program > 0, 3.0, 0.0),
        offset_s=np.zeros(streets.signals),
        link_edges=tuple((f"{a}-{b}",) for a, b in streets.ends.tolist()),
        link_length_m=length,
        link_speed_m_s=np.full(links, SPEED_M_S),
        link_storage=np.floor(2 * length / VEHICLE_SPACE_M),
        link_xy_m=np.stack([start, end], axis=1),
        link_origin=ends[:, 0],
        link_end=ends[:, 1],
        lane_link=np.repeat(np.arange(links), 2),
        lane_parts=tuple(((f"{a}-{b}_{i}", 1.0),) for a, b in streets.ends.tolist() for i in range(2)),
        lane_chain=((),) * (2 * links),
        movement_lane=movement_lane,
        movement_turn=movement_turn,
        movement_signal=signal,
        movement_green=green,
        movement_foes=foes,
        movement_lands=tuple((2 * b, 2 * b + 1) for b in turn_to[movement_turn].tolist()),
        turn_from=turn_from,
        turn_to=turn_to,
    )


def _phases(
    approaches: Int[np.ndarray, " legs"], heading: Float[np.ndarray, " links"]
) -> list[tuple[tuple[int, ...], bool]]:
    """Which approaches are green together, and whether for left turns only."""
    left = sorted(approaches.tolist(), key=lambda a: heading[a])
    plan: list[tuple[tuple[int, ...], bool]] = []
    while left:
        first = left.pop(0)
        apart = [abs((heading[first] - heading[a] + np.pi) % (2 * np.pi) - np.pi) for a in left]
        opposite = [a for a, angle in zip(left, apart, strict=True) if angle > 0.75 * np.pi]
        if opposite:
            left.remove(opposite[0])
            plan += [((first, opposite[0]), False), ((first, opposite[0]), True)]
        else:
            plan.append(((first,), False))
    return plan


def _demand(network: Network, load: float, duration_s: float, rng: np.random.Generator) -> Demand:
    """Trips between links at random, the nearer the likelier, on the quickest ways; as many as fit the load."""
    turns = len(network.turn_from)
    cost = network.link_time_s[network.turn_to] + 10.0
    ways = coo_array((cost, (network.turn_from, network.turn_to)), shape=(network.links, network.links)).tocsr()
    turn = {pair: t for t, pair in enumerate(zip(network.turn_from.tolist(), network.turn_to.tolist(), strict=True))}
    entering, passed, taken = np.zeros(network.links), np.zeros(network.links), np.zeros(turns)
    for start in range(network.links):
        seconds, before = dijkstra(ways, indices=start, return_predecessors=True)
        reach = np.isfinite(seconds) & (np.arange(network.links) != start)
        if not reach.any():
            continue
        # trips of some six blocks
        wish = np.where(reach, np.exp(-np.where(reach, seconds, 0.0) / 150.0), 0.0)
        for goal in rng.choice(network.links, TRIPS_PER_LINK, p=wish / wish.sum()):
            entering[start] += 1
            link = int(goal)
            passed[link] += 1
            while link != start:
                previous = int(before[link])
                taken[turn[previous, link]] += 1
                passed[previous] += 1
                link = previous
    blind = 1.0 / np.bincount(network.turn_from, minlength=network.links)[network.turn_from]
    total = passed[network.turn_from]
    windows = max(int(np.ceil(duration_s / WINDOW_S)), 1)
    course = np.resize(_COURSE, windows)[:, None]
    ratio = np.broadcast_to(np.where(total > 0, taken / np.maximum(total, 1.0), blind), (windows, turns))
    one = Demand(0.0, WINDOW_S, entering / entering.sum() * course, ratio)
    busy = np.quantile(critical_loads(network, one), 0.9)
    return Demand(0.0, WINDOW_S, one.rate_per_s * load / busy, ratio)
