"""Averaging loses and doubles no mass, in whatever order messages and answers arrive, are lost or repeated."""

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.gossiping import (
    METHODS,
    SUM,
    WEIGHT,
    Averaging,
    Declined,
    Limits,
    Pairwise,
    PushSum,
)
from dynamic_graph_fed_rl.deployment.node import Node
from dynamic_graph_fed_rl.deployment.store import NotStored
from dynamic_graph_fed_rl.deployment.wire import Refused

ANY = Limits(0.0)
NAMES = "abcd"
# whole numbers, of which every half, mean and rounded message stays exact in double precision over a short run
STARTS = {"a": [1024.0, -3.0], "b": [7.0, 501.0], "c": [-96.0, 33.0], "d": [2.0, 1.0]}


@dataclass
class Network:
    """Nodes by name, and all messages and answers that ever left one and may still arrive, again and again."""

    nodes: dict[str, Averaging]
    messages: list[tuple[str, str, int, dict]] = field(default_factory=list)
    answers: list[tuple[str, str, int, dict]] = field(default_factory=list)

    @staticmethod
    def of(method: str, names: str = NAMES) -> "Network":
        return Network({name: METHODS[method](np.asarray(STARTS[name])) for name in names})

    def offer(self, sender: str, to: str, arrives: bool = True) -> int | None:
        """Send; the message may be lost, but nobody knows."""
        self.nodes[sender], one, arrays = self.nodes[sender].offered(to)
        if one is None:
            return None
        if arrives:
            self.messages.append((sender, to, one.number, dict(arrays)))
        self.nodes[sender] = self.nodes[sender].failed(to, one.number, certain=False)
        return one.number

    def unconnected(self, sender: str, to: str) -> None:
        """Try to send, without a connection."""
        self.nodes[sender], one, _ = self.nodes[sender].offered(to)
        if one is not None:
            self.nodes[sender] = self.nodes[sender].failed(to, one.number, certain=True)

    def deliver(self, message: tuple[str, str, int, dict]) -> None:
        sender, to, number, arrays = message
        self.nodes[to], answer = self.nodes[to].received(sender, number, arrays, ANY)
        self.answers.append((sender, to, number, dict(answer.arrays)))

    def answer(self, answer: tuple[str, str, int, dict]) -> None:
        sender, to, number, arrays = answer
        self.nodes[sender] = self.nodes[sender].answered(to, number, arrays, ANY)

    def restart(self, name: str) -> None:
        node = self.nodes[name]
        self.nodes[name] = type(node).restored(*node.stored())

    def settle(self, names: str) -> None:
        """Everything that is open is sent again, arrives and is answered."""
        for sender in names:
            for to in list(self.nodes[sender].open):
                if to in names:
                    self.offer(sender, to)
                    self.deliver(self.messages[-1])
                    self.answer(self.answers[-1])

    def total(self, names: str, dead: str = "") -> list[Fraction]:
        """Sum and weight of these nodes and of what is reserved by them, exactly.

        Under push-sum a half counts until its recipient has it; under pairwise averaging a change that was decided
        counts for the one that waits for it.
        """
        values: list[np.ndarray] = []
        for name in names:
            node = self.nodes[name]
            values.append(np.append(node.vector, node.mass))
            for to, one in node.open.items():
                there = to in names and self.nodes[to].known(name, one.number)
                if isinstance(node, PushSum) and (to in dead or (to in names and not there)):
                    values.append(np.append(one.arrays[SUM], one.arrays[WEIGHT]))
                elif isinstance(node, Pairwise) and there:
                    values.append(np.append(self.nodes[to].given[name][1], 0.0))
        columns = np.stack(values).T.tolist()
        return [sum(map(Fraction, column), Fraction(0)) for column in columns]

    def lose(self, name: str) -> None:
        """A node is gone for good, with all that it had sent and nobody has seen yet."""
        self.messages = [one for one in self.messages if one[0] != name]
        self.answers = [one for one in self.answers if one[1] != name]


steps = st.lists(
    st.tuples(
        st.sampled_from(["offer", "lost", "unconnected", "deliver", "answer", "restart"]),
        st.integers(0, 3),
        st.integers(1, 3),
        st.integers(0, 10_000),
    ),
    max_size=30,
)


def play(network: Network, steps: list, names: str = NAMES) -> None:
    """Any of the things that can happen to messages; what arrives may be old or have arrived before."""
    for step, who, further, pick in steps:
        sender = names[who % len(names)]
        to = NAMES[(NAMES.index(sender) + further) % len(NAMES)]
        if step in ("offer", "lost"):
            network.offer(sender, to, arrives=step == "offer")
        elif step == "unconnected":
            network.unconnected(sender, to)
        elif step == "restart":
            network.restart(sender)
        elif step == "deliver":
            messages = [one for one in network.messages if one[1] in names]
            if messages:
                network.deliver(messages[pick % len(messages)])
        else:
            answers = [one for one in network.answers if one[0] in names]
            if answers:
                network.answer(answers[pick % len(answers)])


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=150)
@given(steps=steps)
def test_mass_is_conserved_exactly_whatever_happens_to_messages(method: str, steps: list) -> None:
    network = Network.of(method)
    before = network.total(NAMES)
    for step in steps:
        play(network, [step])
        assert network.total(NAMES) == before
    network.settle(NAMES)
    assert network.total(NAMES) == before
    assert all(not node.open for node in network.nodes.values()), "once all answer, nothing is reserved"


@settings(max_examples=100)
@given(early=steps, late=steps)
def test_the_loss_of_a_node_takes_its_own_mass_and_no_more(early: list, late: list) -> None:
    network, survivors = Network.of("push-sum"), "abc"
    play(network, early)
    network.lose("d")
    before = network.total(survivors, dead="d")
    play(network, late, survivors)
    network.settle(survivors)
    assert network.total(survivors, dead="d") == before
    weight = sum(network.nodes[name].mass + network.nodes[name].reserved for name in survivors)
    assert Fraction(weight) == before[-1], "the state says what is reserved"


@settings(max_examples=100)
@given(early=steps, late=steps)
def test_pairwise_nothing_goes_wrong_after_the_loss_of_a_node(early: list, late: list) -> None:
    network, survivors = Network.of("pairwise"), "abc"
    play(network, early)
    network.lose("d")
    before = network.total(survivors)
    play(network, late, survivors)
    network.settle(survivors)
    assert network.total(survivors) == before


def test_pairwise_two_go_on_with_their_mean() -> None:
    network = Network.of("pairwise", "ab")
    network.offer("a", "b")
    network.deliver(network.messages[0])
    network.answer(network.answers[0])
    for name in "ab":
        np.testing.assert_array_equal(network.nodes[name].estimate, [515.5, 249.0])


def test_pairwise_a_late_answer_moves_by_what_was_decided() -> None:
    network = Network.of("pairwise", "ab")
    network.offer("a", "b")
    network.deliver(network.messages[0])
    network.nodes["a"] = network.nodes["a"].learned(np.asarray([0.0, 8.0]))
    network.restart("a")
    network.offer("a", "b")
    network.deliver(network.messages[-1])
    network.answer(network.answers[-1])
    network.answer(network.answers[0])
    np.testing.assert_array_equal(network.nodes["a"].estimate, [515.5, 257.0])
    np.testing.assert_array_equal(network.nodes["b"].estimate, [515.5, 249.0])


def test_push_sum_learning_moves_the_estimate_by_as_much_whatever_its_weight() -> None:
    node = PushSum(np.asarray([4.0, 8.0]))
    node, _, _ = node.offered("b")
    assert node.mass == 0.5 and node.reserved == 0.5
    np.testing.assert_array_equal(node.estimate, [4.0, 8.0])
    np.testing.assert_array_equal(node.learned(np.asarray([1.0, -1.0])).estimate, [5.0, 7.0])


def test_a_half_goes_back_only_where_no_attempt_can_have_arrived() -> None:
    node = PushSum(np.asarray([4.0, 8.0]))
    half, one, _ = node.offered("b")
    assert one is not None
    back = half.failed("b", one.number, certain=True)
    assert back.mass == 1.0 and not back.open
    doubted = half.failed("b", one.number, certain=False).failed("b", one.number, certain=True)
    assert doubted.mass == 0.5 and doubted.open["b"].number == one.number
    again = type(node).restored(*half.stored()).failed("b", one.number, certain=True)
    assert again.mass == 0.5, "killed before it knew whether the half had left"


def test_a_node_that_nobody_sends_to_keeps_parameters_to_go_on_with() -> None:
    node: Averaging = PushSum(np.asarray([1.0, 1e-3, -1e4]))
    for turn in range(200):
        node, one, _ = node.offered(str(turn))
        assert (one is None) == (turn >= 32)
    np.testing.assert_allclose(node.estimate, [1.0, 1e-3, -1e4], rtol=1e-6)


def average(method: str, neighbours: dict[str, str], rounds: int, plain: bool = False) -> np.ndarray:
    """Estimates `[nodes, size]` after rounds in which every node sends to each of its neighbours."""
    network = Network.of(method)
    for _ in range(rounds):
        for sender in NAMES:
            for to in neighbours[sender]:
                if plain:
                    theirs, own = network.nodes[sender].estimate, network.nodes[to].estimate
                    network.nodes[to] = Pairwise((own + theirs) / 2)
                else:
                    network.offer(sender, to)
                    network.deliver(network.messages[-1])
                    network.answer(network.answers[-1])
    return np.stack([network.nodes[name].estimate for name in NAMES])


def test_a_directed_ring_reaches_the_true_mean_by_push_sum_and_not_by_plain_averaging() -> None:
    ring, mean = dict(zip("abcd", "bcda", strict=True)), np.mean(list(STARTS.values()), axis=0)
    np.testing.assert_allclose(average("push-sum", ring, 120), np.tile(mean, (4, 1)), rtol=1e-6)
    plain = average("pairwise", ring, 120, plain=True)
    np.testing.assert_allclose(plain, np.tile(plain[0], (4, 1)), rtol=1e-6)
    assert np.abs(plain[0] - mean).max() > 10, "they agree, on something else"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_far_away_is_refused_and_changes_nothing(method: str) -> None:
    node = METHODS[method](np.asarray([3.0, 4.0]))
    other, one, arrays = METHODS[method](np.asarray([3e4, 4e4])).offered("x")
    assert one is not None
    with pytest.raises(Refused, match="norm"):
        node.received("y", 0, arrays, Limits(100.0))
    node.received("y", 0, arrays, Limits(20_000.0))
    with pytest.raises(Refused, match="norm"):
        node.received("y", 0, {name: array * np.float32(1e30) for name, array in arrays.items()}, ANY)


@pytest.mark.parametrize("weight", [0.0, -0.5, 1e-12, 0.3, 6.0])
def test_a_weight_must_be_a_share_of_what_there_is(weight: float) -> None:
    arrays = {SUM: np.zeros(2, np.float32), WEIGHT: np.asarray([weight])}
    with pytest.raises(Refused, match="weight"):
        PushSum(np.zeros(2)).received("y", 0, arrays, Limits(100.0, weight=5.0))


def offered(node: Node, to: Node) -> tuple[int, bytes]:
    found = node.offer(to.incarnation)
    assert found is not None
    return found[0], wire.pack(found[1])


@pytest.mark.parametrize("method", METHODS)
def test_a_node_killed_between_sending_and_answer_counts_nothing_twice(method: str, tmp_path: Path) -> None:
    """Also its recipient is killed, between taking in and answering."""
    first, second = np.asarray([8.0, 0.0]), np.asarray([0.0, 2.0])
    one, two = Node(method, first, 0, folder=tmp_path / "one"), Node(method, second, 1, folder=tmp_path / "two")
    number, body = offered(one, two)
    assert not two.receive(one.incarnation, number, two.incarnation, two.agreement, body).duplicate
    names = one.incarnation, two.incarnation
    one.close()
    two.close()
    one, two = (
        Node(method, 0 * first, 0, folder=tmp_path / "one"),
        Node(method, 0 * second, 1, folder=tmp_path / "two"),
    )
    assert (one.incarnation, two.incarnation) == names
    again, body = offered(one, two)
    assert again == number
    answer = two.receive(one.incarnation, number, two.incarnation, two.agreement, body)
    assert answer.duplicate
    one.answered(two.incarnation, number, answer.arrays)
    total = one.state.vector + two.state.vector
    np.testing.assert_array_equal(total, [8.0, 2.0])
    assert one.state.mass + two.state.mass == 2.0 and not one.state.open
    one.close()
    two.close()


def test_a_disk_that_takes_nothing_leaves_a_node_as_it_was(tmp_path: Path) -> None:
    node, other = Node("push-sum", np.ones(3), 0, folder=tmp_path), Node("push-sum", np.zeros(3), 1)
    number, body = offered(other, node)
    node._ledger._database.execute("PRAGMA query_only = 1")
    with pytest.raises(NotStored):
        node.receive(other.incarnation, number, node.incarnation, node.agreement, body)
    assert node.state.mass == 1.0 and node.trouble
    with pytest.raises(NotStored):
        node.offer(other.incarnation)
    assert node.state.mass == 1.0
    node._ledger._database.execute("PRAGMA query_only = 0")
    assert not node.receive(other.incarnation, number, node.incarnation, node.agreement, body).duplicate
    assert node.state.mass == 1.5 and node.trouble is None
    node.close()
    other.close()


def test_a_node_that_waits_for_an_answer_declines_proposals_and_repeats_its_own_answers() -> None:
    one, two = Node("pairwise", np.zeros(2), 0), Node("pairwise", np.ones(2), 1)
    number, body = offered(one, two)
    answer = two.receive(one.incarnation, number, two.incarnation, two.agreement, body)
    crossing, other_body = offered(two, one)
    with pytest.raises(Declined, match="busy"):
        one.receive(two.incarnation, crossing, one.incarnation, one.agreement, other_body)
    two.failed(one.incarnation, crossing, certain=True)
    repeated = two.receive(one.incarnation, number, two.incarnation, two.agreement, body)
    assert repeated.duplicate and (repeated.arrays["change"] == answer.arrays["change"]).all()
    one.answered(two.incarnation, number, answer.arrays)
    np.testing.assert_array_equal(one.estimate, two.estimate)
    assert not one.state.open and not two.state.open
    one.close()
    two.close()


def test_a_message_for_the_node_that_was_here_before_is_declined() -> None:
    one, two = Node("push-sum", np.zeros(2), 0), Node("push-sum", np.ones(2), 1)
    number, body = offered(one, two)
    with pytest.raises(Declined, match="other_node"):
        two.receive(one.incarnation, number, "0" * 32, two.agreement, body)
    with pytest.raises(Refused, match="bad_schema"):
        two.receive(one.incarnation, number, two.incarnation, "other", body)
    assert two.state.mass == 1.0
    one.close()
    two.close()


def test_what_did_not_lead_to_numbers_is_not_learned() -> None:
    node = Node("push-sum", np.ones(2))
    assert not node.learned(node.estimate, np.asarray([np.nan, 1.0], np.float32))
    assert not node.learned(node.estimate, np.asarray([3e38, 1.0], np.float32))
    assert node.learned(node.estimate, np.asarray([2.0, 1.0], np.float32))
    np.testing.assert_array_equal(node.estimate, [2.0, 1.0])
    assert node.round == 3
    node.close()


def test_a_state_folder_has_one_node_at_a_time_and_always_the_same(tmp_path: Path) -> None:
    node = Node("push-sum", np.ones(2), 0, folder=tmp_path)
    with pytest.raises(ValueError, match="in use"):
        Node("push-sum", np.ones(2), 0, folder=tmp_path)
    node.close()
    for method, size, place in (("pairwise", 2, 0), ("push-sum", 3, 0), ("push-sum", 2, 1)):
        with pytest.raises(ValueError, match="another folder"):
            Node(method, np.ones(size), place, folder=tmp_path)
