"""Other people's software, in a virtual environment of its own, measured from outside it.

    python benchmarks/peers.py                                      install the peers
    python benchmarks/peers.py peer_grid2op_speed.py --repeats 3    install, then measure one by itself

A peer script runs inside that environment and calls `serve`; a benchmark holds a `Peer`, which asks it for
one measurement at a time, so that both sides take turns. This file is read on both sides: standard library
only.
"""

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEFAULT_DIRECTORY = Path("~/.cache/dynamic-graph-fed-rl/peers").expanduser()

# torch goes first and alone: stable-baselines3 would pull whichever is newest
PINS = (
    ("torch==2.13.0",),
    (
        "grid2op==1.12.6",
        "lightsim2grid==1.2.0",
        "pandapower==3.5.6",
        "stable-baselines3==2.9.2",
        "gymnasium==1.4.0",
        "numpy==2.4.6",
    ),
)
# pure JAX, at the version that we run on, and away from torch
FLASHBAX_PINS = (("flashbax==0.1.3", "jax==0.10.2", "numpy==2.4.6"),)
# what learns LunarLander needs nothing of the grid
LANDER_PINS = (("torch==2.13.0",), ("stable-baselines3==2.9.2", "gymnasium[box2d]==1.4.0", "numpy==2.4.6"))
# SUMO and what sets its signals
SUMO_PINS = (
    (
        "sumo-rl==1.4.5",
        "eclipse-sumo==1.28.0",
        "libsumo==1.28.0",
        "sumolib==1.28.0",
        "traci==1.28.0",
        "gymnasium==1.4.0",
        "numpy==2.4.6",
    ),
)
# torch threads that wait for each other spin: with two of them on a busy machine SB3 ran 20 times slower
ONE_THREAD = {
    name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
}


def install(directory: Path = DEFAULT_DIRECTORY, groups: tuple[tuple[str, ...], ...] = PINS) -> Path:
    """The Python of the peers' environment, which is made or made anew where its pins are not these.

    Raises ValueError where `directory` holds something else, and CalledProcessError where pip fails.
    """
    python = directory / "bin" / "python"
    stamp = directory / "pins.json"
    wanted = json.dumps({"python": sys.version.split()[0], "pins": groups})
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    if directory.exists() and any(directory.iterdir()) and not (directory / "pyvenv.cfg").exists():
        raise ValueError(f"directory '{directory}': not empty and not a virtual environment; name a new one")
    print(f"installing the peers into {directory} (once, about a minute)", file=sys.stderr)
    venv.EnvBuilder(clear=True, with_pip=True).create(directory)
    for pins in groups:
        subprocess.run([python, "-m", "pip", "install", "--quiet", *pins], check=True, stdout=sys.stderr)
    # written last: an installation that was cut off is not taken for a whole one
    stamp.write_text(wanted)
    return python


class Peer:
    """A peer script that waits, prepared, in a process of its own; use as a context manager.

    `description` is what the script says of itself: versions and settings. CPU time is counted inside that
    process, so starting it, importing and preparing are never part of a measurement.
    """

    def __init__(
        self,
        script: str,
        *arguments: str,
        directory: Path = DEFAULT_DIRECTORY,
        pins: tuple[tuple[str, ...], ...] = PINS,
    ) -> None:
        self._script = script
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        self._process = subprocess.Popen(
            [install(directory, pins), HERE / script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment | ONE_THREAD | {"PYTHONWARNINGS": "ignore"},
        )
        self.description: dict[str, Any] = self._answer()

    def measure(self) -> dict[str, float]:
        """One more measurement."""
        assert self._process.stdin is not None
        self._process.stdin.write("measure\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise RuntimeError(f"peer '{self._script}' ended with exit code {code}; its own words are above")
        return json.loads(line)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def serve(prepare: Callable[[], tuple[dict[str, Any], Callable[[], dict[str, float]]]]) -> None:
    """The peer's end: prepare, describe itself in one line of JSON, then one line a measurement asked for."""
    answers = os.fdopen(os.dup(1), "w")
    # what the peers' libraries print must not end up between the answers
    os.dup2(2, 1)
    description, measure = prepare()
    print(json.dumps(description), file=answers, flush=True)
    for _ in sys.stdin:
        print(json.dumps(measure()), file=answers, flush=True)


def versions(*packages: str) -> dict[str, str]:
    return {package: metadata.version(package) for package in packages}


def main() -> None:
    parser = argparse.ArgumentParser(description="Install the peers, and measure one of them by itself.")
    parser.add_argument("script", nargs="?", help="peer script beside this file, such as peer_grid2op_speed.py")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=DEFAULT_DIRECTORY)
    options, arguments = parser.parse_known_args()
    if options.script is None:
        print(install(options.directory))
        return
    with Peer(options.script, *arguments, directory=options.directory) as peer:
        print(json.dumps(peer.description))
        for _ in range(options.repeats):
            print(json.dumps(peer.measure()), flush=True)


if __name__ == "__main__":
    main()
