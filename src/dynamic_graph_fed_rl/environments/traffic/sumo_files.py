"""Reading SUMO's `.net.xml`: edges, lanes, connections, signal programs and right of way, as they stand in the file.

No SUMO is needed; the format is that of https://sumo.dlr.de/docs/Networks/SUMO_Road_Networks.html.
"""

import gzip
import importlib.util
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

INSTALLED_NETWORKS = (
    "cologne1", "cologne3", "cologne8", "ingolstadt1", "ingolstadt7", "ingolstadt21", "grid4x4", "arterial4x4",
)  # fmt: skip
"""Networks with demand that the package sumo-rl carries (from RESCO, Ault and Sharon 2021)."""


@dataclass
class Edge:
    """A road between two junctions, with the lanes that cars may use."""

    id: str
    origin: str
    """Junction it begins at."""
    end: str
    lanes: dict[int, str]
    """SUMO's lane ids by their index in the file, kerb first."""
    length_m: float
    speed_m_s: float


@dataclass
class Connection:
    """A way from a lane across a junction to an edge."""

    edge: str
    lane: str
    to_edge: str
    to_lane: str
    signal: str | None
    index: int
    """Place in the signal's state strings, -1 without one."""
    around: bool
    """A turn back onto the opposite direction."""
    junction: str
    request: int
    """Its row in the junction's right-of-way matrix, -1 if it has none."""


@dataclass
class Program:
    """A signal's program: (duration [s], state string) in turn, from an offset [s]."""

    offset_s: float
    phases: list[tuple[float, str]]


@dataclass
class Layout:
    """The contents of a `.net.xml`."""

    edges: dict[str, Edge] = field(default_factory=dict)
    connections: list[Connection] = field(default_factory=list)
    programs: dict[str, Program] = field(default_factory=dict)
    position: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of every junction [m]."""
    gives_way: dict[str, list[str]] = field(default_factory=dict)
    """For each junction its right-of-way rows: a string of bits, the last of which stands for row 0."""


def installed_files(name: str) -> tuple[Path, Path]:
    """The `.net.xml` and `.rou.xml` of a network that the installed sumo-rl package carries.

    Raises:
        ValueError: unknown name, or sumo-rl is not installed.
    """
    if name not in INSTALLED_NETWORKS:
        raise ValueError(f"network '{name}': unknown; known: {', '.join(INSTALLED_NETWORKS)}, or a .net.xml file")
    found = importlib.util.find_spec("sumo_rl")
    if found is None or found.origin is None:
        raise ValueError(
            f"network '{name}' comes with the package sumo-rl, which is not installed: "
            "pip install 'dynamic-graph-fed-rl[sumo]'"
        )
    folder = Path(found.origin).parent / "nets" / "RESCO" / name
    return folder / f"{name}.net.xml", next(iter(sorted(folder.glob("*.rou.xml"))))


def installed_begin_s(routes: Path) -> float | None:
    """When the demand beside these routes is meant to begin [s]: from the `.sumocfg` in the same folder, if any."""
    for path in sorted(routes.parent.glob("*.sumocfg")):
        begin = ElementTree.parse(path).getroot().find("./time/begin")
        if begin is not None:
            return float(begin.attrib["value"])
    return None


def elements(path: Path, *tags: str) -> Iterator[ElementTree.Element]:
    """The elements of these names just below the root of an XML file, plain or `.gz`, one after the other.

    Raises:
        ValueError: the file is not there, or is no XML.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        depth, root = 0, None
        try:
            for event, element in ElementTree.iterparse(file, events=("start", "end")):
                if event == "start":
                    depth += 1
                    root = element if root is None else root
                    continue
                depth -= 1
                if depth == 1:
                    if element.tag in tags:
                        yield element
                    if root is not None:
                        root.clear()
        except (ElementTree.ParseError, gzip.BadGzipFile, EOFError) as error:
            raise ValueError(f"{path}: not an XML file of SUMO: {error}") from error


def read_layout(path: Path) -> Layout:
    """Edges that cars may use, their connections, signals and rights of way.

    Raises:
        ValueError: naming the file and what is missing in it.
    """
    layout = Layout()
    rows: list[ElementTree.Element] = []
    for element in elements(path, "edge", "connection", "tlLogic", "junction"):
        if element.tag == "edge":
            edge = _edge(element)
            if edge is not None:
                layout.edges[edge.id] = edge
        elif element.tag == "tlLogic":
            # the first program of a signal is the one that a simulation starts with
            layout.programs.setdefault(element.attrib["id"], _program(element))
        elif element.tag == "junction" and element.get("type") != "internal":
            name = element.attrib["id"]
            layout.position[name] = float(element.attrib["x"]), float(element.attrib["y"])
            layout.gives_way[name] = [row.attrib["response"] for row in element.findall("request")]
        elif element.tag == "connection" and not element.attrib["from"].startswith(":"):
            rows.append(_copy(element))
    for element in rows:
        connection = _connection(element, layout)
        if connection is not None:
            layout.connections.append(connection)
    if not layout.edges:
        raise ValueError(f"{path}: has no edge that cars may use; a .net.xml of SUMO is expected")
    controlled = {connection.signal for connection in layout.connections if connection.signal is not None}
    for signal in sorted(controlled - set(layout.programs)):
        raise ValueError(f"{path}: signal '{signal}' controls connections but has no <tlLogic>")
    layout.programs = {name: program for name, program in layout.programs.items() if name in controlled}
    if not layout.programs:
        raise ValueError(f"{path}: has no traffic signal that controls a connection; there is nothing to learn here")
    return layout


def _copy(element: ElementTree.Element) -> ElementTree.Element:
    # the tree is cleared while it is read
    return ElementTree.Element(element.tag, dict(element.attrib))


def _edge(element: ElementTree.Element) -> Edge | None:
    if element.get("function", "normal") != "normal":
        return None
    lanes = [lane for lane in element.findall("lane") if _for_cars(lane)]
    if not lanes:
        return None
    return Edge(
        id=element.attrib["id"],
        origin=element.attrib["from"],
        end=element.attrib["to"],
        lanes={int(lane.attrib["index"]): lane.attrib["id"] for lane in lanes},
        length_m=min(float(lane.attrib["length"]) for lane in lanes),
        speed_m_s=max(float(lane.attrib["speed"]) for lane in lanes),
    )


def _for_cars(lane: ElementTree.Element) -> bool:
    allowed, refused = lane.get("allow", "all").split(), lane.get("disallow", "").split()
    return bool({"all", "passenger"} & set(allowed)) and not {"all", "passenger"} & set(refused)


def _program(element: ElementTree.Element) -> Program:
    phases = [(float(phase.attrib["duration"]), phase.attrib["state"]) for phase in element.findall("phase")]
    return Program(float(element.get("offset", "0")), phases)


def _connection(element: ElementTree.Element, layout: Layout) -> Connection | None:
    start, end = layout.edges.get(element.attrib["from"]), layout.edges.get(element.attrib["to"])
    if start is None or end is None:
        return None
    lane = start.lanes.get(int(element.attrib["fromLane"]))
    to_lane = end.lanes.get(int(element.attrib["toLane"]))
    if lane is None or to_lane is None:
        return None
    # an internal lane :junction_k_i is the i-th of those that begin with row k
    numbers = element.get("via", "").rsplit("_", 2)[1:]
    return Connection(
        edge=start.id,
        lane=lane,
        to_edge=end.id,
        to_lane=to_lane,
        signal=element.get("tl"),
        index=int(element.get("linkIndex", "-1")),
        around=element.get("dir") == "t",
        junction=start.end,
        request=int(numbers[0]) + int(numbers[1]) if len(numbers) == 2 else -1,
    )
