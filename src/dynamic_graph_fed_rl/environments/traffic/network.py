"""What a road network is: links, their lanes, the movements across junctions, signals and their phases. NumPy only.

A *link* is a road between two junctions; a *lane* is one of those it has at its stop line; a *movement* leads from a
lane to a link, and a *turn* is all movements from a link to another. A *phase* of a signal says which movements
are green, and which of these must yield.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

RED, YIELDING, PROTECTED = 0, 1, 2
ARRIVING_S, NEAR_S = 10.0, 3.0
"""How far ahead detectors see arrivals, and when these count as near."""
VEHICLE_LENGTH_M, VEHICLE_GAP_M = 5.0, 2.5
"""SUMO's default car, and the gap before it."""
VEHICLE_SPACE_M = VEHICLE_LENGTH_M + VEHICLE_GAP_M
"""Length of road that a standing car takes."""


@dataclass(frozen=True)
class Conduct:
    """How cars pass a stop line; calibrated on fixed-time plans, the same at all signals of a network."""

    saturation_per_s: float = 0.5
    """Cars a second and lane out of a queue, under a green that need not yield."""
    lost_s: float = 1.5
    """Time that a queue needs to start."""
    yellow_use_s: float = 1.0
    """Part of the yellow in which cars still drive on."""
    cruise: float = 0.9
    """Share of the speed limit that cars drive at on the open road."""
    gap_s: float = 4.0
    """Pause in the traffic that goes first, from which on a yielding car drives."""
    patience_s: float = 60.0
    """Time that a car gives way to others before it takes the next room there is."""


@dataclass(frozen=True, eq=False)
class Network:
    """S signals, L links, N lanes, M movements, T turns; phases are padded to K a signal."""

    name: str
    signal_id: tuple[str, ...]
    signal_xy_m: Float[np.ndarray, "signals 2"]
    phase_states: tuple[tuple[str, ...], ...]
    """State strings of the green phases of each signal, for SUMO."""
    program_s: Float[np.ndarray, "signals phases"]
    """Green time of each phase in the fixed program."""
    clearance_s: Float[np.ndarray, "signals phases"]
    """Time without a phase of its own that follows it in the fixed program."""
    offset_s: Float[np.ndarray, " signals"]
    link_edges: tuple[tuple[str, ...], ...]
    """The roads that were joined to a link, in the order of travel; for SUMO their edge ids."""
    link_length_m: Float[np.ndarray, " links"]
    link_speed_m_s: Float[np.ndarray, " links"]
    link_storage: Float[np.ndarray, " links"]
    """Cars that find room; a whole number."""
    link_xy_m: Float[np.ndarray, "links 2 2"]
    """Where it begins and ends."""
    link_origin: Int[np.ndarray, " links"]
    """Signal at its beginning, -1 for none."""
    link_end: Int[np.ndarray, " links"]
    """Signal at its stop line, -1 for none."""
    lane_link: Int[np.ndarray, " lanes"]
    lane_parts: tuple[tuple[tuple[str, float], ...], ...]
    """What SUMO's lanes count for each lane: their ids and shares."""
    lane_chain: tuple[tuple[tuple[int, float], ...], ...]
    """The lanes upstream that a detector of 100 m sees besides each lane itself, up to the next signal, and the share
    of their cars that counts, as others turn off before."""
    movement_lane: Int[np.ndarray, " movements"]
    movement_turn: Int[np.ndarray, " movements"]
    movement_signal: Int[np.ndarray, " movements"]
    """-1 where there is none."""
    movement_green: Int[np.ndarray, "movements phases"]
    """0 red, 1 green that yields, 2 green, in each phase; without a signal the same in all."""
    movement_foes: tuple[tuple[int, ...], ...]
    """Movements that go first where this one yields."""
    movement_lands: tuple[tuple[int, ...], ...]
    """Lanes of the link ahead that each movement leads to."""
    turn_from: Int[np.ndarray, " turns"]
    turn_to: Int[np.ndarray, " turns"]
    conduct: Conduct = Conduct()

    def __post_init__(self) -> None:
        controlled = self.movement_signal >= 0
        if not len(self.signal_id) or not controlled.any():
            raise ValueError(f"network '{self.name}': has no traffic signal that controls a movement")
        for m in np.flatnonzero(~(self.movement_green > RED).any(1)):
            signal = self.signal_id[self.movement_signal[m]]
            raise ValueError(
                f"network '{self.name}': signal '{signal}': no phase is ever green from lane "
                f"{self.lane_name(int(self.movement_lane[m]))} to {self.link_name(int(self.movement_to[m]))}; every "
                "controlled movement needs a phase that serves it"
            )

    @property
    def signals(self) -> int:
        return len(self.signal_id)

    @property
    def links(self) -> int:
        return len(self.link_edges)

    @property
    def lanes(self) -> int:
        return len(self.lane_link)

    @property
    def movements(self) -> int:
        return len(self.movement_lane)

    @property
    def phases(self) -> int:
        """Of the signal that has most."""
        return self.program_s.shape[1]

    @cached_property
    def phase_count(self) -> Int[np.ndarray, " signals"]:
        return np.array([len(states) for states in self.phase_states])

    @cached_property
    def link_lanes(self) -> Int[np.ndarray, " links"]:
        return np.bincount(self.lane_link, minlength=self.links)

    @cached_property
    def link_time_s(self) -> Float[np.ndarray, " links"]:
        """To drive through it on the open road."""
        return self.link_length_m / (self.link_speed_m_s * self.conduct.cruise)

    @cached_property
    def movement_from(self) -> Int[np.ndarray, " movements"]:
        """Link."""
        return self.lane_link[self.movement_lane]

    @cached_property
    def movement_to(self) -> Int[np.ndarray, " movements"]:
        """Link."""
        return self.turn_to[self.movement_turn]

    @cached_property
    def link_of_edge(self) -> dict[str, int]:
        return {edge: link for link, edges in enumerate(self.link_edges) for edge in edges}

    @cached_property
    def lanes_of_link(self) -> list[list[int]]:
        return [np.flatnonzero(self.lane_link == link).tolist() for link in range(self.links)]

    @cached_property
    def movements_of_turn(self) -> dict[tuple[int, int], list[int]]:
        """By the links it leads from and to."""
        found: dict[tuple[int, int], list[int]] = {}
        for m, (a, b) in enumerate(zip(self.movement_from.tolist(), self.movement_to.tolist(), strict=True)):
            found.setdefault((a, b), []).append(m)
        return found

    def link_name(self, link: int) -> str:
        return "link '" + "' + '".join(self.link_edges[link]) + "'"

    def lane_name(self, lane: int) -> str:
        return f"{lane} of {self.link_name(int(self.lane_link[lane]))}"


@dataclass(frozen=True, eq=False)
class Demand:
    """Cars that want to enter, and where they turn, in windows of `window_s` from `begin_s` on."""

    begin_s: float
    window_s: float
    rate_per_s: Float[np.ndarray, "windows links"]
    """Cars that begin their trip on a link."""
    turn_ratio: Float[np.ndarray, "windows turns"]
    """Share of the cars on the turn's link that take it; what is missing to 1 ends its trip there."""
    lane_share: Float[np.ndarray, "windows movements"] | None = None
    """Share of the turn's cars that keep to the movement's lane, for the sake of the turns that follow; None: its
    lanes are all alike."""

    def __post_init__(self) -> None:
        if not self.rate_per_s.sum() > 0:
            raise ValueError("demand: not a single car wants to enter; a rush hour has thousands")

    @property
    def windows(self) -> int:
        return len(self.rate_per_s)

    @property
    def duration_s(self) -> float:
        return self.windows * self.window_s

    @property
    def vehicles(self) -> float:
        """Expected in all."""
        return float(self.rate_per_s.sum() * self.window_s)


@dataclass(frozen=True, eq=False)
class Roads:
    """Ways between signals: from a signal to the next that cars can reach without passing another."""

    origin: Int[np.ndarray, " roads"]
    end: Int[np.ndarray, " roads"]
    links: tuple[tuple[int, ...], ...]
    """The quickest way, in the order of travel."""


def roads_between_signals(network: Network) -> Roads:
    """One road for every ordered pair of neighbouring signals."""
    after: list[list[int]] = [[] for _ in range(network.links)]
    for a, b in zip(network.turn_from.tolist(), network.turn_to.tolist(), strict=True):
        after[a].append(b)
    best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
    for first in np.flatnonzero(network.link_origin >= 0).tolist():
        start = int(network.link_origin[first])
        for links, seconds in _quickest(network, after, first):
            pair = start, int(network.link_end[links[-1]])
            if pair[0] != pair[1] and (pair not in best or seconds < best[pair][0]):
                best[pair] = seconds, links
    pairs = sorted(best)
    return Roads(
        origin=np.array([a for a, _ in pairs], np.int64),
        end=np.array([b for _, b in pairs], np.int64),
        links=tuple(best[pair][1] for pair in pairs),
    )


def _quickest(network: Network, after: list[list[int]], first: int) -> list[tuple[tuple[int, ...], float]]:
    """Ways from the start of a link to the stop lines of signals, without passing one."""
    seconds, before, open_links, reached = {first: float(network.link_time_s[first])}, {first: -1}, [first], []
    while open_links:
        link = min(open_links, key=lambda i: seconds[i])
        open_links.remove(link)
        if network.link_end[link] >= 0:
            way = [link]
            while before[way[-1]] >= 0:
                way.append(before[way[-1]])
            reached.append((tuple(reversed(way)), seconds[link]))
            continue
        for other in after[link]:
            there = seconds[link] + float(network.link_time_s[other])
            if other not in seconds:
                open_links.append(other)
            if there < seconds.get(other, np.inf):
                seconds[other], before[other] = there, link
    return reached


def districts(position_m: Float[np.ndarray, "signals 2"], count: int) -> Int[np.ndarray, " signals"]:
    """District of every signal: the longer side is cut in two, in proportion to the districts on either side, until
    there are so many; sizes differ by one at most where that is possible.

    Raises:
        ValueError: fewer than one district, or more districts than signals.
    """
    if not 1 <= count <= len(position_m):
        raise ValueError(f"{count} districts asked for, but there are {len(position_m)} signals to share")
    district = np.zeros(len(position_m), np.int64)

    def cut(members: np.ndarray, first: int, parts: int) -> None:
        if parts == 1:
            district[members] = first
            return
        axis = int(np.argmax(np.ptp(position_m[members], axis=0)))
        order = members[np.lexsort((members, position_m[members, axis]))]
        left = parts // 2
        # as many to the left as its districts will have of the whole
        share = round(len(members) * left / parts)
        cut(np.sort(order[:share]), first, left)
        cut(np.sort(order[share:]), first + left, parts - left)

    cut(np.arange(len(position_m)), 0, count)
    return district


def network_name(path: Path) -> str:
    """`cologne8` of `.../cologne8.net.xml.gz`."""
    return path.name.removesuffix(".gz").removesuffix(".xml").removesuffix(".net")
