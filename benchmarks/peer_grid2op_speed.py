"""Inside the peers' environment: steps per CPU second of grid2op with lightsim2grid, doing nothing.

The largest grid that grid2op ships in its package: 118 buses, 62 generators, 91 loads, 186 lines, with an
opponent that takes lines out. A step is five minutes: AC power flow, observation, reward. Resets, which read
the next day's series, are left out of the time, in the peer's favour.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any

from peers import serve, versions

ENVIRONMENT = "l2rpn_wcci_2022_dev"


def make(**options: Any) -> Any:
    """The grid2op environment that both peers run: lines stay in service however loaded they are."""
    warnings.filterwarnings("ignore")
    import grid2op
    from grid2op.Parameters import Parameters
    from lightsim2grid import LightSimBackend

    parameters = Parameters()
    parameters.NO_OVERFLOW_DISCONNECTION = True
    return grid2op.make(ENVIRONMENT, test=True, backend=LightSimBackend(), param=parameters, **options)


def describe(environment: Any) -> dict[str, Any]:
    return {
        "environment": ENVIRONMENT,
        "buses": int(environment.n_sub),
        "generators": int(environment.n_gen),
        "loads": int(environment.n_load),
        "lines": int(environment.n_line),
        "versions": versions("grid2op", "lightsim2grid", "numpy"),
    }


def prepare() -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000, help="at least so many steps a measurement")
    options = parser.parse_args()
    environment = make()
    do_nothing = environment.action_space({})
    seeds = iter(range(10**9))

    def measure() -> dict[str, float]:
        steps, cpu_seconds, wall_seconds, reset_seconds = 0, 0.0, 0.0, 0.0
        while steps < options.steps:
            began = time.process_time()
            environment.seed(next(seeds))
            environment.reset()
            reset_seconds += time.process_time() - began
            done = False
            wall, cpu = time.perf_counter(), time.process_time()
            while not done:
                _, _, done, _ = environment.step(do_nothing)
                steps += 1
            wall_seconds += time.perf_counter() - wall
            cpu_seconds += time.process_time() - cpu
        return {
            "world_steps": steps,
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "reset_cpu_seconds": reset_seconds,
            "world_steps_per_cpu_second": steps / cpu_seconds,
            "world_steps_per_second": steps / wall_seconds,
        }

    measure()
    return describe(environment), measure


if __name__ == "__main__":
    serve(prepare)
