"""What the coordinator needs of the learning side: a few pure functions, which `training/` provides."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dynamic_graph_fed_rl.deployment.wire import Schema

Batch = Mapping[str, np.ndarray]


@runtime_checkable
class ServerSide(Protocol):
    """The server's half of a round as pure functions over a pytree of arrays.

    `agents` places, A; `rows` numbers in a parameter vector, P; `pools` says whether experience is uploaded.
    """

    @property
    def agents(self) -> int: ...

    @property
    def rows(self) -> int: ...

    @property
    def pools(self) -> bool: ...

    @property
    def parameters_schema(self) -> Schema:
        """`wire.parameters_schema(rows, title)`, whose title tells networks of the same size apart."""
        ...

    @property
    def experience_schema(self) -> Schema | None:
        """What a client uploads of its experience; None if experience is not pooled."""
        ...

    def init(self) -> PyTree:
        """The state that round 0 begins with."""
        ...

    def held(self, state: PyTree) -> Float[Array, "agents rows"] | Float[np.ndarray, "agents rows"]:
        """What the agent at each place goes on with."""
        ...

    def decode(self, batches: Sequence[Batch | None]) -> PyTree:
        """The experience for `close` from one upload a place; None where there is none."""
        ...

    def close(
        self,
        state: PyTree,
        own: Float[np.ndarray, "agents rows"],
        arrived: Bool[np.ndarray, " agents"],
        experience: PyTree,
    ) -> tuple[PyTree, Mapping[str, Any]]:
        """The next round's state and a report of numbers; rows of `own` that have not arrived are what is held."""
        ...
