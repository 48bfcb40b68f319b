"""Typed configuration: YAML and back, names with hints, and what is refused before anything is compiled."""

from dataclasses import fields

import jax
import pytest

# imported now, so that what libraries compile on import does not count
import dynamic_graph_fed_rl.algorithms.ppo
import dynamic_graph_fed_rl.environments.power_grid.build
import dynamic_graph_fed_rl.training.trainer  # noqa: F401
from dynamic_graph_fed_rl.algorithms.settings import ALGORITHMS
from dynamic_graph_fed_rl.environments.cartpole.settings import CartPoleSettings
from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
from dynamic_graph_fed_rl.experiment import (
    Experiment,
    build,
    default_experiment,
    from_yaml,
    to_yaml,
    with_fields,
)
from dynamic_graph_fed_rl.federation.settings import FederationSettings

OTHER = {
    "power-grid": {"case": "ieee57", "scenarios": ("peak",), "line_failure_rate": 0.01, "radius": 2, "agents": 3},
    "traffic": {
        "network": "city",
        "signals": 9,
        "scenarios": ("incidents",),
        "edge_failure_rate": 0.02,
        "uptake": 0.2,
    },
    "drift": {"first_difficulty": 0.3, "algorithm": "reinforce", "epochs": 2, "proximal": 0.1},
    "cartpole": {
        "time_limit": 100,
        "half_length_m": 0.7,
        "federation": "gossip",
        "overlay": "complete",
        "agent_weights": (1.0, 2.0, 1.0, 1.0),
    },
    "pendulum": {"algorithm": "sac", "gravity_m_s2": 9.0, "encoder": "gru", "priority": "td-error", "updates": 7},
    "recall": {"task": "average", "delay": 3, "algorithm": "dqn", "double": False, "window": 4, "memory": "tgn"},
    "lunar-lander": {"shaped": True, "gravity": -5.0, "enable_wind": True, "federation": "hybrid", "steps": 3},
    "gymnasium": {"id": "LunarLander-v3", "arguments": "{continuous: true}", "time_limit": 100},
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_yaml_round_trip(tmp_path, environment):
    path = tmp_path / "config.yaml"
    for values in ({}, OTHER[environment] | {"learning_rate": 3e-4, "seed": 7}):
        experiment = default_experiment(environment, **values)
        path.write_text(to_yaml(experiment))
        assert from_yaml(path) == experiment
        assert from_yaml(path, environment) == experiment


def test_yaml_has_every_field_under_its_own_name():
    experiment = default_experiment("power-grid")
    written = {line.split(":")[0] for line in to_yaml(experiment).splitlines() if not line.startswith(("-", " "))}
    parts = {name: getattr(experiment, name) for name in ("settings", "learning", "exchange")}
    names = [
        field.name for part in (experiment, *parts.values()) for field in fields(part) if field.name not in parts
    ]
    assert written == set(names)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_part_reuses_the_name_of_anothers_setting(environment, algorithm):
    parts = ENVIRONMENTS[environment].settings, ALGORITHMS[algorithm].settings, FederationSettings, Experiment
    names = [field.name for part in parts for field in fields(part)]
    assert sorted(set(names)) == sorted(names)


def test_a_partial_file_keeps_the_other_defaults(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("environment: power-grid\nrounds: 3\ncase: ieee14\nlearning_rate: 1e-3\n")
    expected = default_experiment("power-grid", rounds=3, case="ieee14", learning_rate=1e-3)
    assert from_yaml(path) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("environment: [", "not YAML"),
        ("just text", "must hold fields"),
        ("rounds: 3", "needs 'environment"),
        ("environment: chess", "'chess': unknown; known: power-grid, traffic, cartpole"),
        ("environment: cartpole\nroundz: 3", "'roundz'.*did you mean rounds"),
        ("environment: cartpole\nalgorithm: [ppo]", "algorithm .'ppo'.: must be text"),
        ("environment: cartpole\nalgorithm: reinforce\nclip: 0.1", "'clip': unknown .* algorithm 'reinforce'"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_yaml(path)


def test_a_file_for_another_environment_is_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(default_experiment("cartpole")))
    with pytest.raises(ValueError, match="is for environment 'cartpole', not 'power-grid'"):
        from_yaml(path, "power-grid")


def test_fields_go_to_the_part_that_has_them():
    changed = with_fields(default_experiment("power-grid"), {"agents": 2, "radius": 3, "clip": 0.1})
    assert (changed.agents, changed.settings.radius, changed.learning.clip) == (2, 3, 0.1)
    default = default_experiment("power-grid")
    assert (
        with_fields(
            changed,
            {"agents": default.agents, "radius": default.settings.radius, "clip": default.learning.clip},
        )
        == default
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("learning_rat", "did you mean learning_rate"),
        ("radios", "did you mean radius"),
        ("qqqq", "known: .*agents.*radius"),
        # another environment's setting
        ("time_limit", "unknown for environment 'power-grid'"),
        ("settings", "unknown"),
    ],
)
def test_unknown_names_get_a_hint(name, message):
    with pytest.raises(ValueError, match=message):
        with_fields(default_experiment("power-grid"), {name: 1})


@pytest.mark.parametrize("name", ["agents", "rounds", "decisions_per_round", "worlds", "evaluation_seeds"])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_below_one_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} {value}: must be at least 1"):
        default_experiment("power-grid", **{name: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seed": -1}, "seed -1"),
        ({"first_seed": -3}, "seed -3"),
        ({"worlds": 10, "minibatches": 4}, "minibatches 4: must divide the number of worlds"),
    ],
)
def test_other_impossible_experiments_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        default_experiment("power-grid", **values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"proximal": -0.1}, "proximal -0.1: must be at least 0"),
        ({"proximal": 0.1}, "proximal 0.1: does nothing in a round of one gradient step"),
        ({"epochs": 0}, "epochs 0: must be at least 1"),
    ],
)
def test_what_an_algorithm_cannot_do_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        default_experiment("drift", algorithm="reinforce", **values)


@pytest.mark.parametrize("algorithm", ["dqn", "pqn"])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"last_epsilon": -0.1}, "last_epsilon -0.1: must be within 0 and 1"),
        ({"first_epsilon": 1.5}, "first_epsilon 1.5, last_epsilon 0.05: must be within 0 and 1"),
        ({"first_epsilon": 0.1, "last_epsilon": 0.2}, "the last no greater than the first"),
        ({"exploration_share": 0.0}, "exploration_share 0.0: must be above 0 and at most 1"),
        # each also refuses what those it is made of refuse
        ({"proximal": -0.1}, "proximal -0.1: must be at least 0"),
    ],
)
def test_what_learning_of_choices_cannot_do_is_refused(algorithm, values, message):
    with pytest.raises(ValueError, match=message):
        default_experiment("cartpole", algorithm=algorithm, **values)


def test_each_kind_of_learning_keeps_its_own_defaults():
    """Settings that are made of two kinds take what both have from the more particular one."""
    dqn, pqn = (ALGORITHMS[name].settings() for name in ("dqn", "pqn"))
    assert (dqn.learning_rate, dqn.target_rate, dqn.update_delay, dqn.gradient_steps) == (3e-4, 1.0, 500, dqn.updates)
    assert (pqn.layer_norm, pqn.max_gradient_norm, pqn.gradient_steps) == (True, 10.0, pqn.epochs)
    with pytest.raises(ValueError, match="replay 10: must hold the warm-up"):
        default_experiment("cartpole", algorithm="dqn", replay=10)
    with pytest.raises(ValueError, match="minibatches 5: must divide the number of worlds"):
        default_experiment("cartpole", algorithm="pqn", minibatches=5)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_algorithm_chooses_its_settings_and_its_defaults(environment, algorithm):
    experiment = default_experiment(environment, algorithm=algorithm)
    assert type(experiment.learning) is ALGORITHMS[algorithm].settings
    expected = ENVIRONMENTS[environment].defaults | ENVIRONMENTS[environment].learning.get(algorithm, {})
    for name, value in expected.items():
        assert getattr(experiment.learning, name, getattr(experiment, name, None)) == value


def test_hyperparameters_must_be_those_of_the_algorithm():
    with pytest.raises(ValueError, match="'reinforce' takes ReinforceSettings, not PPOSettings"):
        Experiment(algorithm="reinforce")
    with pytest.raises(ValueError, match="'a2c' takes A2CSettings, not PPOSettings"):
        with_fields(default_experiment("cartpole"), {"algorithm": "a2c"})


def test_settings_must_be_those_of_the_environment():
    with pytest.raises(ValueError, match="'power-grid' takes PowerGridSettings, not CartPoleSettings"):
        Experiment(settings=CartPoleSettings(), environment="power-grid")


@pytest.fixture
def nothing_compiles(monkeypatch):
    """Fails as soon as a program would be traced."""

    def refuse(*arguments, **options):
        raise AssertionError("compiled before the settings were checked")

    monkeypatch.setattr(jax, "jit", refuse)
    monkeypatch.setattr(jax, "vmap", refuse)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"case": "ieee14", "agents": 15}, "15 agents.*14"),
        ({"case": "ieee15"}, "'ieee15': unknown; known: ieee14, ieee30, ieee57, ieee118, ieee300"),
        ({"case": "ieee14", "radius": -1}, "radius -1"),
        ({"partition": "five-zones"}, "'five-zones'.*ieee118-4, nrel-3"),
        ({"partition": "nrel-3", "agents": 4}, "3 regions.*4 agents"),
        ({"case": "ieee14", "scenarios": ("normal", "flood")}, "'flood': unknown; known: normal, peak, outages"),
        ({"case": "ieee14", "scenarios": ()}, "scenarios: at least one of"),
        ({"case": "ieee14", "renewable_share": 1.5}, "renewable_share 1.5"),
        ({"case": "ieee14", "step_s": 0.0}, "step_s 0.0: must be above 0"),
        ({"case": "ieee14", "decision_interval": 0}, "decision_interval 0: must be above 0"),
        ({"case": "ieee14", "line_failure_rate": -0.1}, "line_failure_rate -0.1"),
        ({"case": "ieee14", "max_shed": 0.0}, "max_shed 0.0"),
        ({"case": "ieee14", "max_outages": 1}, "max_outages 1"),
        ({"case": "ieee14", "profiles": "/nowhere/days.csv"}, "days.csv"),
        ({"federation": "star"}, "'star': unknown; known: server, tree, gossip, shared, hybrid, independent"),
        ({"federation": "gossip", "overlay": "torus"}, "'torus': unknown; known: complete, ring, random"),
        ({"aggregator": "middle"}, "'middle': unknown; known: mean"),
        ({"algorithm": "qmix"}, "'qmix': unknown; known: ppo"),
        ({"observation": "pixels"}, "'pixels': unknown; known: graph, flat"),
    ],
)
def test_impossible_settings_are_refused_before_compilation(nothing_compiles, values, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(default_experiment("power-grid", **values))


@pytest.mark.parametrize(
    ("environment", "algorithm", "kinds"),
    [
        ("power-grid", "dqn", ("discrete", "continuous")),
        ("pendulum", "dqn", ("discrete", "continuous")),
        ("pendulum", "pqn", ("discrete", "continuous")),
        ("cartpole", "sac", ("continuous", "discrete")),
        ("cartpole", "td3", ("continuous", "discrete")),
        ("drift", "sac", ("continuous", "discrete")),
    ],
)
def test_an_algorithm_for_other_actions_is_refused_by_name(environment, algorithm, kinds):
    able, has = kinds
    message = f"'{algorithm}' acts with {able} actions; '{environment}' as it is set has {has} ones, for ppo"
    with pytest.raises(ValueError, match=message):
        build(default_experiment(environment, algorithm=algorithm))


@pytest.mark.parametrize(
    ("federation", "agents", "kind"),
    [
        ("server", 3, "Hierarchy"),
        ("tree", 3, "Hierarchy"),
        ("gossip", 3, "Gossip"),
        ("independent", 3, "Alone"),
        ("centralised", 1, "Alone"),
    ],
)
def test_federations_are_built_by_name(federation, agents, kind):
    built = build(default_experiment("cartpole", agents=3, federation=federation, worlds=4))
    assert type(built.trainer.federation.method).__name__ == kind
    assert built.trainer.agents == built.trainer.federation.agents == agents
