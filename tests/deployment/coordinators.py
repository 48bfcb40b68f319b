"""Coordinators of a made-up learning side, and what is asked of them."""

from pathlib import Path

import numpy as np
import pytest
from fake_half import FakeHalf

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
from dynamic_graph_fed_rl.deployment.settings import ServerSettings
from dynamic_graph_fed_rl.deployment.wire import Refused

TOKENS = ["a" * 43, "b" * 43, "c" * 43, "d" * 43]
HOUR = 3600.0


class Killed(BaseException):
    """The process ends here."""


class Clock:
    def __init__(self):
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


def opened(folder: Path, clock: Clock | None = None, half: FakeHalf | None = None, **options) -> Coordinator:
    return Coordinator(half or FakeHalf(), folder, ServerSettings(**options), "experiment", clock or Clock())


def joined(coordinator: Coordinator, clients: int) -> Coordinator:
    for place in range(clients):
        join(coordinator, place)
    return coordinator


def join(
    coordinator: Coordinator, i: int, token: str | None = None, place: int | None = None, name: str | None = None
):
    return coordinator.join(name or f"site-{i}", coordinator.agreement, 1, token or TOKENS[i], place)


def killed(coordinator: Coordinator) -> None:
    coordinator.store._database.close()


def refused(call, *arguments, **named) -> str:
    with pytest.raises(Refused) as error:
        call(*arguments, **named)
    return error.value.reason


def held(coordinator: Coordinator, place: int = 0) -> np.ndarray:
    found = coordinator.params(place)
    assert found is not None and found.sha256 == wire.digest(found.body)
    return wire.unpack(found.body, coordinator.half.parameters_schema)[wire.PARAMETERS]


def state_of(coordinator: Coordinator) -> tuple:
    rows = [held(coordinator, place).tobytes() for place in range(coordinator.half.agents)]
    return coordinator.round, rows, coordinator._state["memory"].tobytes(), coordinator.store.norms
