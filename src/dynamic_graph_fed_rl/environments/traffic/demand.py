"""Demand from SUMO's `.rou.xml`: when cars enter, and where they turn, in windows of a quarter of an hour."""

import hashlib
import importlib.util
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network
from dynamic_graph_fed_rl.environments.traffic.sumo_files import elements

WINDOW_S = 900.0
_ROUTING_LIMIT_S = 600


def read_demand(
    network: Network, routes: Path, begin_s: float, duration_s: float = 3600.0, window_s: float = WINDOW_S
) -> Demand:
    """What drives between `begin_s` and `duration_s` later. Routes must be complete: see `routed`.

    The ratios of a window are those of the cars that enter in it. Where no car of a window passes, those of the whole
    time stand in; where none ever does, all turns are alike, for cars that are led there by a closure.

    Raises:
        ValueError: naming the file and the route with an edge that the network lacks, or that nothing drives.
    """
    windows = int(np.ceil(duration_s / window_s))
    enter = np.zeros((windows, network.links))
    passed = np.zeros((windows, network.links))
    taken = np.zeros((windows, len(network.turn_from)))
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
        passed[window, links] += 1
    if not enter.any():
        raise ValueError(
            f"{routes}: no vehicle departs between {begin_s:g} and {begin_s + duration_s:g} s; look at the times in "
            "the file, and at begin and end of its .sumocfg"
        )
    options = np.bincount(network.turn_from, minlength=network.links)
    blind = 1.0 / options[network.turn_from]
    total, ever = passed.sum(0)[network.turn_from], taken.sum(0)
    overall = np.where(total > 0, ever / np.maximum(total, 1.0), blind)
    here = passed[:, network.turn_from]
    ratio = np.where(here > 0, taken / np.maximum(here, 1.0), overall)
    return Demand(begin_s=begin_s, window_s=window_s, rate_per_s=enter / window_s, turn_ratio=ratio)


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
        raise ValueError(f"{program} is needed, but SUMO is not installed: pip install eclipse-sumo libsumo")
    return path
