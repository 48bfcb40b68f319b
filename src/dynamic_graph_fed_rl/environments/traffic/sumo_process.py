"""SUMO in a process of its own, behind a pipe: libsumo holds one simulation a process, and may take it down with it.

No jax here. The process answers every order within a time limit, or is ended and the error says what SUMO last said.
"""

import multiprocessing
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from dynamic_graph_fed_rl.environments.traffic.demand import vehicles
from dynamic_graph_fed_rl.environments.traffic.network import ARRIVING_S, NEAR_S, Network
from dynamic_graph_fed_rl.environments.traffic.sumo_closures import Barriers

_WAIT_S = 120.0
_STANDING_M_S = 0.1


@dataclass(frozen=True)
class SumoSettings:
    """One episode in SUMO."""

    net: Path
    routes: Path
    begin_s: float
    duration_s: float = 3600.0
    seed: int = 0
    yellow_s: float = 3.0
    min_green_s: float = 5.0
    closures: tuple[tuple[int, float, float], ...] = ()
    """Links that are closed, from when until when [s since the episode began]."""
    uptake: float = 0.5
    """Share of drivers who know of a closure as soon as there is one."""
    unblock_s: float = -1.0
    """Cars that have stood on a crossing for so long no longer stop the others there (`ignore-junction-blocker`);
    -1: they do for ever, as SUMO has it by default."""


@dataclass(frozen=True)
class Look:
    """What detectors tell in SUMO; see `sensing.Sensed`."""

    lane_queue: Float[np.ndarray, " lanes"]
    link_vehicles: Float[np.ndarray, " links"]
    link_arriving: Float[np.ndarray, " links"]
    link_near: Float[np.ndarray, " links"]
    link_entry: Float[np.ndarray, " links"]
    closed: Bool[np.ndarray, " links"]
    since_s: Float[np.ndarray, " links"]
    phase: Int[np.ndarray, " signals"]
    target: Int[np.ndarray, " signals"]
    phase_s: Float[np.ndarray, " signals"]
    clearing_s: Float[np.ndarray, " signals"]
    time_s: float


@dataclass(frozen=True)
class Outcome:
    """An episode by its trips: seconds of delay (time lost and time before it could enter) of every car, a car that
    never entered counted with all its waiting."""

    delay_s: Float[np.ndarray, " cars"]
    waiting_s: Float[np.ndarray, " entered"]
    """Time that each car that entered stood on the roads."""
    outside_s: Float[np.ndarray, " cars"]
    """Time that each car waited to enter."""
    finished: int
    never_entered: int
    gridlocked: bool
    """Nobody left for five minutes while cars were on the roads."""
    standing: Float[np.ndarray, " looks"]
    """Cars that stood on the roads or before them, at the beginning and after each decision."""
    led_around: int
    """Cars that took another way because of a closure."""
    let_in: int
    """Cars that drove onto a link after it was closed, as they were on the crossing already."""
    ended_before: int
    """Cars that ended their trip before a closure, as no open way led to their goal; they count as finished."""
    removed: int
    """Cars that SUMO took off the roads or lost from its books; theirs is no delay."""

    @property
    def p95_delay_s(self) -> float:
        """95th percentile over the cars."""
        return float(np.percentile(self.delay_s, 95.0))

    @property
    def mean_delay_s(self) -> float:
        return float(self.delay_s.mean())

    @property
    def mean_standing_s(self) -> float:
        """Time that a car stood, on the roads or before them: what the dynamics count."""
        return float((self.waiting_s.sum() + self.outside_s.sum()) / len(self.delay_s))

    @property
    def mean_delay_of_entered_s(self) -> float:
        """Without those that never entered: as much of the literature reports it."""
        return float(self.delay_s[: len(self.waiting_s)].mean())


class SumoProcess:
    """One episode. `orders` of a phase index a signal, or of None to leave the file's programs alone."""

    def __init__(self, network: Network, settings: SumoSettings):
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, network, settings), daemon=True)
        self._process.start()
        other.close()
        try:
            self.look: Look = self._answer("start")
        except Exception:
            self.close()
            raise

    def advance(self, orders: Int[np.ndarray, "rows signals"] | None, seconds: int) -> Look:
        """So many seconds under each row of orders, one after the other.

        Raises:
            RuntimeError: SUMO failed, ended, or did not answer; its last words are quoted.
        """
        self._send(("advance", orders, seconds))
        self.look = self._answer("advance")
        return self.look

    def finish(self) -> Outcome:
        """Ends the episode."""
        self._send(("finish",))
        outcome = self._answer("finish")
        self.close()
        return outcome

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._pipe.close()
        if self._process.is_alive():
            self._process.join(2.0)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def __enter__(self) -> "SumoProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, order: tuple) -> None:
        try:
            self._pipe.send(order)
        except (BrokenPipeError, OSError) as error:
            raise RuntimeError(
                f"SUMO has ended (exit code {self._process.exitcode}); it takes no more orders"
            ) from error

    def _answer(self, order: str) -> Any:
        try:
            if not self._pipe.poll(_WAIT_S):
                self._process.kill()
                raise RuntimeError(f"SUMO did not answer to '{order}' for {_WAIT_S:g} s and was ended")
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionResetError) as error:
            self._process.join(5.0)
            raise RuntimeError(
                f"SUMO ended in '{order}' (exit code {self._process.exitcode}) without a word"
            ) from error
        if kind == "error":
            raise RuntimeError(f"SUMO failed in '{order}': {answer}")
        return answer


def _serve(pipe: Connection, network: Network, settings: SumoSettings) -> None:
    """The child: one episode, order by order."""
    with tempfile.TemporaryDirectory() as folder:
        world = None
        try:
            world = _World(network, settings, Path(folder))
            pipe.send(("ok", world.look()))
            while True:
                order = pipe.recv()
                if order[0] == "advance":
                    pipe.send(("ok", world.advance(order[1], order[2])))
                else:
                    pipe.send(("ok", world.finish()))
                    return
        except EOFError:
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, the other side must hear of it
            log = Path(folder) / "errors.txt"
            said = " ".join(log.read_text().split()[-60:]) if log.is_file() else ""
            pipe.send(("error", f"{error} {said}".strip()))


class _World:
    def __init__(self, network: Network, settings: SumoSettings, folder: Path):
        try:
            # of the extra `sumo`
            import libsumo  # type: ignore[import-not-found]
        except ImportError as error:
            raise RuntimeError("libsumo is not installed: pip install 'dynamic-graph-fed-rl[sumo]'") from error
        self.sumo, self.network, self.settings = libsumo, network, settings
        self.trips = folder / "trips.xml"
        options = {
            "net-file": settings.net,
            "route-files": settings.routes,
            "begin": settings.begin_s,
            "end": settings.begin_s + settings.duration_s,
            "seed": settings.seed,
            "time-to-teleport": -1,
            "ignore-junction-blocker": settings.unblock_s,
            "tripinfo-output": self.trips,
            "tripinfo-output.write-unfinished": "true",
            "tripinfo-output.write-undeparted": "true",
            "no-step-log": "true",
            "duration-log.disable": "true",
            "no-warnings": "true",
            "error-log": folder / "errors.txt",
        }
        libsumo.start(["sumo"] + [word for key, value in options.items() for word in (f"--{key}", str(value))])
        known = set(libsumo.trafficlight.getIDList())
        missing = [name for name in network.signal_id if name not in known]
        if missing:
            raise RuntimeError(f"{settings.net}: has no signal '{missing[0]}'; network and file must belong together")
        count = network.signals
        self.phase, self.target = np.zeros(count, int), np.zeros(count, int)
        self.phase_s, self.clearing_s = np.zeros(count), np.zeros(count)
        self.controlled = False
        self.barriers = Barriers(libsumo, network, settings.closures, settings.uptake, settings.seed)
        self.standing: list[float] = []
        self.gridlocked, self.last_left_s = False, settings.begin_s
        self._index_lanes()

    def _index_lanes(self) -> None:
        sumo, network = self.sumo, self.network
        # distance from the end of each of SUMO's lanes to the stop line of its link
        self.lanes: dict[str, tuple[int, float, float]] = {}
        for link, edges in enumerate(network.link_edges):
            behind = 0.0
            for edge in reversed(edges):
                for i in range(sumo.edge.getLaneNumber(edge)):
                    lane = f"{edge}_{i}"
                    self.lanes[lane] = link, sumo.lane.getLength(lane) + behind, sumo.lane.getMaxSpeed(lane)
                behind += sumo.lane.getLength(f"{edge}_0")
        self.first_link: dict[str, int] = {}

    def advance(self, orders: Int[np.ndarray, "rows signals"] | None, seconds: int) -> Look:
        for second in range(seconds * (1 if orders is None else len(orders))):
            if orders is not None and second % seconds == 0:
                self._switch(orders[second // seconds])
            self.barriers.tick(self.sumo.simulation.getTime() - self.settings.begin_s)
            self.sumo.simulationStep()
            if orders is not None:
                self._tick()
            now = self.sumo.simulation.getTime()
            if self.sumo.simulation.getArrivedNumber() or not self.sumo.vehicle.getIDCount():
                self.last_left_s = now
            self.gridlocked = self.gridlocked or now - self.last_left_s > 300.0
        return self.look()

    def _switch(self, orders: Int[np.ndarray, " signals"]) -> None:
        for s, wanted in enumerate(orders.tolist()):
            if not self.controlled:
                self._show(s, self.network.phase_states[s][self.phase[s]])
            if not 0 <= wanted < len(self.network.phase_states[s]):
                raise RuntimeError(f"signal '{self.network.signal_id[s]}': has no phase {wanted}")
            if wanted != self.phase[s] and self.clearing_s[s] <= 0 and self.phase_s[s] >= self.settings.min_green_s:
                self.target[s], self.clearing_s[s] = wanted, self.settings.yellow_s
                old, new = self.network.phase_states[s][self.phase[s]], self.network.phase_states[s][wanted]
                self._show(
                    s, "".join("y" if a in "Gg" and b not in "Gg" else a for a, b in zip(old, new, strict=True))
                )
        self.controlled = True

    def _tick(self) -> None:
        self.phase_s += 1.0
        turning = self.clearing_s > 0
        self.clearing_s = np.maximum(self.clearing_s - 1.0, 0.0)
        for s in np.flatnonzero(turning & (self.clearing_s <= 0)):
            self.phase[s], self.phase_s[s] = self.target[s], 0.0
            self._show(int(s), self.network.phase_states[s][self.phase[s]])

    def _show(self, signal: int, state: str) -> None:
        self.sumo.trafficlight.setRedYellowGreenState(self.network.signal_id[signal], state)

    def look(self) -> Look:
        sumo, network, settings = self.sumo, self.network, self.settings
        halting, vehicles = {}, np.zeros(network.links)
        arriving, near, entry = (np.zeros(network.links) for _ in range(3))
        for lane, (link, to_line_m, speed) in self.lanes.items():
            count = sumo.lane.getLastStepVehicleNumber(lane)
            vehicles[link] += count
            standing = 0
            for vehicle in sumo.lane.getLastStepVehicleIDs(lane) if count else ():
                if sumo.vehicle.getSpeed(vehicle) < _STANDING_M_S:
                    standing += 1
                    continue
                seconds = (to_line_m - sumo.vehicle.getLanePosition(vehicle)) / speed
                arriving[link] += seconds <= ARRIVING_S
                near[link] += seconds <= NEAR_S
            halting[lane] = standing
        for vehicle in sumo.simulation.getPendingVehicles():
            if vehicle not in self.first_link:
                self.first_link[vehicle] = network.link_of_edge.get(sumo.vehicle.getRoute(vehicle)[0], -1)
            entry[self.first_link[vehicle]] += 1
        queue = np.array([sum(halting[lane] * share for lane, share in parts) for parts in network.lane_parts])
        self.standing.append(float(sum(halting.values()) + entry.sum()))
        return Look(
            lane_queue=queue,
            link_vehicles=vehicles,
            link_arriving=arriving,
            link_near=near,
            link_entry=entry,
            closed=self.barriers.closed.copy(),
            since_s=self.barriers.since_s.copy(),
            phase=self.phase.copy(),
            target=self.target.copy(),
            phase_s=self.phase_s.copy(),
            clearing_s=self.clearing_s.copy(),
            time_s=sumo.simulation.getTime() - settings.begin_s,
        )

    def finish(self) -> Outcome:
        now = self.sumo.simulation.getTime()
        self.sumo.close()
        entered, before, never, waiting, finished = [], [], [], [], 0
        missing = sum(self.settings.begin_s <= depart_s < now for _, depart_s, _ in vehicles(self.settings.routes))
        for trip in ElementTree.parse(self.trips).getroot().findall("tripinfo"):
            missing -= trip.attrib["vaporized"] in ("", "end")
            if float(trip.attrib["depart"]) < 0:
                never.append(float(trip.attrib["departDelay"]))
                continue
            before.append(float(trip.attrib["departDelay"]))
            entered.append(float(trip.attrib["timeLoss"]) + float(trip.attrib["departDelay"]))
            waiting.append(float(trip.attrib["waitingTime"]))
            finished += float(trip.attrib["arrival"]) >= 0
        if not entered:
            raise RuntimeError(f"{self.settings.routes}: no car had entered by {now:g} s")
        return Outcome(
            np.array(entered + never),
            np.array(waiting),
            np.array(before + never),
            finished,
            len(never),
            self.gridlocked,
            np.array(self.standing),
            led_around=len(self.barriers.led_around),
            let_in=len(self.barriers.let_in),
            ended_before=len(self.barriers.ended_before),
            removed=missing,
        )
