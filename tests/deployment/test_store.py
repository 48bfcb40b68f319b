"""What the store has acknowledged is there after a crash at any point, once; what it has not is as if never sent."""

import sqlite3
from pathlib import Path

import pytest

from dynamic_graph_fed_rl.deployment.store import WINDOW, Client, NotStored, Store, Waiting

NEVER = 4e9


def close(store: Store, content: str, pooled: list[tuple[int, int]]) -> None:
    """Close the open round, in which only place 0 has uploaded."""
    rounds = store.round + 1
    store.open_round(rounds, store.write_snapshot(snapshot(content), rounds), [1.0], [0], pooled)


class Killed(BaseException):
    """The process ends here."""


def snapshot(content: str):
    def write(folder: Path, rounds: int) -> Path:
        path = folder / f"round-{rounds:06d}.safetensors"
        path.write_text(content)
        return path

    return write


def opened(folder: Path) -> Store:
    return Store(folder, "agreed")


def ready(folder: Path, places: int = 2) -> Store:
    store = opened(folder)
    store.open_round(0, store.write_snapshot(snapshot("first"), 0))
    for place in range(places):
        store.put_client(Client(place, f"site-{place}", "0" * 64, NEVER, -1))
    return store


def killed(store: Store, monkeypatch, after: bool) -> None:
    """The next commit is the last thing that this process does, or was about to do."""
    commit = store._commit

    def die() -> None:
        if after:
            commit()
        raise Killed

    monkeypatch.setattr(store, "_commit", die)


def reopened(store: Store) -> Store:
    # what the system does with a dead process's files
    store._database.close()
    return opened(store.folder)


def contents(store: Store) -> tuple:
    return store.round, store.clients(), store.weights(), store.oldest_transitions(), store.norms


def test_all_of_it_is_there_after_reopening(tmp_path) -> None:
    store = ready(tmp_path)
    store.put_weights(Waiting(1, "ab", 2, 0.5), b"body", NEVER + 1)
    store.put_transitions(0, 0, b"rows", NEVER + 2)
    before = contents(store)
    assert before[0] == 0 and before[2] == {1: b"body"} and before[3] == {0: (0, b"rows")}
    store = reopened(store)
    assert contents(store) == before
    assert store.waiting() == {1: Waiting(1, "ab", 2, 0.5)}
    assert [client.lease_until for client in store.clients()] == [NEVER + 2, NEVER + 1]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "upload",
    [
        lambda store: store.put_weights(Waiting(0, "ab", 0, 1.0), b"body", NEVER),
        lambda store: store.put_transitions(0, 0, b"rows", NEVER),
        lambda store: store.put_client(Client(5, "late", "1" * 64, NEVER, 0)),
    ],
)
def test_killed_at_the_commit_of_an_upload(tmp_path, monkeypatch, upload, after: bool) -> None:
    store = ready(tmp_path)
    before = contents(store)
    killed(store, monkeypatch, after)
    with pytest.raises(Killed):
        upload(store)
    store = reopened(store)
    assert (contents(store) == before) is not after
    # the client has heard nothing and sends it again
    if not store.has_transitions(0, 0):
        upload(store)
    assert len(store.weights()) + len(store.oldest_transitions()) + len(store.clients()) == 3
    assert store.backlog().get(0, 0) <= 1


@pytest.mark.parametrize("after", [False, True])
def test_killed_while_a_round_closes(tmp_path, monkeypatch, after: bool) -> None:
    store = ready(tmp_path)
    store.put_weights(Waiting(0, "ab", 0, 1.0), b"body", NEVER)
    for seq in (0, 1):
        store.put_transitions(0, seq, b"rows %d" % seq, NEVER)
    killed(store, monkeypatch, after)
    with pytest.raises(Killed):
        close(store, "second", [(0, 0)])
    assert (tmp_path / "snapshots" / "round-000001.safetensors").exists()
    store = reopened(store)
    if not after:
        assert store.snapshot().read_text() == "first"
        assert [path.name for path in store.snapshots.iterdir()] == ["round-000000.safetensors"]
        assert store.weights() == {0: b"body"} and store.backlog() == {0: 2}
        close(store, "second", [(0, 0)])
    assert store.round == 1 and store.snapshot().read_text() == "second"
    assert store.weights() == {} and store.oldest_transitions() == {0: (1, b"rows 1")}
    assert [client.last_round for client in store.clients()] == [0, -1]
    assert store.norms == [1.0]


def test_disk_full_on_a_snapshot_changes_nothing(tmp_path) -> None:
    store = ready(tmp_path)
    store.put_weights(Waiting(0, "ab", 0, 1.0), b"body", NEVER)
    before = contents(store)

    def full(folder: Path, rounds: int) -> Path:
        (folder / f"round-{rounds:06d}.safetensors.part").write_text("half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(NotStored, match="No space left"):
        store.write_snapshot(full, 1)
    assert contents(store) == before
    assert [path.name for path in store.snapshots.iterdir()] == ["round-000000.safetensors"]
    close(store, "second", [])
    assert store.round == 1


def test_disk_full_on_the_database_changes_nothing(tmp_path) -> None:
    store = ready(tmp_path)
    store.put_transitions(0, 0, b"kept", NEVER)
    before = contents(store)
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages + 2}")
    large = bytes(1_000_000)
    with pytest.raises(NotStored, match="full"):
        store.put_transitions(0, 1, large, NEVER)
    with pytest.raises(NotStored, match="full"):
        store.put_weights(Waiting(0, "ab", 0, 1.0), large, NEVER)
    assert contents(store) == before
    store._database.execute(f"PRAGMA max_page_count = {2**30}")
    store.put_transitions(0, 1, large, NEVER)
    assert store.backlog() == {0: 2}


def test_numbers_out_of_order_are_told_from_duplicates(tmp_path) -> None:
    store = ready(tmp_path)
    for seq in (0, 3, 1):
        assert not store.has_transitions(0, seq)
        store.put_transitions(0, seq, b"%d" % seq, NEVER)
    assert [store.has_transitions(0, seq) for seq in range(5)] == [True, True, False, True, False]
    assert not store.has_transitions(1, 0)
    assert (store.clients()[0].highest, store.clients()[0].gaps) == (3, 2)
    pooled = []
    while store.oldest_transitions():
        [(place, (seq, body))] = store.oldest_transitions().items()
        assert body == b"%d" % seq
        pooled.append(seq)
        close(store, "", [(place, seq)])
    assert pooled == [0, 1, 3]
    # pooled is received all the same
    assert [store.has_transitions(0, seq) for seq in range(5)] == [True, True, False, True, False]


def test_the_memory_of_old_numbers_is_bounded_and_none_is_taken_twice(tmp_path) -> None:
    store = ready(tmp_path)
    store.put_transitions(0, 0, b"", NEVER)
    store.put_transitions(0, 5, b"waits", NEVER)
    close(store, "", [(0, 0)])
    store.put_transitions(0, WINDOW + 3, b"", NEVER)
    assert [seq for (seq,) in store._database.execute("SELECT seq FROM transitions ORDER BY seq")] == [5, WINDOW + 3]
    assert [store.has_transitions(0, seq) for seq in (0, 1, 3, 4, 5)] == [True, True, True, False, True]
    assert store.oldest_transitions() == {0: (5, b"waits")}


def test_a_place_keeps_what_was_uploaded_to_it_when_its_client_changes(tmp_path) -> None:
    store = ready(tmp_path)
    store.put_transitions(1, 0, b"rows", NEVER)
    store.put_weights(Waiting(1, "ab", 0, 1.0), b"body", NEVER)
    store.put_client(Client(1, "successor", "2" * 64, NEVER, 4))
    assert [client.name for client in store.clients()] == ["site-0", "successor"]
    assert store.clients()[1].highest == 0 and store.clients()[1].last_round == 4
    assert store.weights() == {1: b"body"} and store.backlog() == {1: 1}


def test_a_name_has_one_place(tmp_path) -> None:
    store = ready(tmp_path)
    store.put_client(Client(7, "site-1", "3" * 64, NEVER, 0))
    assert [(client.place, client.name) for client in store.clients()] == [(0, "site-0"), (7, "site-1")]


def test_two_servers_never_share_a_folder(tmp_path) -> None:
    store = ready(tmp_path)
    with pytest.raises(ValueError, match="in use"):
        opened(tmp_path)
    reopened(store).close()


def test_a_folder_of_another_federation_is_refused(tmp_path) -> None:
    ready(tmp_path).close()
    with pytest.raises(ValueError, match="agreement is agreed, this server's is other"):
        Store(tmp_path, "other")
    database = sqlite3.connect(tmp_path / "server.sqlite")
    with database:
        database.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    database.close()
    with pytest.raises(ValueError, match="format is 99"):
        opened(tmp_path)


def test_a_foreign_file_is_refused(tmp_path) -> None:
    (tmp_path / "server.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match="cannot be opened"):
        opened(tmp_path)


def test_a_lost_snapshot_is_named(tmp_path) -> None:
    store = ready(tmp_path)
    (tmp_path / "snapshots" / "round-000000.safetensors").unlink()
    with pytest.raises(ValueError, match="round-000000.safetensors: is missing"):
        store.snapshot()
