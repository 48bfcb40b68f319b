"""`dgfrl peer`: real processes that learn on worlds of their own and come closer to each other than apart."""

import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from dynamic_graph_fed_rl.deployment.node import Ledger
from dynamic_graph_fed_rl.deployment.peer_settings import PeerSettings
from dynamic_graph_fed_rl.deployment.peering import SiteLearner, peer
from dynamic_graph_fed_rl.experiment import Experiment, default_experiment
from dynamic_graph_fed_rl.training import checkpoint, runs

SMALL = {"agents": 2, "rounds": 2, "worlds": 4, "decisions_per_round": 8, "width": 8, "layers": 1, "epochs": 1}


def experiment(**changes) -> Experiment:
    return default_experiment("cartpole", **SMALL | {"minibatches": 2, "federation": "gossip"} | changes)


def command(place: int, ports: list[int], folder: Path) -> list[str]:
    options = {name.replace("_", "-"): value for name, value in SMALL.items()} | {
        "minibatches": 2,
        "place": place,
        "listen": f"127.0.0.1:{ports[place]}",
        "neighbours": f"http://127.0.0.1:{ports[1 - place]}",
        "exchanges": 2,
        "state": folder / str(place),
        "token-file": folder / "token",
        "checkpoint-every": 1,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "dynamic_graph_fed_rl", "peer", "cartpole", *words]


def free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in listeners]
    for one in listeners:
        one.close()
    return ports


def test_two_processes_end_closer_to_each_other_than_without_gossip(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text("a-secret-of-both-nodes")
    ports = free_ports(2)
    processes = [
        subprocess.Popen(command(place, ports, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for place in range(2)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], told
    ends, weights = [], []
    for place in range(2):
        ledger = Ledger(tmp_path / str(place))
        arrays, facts = ledger.load() or ({}, {})
        ledger.close()
        assert facts["round"] == 2 and facts["place"] == place and not facts["open"], told
        ends.append(arrays["vector"] / facts["weight"])
        weights.append(facts["weight"])
    assert sum(weights) == 2.0, "no half was lost or doubled"

    alone = [SiteLearner(experiment(), place) for place in range(2)]
    np.testing.assert_array_equal(alone[0].start, alone[1].start)
    apart = []
    for learner in alone:
        vector = learner.start
        for round in range(2):
            vector, _ = learner.work(vector, round)
        apart.append(vector)
    distance = np.linalg.norm(apart[0] - apart[1])
    assert distance > 1e-3, "their worlds differ"
    assert np.linalg.norm(ends[0] - ends[1]) < 0.5 * distance

    # the folder is that of a run with this agent alone, in its last round
    run, stored = runs.open_run(tmp_path / "0")
    assert stored == alone[0].alone and len(runs.read_rows(run.metrics)) == 2
    found = checkpoint.newest(run.checkpoints, jax.eval_shape(alone[0].training), print)
    assert found is not None and found[0] == 2
    alone[0].restore(found[1])
    np.testing.assert_array_equal(alone[0]._rows()[0], ends[0].astype(np.float32))


@pytest.mark.parametrize(
    ("changes", "settings", "told"),
    [
        ({"federation": "server"}, {}, "gossip"),
        ({}, {"place": 2}, "below --agents"),
        ({"overlay": "complete"}, {}, "overlay"),
        ({"codec": "int8"}, {}, "codec"),
        ({}, {"neighbours": ""}, "neighbours"),
        ({}, {"listen": "0.0.0.0:5060"}, "--token-file"),
        ({}, {"neighbours": "http://192.0.2.1:5060"}, "https"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_compiled(changes: dict, settings: dict, told: str) -> None:
    usual = {"listen": "127.0.0.1:0", "neighbours": "http://127.0.0.1:9"}
    with pytest.raises(ValueError, match=told):
        peer(experiment(**changes), PeerSettings(**usual | settings))
