"""Who is in, when rounds close, and what goes into them."""

import numpy as np
import pytest
from coordinators import HOUR, TOKENS, Clock, held, join, joined, killed, opened, refused
from fake_half import FakeHalf, parameters, transitions

from dynamic_graph_fed_rl.deployment import wire


def test_all_upload_and_everyone_goes_on_with_the_mean(tmp_path) -> None:
    coordinator = joined(opened(tmp_path), 3)
    for place, value in enumerate((1.0, 2.0, 6.0)):
        assert not coordinator.due and coordinator.close_due() is None
        receipt = coordinator.upload_weights(place, 0, parameters(value))
        assert receipt == {"round": 0, "duplicate": False, "ticks": 0, "due": place == 2}
    assert coordinator.params(0, after=0) is None
    closed = coordinator.close_due()
    assert closed is not None and (closed.round, closed.arrived) == (0, (0, 1, 2))
    assert coordinator.round == 1 and coordinator.close_due() is None
    for place in range(3):
        np.testing.assert_array_equal(held(coordinator, place), 3.0)


def test_places_go_by_order_or_by_wish(tmp_path) -> None:
    coordinator = opened(tmp_path)
    assert [join(coordinator, 0, place=1).place, join(coordinator, 1).place, join(coordinator, 2).place] == [1, 0, 2]
    assert refused(join, coordinator, 3) == "no_place_left"
    assert refused(join, coordinator, 3, place=1) == "place_taken"
    assert refused(join, coordinator, 0, place=2) == "place_taken"
    assert refused(join, coordinator, 3, place=3) == "bad_request"


def test_a_restarted_client_finds_its_place_and_its_number(tmp_path) -> None:
    coordinator = joined(opened(tmp_path), 2)
    coordinator.upload_transitions(1, 4, transitions(1.0))
    again = join(coordinator, 1)
    assert (again.place, again.next_seq, again.returning) == (1, 5, True)
    killed(coordinator)
    again = join(opened(tmp_path), 1)
    assert (again.place, again.next_seq, again.returning) == (1, 5, True)


def test_two_clients_with_one_identity(tmp_path) -> None:
    coordinator = joined(opened(tmp_path), 1)
    assert refused(join, coordinator, 0, token=TOKENS[1]) == "identity_taken"
    assert refused(coordinator.join, "site-0", coordinator.agreement, 1) == "identity_taken"
    assert coordinator.authenticate(TOKENS[0], "site-0") == 0
    assert refused(coordinator.authenticate, TOKENS[1], "site-0") == "unauthorised"
    assert refused(coordinator.authenticate, TOKENS[0], "site-1") == "forbidden"


def test_a_token_is_made_for_those_that_bring_none_and_kept_as_a_hash(tmp_path) -> None:
    coordinator = opened(tmp_path)
    token = coordinator.join("site", coordinator.agreement, 1).token
    assert len(token) >= 43 and coordinator.authenticate(token) == 0
    assert all(token.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("name", "token"),
    [("", TOKENS[0]), ("a/b", TOKENS[0]), ("x" * 65, TOKENS[0]), ("site", "short"), ("site", "x y" * 20)],
)
def test_names_and_tokens_have_a_form(tmp_path, name: str, token: str) -> None:
    coordinator = opened(tmp_path)
    assert refused(coordinator.join, name, coordinator.agreement, 1, token) == "bad_request"


def test_another_network_or_protocol_may_not_join(tmp_path) -> None:
    coordinator = opened(tmp_path)
    other = wire.agreement(wire.parameters_schema(5), coordinator.half.experience_schema)
    assert refused(coordinator.join, "site", other, 1) == "bad_schema"
    assert refused(coordinator.join, "site", coordinator.agreement, 2) == "bad_protocol"


def test_a_lapsed_token_can_be_renewed_and_a_lapsed_place_taken(tmp_path) -> None:
    clock = Clock()
    coordinator = joined(opened(tmp_path, clock, lease_hours=2.0), 3)
    clock.now += 1.5 * HOUR
    coordinator.authenticate(TOKENS[0])
    coordinator.upload_transitions(2, 4, transitions(2.0))
    clock.now += HOUR
    assert coordinator.authenticate(TOKENS[0]) == 0
    assert refused(coordinator.authenticate, TOKENS[1]) == "expired"
    assert join(coordinator, 1).returning and coordinator.authenticate(TOKENS[1]) == 1
    successor = join(coordinator, 3)
    assert (successor.place, successor.next_seq, successor.returning) == (2, 5, False)
    assert refused(coordinator.authenticate, TOKENS[2]) == "unauthorised"
    clock.now += 3 * HOUR
    assert join(coordinator, 0, token=TOKENS[1]).returning is False
    assert refused(coordinator.authenticate, TOKENS[0]) == "unauthorised"


def test_a_lapsed_client_is_not_waited_for(tmp_path) -> None:
    clock = Clock()
    coordinator = joined(opened(tmp_path, clock, lease_hours=2.0), 3)
    clock.now += 1.5 * HOUR
    for place in (0, 1):
        coordinator.authenticate(TOKENS[place])
        assert not coordinator.upload_weights(place, 0, parameters(2.0))["due"]
    clock.now += HOUR
    closed = coordinator.close_due()
    assert closed is not None and closed.arrived == (0, 1)


def test_the_first_round_waits_for_all_agents(tmp_path) -> None:
    coordinator = joined(opened(tmp_path), 2)
    for place in (0, 1):
        assert not coordinator.upload_weights(place, 0, parameters(2.0))["due"]
    join(coordinator, 2)
    assert coordinator.upload_weights(2, 0, parameters(2.0))["due"]


def test_uploads_again(tmp_path) -> None:
    coordinator = joined(opened(tmp_path), 3)
    first, second = parameters(2.0), parameters(3.0)
    assert coordinator.upload_weights(0, 0, first)["duplicate"] is False
    assert coordinator.upload_weights(0, 0, first) == {"round": 0, "duplicate": True, "ticks": 0, "due": False}
    assert coordinator.upload_weights(0, 0, second) == {"round": 0, "duplicate": False, "ticks": 1, "due": False}
    for place in (1, 2):
        coordinator.upload_weights(place, 0, second)
    # frozen: it closes with what it became due with
    assert refused(coordinator.upload_weights, 0, 0, first) == "round_closing"
    assert coordinator.upload_weights(0, 0, second) == {"round": 0, "duplicate": True, "ticks": 1, "due": True}
    coordinator.close_due()
    np.testing.assert_array_equal(held(coordinator), 3.0)
    assert refused(coordinator.upload_weights, 0, 0, second) == "stale_round"
    assert refused(coordinator.upload_weights, 0, 2, second) == "future_round"


def test_a_quorum_goes_on_without_a_slow_client_once_the_deadline_has_passed(tmp_path) -> None:
    coordinator = joined(opened(tmp_path, quorum=2, deadline=2, absent_after=2), 3)
    for rounds in (0, 1):
        coordinator.upload_weights(0, rounds, parameters(2.0))
        for tick in range(4):
            # a quorum is needed whatever the ticks
            assert not coordinator.upload_weights(0, rounds, parameters(3.0 + tick))["due"]
        assert coordinator.upload_weights(1, rounds, parameters(2.0))["due"]
        closed = coordinator.close_due()
        assert closed is not None and closed.arrived == (0, 1)
        assert refused(coordinator.upload_weights, 2, rounds, parameters(2.0)) == "stale_round"
    # missed twice: no longer waited for
    assert [client["expected"] for client in coordinator.status()["clients"]] == [True, True, False]
    assert [client["staleness"] for client in coordinator.status()["clients"]] == [0, 0, 2]
    np.testing.assert_array_equal(held(coordinator, 2), 1.0)
    coordinator.upload_weights(0, 2, parameters(2.0))
    assert coordinator.upload_weights(1, 2, parameters(2.0))["due"]
    coordinator.close_due()
    # it is back: expected from the next round on
    coordinator.upload_weights(2, 3, parameters(2.0))
    coordinator.upload_weights(0, 3, parameters(2.0))
    coordinator.upload_weights(1, 3, parameters(2.0))
    coordinator.close_due()
    coordinator.upload_weights(0, 4, parameters(2.0))
    assert not coordinator.upload_weights(1, 4, parameters(2.0))["due"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"quorum": 4}, "quorum 4"),
        ({"deadline": 1}, "deadline 1"),
        ({"absent_after": 0}, "absent_after 0"),
        ({"max_backlog": 2000}, "max_backlog 2000"),
        ({"lease_hours": 0.0}, "lease_hours"),
    ],
)
def test_settings_that_cannot_be(tmp_path, options: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        opened(tmp_path, **options)


def test_steps_of_no_precedent_are_refused(tmp_path) -> None:
    coordinator = joined(opened(tmp_path, half=FakeHalf(agents=4, start=0.5)), 4)
    body = parameters(500.0)
    assert refused(coordinator.upload_weights, 0, 0, body) == "norm"
    for rounds in range(2):
        for place in range(4):
            coordinator.upload_weights(place, rounds, parameters(0.5 + 0.001 * (rounds + 1) * place))
        coordinator.close_due()
    # within the first bound, but a thousand times what is usual
    moved = held(coordinator) + np.float32(1.0)
    assert refused(coordinator.upload_weights, 0, 2, parameters(moved)) == "norm"
    assert coordinator.upload_weights(0, 2, parameters(held(coordinator) + np.float32(0.05)))["ticks"] == 0
    killed(coordinator)
    coordinator = opened(tmp_path, half=FakeHalf(agents=4, start=0.5))
    assert refused(coordinator.upload_weights, 1, 2, parameters(moved)) == "norm"
    coordinator.close()
    coordinator = opened(tmp_path, half=FakeHalf(agents=4, start=0.5), max_norm_factor=0.0)
    assert coordinator.upload_weights(1, 2, body)["duplicate"] is False


def test_experience_waits_for_the_next_rounds(tmp_path) -> None:
    coordinator = joined(opened(tmp_path, max_backlog=2), 3)
    for seq in (0, 1):
        assert coordinator.upload_transitions(0, seq, transitions(seq + 1.0)) == {
            "seq": seq,
            "duplicate": False,
            "next_seq": seq + 1,
        }
    assert coordinator.upload_transitions(0, 0, transitions(1.0))["duplicate"] is True
    assert refused(coordinator.upload_transitions, 0, 2, transitions(3.0)) == "backlog"
    coordinator.upload_transitions(2, 3, transitions(10.0))
    for rounds, memory in ((0, 0.7 * 2.0 + 20.0), (1, 0.7 * (0.7 * 2.0 + 20.0) + 4.0)):
        for place in range(3):
            coordinator.upload_weights(place, rounds, parameters(1.0))
        coordinator.close_due()
        np.testing.assert_allclose(coordinator._state["memory"], memory, rtol=1e-6)
    assert [client["gaps"] for client in coordinator.status()["clients"]] == [0, 0, 3]
    assert coordinator.upload_transitions(2, 3, transitions(10.0))["duplicate"] is True
    assert coordinator.upload_transitions(2, 1, transitions(9.0)) == {"seq": 1, "duplicate": False, "next_seq": 4}


def test_experience_stays_with_a_client_where_it_is_not_pooled(tmp_path) -> None:
    coordinator = joined(opened(tmp_path, half=FakeHalf(pools=False)), 3)
    assert refused(coordinator.upload_transitions, 0, 0, transitions(1.0)) == "not_pooled"
    for place in range(3):
        coordinator.upload_weights(place, 0, parameters(2.0))
    closed = coordinator.close_due()
    assert closed is not None and closed.pooled == 0
