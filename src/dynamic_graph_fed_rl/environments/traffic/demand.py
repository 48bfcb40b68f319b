"""Demand from SUMO's `.rou.xml`: when cars enter, and where they turn, in windows of a quarter of an hour."""

import hashlib
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dynamic_graph_fed_rl.environments.traffic.network import (
    VEHICLE_GAP_M,
    VEHICLE_LENGTH_M,
    VEHICLE_SPACE_M,
    Demand,
    Network,
)
from dynamic_graph_fed_rl.environments.traffic.sumo_files import elements

WINDOW_S = 900.0
AHEAD_M = 200.0
"""How far ahead drivers look when they choose a lane: SUMO's look 10 s ahead, to the left twice that."""
_ROUTING_LIMIT_S = 600


def read_demand(
    network: Network, routes: Path, begin_s: float, duration_s: float = 3600.0, window_s: float = WINDOW_S
) -> Demand:
    """What drives between `begin_s` and `duration_s` later. Routes must be complete: see `routed`.

    The ratios of a window are those of the cars that enter in it, and so are the shares of the lanes: see
    `lanes_wanted`. Where no car of a window passes, those of the whole time stand in; where none ever does, all turns
    are alike, and all lanes, for cars that are led there by a closure.

    Raises:
        ValueError: naming the file and the route with an edge that the network lacks, or that nothing drives.
    """
    windows = int(np.ceil(duration_s / window_s))
    enter = np.zeros((windows, network.links))
    passed = np.zeros((windows, network.links))
    taken = np.zeros((windows, len(network.turn_from)))
    wanted = np.zeros((windows, network.movements))
    known: dict[tuple[int, ...], dict[int, float]] = {}
    turn = {(a, b): i for i, (a, b) in enumerate(zip(network.turn_from, network.turn_to, strict=True))}
    for name, depart_s, edges in vehicles(routes):
        if not begin_s <= depart_s < begin_s + duration_s:
            continue
        window = int((depart_s - begin_s) // window_s)
        links: list[int] = []
        for edge in edges:
            if edge not in network.link_of_edge:
                raise ValueError(
                    f"{routes}: vehicle '{name}' drives over edge '{edge}', which network '{network.name}' does not "
                    "have for cars; routes and network must belong together"
                )
            link = network.link_of_edge[edge]
            if not links or links[-1] != link:
                links.append(link)
        enter[window, links[0]] += 1
        for a, b in zip(links[:-1], links[1:], strict=True):
            if (a, b) not in turn:
                raise ValueError(
                    f"{routes}: vehicle '{name}' turns from {network.link_name(a)} to {network.link_name(b)}, which "
                    f"no connection of network '{network.name}' allows"
                )
            taken[window, turn[a, b]] += 1
        # a route may pass a link twice
        np.add.at(passed[window], links, 1)
        way = tuple(links)
        if way not in known:
            known[way] = lanes_wanted(network, way)
        for movement, share in known[way].items():
            wanted[window, movement] += share
    if not enter.any():
        raise ValueError(
            f"{routes}: no vehicle departs between {begin_s:g} and {begin_s + duration_s:g} s; look at the times in "
            "the file, and at begin and end of its .sumocfg"
        )
    ratio = _shares(taken, passed[:, network.turn_from], network.turn_from)
    lane_share = _shares(wanted, taken[:, network.movement_turn], network.movement_turn)
    return Demand(begin_s, window_s, rate_per_s=enter / window_s, turn_ratio=ratio, lane_share=lane_share)


def _shares(
    part: Float[np.ndarray, "windows items"],
    whole: Float[np.ndarray, "windows items"],
    owner: Int[np.ndarray, " items"],
) -> Float[np.ndarray, "windows items"]:
    """Share of each item, by window if anything passed in it, else over all, else alike for all of one owner."""
    total = whole.sum(0)
    overall = np.where(total > 0, part.sum(0) / np.maximum(total, 1.0), 1.0 / np.bincount(owner)[owner])
    return np.where(whole > 0, part / np.maximum(whole, 1.0), overall)


def lanes_wanted(network: Network, way: tuple[int, ...]) -> dict[int, float]:
    """The movements that a car on its way over these links makes by choice, and how likely: at every turn those from
    which it gets furthest before it must change lanes, all alike where that is further than drivers look."""
    lanes_of = network.lanes_of_link
    # distance to the next change of lanes, from the beginning of the link ahead, for each of its lanes
    free_m = dict.fromkeys(lanes_of[way[-1]], np.inf)
    wanted: dict[int, float] = {}
    for link, ahead in zip(way[-2::-1], way[:0:-1], strict=True):
        gets_m = {
            m: max(free_m[lane] for lane in network.movement_lands[m]) for m in network.movements_of_turn[link, ahead]
        }
        furthest = min(max(gets_m.values()), AHEAD_M)
        best = [m for m, metres in gets_m.items() if metres >= furthest]
        for m in best:
            wanted[m] = wanted.get(m, 0.0) + 1.0 / len(best)
        own_m = float(network.link_length_m[link])
        free_m = dict.fromkeys(lanes_of[link], own_m)
        free_m |= {int(network.movement_lane[m]): own_m + metres for m, metres in gets_m.items()}
    return wanted


def vehicles(routes: Path) -> Iterator[tuple[str, float, list[str]]]:
    """Name, departure [s] and edges of every vehicle with a complete route.

    Raises:
        ValueError: the file has trips or flows, which must be routed first, or a route without edges.
    """
    known: dict[str, list[str]] = {}
    for element in elements(routes, "route", "vehicle", "trip", "flow"):
        name = element.get("id", "")
        if element.tag == "route":
            known[name] = element.get("edges", "").split()
            continue
        if element.tag != "vehicle":
            raise ValueError(f"{routes}: <{element.tag} id='{name}'> has no route; have it routed by duarouter first")
        inside = element.find("route")
        edges = known.get(element.get("route", ""), []) if inside is None else inside.get("edges", "").split()
        if not edges:
            raise ValueError(f"{routes}: vehicle '{name}' has no route, or one without edges")
        yield name, float(element.attrib["depart"]), edges


def vehicle_space_m(routes: Path) -> float:
    """Length of road that a standing car takes, its own and the gap before it: mean of all cars of the file."""
    space: dict[str, float] = {}
    taken: list[float] = []
    for element in elements(routes, "vType", "vehicle", "trip", "flow"):
        if element.tag == "vType" and element.get("vClass", "passenger") == "passenger":
            length, gap = element.get("length", VEHICLE_LENGTH_M), element.get("minGap", VEHICLE_GAP_M)
            space[element.get("id", "")] = float(length) + float(gap)
        elif element.tag != "vType":
            taken.append(space.get(element.get("type", ""), VEHICLE_SPACE_M))
    return float(np.mean(taken)) if taken else VEHICLE_SPACE_M


def routed(net: Path, routes: Path) -> Path:
    """The same demand with a route for every car: the file itself, or what SUMO's duarouter makes of its trips and
    flows, which is kept in the user's cache.

    Raises:
        ValueError: routing is needed, but SUMO is not installed, or duarouter fails (its last lines are quoted).
    """
    needed = any(True for _ in elements(routes, "trip", "flow"))
    if not needed:
        return routes
    mark = hashlib.sha256(net.read_bytes() + routes.read_bytes()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept = base / "dynamic-graph-fed-rl" / "routes" / f"{routes.name.split('.')[0]}-{mark}.rou.xml"
    if kept.is_file():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_name(f"{kept.name}.{os.getpid()}.part.xml")
    command = [sumo_binary("duarouter"), "-n", net, "-r", routes, "-o", part]
    command += ["--ignore-errors", "--named-routes", "false", "--no-warnings", "--alternatives-output", "NUL"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ROUTING_LIMIT_S)
        if done.returncode or not part.is_file():
            last = " ".join(done.stderr.strip().splitlines()[-3:])
            raise ValueError(f"{routes}: duarouter could not route its trips: {last}")
        part.replace(kept)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"{routes}: duarouter was not done after {_ROUTING_LIMIT_S} s") from error
    finally:
        part.unlink(missing_ok=True)
    return kept


def sumo_binary(program: str) -> Path:
    """A program of the installed SUMO.

    Raises:
        ValueError: SUMO is not installed.
    """
    found = importlib.util.find_spec("sumo")
    home = Path(os.environ["SUMO_HOME"]) if "SUMO_HOME" in os.environ else None
    if found is not None and found.origin is not None:
        home = Path(found.origin).parent
    path = None if home is None else home / "bin" / program
    if path is None or not path.is_file():
        raise ValueError(f"{program} is needed, but SUMO is not installed: pip install 'dynamic-graph-fed-rl[sumo]'")
    return path
