"""The options of each command as dataclasses: a field's docstring is its help. Imports tyro, not jax."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from dynamic_graph_fed_rl.experiment import Experiment

Options = TypeVar("Options")


@dataclass(frozen=True)
class Settings(Experiment):
    """What to train, how, and for how long."""

    environment: tyro.conf.Suppress[str] = "power-grid"

    def __post_init__(self) -> None:
        """Checked by `experiment`, so that an error is said in one line instead of the parser's frame."""

    @staticmethod
    def of(experiment: Experiment) -> "Settings":
        return Settings(**_values(experiment))

    def experiment(self) -> Experiment:
        return Experiment(**_values(self))


def _values(experiment: Experiment) -> dict[str, Any]:
    return {one.name: getattr(experiment, one.name) for one in fields(experiment)}


@dataclass(frozen=True)
class Train:
    """Learn, evaluate on held-out seeds beside today's rules, and write a report into a run folder."""

    settings: Settings
    config: Path | None = None
    """YAML file of fields (all but these five); options given beside it take precedence."""
    out: Path | None = None
    """Run folder; default: runs/ENV-<n>, the next free one."""
    resume: bool = False
    """Go on with the run in the folder (without --out: the last of ENV) from its newest checkpoint."""
    keep: int = 3
    """Checkpoints kept."""
    checkpoint_every: int = 10
    """Rounds between checkpoints."""


@dataclass(frozen=True)
class Evaluate:
    """Compare a run's policy with every baseline, on seeds that training never drew."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    scenario: str | None = None
    """One scenario, also one that the run was not trained on; default: all of the run's."""
    seeds: int | None = None
    """Episodes a scenario; default: the run's."""
    first_seed: int | None = None
    """First of the seeds; default: the run's."""
    json: bool = False
    """Print what summary.json holds under evaluation, and nothing else."""


@dataclass(frozen=True)
class Act:
    """Advisory use beside an operator: one snapshot in, the advised set-points out, with what limits them.

    JSON where the output is not a terminal.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder."""
    input: str | None = None
    """Snapshot as JSON; - for standard input."""
    example: bool = False
    """Print a valid snapshot instead."""
    json: bool = False
    """Print JSON also on a terminal."""


@dataclass(frozen=True)
class PowerFlow:
    """Solve one grid case and print voltages, angles, flows, losses and the worst loading.

    Exit status 1 where it does not converge.
    """

    case: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CASE")]
    """Shipped case (ieee14, ieee30, ieee57, ieee118, ieee300) or a path to a MATPOWER .m file."""
    mode: Literal["newton", "ac", "dc"] = "newton"
    """Newton in double precision, the environments' fast-decoupled AC kernel, or the DC approximation."""
    outage: str = ""
    """Branches out of service: rows of the file, counted from 1, such as 7,12."""
    json: bool = False
    """Print JSON."""

    def outages(self) -> tuple[int, ...]:
        """
        Raises:
            ValueError: `outage` is not a list of whole numbers.
        """
        try:
            return tuple(int(word) for word in self.outage.split(",") if word.strip())
        except ValueError as error:
            raise ValueError(f"outage '{self.outage}': must be branch rows such as 7,12") from error


@dataclass(frozen=True)
class BenchmarkFederation:
    """Reproduce published results with the federation; `dgfrl benchmark` lists the parts and their bars.

    Prints one table and writes benchmarks/results/federation.json. Exit status 0 whatever passes.
    """

    parts: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[PART ...]")] = ()
    """Parts to run; default: all. Rows of other parts in the results stay as they are."""
    quick: bool = False
    """Smoke run: as little as shows that it works; writes federation-quick.json instead."""
    seeds: int | None = None
    """Independent repetitions; default: what the part needs."""


def parse(kind: type[Options], words: Sequence[str], command: str, default: Any = None) -> Options:
    """Options from the words of a command line, each under its own name whatever part it belongs to.

    Prints help, or what is wrong, and exits (0 and 2).
    """
    return tyro.cli(
        kind,
        args=list(words),
        prog=f"dgfrl {command}",
        default=default,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands, tyro.conf.FlagCreatePairsOff),
    )
