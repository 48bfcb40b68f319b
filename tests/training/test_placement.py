"""Agents spread over devices and over processes learn what they learn together on one device."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from placement_worker import FEDERATIONS

from dynamic_graph_fed_rl.training.placement import agent_mesh

WORKER = Path(__file__).with_name("placement_worker.py")
SECONDS = 300


def start(file: Path, devices_here: int, *words: str) -> subprocess.Popen:
    # before the suite's own flags: nothing is read after a word without dashes, which they have. Unoptimised
    # programs compile in a fraction of the time
    flags = f"--xla_force_host_platform_device_count={devices_here} --xla_backend_optimization_level=0"
    flags = f"{flags} {os.environ.get('XLA_FLAGS', '')}"
    path = os.pathsep.join([str(WORKER.parent.parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(WORKER), str(file), *words],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(workers: Sequence[subprocess.Popen]) -> None:
    try:
        for worker in workers:
            output, _ = worker.communicate(timeout=SECONDS)
            assert worker.returncode == 0, output[-3000:]
    finally:
        for worker in workers:
            worker.kill()


def assert_as_on_one_device(file: Path, federation: str) -> None:
    with np.load(file) as found:
        results = {name: found[name] for name in found.files if name.startswith(f"{federation}/")}
    alone = [name for name in results if name.endswith("/alone")]
    assert 2 * len(alone) == len(results) > 0
    for name in alone:
        wanted, spread = results[name], results[name.replace("/alone", "/spread")]
        atol = 1e-6 * np.abs(wanted).max(initial=0.0)
        np.testing.assert_allclose(spread, wanted, rtol=1e-6, atol=atol, err_msg=name)


def test_four_devices_do_as_one(tmp_path):
    file = tmp_path / "spread.npz"
    finish([start(file, 4, "4", ",".join(FEDERATIONS))])
    for federation in FEDERATIONS:
        assert_as_on_one_device(file, federation)


def test_two_processes_do_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    files = [tmp_path / "first.npz", tmp_path / "second.npz"]
    finish([start(file, 1, "2", "gossip", address, "2", str(i)) for i, file in enumerate(files)])
    for file in files:
        assert_as_on_one_device(file, "gossip")


def test_more_devices_than_there_are_is_refused():
    there = len(jax.devices())
    with pytest.raises(ValueError, match=rf"devices {there + 1}: there .* {there}; XLA_FLAGS=.*={there + 1} "):
        agent_mesh(there + 1)
    with pytest.raises(ValueError, match="devices 0: must be"):
        agent_mesh(0)
