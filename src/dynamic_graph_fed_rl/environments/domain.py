"""What a domain gives to an experiment: environments to train and evaluate in, and what people use today."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jaxtyping import Array, PyTree

from dynamic_graph_fed_rl.environments.base import Controller, Environment
from dynamic_graph_fed_rl.environments.spec import Metric

if TYPE_CHECKING:
    from rich.console import Console

Play = Callable[[Controller, Environment], Iterator[tuple[PyTree, dict[str, Array]]]]
"""Plays the evaluation's episodes: after each decision the states of all worlds and their metrics."""


@runtime_checkable
class Advice(Protocol):
    """Advisory use of a policy: one snapshot of the real thing in, advised actions out."""

    def example(self) -> dict[str, Any]:
        """A valid snapshot."""
        ...

    def advise(self, policy: Controller, snapshot: Any) -> dict[str, Any]:
        """What the policy would do, in plain numbers; `snapshot` is any JSON.

        Raises:
            ValueError: naming the entry of the snapshot and what would be right.
        """
        ...

    def render(self, advice: Mapping[str, Any], console: "Console") -> None:
        """Print what `advise` returned for people."""
        ...


@runtime_checkable
class Simulator(Protocol):
    """An independent simulator of the real thing, in which what was learned must hold as well."""

    @property
    def name(self) -> str: ...

    @property
    def metrics(self) -> tuple[Metric, ...]: ...

    @property
    def headline(self) -> str: ...

    def controllers(self, policy: Controller) -> Mapping[str, Callable[[int], dict[str, float]]]:
        """The policy and the baselines by name: each plays an episode from its seed and returns its metrics."""
        ...

    def disturbed(self, parts: Sequence[str], from_s: float, until_s: float) -> "Simulator":
        """The same while these parts of the network are out; its metrics also tell what that costs."""
        ...


@dataclass(frozen=True)
class Domain:
    """One configured domain.

    `training` is stacked over `owners` where each has a world of its own. `scenarios` are the environments of
    evaluation by name; `baselines` make a controller for one of them. `idle` and `references` name the
    baselines between which the score is drawn: 0 is `idle`, 100 the best of the others but those in
    `references`.
    `simulator` plays the same controllers elsewhere. `illustrate(folder, policy, play)` saves what the report
    draws. `help` has a line for each scenario and baseline.
    """

    training: Environment
    owners: int | None
    scenarios: Mapping[str, Environment]
    baselines: Mapping[str, Callable[[Environment], Controller]]
    idle: str
    references: tuple[str, ...] = ()
    illustrate: Callable[[Path, Controller, Play], None] | None = None
    advice: Advice | None = None
    simulator: Simulator | None = None
    help: Mapping[str, str] = field(default_factory=dict)
