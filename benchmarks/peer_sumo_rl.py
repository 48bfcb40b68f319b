"""Inside the peers' environment: decisions per CPU second of sumo-rl on libsumo, random phases.

cologne8 of RESCO, which sumo-rl carries, with its hour from seven to eight. A decision is five seconds of SUMO, with
sumo-rl's own observation and reward for every signal and its two seconds of yellow. What it gathers for `info` is
left out by default, and starting SUMO is left out of the time: both in the peer's favour.
"""

import argparse
import os
import random
import time
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

from peers import serve, versions

NETWORK, BEGIN_S, HOUR_S, DECISION_S = "cologne8", 25200, 3600, 5


def make(info: bool) -> Any:
    """sumo-rl's environment for all signals; libsumo takes the place of a socket."""
    os.environ["LIBSUMO_AS_TRACI"] = "1"
    sumo = util.find_spec("sumo")
    assert sumo is not None and sumo.origin is not None
    os.environ.setdefault("SUMO_HOME", str(Path(sumo.origin).parent))
    import sumo_rl

    folder = Path(sumo_rl.__file__).parent / "nets" / "RESCO" / NETWORK
    return sumo_rl.SumoEnvironment(
        net_file=str(folder / f"{NETWORK}.net.xml"),
        route_file=str(folder / f"{NETWORK}.rou.xml"),
        begin_time=BEGIN_S,
        num_seconds=HOUR_S,
        delta_time=DECISION_S,
        sumo_seed=0,
        add_system_info=info,
        add_per_agent_info=info,
        sumo_warnings=False,
    )


def prepare() -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--info", action="store_true", help="with all that sumo-rl gathers for `info`")
    options = parser.parse_args()
    environment = make(options.info)
    chance = random.Random(0)

    def measure() -> dict[str, float]:
        environment.reset()
        decisions, done = 0, False
        wall, cpu = time.perf_counter(), time.process_time()
        while not done:
            actions = {s: chance.randrange(environment.action_spaces(s).n) for s in environment.ts_ids}
            _, _, ends, _ = environment.step(actions)
            done = ends["__all__"]
            decisions += 1
        cpu_seconds, wall_seconds = time.process_time() - cpu, time.perf_counter() - wall
        return {
            "decisions": decisions,
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "decisions_per_cpu_second": decisions / cpu_seconds,
            "decisions_per_second": decisions / wall_seconds,
        }

    measure()
    description = {
        "network": NETWORK,
        "signals": len(environment.ts_ids),
        "info": options.info,
        "versions": versions("sumo-rl", "libsumo", "eclipse-sumo", "numpy"),
    }
    return description, measure


if __name__ == "__main__":
    serve(prepare)
