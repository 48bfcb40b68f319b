"""Members of a federation over HTTP: the same bits as in one process, whoever is killed or away meanwhile."""

from types import SimpleNamespace

import httpx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from served import until
from sites import AGENTS, ROUNDS, experiment, federation, half, held_by, reference
from sockets import Time, Troubled

from dynamic_graph_fed_rl.deployment.client import Download, Pace
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.training.site import Site


class Killed(BaseException):
    """The process ends here."""


def bits(tree) -> list[bytes]:
    leaves = (
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    )
    return [np.asarray(leaf).tobytes() for leaf in leaves]


@pytest.mark.parametrize("name", ["server", "shared", "hybrid"])
def test_over_http_it_is_the_same_as_in_one_process_bit_for_bit(name, tmp_path) -> None:
    expected = reference(name)
    members = {}
    with federation(name, tmp_path) as served:

        def work(place: int):
            with served.member(place) as member:
                member.take_part(ROUNDS, lambda: False)
                members[place] = member

        served.all_take_part([lambda place=place: work(place) for place in range(AGENTS)])
        state = served.coordinator._state
        assert served.coordinator.round == ROUNDS == int(expected.round)
        assert served.held() == held_by(half(name), expected)
        assert bits((state.key, state.federation, state.server)) == bits(
            (expected.key, expected.federation, expected.server)
        )
    for place, member in members.items():
        row = jax.tree.map(lambda leaf, i=place: leaf[i : i + 1], (expected.learners[0], expected.actors[0]))
        assert bits((member._state.learners, member._state.actors)) == bits(row)
        assert [(one["round"], one["lot"], one["away"]) for one in served.rows[place]] == [
            (number + 1, 0, False) for number in range(ROUNDS)
        ]
    # what was learned is something
    assert not np.array_equal(*(np.frombuffer(row) for row in (served.held()[0], bits(half(name).init().held[0])[0])))


@pytest.mark.parametrize("late", [False, True], ids=["before the server hears it", "before the answer is heard"])
def test_killed_at_any_request_and_started_again_it_changes_nothing(late, tmp_path) -> None:
    expected = held_by(half("hybrid"), reference("hybrid"))
    # one round's requests: experience, weights, parameters; before them comes the join
    for request in (4, 5, 6):
        with federation("hybrid", tmp_path / str(request)) as served:

            def killed_once(request=request, served=served) -> None:
                def kill(number: int, _: httpx.Request) -> None:
                    if number == request:
                        raise Killed

                transport = Troubled(after=kill) if late else Troubled(before=kill)
                with pytest.raises(Killed), served.member(0, transport) as member:
                    member.take_part(ROUNDS, lambda: False)
                assert len(transport.seen) == request + 1
                served.plain(0)()

            served.all_take_part([killed_once, served.plain(1), served.plain(2)])
            assert served.held() == expected
            for client in served.coordinator.status()["clients"]:
                assert (client["next_seq"], client["gaps"], client["backlog"]) == (ROUNDS, 0, 0)


def test_while_the_server_is_away_a_client_learns_on_and_sends_its_newest(tmp_path) -> None:
    """The weights that the server gets are those after all lots, each with luck of its own."""
    time = Time()
    state = {"left": 3}

    def down(number: int, request: httpx.Request) -> None:
        if request.method == "PUT" and state["left"]:
            state["left"] -= 1
            raise httpx.ConnectError("nobody there")

    with federation("server", tmp_path, quorum=1) as served:
        pace = Pace(clock=time, sleep=time.sleep, draw=lambda: 1.0)
        with served.member(0, Troubled(down), pace, ahead=2) as member:
            member.take_part(1, lambda: False)
            assert not member.away
        assert [(row["lot"], row["away"]) for row in served.rows[0]] == [(0, False), (1, True), (2, True)]
        assert len(time.slept) > 3 and sum(time.slept) == pytest.approx(0.25 + 0.5 + 1.0)
        site = Site.of(half("server").trainer, jnp.asarray(0, jnp.int32))
        at = site.init(stream_key(TRAINING_STREAM, experiment("server").seed))
        lots = []
        for lot in range(3):
            at, vector, _, _ = site.work(at, jnp.asarray(lot, jnp.int32))
            lots.append(np.asarray(vector))
        assert len({lot.tobytes() for lot in lots}) == 3
        # the mean of one is that one, up to rounding
        np.testing.assert_allclose(np.frombuffer(served.held()[0], np.float32), lots[2], rtol=1e-5, atol=1e-6)


def test_experience_of_overtime_waits_in_the_queue_and_comes_under_its_numbers(tmp_path) -> None:
    time = Time()
    state = {"left": 2}

    def down(number: int, request: httpx.Request) -> None:
        if request.method == "PUT" and state["left"]:
            state["left"] -= 1
            raise httpx.ConnectError("nobody there")

    with federation("hybrid", tmp_path, quorum=1) as served:
        transport = Troubled(down)
        pace = Pace(clock=time, sleep=time.sleep, draw=lambda: 1.0)
        # room for two more than the round's own
        with served.member(0, transport, pace, ahead=9, queue=3) as member:
            member.take_part(1, lambda: False)
        asked = [int(path.rpartition("/")[2]) for _, path, _ in transport.seen if "transitions" in path]
        assert asked == [0, 0, 0, 1, 2]
        assert [row["queued"] for row in served.rows[0]] == [1, 2, 3]
        client = served.coordinator.status()["clients"][0]
        # one of them is pooled a round
        assert (client["next_seq"], client["gaps"], client["backlog"]) == (3, 0, 2)


def test_who_is_late_is_left_behind_and_comes_back(tmp_path) -> None:
    with federation("server", tmp_path, quorum=1, deadline=2) as served:
        with served.member(0) as fast, served.member(1) as slow:
            slow._work()
            fast.take_part(2, lambda: False)
            until(lambda: served.coordinator.round == 2)
            # both lots of overtime were counted, in both rounds
            assert [row["lot"] for row in served.rows[0]] == [0, 1, 2] * 2
            # what it has is of round 0
            slow._exchange(lambda: False)
            assert slow.round == 2 and slow._lots == 0
            held = served.held()[1]
            sent = []
            slow._client.put_weights = lambda rounds, vector: sent.append((rounds, vector)) or {"due": True}
            slow._work()
            slow._send_weights()
        assert sent[0][0] == 2 and sent[0][1].tobytes() != held
        served.plain(1)()
        rejected = [line for line in served.metrics().splitlines() if 'rejected_total{reason="stale_round"}' in line]
        assert float(rejected[0].split()[-1]) >= 1


def test_overtime_that_changes_nothing_is_not_done_for_ever(tmp_path) -> None:
    """Parameters as before are a repetition to the server: they cannot bring the deadline nearer."""
    with federation("server", tmp_path, quorum=1, deadline=2) as served:
        with served.member(0) as member, served.member(1):
            member._client.params = lambda *_: Download(0, None)
            site = member._site
            member._site = SimpleNamespace(
                work=lambda state, lot: (state, *site.work(jax.tree.map(jnp.copy, state))[1:])
            )
            for _ in range(4):
                member.take_part(1, iter([False, True]).__next__)
        assert [row["lot"] for row in served.rows[0]] == [0, 1]


def test_a_lapsed_client_joins_again_by_itself(tmp_path) -> None:
    with federation("server", tmp_path, quorum=1) as served:
        with served.member(0) as member:
            member.take_part(1, lambda: False)
            place = served.coordinator._members
            place.update(0, lease_until=0.0)
            member.take_part(2, lambda: False)
            assert member.round == 2
        assert served.coordinator.status()["clients"][0]["client"] == "site-0"


def test_a_server_that_was_put_back_is_followed(tmp_path) -> None:
    with federation("hybrid", tmp_path / "old", quorum=1) as served, served.member(0) as member:
        member.take_part(2, lambda: False)
    with federation("hybrid", tmp_path / "new", quorum=1) as served:
        (tmp_path / "old" / "site-0").rename(tmp_path / "new" / "site-0")
        with served.member(0) as member:
            assert member.round == 0
            member.take_part(1, lambda: False)
        assert served.coordinator.round == 1
        client = served.coordinator.status()["clients"][0]
        # its experience is told again, under new numbers
        assert (client["next_seq"], client["gaps"]) == (3, 2)


def test_what_is_refused_for_good_ends_the_client(tmp_path) -> None:
    with federation("server", tmp_path) as served, served.member(0) as member:
        member._work()
        member._vector = np.full_like(member._vector, np.nan)
        with pytest.raises(
            ValueError, match="does not accept parameters of round 0: not_finite: 'parameters' holds NaN"
        ):
            member._exchange(lambda: False)
