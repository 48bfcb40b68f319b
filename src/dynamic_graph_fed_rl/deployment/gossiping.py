"""How nodes without a server average: in pairs or by push-sum, so that nothing lost on the way biases the mean.

A state is a value: what happens to a node gives the state after it, which is stored before anybody is told. A node
that comes back does so in the state that it stored last, and repeats what was open under the same number. Messages
and answers travel in single precision, states are kept in double.

`Pairwise`: the recipient of a proposal decides half the difference of the two vectors, moves by it and keeps it
under the proposal's number; the proposer moves by its opposite when the answer arrives, however late, and asks again
until then. Only a proposer that never comes back leaves something behind: its partner has moved by one change.

`PushSum` (Kempe et al. 2003): a node halves its sum and its weight and sends one half; the recipient adds it once.
A half without an answer stays reserved for its recipient and goes back to its sender only where no attempt can have
arrived: taken back in doubt it could count twice. So it counts once or, if its recipient never returns, not at all.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.wire import ArraySpec, Refused, Schema

Arrays = Mapping[str, np.ndarray]
Vector = Float[np.ndarray, " size"]

STATUS = wire.STATUS | {"busy": 409, "other_node": 409}
"""Also why a node declines: it has a proposal of its own under way, or is not the one that is addressed."""

CHANGE, SUM, WEIGHT = "change", "sum", "weight"

LARGEST = 1e30
"""Parameters beyond this are as good as infinite: their sums could overflow in single precision."""

GRAIN = 2.0**-32
"""Every weight sent is a multiple, so that sums of up to 2^20 are exact in any order; the lightest has one."""


class Declined(Refused):
    """A message that this node does not take now; `reason` is a key of `STATUS`."""

    @property
    def status(self) -> int:
        return STATUS[self.reason]


@dataclass(frozen=True)
class Limits:
    """What is believed of others: parameters no further away than `norm_factor` times the norm of one's own (which
    counts as at least 1; 0: any), and a weight of at most `weight`."""

    norm_factor: float = 100.0
    weight: float = 2.0**20

    def check(self, difference: Vector, own: Vector) -> None:
        """
        Raises:
            Refused: norm.
        """
        far, most = float(np.linalg.norm(difference)), LARGEST
        if self.norm_factor:
            most = min(most, self.norm_factor * max(1.0, float(np.linalg.norm(own))))
        if not far <= most:
            raise Refused("norm", f"{far:.3g} away from this node's parameters; at most {most:.3g} is believed")


@dataclass(frozen=True)
class Open:
    """A message without an answer yet. `doubtful`: an attempt to send it may have arrived."""

    number: int
    arrays: Arrays = field(default_factory=dict)
    doubtful: bool = False


@dataclass(frozen=True)
class Answer:
    """What the sender gets; `duplicate` if its message had been received before."""

    arrays: Arrays
    duplicate: bool


@dataclass(frozen=True)
class Averaging(abc.ABC):
    """One node's part in averaging. Others are known by names that no two nodes ever share.

    `vector` is what it holds, `number` the last one given to a message, `open` by recipient.
    """

    vector: Vector
    number: int = -1
    open: Mapping[str, Open] = field(default_factory=dict)

    exclusive: ClassVar[bool]
    """Whether a node declines the messages of others while it waits for an answer."""

    @staticmethod
    @abc.abstractmethod
    def sends(size: int, title: str) -> Schema:
        """The form of a message between nodes of `size` parameters."""

    @staticmethod
    @abc.abstractmethod
    def answers(size: int) -> Schema | None:
        """The form of an answer; None where a receipt suffices."""

    @property
    @abc.abstractmethod
    def estimate(self) -> Vector:
        """The parameters to go on with."""

    @property
    @abc.abstractmethod
    def mass(self) -> float:
        """How much this node counts in the mean."""

    @property
    def reserved(self) -> float:
        """How much of the mean is in messages without an answer."""
        return 0.0

    @abc.abstractmethod
    def learned(self, change: Vector) -> "Averaging":
        """The estimate moves by what the node has learned."""

    @abc.abstractmethod
    def offered(self, to: str) -> tuple["Averaging", Open | None, Arrays]:
        """A message to a neighbour: what is open, again, or a new one; None if it has none to give."""

    @abc.abstractmethod
    def known(self, sender: str, number: int) -> bool:
        """Whether this message, or a later one, has been received."""

    @abc.abstractmethod
    def senders(self) -> int:
        """How many have ever sent a message."""

    @abc.abstractmethod
    def received(self, sender: str, number: int, arrays: Arrays, limits: Limits) -> tuple["Averaging", Answer]:
        """Takes a message in, once.

        Raises:
            Refused: norm.
        """

    @abc.abstractmethod
    def answered(self, to: str, number: int, arrays: Arrays, limits: Limits) -> "Averaging":
        """An answer has arrived; nothing happens if it did before.

        Raises:
            Refused: norm.
        """

    def failed(self, to: str, number: int, certain: bool) -> "Averaging":
        """An attempt has failed; `certain` if it cannot have been taken in. Without doubt left it is undone."""
        one = self.open.get(to)
        if one is None or one.number != number:
            return self
        if certain and not one.doubtful:
            return self._undone(to, one)
        return replace(self, open={**self.open, to: replace(one, doubtful=True)})

    @abc.abstractmethod
    def _undone(self, to: str, one: Open) -> "Averaging": ...

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and facts that `restored` makes the same state of, but that what is open is then doubtful."""
        arrays = {"vector": self.vector}
        for to, one in self.open.items():
            arrays |= {f"open/{to}/{name}": array for name, array in one.arrays.items()}
        return arrays, {"number": self.number, "open": {to: one.number for to, one in self.open.items()}}

    @staticmethod
    def _opened(arrays: Arrays, facts: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Open]:
        return {
            to: Open(number, {name: arrays[f"open/{to}/{name}"] for name in names}, doubtful=True)
            for to, number in facts["open"].items()
        }


@dataclass(frozen=True)
class Pairwise(Averaging):
    """Two nodes at a time go on with their mean. `given` is the last change decided for each proposer."""

    given: Mapping[str, tuple[int, np.ndarray]] = field(default_factory=dict)

    exclusive: ClassVar[bool] = True

    @staticmethod
    def sends(size: int, title: str) -> Schema:
        return wire.parameters_schema(size, f"pairwise {title}")

    @staticmethod
    def answers(size: int) -> Schema | None:
        return Schema("change", (ArraySpec(CHANGE, (size,), "float32"),))

    @property
    def estimate(self) -> Vector:
        return self.vector

    @property
    def mass(self) -> float:
        return 1.0

    def learned(self, change: Vector) -> "Pairwise":
        return replace(self, vector=self.vector + change)

    def offered(self, to: str) -> tuple["Pairwise", Open | None, Arrays]:
        # also when repeated with what is held now: the recipient answers what it decided first, if it did
        body = {wire.PARAMETERS: self.vector.astype(np.float32)}
        if to in self.open:
            return self, self.open[to], body
        one = Open(self.number + 1)
        return replace(self, number=one.number, open={**self.open, to: one}), one, body

    def known(self, sender: str, number: int) -> bool:
        return sender in self.given and number <= self.given[sender][0]

    def senders(self) -> int:
        return len(self.given)

    def received(self, sender: str, number: int, arrays: Arrays, limits: Limits) -> tuple["Pairwise", Answer]:
        if self.known(sender, number):
            # a proposer that has gone on to a later message does not listen to this answer any more
            return self, Answer({CHANGE: self.given[sender][1]}, True)
        difference = self.vector - arrays[wire.PARAMETERS]
        limits.check(difference, self.vector)
        change = (difference / 2).astype(np.float32)
        given = {**self.given, sender: (number, change)}
        return replace(self, vector=self.vector - change, given=given), Answer({CHANGE: change}, False)

    def answered(self, to: str, number: int, arrays: Arrays, limits: Limits) -> "Pairwise":
        one = self.open.get(to)
        if one is None or one.number != number:
            return self
        limits.check(arrays[CHANGE].astype(np.float64), self.vector)
        return replace(self, vector=self.vector + arrays[CHANGE], open=_without(self.open, to))

    def _undone(self, to: str, one: Open) -> "Pairwise":
        return replace(self, open=_without(self.open, to))

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, facts = super().stored()
        arrays |= {f"given/{sender}": change for sender, (_, change) in self.given.items()}
        return arrays, facts | {"given": {sender: number for sender, (number, _) in self.given.items()}}

    @staticmethod
    def restored(arrays: Arrays, facts: Mapping[str, Any]) -> "Pairwise":
        given = {sender: (number, arrays[f"given/{sender}"]) for sender, number in facts["given"].items()}
        return Pairwise(arrays["vector"], facts["number"], Averaging._opened(arrays, facts, ()), given)


@dataclass(frozen=True)
class PushSum(Averaging):
    """`vector` is a sum of parameters, `weight` how many it is the sum of; `taken` the last number of each sender.

    What a node learns moves its estimate by as much, so it counts in the mean by the weight held at that moment.
    Sums travel in single precision and what rounding leaves stays with the sender, so that no mass is lost to it.
    """

    weight: float = 1.0
    taken: Mapping[str, int] = field(default_factory=dict)

    exclusive: ClassVar[bool] = False

    @staticmethod
    def sends(size: int, title: str) -> Schema:
        return Schema(f"push-sum {title}", (ArraySpec(SUM, (size,), "float32"), ArraySpec(WEIGHT, (1,), "float64")))

    @staticmethod
    def answers(size: int) -> Schema | None:
        return None

    @property
    def estimate(self) -> Vector:
        return self.vector / self.weight

    @property
    def mass(self) -> float:
        return self.weight

    @property
    def reserved(self) -> float:
        return sum((float(one.arrays[WEIGHT][0]) for one in self.open.values()), 0.0)

    def learned(self, change: Vector) -> "PushSum":
        return replace(self, vector=self.vector + self.weight * change)

    def offered(self, to: str) -> tuple["PushSum", Open | None, Arrays]:
        if to in self.open:
            return self, self.open[to], self.open[to].arrays
        # a node that nobody sends to has, in the end, nothing more to give
        weight = np.floor(self.weight / (2 * GRAIN)) * GRAIN
        if weight < GRAIN:
            return self, None, {}
        half = (self.vector * (weight / self.weight)).astype(np.float32)
        one = Open(self.number + 1, {SUM: half, WEIGHT: np.asarray([weight])})
        after = replace(
            self,
            vector=self.vector - half,
            weight=self.weight - weight,
            number=one.number,
            open={**self.open, to: one},
        )
        return after, one, one.arrays

    def known(self, sender: str, number: int) -> bool:
        return number <= self.taken.get(sender, -1)

    def senders(self) -> int:
        return len(self.taken)

    def received(self, sender: str, number: int, arrays: Arrays, limits: Limits) -> tuple["PushSum", Answer]:
        if self.known(sender, number):
            return self, Answer({}, True)
        weight = float(arrays[WEIGHT][0])
        if not GRAIN <= weight <= limits.weight or weight % GRAIN:
            raise Refused("norm", f"weight {weight:.3g}: must be a multiple of 2^-32, at most {limits.weight:.3g}")
        limits.check(arrays[SUM] / weight - self.estimate, self.estimate)
        taken = {**self.taken, sender: number}
        return self._with(arrays, taken=taken), Answer({}, False)

    def answered(self, to: str, number: int, arrays: Arrays, limits: Limits) -> "PushSum":
        one = self.open.get(to)
        return self if one is None or one.number != number else replace(self, open=_without(self.open, to))

    def _undone(self, to: str, one: Open) -> "PushSum":
        return self._with(one.arrays, open=_without(self.open, to))

    def _with(self, half: Arrays, **others: Any) -> "PushSum":
        return replace(self, vector=self.vector + half[SUM], weight=self.weight + float(half[WEIGHT][0]), **others)

    def stored(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays, facts = super().stored()
        return arrays, facts | {"weight": self.weight, "taken": dict(self.taken)}

    @staticmethod
    def restored(arrays: Arrays, facts: Mapping[str, Any]) -> "PushSum":
        opened = Averaging._opened(arrays, facts, (SUM, WEIGHT))
        return PushSum(arrays["vector"], facts["number"], opened, facts["weight"], facts["taken"])


METHODS: dict[str, type[Pairwise] | type[PushSum]] = {"pairwise": Pairwise, "push-sum": PushSum}


def _without(table: Mapping[str, Open], name: str) -> dict[str, Open]:
    return {other: one for other, one in table.items() if other != name}
