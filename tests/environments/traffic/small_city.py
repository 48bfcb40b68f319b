"""A crossing by hand: from the west (a long road and a last short piece) and from the south, to the east and north.

west0 (100 m) -> west1 (10 m) -> C;  south -> C;  C -> east, C -> north;  a left turn from the west yields
"""

import gzip
from pathlib import Path

STATES = ("GGgrr", "yyyrr", "rrrGG", "rrryy")


def lanes(edge: str, count: int, length_m: float) -> str:
    return "".join(
        f'<lane id="{edge}_{i}" index="{i}" speed="10.0" length="{length_m}" shape="0,0 1,0"/>' for i in range(count)
    )


def edge(name: str, start: str, end: str, count: int, length_m: float) -> str:
    return f'<edge id="{name}" from="{start}" to="{end}" priority="1">{lanes(name, count, length_m)}</edge>'


def connection(start: str, lane: int, end: str, index: int | None = None) -> str:
    tail = "" if index is None else f' via=":C_{index}_0" tl="C" linkIndex="{index}"'
    return f'<connection from="{start}" to="{end}" fromLane="{lane}" toLane="0" dir="s" state="M"{tail}/>'


def net_xml(states: tuple[str, ...] = STATES, signal: bool = True) -> str:
    junctions = [("W", -200), ("J", -20), ("S", 0), ("C", 0), ("E", 300), ("N", 300)]
    rows = ["00000", "00000", "01000", "00000", "00000"]
    # the left turn from the west (row 2) gives way to row 3, straight on from the south
    rows[2] = "01000"
    requests = "".join(f'<request index="{i}" response="{row}" foes="{row}" cont="0"/>' for i, row in enumerate(rows))
    body = [
        edge("west0", "W", "J", 1, 100.0),
        edge("west1", "J", "C", 2, 10.0),
        edge("south", "S", "C", 1, 75.0),
        edge("east", "C", "E", 1, 300.0),
        edge("north", "C", "N", 1, 300.0),
        '<edge id=":C_0" function="internal"><lane id=":C_0_0" index="0" speed="10" length="9"/></edge>',
    ]
    phases = "".join(f'<phase duration="{30 if "y" not in state else 3}" state="{state}"/>' for state in states)
    if signal:
        body.append(f'<tlLogic id="C" type="static" programID="0" offset="5">{phases}</tlLogic>')
    for name, x in junctions:
        inner = requests if name == "C" else ""
        body.append(
            f'<junction id="{name}" type="priority" x="{x}" y="{50 if name == "N" else 0}">{inner}</junction>'
        )
    at = (lambda i: i) if signal else (lambda i: None)
    body += [
        connection("west0", 0, "west1"),
        connection("west0", 0, "west1").replace('toLane="0"', 'toLane="1"'),
        connection("west1", 0, "east", at(0)),
        connection("west1", 1, "east", at(1)),
        connection("west1", 1, "north", at(2)),
        connection("south", 0, "north", at(3)),
        connection("south", 0, "east", at(4)),
    ]
    return f'<net version="1.20">{"".join(body)}</net>'


ROUTES = """<routes>
    <route id="through" edges="west0 west1 east"/>
    <vehicle id="a" depart="10.0" route="through"/>
    <vehicle id="b" depart="20.0"><route edges="west0 west1 north"/></vehicle>
    <vehicle id="c" depart="950.0"><route edges="west0 west1 east"/></vehicle>
    <vehicle id="d" depart="30.0"><route edges="south north"/></vehicle>
    <vehicle id="e" depart="30.0"><route edges="south"/></vehicle>
    <vehicle id="late" depart="4000.0"><route edges="south north"/></vehicle>
</routes>"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path
