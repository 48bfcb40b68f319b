"""Closed links in SUMO: drivers are led around them. No jax here.

Of those whose way leads over a closed link a share knows of it and takes the quickest open way at once; the others
find out on the link before it. Who has no way left, or wanted to end there, ends the trip before the closure and is
counted. Who starts on the link may leave it. Who was led around too late to change lanes misses the turn and goes
where the lane goes: SUMO would have the car stand there for ever, and all behind it.

No lane is forbidden to cars, as SUMO strikes off those that are to start on one that is.
"""

import zlib
from typing import Any

import numpy as np

from dynamic_graph_fed_rl.environments.traffic.network import Network

_AVOIDED_S = 1e5
_PATIENCE_S, _AT_END_M = 10.0, 5.0


class Barriers:
    """All closures of an episode; `libsumo` is the running simulation."""

    def __init__(
        self, libsumo: Any, network: Network, closures: tuple[tuple[int, float, float], ...], uptake: float, seed: int
    ):
        self.sumo, self.network, self.uptake, self.seed = libsumo, network, uptake, seed
        self.waiting = sorted(closures, key=lambda c: c[1])
        self.edge = {link: network.link_edges[link][0] for link, _, _ in closures}
        self.until_s: dict[int, float] = {}
        """Of what is closed now."""
        self.inside: dict[int, set[str]] = {}
        self.concerned: set[str] = set()
        self.ended_before: set[str] = set()
        self.led_around: set[str] = set()
        self.let_in: set[str] = set()
        self.closed, self.since_s = np.zeros(network.links, bool), np.full(network.links, 1e6)

    def tick(self, time_s: float) -> None:
        """Before each second of the simulation."""
        for link in [link for link, until_s in self.until_s.items() if time_s >= until_s]:
            self._open(link)
        while self.waiting and time_s >= self.waiting[0][1]:
            link, _, until_s = self.waiting.pop(0)
            self.until_s[link], self.closed[link], self.since_s[link] = until_s, True, 0.0
            self.sumo.edge.adaptTraveltime(self.edge[link], _AVOIDED_S)
            self.concerned |= set(self.sumo.vehicle.getIDList())
            self.inside[link] = set(self.sumo.edge.getLastStepVehicleIDs(self.edge[link]))
        if self.until_s:
            self._lead_around()
        self._miss_turns()
        self.since_s += 1.0

    def _open(self, link: int) -> None:
        edge = self.edge[link]
        length_m, speed = self.sumo.lane.getLength(f"{edge}_0"), self.sumo.lane.getMaxSpeed(f"{edge}_0")
        self.sumo.edge.adaptTraveltime(edge, length_m / speed)
        del self.until_s[link]
        self.closed[link], self.since_s[link] = False, 0.0

    def _lead_around(self) -> None:
        vehicles = self.sumo.vehicle
        closed = self._closed_edges()
        departed = set(self.sumo.simulation.getDepartedIDList())
        for link in self.until_s:
            there = set(self.sumo.edge.getLastStepVehicleIDs(self.edge[link])) - departed
            self.let_in |= there - self.inside[link]
            self.inside[link] |= there | departed
        self.concerned |= departed
        self.concerned &= set(vehicles.getIDList())
        for name in sorted(self.concerned):
            here, at = vehicles.getRoadID(name), vehicles.getRouteIndex(name)
            ahead = vehicles.getRoute(name)[at + 1 :]
            barred = next((i for i, edge in enumerate(ahead) if edge in closed), None)
            if barred is None:
                self.concerned.discard(name)
            elif not here.startswith(":"):
                to_barrier = (here, *ahead[:barred])
                link_of = self.network.link_of_edge
                at_barrier = link_of.get(to_barrier[-1]) == link_of.get(here)
                if at_barrier or zlib.crc32(f"{self.seed}:{name}".encode()) / 2**32 < self.uptake:
                    self._reroute(name, closed, to_barrier if at_barrier else None)

    def _reroute(self, name: str, closed: set[str], to_barrier: tuple[str, ...] | None) -> None:
        """Leads a car around, or if that cannot be and the closure is next, to the end of its trip before it."""
        vehicles = self.sumo.vehicle
        if vehicles.getRoute(name)[-1] not in closed:
            vehicles.rerouteTraveltime(name, False)
            if not closed & set(vehicles.getRoute(name)[vehicles.getRouteIndex(name) + 1 :]):
                self.led_around.add(name)
                self.concerned.discard(name)
                return
        if to_barrier is not None:
            vehicles.setRoute(name, to_barrier)
            self.ended_before.add(name)
            self.concerned.discard(name)

    def _miss_turns(self) -> None:
        """Another way for those who have stood at the end of a lane for a while that does not go where they would."""
        vehicles, lanes = self.sumo.vehicle, self.sumo.lane
        for name in sorted(self.led_around & set(vehicles.getIDList())):
            lane = vehicles.getLaneID(name)
            if vehicles.getWaitingTime(name) < _PATIENCE_S or lane.startswith(":"):
                continue
            route, at = vehicles.getRoute(name), vehicles.getRouteIndex(name)
            leads_to = {link[0].rpartition("_")[0] for link in lanes.getLinks(lane)}
            to_end_m = lanes.getLength(lane) - vehicles.getLanePosition(name)
            if to_end_m > _AT_END_M or set(route[at + 1 : at + 2]) <= leads_to:
                continue
            kind = vehicles.getTypeID(name)
            open_ways = sorted(leads_to - self._closed_edges())
            found = [self.sumo.simulation.findRoute(edge, route[-1], kind) for edge in open_ways]
            possible = [one for one in found if one.edges]
            if possible:
                quickest = min(possible, key=lambda one: one.travelTime)
                vehicles.setRoute(name, (route[at], *quickest.edges))

    def _closed_edges(self) -> set[str]:
        return {self.edge[link] for link in self.until_s}
