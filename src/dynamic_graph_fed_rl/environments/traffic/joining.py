"""From a SUMO layout to a `Network`: short roads are joined to their neighbours, connections become movements.

Real networks hold roads down to a decimetre. A queue does not stop at their ends and a car crosses them in less than
a time step, so roads shorter than 20 m are joined to the road before them, or after them, wherever no signal stands
between.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dynamic_graph_fed_rl.environments.traffic.network import (
    PROTECTED,
    RED,
    VEHICLE_SPACE_M,
    YIELDING,
    Network,
    network_name,
)
from dynamic_graph_fed_rl.environments.traffic.sumo_files import Connection, Edge, Layout, Program, read_layout

SHORT_M = 20.0
DETECTOR_M = 100.0


@dataclass
class Road:
    """One link in the making."""

    edges: tuple[str, ...]
    origin: str
    end: str
    lanes: tuple[str, ...]
    """Lanes of the stop line."""
    length_m: float
    seconds: float
    lane_m: float
    """Length of all its lanes together."""


def read_network(path: Path, vehicle_space_m: float = VEHICLE_SPACE_M) -> Network:
    """A `.net.xml`, plain or `.gz`, on whose roads a standing car takes so much.

    Raises:
        ValueError: naming the file, or the signal and movement that is never served, or what else is missing.
    """
    layout = read_layout(path)
    roads, connections = join_short_roads(layout)
    return _assemble(network_name(path), layout, roads, connections, vehicle_space_m)


def join_short_roads(layout: Layout) -> tuple[dict[str, Road], list[Connection]]:
    """Roads by the id of the edge they keep, and the connections between these."""
    roads = {edge.id: _road(edge) for edge in layout.edges.values()}
    connections = layout.connections
    for name in sorted(roads, key=lambda name: (roads[name].length_m, name)):
        if roads[name].length_m >= SHORT_M:
            break
        coming = [c for c in connections if c.to_edge == name and not c.around]
        going = [c for c in connections if c.edge == name and not c.around]
        before, after = {c.edge for c in coming} - {name}, {c.to_edge for c in going} - {name}
        if len(before) == 1 and going and not any(c.signal for c in coming):
            (road,) = before
            # where the road before forks, its cars wait for each branch on their own
            if {c.to_edge for c in connections if c.edge == road and not c.around} == {name}:
                connections = _join_before(roads, connections, road, name)
        elif len(after) == 1 and coming and not any(c.signal for c in going):
            (next_road,) = after
            if {c.edge for c in connections if c.to_edge == next_road and not c.around} == {name}:
                connections = _join_after(roads, connections, name, next_road)
    return roads, connections


def _road(edge: Edge) -> Road:
    lanes = tuple(edge.lanes[index] for index in sorted(edge.lanes))
    lane_m = edge.length_m * len(lanes)
    return Road((edge.id,), edge.origin, edge.end, lanes, edge.length_m, edge.length_m / edge.speed_m_s, lane_m)


def _join_before(roads: dict[str, Road], connections: list[Connection], before: str, short: str) -> list[Connection]:
    """The short road becomes the end of the one before it."""
    upper, lower = roads[before], roads.pop(short)
    roads[before] = Road(
        edges=upper.edges + lower.edges,
        origin=upper.origin,
        end=lower.end,
        lanes=lower.lanes,
        length_m=upper.length_m + lower.length_m,
        seconds=upper.seconds + lower.seconds,
        lane_m=upper.lane_m + lower.lane_m,
    )
    # who turned back into the short road now does so into the whole, and who turns back before it at its end
    kept = [
        replace(c, to_edge=before) if c.to_edge == short else c for c in connections if c.edge not in (before, short)
    ]
    back = [replace(c, lane=lower.lanes[-1]) for c in connections if c.edge == before and c.to_edge != short]
    leaving = [c for c in connections if c.edge == short and c.to_edge != short]
    return kept + back + [replace(c, edge=before) for c in leaving if c.to_edge != before]


def _join_after(roads: dict[str, Road], connections: list[Connection], short: str, after: str) -> list[Connection]:
    """The short road becomes the beginning of the one after it."""
    upper, lower = roads.pop(short), roads[after]
    roads[after] = Road(
        edges=upper.edges + lower.edges,
        origin=upper.origin,
        end=lower.end,
        lanes=lower.lanes,
        length_m=upper.length_m + lower.length_m,
        seconds=upper.seconds + lower.seconds,
        lane_m=upper.lane_m + lower.lane_m,
    )
    kept = [c for c in connections if c.edge != short]
    return [replace(c, to_edge=after) if c.to_edge == short else c for c in kept]


def _assemble(
    name: str, layout: Layout, roads: dict[str, Road], connections: list[Connection], vehicle_space_m: float
) -> Network:
    link = {road: i for i, road in enumerate(roads)}
    signal = {s: i for i, s in enumerate(sorted({c.signal for c in connections if c.signal}))}
    programs = [layout.programs[s] for s in signal]
    green_rows = [_green_rows(s, program) for s, program in zip(signal, programs, strict=True)]
    most = max((len(rows) for rows in green_rows), default=0)

    lane_name = [(road, lane) for road in roads for lane in roads[road].lanes]
    lane = {key: i for i, key in enumerate(lane_name)}
    lane_link = np.array([link[road] for road, _ in lane_name], np.int64)
    turns = sorted({(link[c.edge], link[c.to_edge]) for c in connections})
    turn = {pair: i for i, pair in enumerate(turns)}
    members: dict[tuple[int, int], list[Connection]] = {}
    for c in connections:
        members.setdefault((lane[c.edge, c.lane], turn[link[c.edge], link[c.to_edge]]), []).append(c)
    movements = sorted(members)
    movement_signal = np.array([signal.get(members[m][0].signal or "", -1) for m in movements], np.int64)
    green = np.zeros((len(movements), most), np.int64)
    for m, key in enumerate(movements):
        for c in members[key]:
            green[m] = np.maximum(green[m], _green_of(c, layout, signal, programs, green_rows, most))

    link_end = np.full(len(roads), -1, np.int64)
    where = dict(zip(sorted(layout.position), range(len(layout.position)), strict=True))
    signal_at: dict[str, int] = {}
    for c in connections:
        if c.signal is not None:
            link_end[link[c.edge]] = signal[c.signal]
            signal_at[c.junction] = signal[c.signal]
    position = np.array([layout.position[j] for j in where])
    rows = [[where[j] for j, s in signal_at.items() if s == i] for i in range(len(signal))]
    parts, chains = _sensing(layout, roads, lane_name)
    return Network(
        name=name,
        signal_id=tuple(signal),
        signal_xy_m=np.array([position[row].mean(0) for row in rows]).reshape(-1, 2),
        phase_states=tuple(
            tuple(p.phases[i][1] for i in picked) for p, picked in zip(programs, green_rows, strict=True)
        ),
        program_s=_padded([[p.phases[i][0] for i in g] for p, g in zip(programs, green_rows, strict=True)], most),
        clearance_s=_padded([_clearance(p, g) for p, g in zip(programs, green_rows, strict=True)], most),
        offset_s=np.array([p.offset_s for p in programs]),
        link_edges=tuple(road.edges for road in roads.values()),
        link_length_m=np.array([road.length_m for road in roads.values()]),
        link_speed_m_s=np.array([road.length_m / road.seconds for road in roads.values()]),
        link_storage=np.array(
            # a road too short to hold the cars that flow through it in a step would throttle them
            [np.floor(max(r.lane_m, SHORT_M * len(r.lanes)) / vehicle_space_m) for r in roads.values()]
        ),
        link_xy_m=np.array([[layout.position[r.origin], layout.position[r.end]] for r in roads.values()]),
        link_origin=np.array([signal_at.get(r.origin, -1) for r in roads.values()], np.int64),
        link_end=link_end,
        lane_link=lane_link,
        lane_parts=parts,
        lane_chain=chains,
        movement_lane=np.array([m[0] for m in movements], np.int64),
        movement_turn=np.array([m[1] for m in movements], np.int64),
        movement_signal=movement_signal,
        movement_green=green,
        movement_foes=_foes(layout, movements, members),
        movement_lands=tuple(_lands(members[key], turns[key[1]][1], lane_link, parts) for key in movements),
        turn_from=np.array([a for a, _ in turns], np.int64),
        turn_to=np.array([b for _, b in turns], np.int64),
    )


def _lands(
    connections: list[Connection],
    ahead: int,
    lane_link: Int[np.ndarray, " lanes"],
    parts: tuple[tuple[tuple[str, float], ...], ...],
) -> tuple[int, ...]:
    """Lanes of the link ahead that the connections lead to, all of them if none does without a change of lanes."""
    entered = {c.to_lane for c in connections}
    lanes = np.flatnonzero(lane_link == ahead).tolist()
    return tuple(i for i in lanes if entered & {lane for lane, _ in parts[i]}) or tuple(lanes)


def _green_rows(signal: str, program: Program) -> list[int]:
    rows = [i for i, (_, state) in enumerate(program.phases) if "y" not in state.lower() and "G" in state.upper()]
    if not rows:
        raise ValueError(f"signal '{signal}': its program has no phase that is green without yellow")
    return rows


def _clearance(program: Program, green_rows: list[int]) -> list[float]:
    """Duration of what lies between each green phase and the next one."""
    count, result = len(program.phases), []
    for row in green_rows:
        seconds, i = 0.0, (row + 1) % count
        while i not in green_rows:
            seconds, i = seconds + program.phases[i][0], (i + 1) % count
        result.append(seconds)
    return result


def _padded(rows: list[list[float]], width: int) -> np.ndarray:
    return np.array([row + [0.0] * (width - len(row)) for row in rows]).reshape(-1, width)


def _green_of(
    c: Connection,
    layout: Layout,
    signal: dict[str, int],
    programs: list[Program],
    green_rows: list[list[int]],
    most: int,
) -> Int[np.ndarray, " phases"]:
    if c.signal is None:
        rows = layout.gives_way.get(c.junction, [])
        yields = 0 <= c.request < len(rows) and "1" in rows[c.request]
        return np.full(most, YIELDING if yields else PROTECTED, np.int64)
    i = signal[c.signal]
    states = [programs[i].phases[row][1] for row in green_rows[i]]
    short = next((state for state in states if len(state) <= c.index), None)
    if short is not None:
        raise ValueError(f"signal '{c.signal}': state '{short}' has no place {c.index}, which a connection refers to")
    level = {"G": PROTECTED, "g": YIELDING}
    found = [level.get(state[c.index], RED) for state in states]
    return np.array(found + [RED] * (most - len(found)), np.int64)


def _foes(
    layout: Layout, movements: list[tuple[int, int]], members: dict[tuple[int, int], list[Connection]]
) -> tuple[tuple[int, ...], ...]:
    """For each movement those that the junction's right of way puts before it."""
    at = {(c.junction, c.request): m for m, key in enumerate(movements) for c in members[key] if c.request >= 0}
    foes = []
    for m, key in enumerate(movements):
        found: set[int] = set()
        for c in members[key]:
            rows = layout.gives_way.get(c.junction, [])
            if 0 <= c.request < len(rows):
                bits = rows[c.request][::-1]
                found |= {at[c.junction, j] for j, bit in enumerate(bits) if bit == "1" and (c.junction, j) in at}
        # cars of one lane do not cross each other
        foes.append(tuple(sorted(f for f in found if movements[f][0] != key[0] and f != m)))
    return tuple(foes)


def _sensing(
    layout: Layout, roads: dict[str, Road], lane_name: list[tuple[str, str]]
) -> tuple[tuple[tuple[tuple[str, float], ...], ...], tuple[tuple[tuple[int, float], ...], ...]]:
    """Which of SUMO's lanes count for each lane, and the lanes upstream that its detector sees."""
    coming: dict[str, list[Connection]] = {}
    for c in layout.connections:
        if not c.around:
            coming.setdefault(c.to_lane, []).append(c)
    of_edge = {edge: road for road in roads for edge in roads[road].edges}
    parts: list[set[str]] = []
    for road, lane in lane_name:
        own, frontier = {lane}, [lane]
        while frontier:
            before = [
                c.lane
                for c in coming.get(frontier.pop(), [])
                if of_edge.get(c.edge) == road and c.lane not in own and c.signal is None
            ]
            own |= set(before)
            frontier += before
        parts.append(own)
    # a lane of a joined road may be seen by none, or by several of those at the stop line
    seen = set().union(*parts)
    for road in roads:
        places = [i for i, (of, _) in enumerate(lane_name) if of == road]
        for edge in roads[road].edges:
            for lane in layout.edges[edge].lanes.values():
                if lane not in seen:
                    for i in places:
                        parts[i].add(lane)
    count: dict[str, int] = {}
    for own in parts:
        for lane in own:
            count[lane] = count.get(lane, 0) + 1
    holders: dict[str, list[int]] = {}
    for i, own in enumerate(parts):
        for lane in own:
            holders.setdefault(lane, []).append(i)
    leaving: dict[str, int] = {}
    for c in layout.connections:
        leaving[c.lane] = leaving.get(c.lane, 0) + (not c.around)
    chains = []
    for i, (road, _) in enumerate(lane_name):
        chain: dict[int, float] = {}
        frontier = [(i, 1.0, roads[road].length_m)]
        while frontier:
            place, share, metres = frontier.pop()
            if metres >= DETECTOR_M:
                continue
            for lane in sorted(parts[place]):
                for c in coming.get(lane, []):
                    if c.signal is not None or of_edge[c.edge] == lane_name[place][0]:
                        continue
                    # of those that stand upstream only some are on their way here
                    part = share / (leaving[c.lane] * count[lane])
                    for before in holders[c.lane]:
                        if before != i and chain.get(before, 0.0) < 1.0:
                            chain[before] = min(chain.get(before, 0.0) + part, 1.0)
                            frontier.append((before, part, metres + roads[lane_name[before][0]].length_m))
        chains.append(tuple(sorted(chain.items())))
    return tuple(tuple((lane, 1.0 / count[lane]) for lane in sorted(own)) for own in parts), tuple(chains)
