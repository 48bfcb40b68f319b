"""Closed roads: which may close together, and where their drivers go instead. NumPy only.

Demand is turning ratios, so a detour is one of flows: cars that a closure turns away take the quickest open way to
the first link behind it that has one, and their flow is moved from the turns of the old way to those of the new one.
From there they drive on as before. Who wanted to end where no open way leads ends before the closure, who wanted to
begin on the closed link begins behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra

from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network

WARNED_LINKS = 3
"""How many links before a closure those drivers turn off who know of it."""
_TURN_S = 10.0
"""What a turn costs those who choose their way."""
_FURTHEST = 12
"""Links behind a closure, within which a detour must have come back."""
_FEW = 0.002
"""Share of the cars on a closed link whose further ways are not followed."""
_CUT_OFF = 0.1
"""Share of the cars on a closed link that may lose a goal behind it."""
_ENDING = 0.5
"""Share of them that may want to end on it."""
_NOTHING = 1e-9


def link_flow(network: Network, rate: Float[np.ndarray, " links"], ratio: Float[np.ndarray, " turns"]) -> np.ndarray:
    """Cars a second through each link, if nothing holds them up."""
    flow = rate.copy()
    for _ in range(10 * network.links):
        onward = np.bincount(network.turn_to, flow[network.turn_from] * ratio, minlength=network.links)
        before, flow = flow, rate + onward
        if np.abs(flow - before).max() < _NOTHING:
            break
    return flow


@lru_cache(maxsize=2)
def window_flows(network: Network, demand: Demand) -> Float[np.ndarray, "windows links"]:
    """`link_flow` of each window; not to be written to."""
    rows = zip(demand.rate_per_s, demand.turn_ratio, strict=True)
    return np.array([link_flow(network, rate, ratio) for rate, ratio in rows])


def mean_flow(network: Network, demand: Demand) -> Float[np.ndarray, " links"]:
    """Of all windows."""
    return window_flows(network, demand).mean(0)


def entering_flow(network: Network, demand: Demand) -> Float[np.ndarray, " links"]:
    """Cars a second that come from another link, in the mean of all windows."""
    return mean_flow(network, demand) - demand.rate_per_s.mean(0)


@dataclass(frozen=True)
class ClosureSet:
    """Links that may be closed together, and the demand while they are."""

    links: tuple[int, ...]
    demand: Demand

    def instead(self, network: Network) -> Int[np.ndarray, " movements"]:
        """For each movement itself, or where it leads into a closed link the one that cars which wait for it turn to:
        of those from their lane, else from their link, the most wanted one."""
        shut = np.isin(network.movement_to, self.links)
        wanted = self.demand.turn_ratio.mean(0)[network.movement_turn]
        other = np.arange(network.movements)
        for m in np.flatnonzero(shut):
            open_ones = np.flatnonzero((network.movement_from == network.movement_from[m]) & ~shut)
            same = network.movement_lane[open_ones] == network.movement_lane[m]
            if len(open_ones):
                other[m] = open_ones[np.lexsort((-wanted[open_ones], ~same))[0]]
        return other


def closed_demand(network: Network, demand: Demand, closed: tuple[int, ...], uptake: float) -> Demand | None:
    """The demand while these links are closed; `uptake` is the share of drivers who turn off up to `WARNED_LINKS`
    before a closure, while the others find out at it. None if too many have no way round, or the links follow one
    another."""
    there = _closed(network, demand, closed, uptake)
    return there if isinstance(there, Demand) else None


def _closed(network: Network, demand: Demand, closed: tuple[int, ...], uptake: float) -> Demand | int:
    """See `closed_demand`; instead of None a link that had better stay open."""
    shut = np.isin(np.arange(network.links), closed)
    follows = shut[network.turn_from] & shut[network.turn_to]
    if follows.any():
        return int(network.turn_to[follows][0])
    ways = _Ways(network, shut)
    rates, ratios = [], []
    open_flows = window_flows(network, demand)
    for rate, ratio, open_flow in zip(demand.rate_per_s, demand.turn_ratio, open_flows, strict=True):
        flow = _Flow(network, rate.copy(), open_flow.copy(), ratio)
        for link in closed:
            if not flow.close(link, ways, uptake):
                return link
        rates.append(flow.rate)
        ratios.append(flow.ratio(ratio, shut))
    there = replace(demand, rate_per_s=np.array(rates), turn_ratio=np.array(ratios))
    return there if not closed or all_can_leave(network, demand, there) else closed[-1]


def all_can_leave(network: Network, before: Demand, after: Demand) -> bool:
    """Whether whoever is on the roads, or enters, may come to an end of a trip by the ratios of `after`."""
    started = (mean_flow(network, before) > _NOTHING) | (after.rate_per_s > 0).any(0)
    for ratio in after.turn_ratio:
        on, onto = network.turn_from[ratio > _NOTHING], network.turn_to[ratio > _NOTHING]
        ends = np.bincount(network.turn_from, ratio, minlength=network.links) < 1.0 - 1e-6
        met, leaves = _spread(started, on, onto), _spread(ends, onto, on)
        if (met & ~leaves).any():
            return False
    return True


def _spread(start: Bool[np.ndarray, " links"], a: np.ndarray, b: np.ndarray) -> Bool[np.ndarray, " links"]:
    """All links that can be reached over pairs from `a` to `b`."""
    reached = start.copy()
    while (fresh := reached[a] & ~reached[b]).any():
        reached[b[fresh]] = True
    return reached


class _Ways:
    """The quickest open ways."""

    def __init__(self, network: Network, shut: Bool[np.ndarray, " links"]):
        usable = ~shut[network.turn_from] & ~shut[network.turn_to]
        cost = (network.link_time_s[network.turn_to] + _TURN_S)[usable]
        pair = network.turn_to[usable], network.turn_from[usable]
        self._back = coo_array((cost, pair), shape=(network.links, network.links)).tocsr()
        self._following: dict[int, np.ndarray] = {}

    def around(self, way: tuple[int, ...], goal: int) -> tuple[int, ...] | None:
        """The given way up to where it can be left for the goal, and on to it."""
        if goal not in self._following:
            self._following[goal] = dijkstra(self._back, indices=goal, return_predecessors=True)[1]
        following = self._following[goal]
        for i, first in enumerate(way):
            path = [first]
            while path[-1] != goal and following[path[-1]] >= 0:
                path.append(int(following[path[-1]]))
            if path[-1] == goal:
                return (*way[:i], *path)
        return None


@dataclass(frozen=True)
class _Turns:
    """Turns by their links."""

    of: dict[tuple[int, int], int]
    into: list[list[int]]
    out: list[list[int]]


@lru_cache(maxsize=2)
def _turns(network: Network) -> _Turns:
    found = _Turns({}, [[] for _ in range(network.links)], [[] for _ in range(network.links)])
    for turn, (a, b) in enumerate(zip(network.turn_from.tolist(), network.turn_to.tolist(), strict=True)):
        found.of[a, b] = turn
        found.out[a].append(turn)
        found.into[b].append(turn)
    return found


class _Flow:
    """Cars a second that begin on, drive through and turn off each link, within one window."""

    def __init__(self, network: Network, rate: np.ndarray, link: np.ndarray, ratio: np.ndarray):
        self.network, self.rate, self.link = network, rate, link
        self.turn = link[network.turn_from] * ratio
        self.turns = _turns(network)

    def ratio(self, before: np.ndarray, shut: np.ndarray) -> Float[np.ndarray, " turns"]:
        """Where nobody drives, and on the closed links, the ratios are those from before, over what is open."""
        start = self.network.turn_from
        barred = shut[self.network.turn_to]
        kept = np.where(barred, 0.0, before)
        all_on = np.bincount(start, before, minlength=self.network.links)
        open_on = np.bincount(start, kept, minlength=self.network.links)
        choices = np.bincount(start, ~barred, minlength=self.network.links)
        alike = ~barred * (all_on / np.maximum(choices, 1.0))[start]
        scaled = kept * (all_on / np.maximum(open_on, _NOTHING))[start]
        kept = np.where(open_on[start] > _NOTHING, scaled, alike)
        here = self.link[start]
        used = (here > 10 * _NOTHING) & ~shut[start]
        return np.clip(np.where(used, self.turn / np.maximum(here, _NOTHING), kept), 0.0, 1.0)

    def close(self, link: int, ways: _Ways, uptake: float) -> bool:
        """Leads all that would enter the link around it; False if too many cannot."""
        if not self._begin_behind(link):
            return False
        total = self.link[link]
        ending = total - self.turn[self.turns.out[link]].sum()
        if ending > _ENDING * total:
            return False
        moved: list[tuple[tuple[int, ...], tuple[int, ...], float]] = []
        cut_off = 0.0
        for early, share in ((WARNED_LINKS, uptake), (1, 1.0 - uptake)):
            for way, cars in self._ways_into(link, early):
                for behind, detour, part in self._ways_out(way, (link,), ways):
                    moved.append(((*way, *behind), detour or way, cars * share * part))
                    cut_off += cars * share * part if detour is None and len(behind) > 1 else 0.0
        for old, new, cars in moved:
            self._add(old, -cars)
            self._add(new, cars)
        return bool(cut_off <= _CUT_OFF * total)

    def _ways_out(
        self, way: tuple[int, ...], behind: tuple[int, ...], ways: _Ways, cars: float = 1.0
    ) -> Iterator[tuple[tuple[int, ...], tuple[int, ...] | None, float]]:
        """Where the cars go on to behind the closure: the links up to the first that a detour leads to, that detour,
        and how many of the cars; those that have none by then have lost their goal."""
        last = behind[-1]
        detour = None if len(behind) == 1 else ways.around(way, last)
        if detour is not None:
            yield behind, detour, cars
            return
        onward = self.turns.out[last] if len(behind) <= _FURTHEST else []
        lost = cars
        for turn in onward:
            part = cars * self.turn[turn] / max(self.link[last], _NOTHING)
            if part > _FEW:
                lost -= part
                yield from self._ways_out(way, (*behind, int(self.network.turn_to[turn])), ways, part)
        if lost > _NOTHING:
            yield behind, None, lost

    def _begin_behind(self, link: int) -> bool:
        out = self.turns.out[link]
        rate, onward = self.rate[link], self.turn[out].sum()
        if rate <= 0 or onward <= 0:
            return bool(rate <= 0)
        part = self.turn[out] / onward
        gone = rate / self.link[link]
        np.add.at(self.rate, self.network.turn_to[out], rate * part)
        np.add.at(self.link, self.network.turn_to[out], rate * part - gone * self.turn[out])
        self.turn[out] *= 1.0 - gone
        self.link[link] -= rate
        self.rate[link] = 0.0
        return True

    def _ways_into(self, link: int, early: int) -> Iterator[tuple[tuple[int, ...], float]]:
        """The last links of those who drive into it, up to `early` of them, and cars a second."""

        def back(way: tuple[int, ...], cars: float) -> Iterator[tuple[tuple[int, ...], float]]:
            first = way[0]
            before = self.turns.into[first]
            if len(way) == early or cars <= _NOTHING or not before:
                yield way, cars
                return
            part = cars / max(self.link[first], _NOTHING)
            if self.rate[first] > 0:
                yield way, self.rate[first] * part
            for turn in before:
                start = int(self.network.turn_from[turn])
                if start == link or start in way:
                    yield way, self.turn[turn] * part
                elif self.turn[turn] > 0:
                    yield from back((start, *way), self.turn[turn] * part)

        for turn in self.turns.into[link]:
            if self.turn[turn] > 0:
                yield from back((int(self.network.turn_from[turn]),), float(self.turn[turn]))

    def _add(self, way: tuple[int, ...], cars: float) -> None:
        for link in way:
            self.link[link] += cars
        for a, b in zip(way[:-1], way[1:], strict=True):
            self.turn[self.turns.of[a, b]] += cars


def closable(network: Network, demand: Demand, uptake: float, most: int) -> list[ClosureSet]:
    """Up to so many links that may be closed by themselves, first those that most cars drive onto."""
    found = []
    flow = entering_flow(network, demand)
    leads_on = np.isin(np.arange(network.links), network.turn_from)
    for link in np.argsort(-flow, kind="stable").tolist():
        if len(found) == most or flow[link] <= _NOTHING:
            break
        if leads_on[link] and (there := closed_demand(network, demand, (link,), uptake)) is not None:
            found.append(ClosureSet((link,), there))
    return found


def joint(
    network: Network, demand: Demand, singles: list[ClosureSet], size: int, uptake: float, rng: np.random.Generator
) -> ClosureSet:
    """So many of these links at random that may be closed together, or as many as do where they are too few."""
    best = ClosureSet((), demand)
    for _ in range(5):
        waiting = rng.permutation([one.links[0] for one in singles]).tolist()
        links: tuple[int, ...] = ()
        while waiting and len(best.links) < size:
            take = size - len(links)
            links, waiting = (*links, *waiting[:take]), waiting[take:]
            while isinstance(there := _closed(network, demand, links, uptake), int):
                links = tuple(link for link in links if link != there)
            if len(links) > len(best.links):
                best = ClosureSet(tuple(sorted(links)), there)
    return best
