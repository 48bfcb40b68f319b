"""A server for every test that asks for one."""

import pytest
from fake_half import FakeHalf
from served import Served


@pytest.fixture
def serve(tmp_path):
    opened = []

    def start(clients: int = 2, half: FakeHalf | None = None, folder: str = "state", **options) -> Served:
        opened.append(Served(tmp_path / folder, clients, half, **options))
        return opened[-1]

    yield start
    for one in opened:
        one.server.closer.stop()
        one.coordinator.close()
