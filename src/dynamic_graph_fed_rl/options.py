"""The options of each command as dataclasses: a field's docstring is its help. Imports tyro, not jax."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from dynamic_graph_fed_rl.deployment.peer_settings import PeerSettings
from dynamic_graph_fed_rl.deployment.settings import ClientSettings, ServerSettings
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
class Listening(ServerSettings):
    """Where a server listens, when its rounds close, and what it refuses."""

    # a command line can be read by everybody on the machine
    join_token: tyro.conf.Suppress[str] = ""


@dataclass(frozen=True)
class Serve:
    """Be the server of a federation whose agents are processes of their own, which come by `dgfrl join`."""

    settings: Settings
    server: Listening = field(default_factory=Listening)
    config: Path | None = None
    """YAML file of fields of the experiment; options given beside it take precedence."""
    state: Path | None = None
    """Folder of what must survive a kill, and of the run; one that is there already goes on. Default:
    runs/ENV-<n>, the next free one."""
    join_token_file: Path | None = None
    """File with the secret that clients must show to join; default: the environment's DGFRL_JOIN_TOKEN, or none."""
    dev: bool = False
    """Also start the clients, on this machine, and end when all rounds are done."""


@dataclass(frozen=True)
class Join:
    """Be a client of a federation: learn here, exchange with the server at URL, until its rounds are done."""

    url: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="URL")]
    """Address of the server, such as http://127.0.0.1:5050."""
    client: ClientSettings = field(default_factory=ClientSettings)


@dataclass(frozen=True)
class Peer:
    """Be one of several nodes without a server: learn here and average with neighbours."""

    settings: Settings
    peer: PeerSettings = field(default_factory=PeerSettings)
    config: Path | None = None
    """YAML file of fields of the experiment; options given beside it take precedence."""


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
    in_sumo: bool = False
    """Run the policy unchanged in SUMO, beside every baseline, on SUMO's seeds of these numbers (traffic)."""
    close: tuple[str, ...] = ()
    """With --in-sumo: edges to close for a while; every hour is played with and without that."""
    close_from_s: float = 900.0
    """From then on [s since the episode began]."""
    close_until_s: float = 1500.0
    """Until then [s]."""
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
