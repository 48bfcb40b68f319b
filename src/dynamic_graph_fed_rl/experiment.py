"""A run's typed configuration, and from it the environment, algorithm, federation and trainer.

The dataclass and its YAML live without jax, so that the command line answers quickly; `build` imports it.
"""

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from dynamic_graph_fed_rl.algorithms.settings import ALGORITHMS, OffPolicySettings, PPOSettings
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
from dynamic_graph_fed_rl.federation.settings import FEDERATIONS, POOLED, FederationSettings

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.environments.domain import Domain
    from dynamic_graph_fed_rl.environments.spec import Spec
    from dynamic_graph_fed_rl.evaluation.evaluate import LearnedPolicy
    from dynamic_graph_fed_rl.training.pooling import Pool
    from dynamic_graph_fed_rl.training.trainer import Trainer, Training

    EnvironmentSettings = AlgorithmSettings = Any
    AlgorithmName = FederationName = str
else:
    # from the registries, so that what is added there can be chosen
    EnvironmentSettings = Union[tuple(entry.settings for entry in ENVIRONMENTS.values())]  # noqa: UP007
    AlgorithmSettings = Union[tuple(entry.settings for entry in ALGORITHMS.values())]  # noqa: UP007
    AlgorithmName, FederationName = Literal[tuple(ALGORITHMS)], Literal[tuple(FEDERATIONS)]


@dataclass(frozen=True)
class Experiment:
    """What to train, how, and for how long."""

    settings: EnvironmentSettings = field(default_factory=PowerGridSettings)
    learning: AlgorithmSettings = field(default_factory=PPOSettings)
    exchange: FederationSettings = field(default_factory=FederationSettings)
    environment: str = "power-grid"
    """Environment (`dgfrl list`)."""
    algorithm: AlgorithmName = "ppo"
    """How each agent learns."""
    federation: FederationName = "server"
    """How agents share what they learn."""
    agents: int = 4
    """Learners; on a shared network also the number of its regions."""
    rounds: int = 240
    """Rounds of local learning, each followed by an exchange."""
    decisions_per_round: int = 16
    """Decisions in every world between two exchanges."""
    lessons: int = 1
    """Times in a round at which an agent stops acting to learn."""
    worlds: int = 64
    """Copies of the world that each agent learns from at once."""
    seed: int = 0
    """Seed of everything random in training; evaluation draws from a range of its own."""
    agent_map: Literal["vmap", "map", "loop"] = "vmap"
    """Map learners by vmap, or one after the other within a program (map) or each in a program of its own, as over
    HTTP (loop)."""
    devices: int = 1
    """Devices over which the agents are spread, of all processes together."""
    evaluation_seeds: int = 20
    """Held-out episodes a scenario in the evaluation at the end."""
    first_seed: int = 0
    """First of the evaluation seeds."""

    def __post_init__(self) -> None:
        """Refuse impossible settings before anything is compiled.

        Raises:
            ValueError: naming the setting, its value, and what would be right.
        """
        for name in ("agents", "rounds", "decisions_per_round", "lessons", "worlds", "devices", "evaluation_seeds"):
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
        if entry.hosted and self.devices > 1:
            raise ValueError(f"devices {self.devices}: environment '{self.environment}' runs on one")
        if self.agent_map == "loop" and (self.devices > 1 or self.exchange.byzantine):
            name, value = ("devices", self.devices) if self.devices > 1 else ("byzantine", self.exchange.byzantine)
            raise ValueError(
                f"agent_map 'loop' with {name} {value}: agents by themselves are all honest and in one place"
            )
        algorithm = known("algorithm", self.algorithm, ALGORITHMS)
        if not isinstance(self.learning, algorithm.settings):
            raise ValueError(
                f"algorithm '{self.algorithm}' takes {algorithm.settings.__name__}, "
                f"not {type(self.learning).__name__}"
            )
        if self.decisions_per_round % self.lessons:
            raise ValueError(
                f"lessons {self.lessons}: must divide the decisions of a round ({self.decisions_per_round})"
            )
        self.learning.check(self.worlds, self.decisions_per_round // self.lessons)
        known("federation", self.federation, FEDERATIONS)
        if self.federation in POOLED and not isinstance(self.learning, OffPolicySettings):
            replaying = (name for name, one in ALGORITHMS.items() if issubclass(one.settings, OffPolicySettings))
            raise ValueError(
                f"federation '{self.federation}' with algorithm '{self.algorithm}': pooled experience is of use only "
                f"to those that learn from replay: {', '.join(replaying)}"
            )


_PARTS = ("settings", "learning", "exchange")


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
    algorithm = _checked("algorithm", overrides.get("algorithm", entry.algorithm), str)
    learning = known("algorithm", algorithm, ALGORITHMS).settings()
    base = Experiment(settings=entry.settings(), learning=learning, environment=environment, algorithm=algorithm)
    return with_fields(base, entry.defaults | entry.learning.get(algorithm, {}) | overrides)


def with_fields(experiment: Experiment, values: dict[str, Any]) -> Experiment:
    """Replace fields of the experiment, its settings or its hyperparameters, each by its own name.

    Raises:
        ValueError: a name that no part has; the message offers the nearest.
    """
    parts = {"": experiment} | {name: getattr(experiment, name) for name in _PARTS}
    changes: dict[str, dict[str, Any]] = {part: {} for part in parts}
    owner = {f.name: part for part, value in parts.items() for f in fields(value) if f.name not in parts}
    for name, value in values.items():
        if name not in owner:
            near = difflib.get_close_matches(name, owner, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(sorted(owner))}"
            raise ValueError(
                f"setting '{name}': unknown for environment '{experiment.environment}' "
                f"and algorithm '{experiment.algorithm}'{hint}"
            )
        kind = get_type_hints(type(parts[owner[name]]))[name]
        changes[owner[name]][name] = _checked(name, value, kind)
    for part in _PARTS:
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
    for part in _PARTS:
        flat |= flat.pop(part)
    return yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in flat.items()}, sort_keys=False)


def from_yaml(path: str | Path, environment: str | None = None, algorithm: str | None = None) -> Experiment:
    """An experiment from a file of fields; what it leaves out keeps its default.

    `environment` may be named here instead of in the file; `algorithm` takes precedence over the file's.

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
    if algorithm is not None:
        values["algorithm"] = algorithm
    return default_experiment(named, **values)


@dataclass(frozen=True)
class Built:
    """What an experiment consists of once jax is there."""

    experiment: Experiment
    domain: "Domain"
    trainer: "Trainer"

    @property
    def spec(self) -> "Spec":
        return self.trainer.groups[0].worlds.spec

    def policy(self, training: "Training") -> "LearnedPolicy":
        """What has been learned, as a controller."""
        from dynamic_graph_fed_rl.evaluation.evaluate import LearnedPolicy

        return LearnedPolicy(self.trainer.groups[0].algorithm, training.learners[0])


def build(experiment: Experiment) -> Built:
    """Environment, algorithm, federation and trainer of an experiment.

    Raises:
        ValueError: settings that cannot be (more agents than buses, an algorithm for other actions, ...).
    """
    from dynamic_graph_fed_rl.environments.worlds import Worlds
    from dynamic_graph_fed_rl.federation.build import build as build_federation
    from dynamic_graph_fed_rl.federation.sharing import matching
    from dynamic_graph_fed_rl.training.trainer import Group, Trainer

    entry = known("environment", experiment.environment, ENVIRONMENTS)
    centralised = experiment.federation == "centralised"
    agents = 1 if centralised else experiment.agents
    domain = importlib.import_module(entry.module).build(experiment.settings, agents)
    algorithm_entry = known("algorithm", experiment.algorithm, ALGORITHMS)
    kind = domain.training.spec.action
    if kind not in algorithm_entry.actions:
        fitting = [name for name, other in ALGORITHMS.items() if kind in other.actions]
        raise ValueError(
            f"algorithm '{experiment.algorithm}' acts with {' or '.join(algorithm_entry.actions)} actions; "
            f"'{experiment.environment}' as it is set has {kind} ones, for {', '.join(fitting)}"
        )
    experiment.learning.check_spec(domain.training.spec)
    make = importlib.import_module(algorithm_entry.module).build
    algorithm = make(experiment.learning, experiment.rounds * experiment.lessons)
    worlds = Worlds(domain.training, experiment.worlds, domain.owners, experiment.learning.siblings)
    if experiment.agent_map == "loop" and worlds.owners is None:
        raise ValueError(
            "agent_map 'loop': needs agents that each have a world of their own; those of "
            f"'{experiment.environment}' act in one together"
        )
    trainer = Trainer(
        (Group(algorithm, worlds, experiment.lessons, experiment.federation != "shared"),),
        build_federation(experiment.exchange, experiment.federation, worlds.agents, experiment.rounds),
        experiment.decisions_per_round,
        "vmap" if experiment.agent_map == "loop" else experiment.agent_map,
        matching(experiment.exchange.share),
        _pool(experiment, make) if experiment.federation in POOLED else None,
    )
    return Built(experiment, domain, trainer)


def _pool(experiment: Experiment, make: Any) -> "Pool":
    """The learner of a server: that of the agents, with gradient steps of its own number."""
    from dynamic_graph_fed_rl.buffers.screening import SCREENS
    from dynamic_graph_fed_rl.training.pooling import Pool

    exchange = experiment.exchange
    updates = exchange.server_updates or experiment.decisions_per_round * experiment.worlds
    screen = None
    if exchange.screen != "none":
        screen = SCREENS[exchange.screen](exchange.screen_threshold, exchange.screen_compared)
    return Pool(make(replace(experiment.learning, updates=updates), experiment.rounds), screen)
