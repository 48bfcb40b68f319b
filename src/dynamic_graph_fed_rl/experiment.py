"""A run's typed configuration, and from it the environment, algorithm, federation and trainer.

The dataclass and its YAML live without jax, so that the command line answers quickly; `build` imports it.
"""

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import yaml

from dynamic_graph_fed_rl.algorithms.settings import ALGORITHMS, PPOSettings
from dynamic_graph_fed_rl.environments.cartpole.settings import CartPoleSettings
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.environments.domain import Domain
    from dynamic_graph_fed_rl.training.trainer import Trainer

FEDERATIONS = {
    "server": "a server averages the agents' updates after every round and sends the result to all",
    "gossip": "no server: each agent averages with the neighbours that the overlay gives it",
    "independent": "agents keep what they learn to themselves",
    "centralised": "one learner sees and controls the whole network (no federation; for comparison)",
}


@dataclass(frozen=True)
class Experiment:
    """What to train, how, and for how long."""

    settings: PowerGridSettings | CartPoleSettings = field(default_factory=PowerGridSettings)
    learning: PPOSettings = field(default_factory=PPOSettings)
    environment: str = "power-grid"
    """Environment (`dgfrl list`)."""
    algorithm: Literal["ppo"] = "ppo"
    """How each agent learns."""
    federation: Literal["server", "gossip", "independent", "centralised"] = "server"
    """How agents share what they learn."""
    overlay: Literal["complete", "ring", "random"] = "ring"
    """Who hears whom under gossip."""
    aggregator: Literal["mean"] = "mean"
    """Rule that turns the received updates into one."""
    agents: int = 4
    """Learners; on a shared network also the number of its regions."""
    rounds: int = 240
    """Rounds of local learning, each followed by an exchange."""
    decisions_per_round: int = 16
    """Decisions in every world between two exchanges."""
    worlds: int = 64
    """Copies of the world that each agent learns from at once."""
    seed: int = 0
    """Seed of everything random in training; evaluation draws from a range of its own."""
    agent_map: Literal["vmap", "map"] = "vmap"
    """Map learners by vmap, or one after the other."""
    evaluation_seeds: int = 20
    """Held-out episodes a scenario in the evaluation at the end."""
    first_seed: int = 0
    """First of the evaluation seeds."""

    def __post_init__(self) -> None:
        """Refuse impossible settings before anything is compiled.

        Raises:
            ValueError: naming the setting, its value, and what would be right.
        """
        for name in ("agents", "rounds", "decisions_per_round", "worlds", "evaluation_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be at least 1")
        if self.seed < 0 or self.first_seed < 0:
            raise ValueError(f"seed {min(self.seed, self.first_seed)}: seeds count from 0")
        entry = known("environment", self.environment, ENVIRONMENTS)
        if not isinstance(self.settings, entry.settings):
            raise ValueError(
                f"environment '{self.environment}' takes {entry.settings.__name__}, "
                f"not {type(self.settings).__name__}"
            )
        if self.worlds % self.learning.minibatches:
            raise ValueError(
                f"minibatches {self.learning.minibatches}: must divide the number of worlds ({self.worlds})"
            )


def known(kind: str, name: str, table: dict[str, Any]) -> Any:
    """The entry of a registry.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in table:
        raise ValueError(f"{kind} '{name}': unknown; known: {', '.join(table)}")
    return table[name]


def default_experiment(environment: str, **overrides: Any) -> Experiment:
    """The experiment that `dgfrl train ENVIRONMENT` runs, with fields (of any part) replaced."""
    entry = known("environment", environment, ENVIRONMENTS)
    base = Experiment(settings=entry.settings(), environment=environment)
    return with_fields(base, entry.defaults | overrides)


def with_fields(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    """Replace fields of the experiment, its settings or its hyperparameters, each by its own name.

    Raises:
        ValueError: a name that no part has; the message offers the nearest.
    """
    parts = {"": experiment, "settings": experiment.settings, "learning": experiment.learning}
    changes: dict[str, dict[str, Any]] = {part: {} for part in parts}
    owner = {f.name: part for part, value in parts.items() for f in fields(value) if f.name not in parts}
    for name, value in values.items():
        if name not in owner:
            near = difflib.get_close_matches(name, owner, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(owner))}"
            raise ValueError(f"setting '{name}': unknown for environment '{experiment.environment}'{hint}")
        kind = get_type_hints(type(parts[owner[name]]))[name]
        changes[owner[name]][name] = _checked(name, value, kind)
    for part in ("settings", "learning"):
        changes[""][part] = replace(parts[part], **changes[part])  # type: ignore[type-var]
    return replace(experiment, **changes[""])


def _checked(name: str, value: Any, kind: Any) -> Any:
    """The value as a field's type wants it.

    Raises:
        ValueError: it is of another type; says which is right.
    """
    options = get_args(kind)
    if get_origin(kind) is Literal:
        if value not in options:
            raise ValueError(f"{name} '{value}': unknown; known: {', '.join(map(str, options))}")
        return value
    if type(None) in options:
        return None if value is None else _checked(name, value, options[0])
    if get_origin(kind) is tuple:
        if isinstance(value, str) or not isinstance(value, Iterable):
            raise ValueError(f"{name} {value!r}: must be a list, such as [normal, peak]")
        return tuple(_checked(name, one, options[0]) for one in value)
    if kind is float and isinstance(value, int | str) and not isinstance(value, bool):
        try:
            return float(value)  # YAML 1.1 reads 1e-3, without a point, as text
        except ValueError:
            pass
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        right = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[kind]
        raise ValueError(f"{name} {value!r}: must be {right}")
    return value


def to_yaml(experiment: Experiment) -> str:
    """All fields, flat, by name."""
    flat = asdict(experiment)
    for part in ("settings", "learning"):
        flat |= flat.pop(part)
    return yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}, sort_keys=False)


def from_yaml(path: str | Path, environment: str | None = None) -> Experiment:
    """An experiment from a file of fields; what it leaves out keeps its default.

    Raises:
        ValueError: naming the file and what is wrong in it.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must hold fields and their values, one 'name: value' a line")
    named = values.pop("environment", environment)
    if environment not in (None, named):
        raise ValueError(f"{path}: is for environment '{named}', not '{environment}'")
    if named is None:
        raise ValueError(f"{path}: needs 'environment: NAME'")
    return default_experiment(named, **values)


@dataclass(frozen=True)
class Built:
    """What an experiment consists of once jax is there."""

    experiment: Experiment
    domain: "Domain"
    trainer: "Trainer"


def build(experiment: Experiment) -> Built:
    """Environment, algorithm, federation and trainer of an experiment.

    Raises:
        ValueError: settings that cannot be (more agents than buses, an algorithm for other actions, ...).
    """
    from dynamic_graph_fed_rl.environments.worlds import Worlds
    from dynamic_graph_fed_rl.training.trainer import Trainer

    entry = known("environment", experiment.environment, ENVIRONMENTS)
    centralised = experiment.federation == "centralised"
    agents = 1 if centralised else experiment.agents
    domain = importlib.import_module(entry.module).build(experiment.settings, agents)
    algorithm_entry = known("algorithm", experiment.algorithm, ALGORITHMS)
    kind = domain.training.spec.action
    if kind not in algorithm_entry.actions:
        raise ValueError(
            f"algorithm '{experiment.algorithm}' acts with {' or '.join(algorithm_entry.actions)} actions; "
            f"'{experiment.environment}' has {kind} ones"
        )
    algorithm = importlib.import_module(algorithm_entry.module).build(experiment.learning, experiment.rounds)
    worlds = Worlds(domain.training, experiment.worlds, domain.owners)
    trainer = Trainer(
        algorithm,
        worlds,
        _federation(experiment, worlds.agents),
        experiment.decisions_per_round,
        experiment.agent_map,
    )
    return Built(experiment, domain, trainer)


def _federation(experiment: Experiment, agents: int) -> Any:
    from dynamic_graph_fed_rl.federation.aggregators import AGGREGATORS
    from dynamic_graph_fed_rl.federation.federation import Gossip, Independent, Server
    from dynamic_graph_fed_rl.federation.overlay import OVERLAYS

    aggregator = known("aggregator", experiment.aggregator, AGGREGATORS)()
    if experiment.federation == "server":
        return Server(agents, aggregator)
    if experiment.federation == "gossip":
        return Gossip(agents, aggregator, known("overlay", experiment.overlay, OVERLAYS)(agents))
    known("federation", experiment.federation, FEDERATIONS)
    return Independent(agents)
