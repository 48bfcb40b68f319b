"""Every acknowledged upload is in one round, once, whatever the order and whoever dies when."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from coordinators import Killed, held, joined, killed, opened, refused, state_of
from fake_half import FakeHalf, parameters, transitions
from hypothesis import given
from hypothesis import settings as runs
from hypothesis import strategies as st

from dynamic_graph_fed_rl.deployment.coordinator import Coordinator
from dynamic_graph_fed_rl.deployment.store import NotStored
from dynamic_graph_fed_rl.training import checkpoint

MEMORY = Path("/dev/shm")


def a_round(coordinator: Coordinator, rounds: int, size: float) -> None:
    for place in range(3):
        coordinator.upload_transitions(place, rounds, transitions(size * place + rounds))
        coordinator.upload_weights(place, rounds, parameters(1.0 + size * place))


@pytest.mark.parametrize(
    "when", ["before the snapshot", "after the snapshot", "before the commit", "after the commit"]
)
def test_killed_during_aggregation(tmp_path, monkeypatch, when: str) -> None:
    serial = joined(opened(tmp_path / "serial"), 3)
    coordinator = joined(opened(tmp_path / "killed"), 3)
    for one in (serial, coordinator):
        a_round(one, 0, 0.1)
        one.close_due()
        a_round(one, 1, 0.3)
    serial.close_due()

    write, commit = checkpoint.write_whole, coordinator.store._commit

    def write_and_die(path: Path, content: bytes) -> None:
        if when == "after the snapshot":
            write(path, content)
        raise Killed

    def commit_and_die() -> None:
        if when == "after the commit":
            commit()
        raise Killed

    with monkeypatch.context() as patched:
        if "snapshot" in when:
            patched.setattr(checkpoint, "write_whole", write_and_die)
        else:
            patched.setattr(coordinator.store, "_commit", commit_and_die)
        with pytest.raises(Killed):
            coordinator.close_due()
    killed(coordinator)
    coordinator = opened(tmp_path / "killed")
    assert coordinator.due is (when != "after the commit")
    coordinator.close_due()
    assert state_of(coordinator) == state_of(serial)
    for one in (serial, coordinator):
        a_round(one, 2, 0.7)
        one.close_due()
    assert state_of(coordinator) == state_of(serial)


@pytest.mark.parametrize("after", [False, True])
def test_killed_between_receiving_and_acknowledging(tmp_path, monkeypatch, after: bool) -> None:
    serial = joined(opened(tmp_path / "serial"), 3)
    coordinator = joined(opened(tmp_path / "killed"), 3)
    a_round(serial, 0, 0.1)
    serial.close_due()
    for place in range(3):
        for upload, body in (
            ("upload_transitions", transitions(0.1 * place)),
            ("upload_weights", parameters(1 + 0.1 * place)),
        ):
            commit = coordinator.store._commit

            def commit_and_die(commit=commit) -> None:
                if after:
                    commit()
                raise Killed

            monkeypatch.setattr(coordinator.store, "_commit", commit_and_die)
            with pytest.raises(Killed):
                getattr(coordinator, upload)(place, 0, body)
            killed(coordinator)
            coordinator = opened(tmp_path / "killed")
            assert getattr(coordinator, upload)(place, 0, body)["duplicate"] is after
    coordinator.close_due()
    assert state_of(coordinator) == state_of(serial)


def test_disk_full_on_a_snapshot(tmp_path, monkeypatch) -> None:
    coordinator = joined(opened(tmp_path), 3)
    a_round(coordinator, 0, 0.1)

    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_whole", full)
        with pytest.raises(NotStored):
            coordinator.close_due()
        assert "No space left" in (coordinator.trouble or "")
        assert coordinator.due and coordinator.round == 0
        np.testing.assert_array_equal(held(coordinator), 1.0)
        # still takes experience
        coordinator.upload_transitions(0, 1, transitions(5.0))
    assert coordinator.close_due() is not None
    assert coordinator.trouble is None and coordinator.round == 1
    killed(coordinator)
    assert opened(tmp_path).store.backlog() == {0: 1}


def test_disk_full_on_an_upload(tmp_path) -> None:
    coordinator = joined(opened(tmp_path, half=FakeHalf(rows=100_000)), 3)
    database = coordinator.store._database
    database.execute(f"PRAGMA max_page_count = {database.execute('PRAGMA page_count').fetchone()[0]}")
    body = parameters(2.0, rows=100_000)
    with pytest.raises(NotStored):
        coordinator.upload_weights(0, 0, body)
    assert "full" in (coordinator.trouble or "")
    database.execute(f"PRAGMA max_page_count = {2**30}")
    assert coordinator.upload_weights(0, 0, body)["duplicate"] is False
    assert coordinator.trouble is None


def test_learning_that_fails_is_told_and_tried_again(tmp_path, monkeypatch) -> None:
    coordinator = joined(opened(tmp_path), 3)
    a_round(coordinator, 0, 0.1)
    with monkeypatch.context() as patched:
        patched.setattr(coordinator.half, "close", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            coordinator.close_due()
    assert "division" in (coordinator.trouble or "")
    assert coordinator.close_due() is not None and coordinator.trouble is None


def test_a_damaged_snapshot_is_never_passed_over(tmp_path) -> None:
    coordinator = joined(opened(tmp_path), 3)
    a_round(coordinator, 0, 0.1)
    coordinator.close_due()
    coordinator.close()
    newest = tmp_path / "snapshots" / "round-000001.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="checksum"), pytest.raises(ValueError, match="round 1 is damaged"):
        opened(tmp_path)
    newest.write_bytes(content)
    assert opened(tmp_path).round == 1


def serial_state(folder: Path, clients: int, values: list[list[float]], batches: int) -> tuple:
    coordinator = joined(opened(folder, half=FakeHalf(agents=clients)), clients)
    for rounds, row in enumerate(values):
        for place, value in enumerate(row):
            for i in range(batches):
                coordinator.upload_transitions(place, rounds * batches + i, transitions(value + i))
            coordinator.upload_weights(place, rounds, parameters(value))
        coordinator.close_due()
    state = state_of(coordinator)
    coordinator.close()
    return state


@runs(max_examples=60)
@given(st.data())
def test_any_interleaving_gives_the_state_of_the_serial_order(data) -> None:
    """Also with uploads repeated at any time, experience out of order, and the server killed in between."""
    # thousands of flushes, which cost nothing in memory
    with TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        compare_orders(Path(folder), data)


def compare_orders(base: Path, data: st.DataObject) -> None:
    clients, batches = data.draw(st.integers(1, 4), "clients"), data.draw(st.integers(0, 2), "batches a round")
    number = st.floats(0.5, 2.0, width=32)
    values = data.draw(st.lists(st.lists(number, min_size=clients, max_size=clients), min_size=1, max_size=3))
    expected = serial_state(base / "serial", clients, values, batches)

    coordinator = joined(opened(base / "any", half=FakeHalf(agents=clients)), clients)
    sent: list[tuple] = []

    def send(kind: str, place: int, number: int, value: float) -> dict:
        if kind == "weights":
            return coordinator.upload_weights(place, number, parameters(value))
        return coordinator.upload_transitions(place, number, transitions(value))

    for rounds, row in enumerate(values):
        weights = [("weights", place, rounds, value) for place, value in enumerate(row)]
        experience = [
            ("transitions", place, rounds * batches + i, value + i)
            for place, value in enumerate(row)
            for i in range(batches)
        ]
        last = data.draw(st.sampled_from(weights), "the round's last upload")
        weights.remove(last)
        for message in [*data.draw(st.permutations(weights + experience)), last]:
            assert send(*message)["duplicate"] is False
            sent.append(message)
            event = data.draw(st.sampled_from(["", "", "repeat", "kill"]))
            if event == "kill":
                killed(coordinator)
                coordinator = opened(base / "any", half=FakeHalf(agents=clients))
            elif event == "repeat":
                again = data.draw(st.sampled_from(sent))
                if again[0] == "weights" and again[2] < coordinator.round:
                    assert refused(send, *again) == "stale_round"
                else:
                    assert send(*again)["duplicate"] is True
        assert coordinator.close_due() is not None
    assert state_of(coordinator) == expected
    coordinator.close()
