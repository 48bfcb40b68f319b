"""A server process for tests: serving_worker.py FOLDER CERTFILE KEYFILE; prints its address once it listens."""

import sys
from pathlib import Path

from fake_half import FakeHalf

from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
from dynamic_graph_fed_rl.deployment.server import create_app
from dynamic_graph_fed_rl.deployment.serving import run
from dynamic_graph_fed_rl.deployment.settings import ServerSettings


def main(folder: str, certfile: str, keyfile: str) -> None:
    settings = ServerSettings(port=0, certfile=certfile, keyfile=keyfile)
    coordinator = Coordinator(FakeHalf(agents=2), Path(folder), settings)
    try:
        run(create_app(coordinator), settings, lambda url: print(url, flush=True))
    finally:
        coordinator.close()
    print("closed", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
