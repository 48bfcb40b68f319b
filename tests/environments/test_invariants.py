"""What holds for every environment: one row of the table each, the same tests for all."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamic_graph_fed_rl.environments.base import Environment
from dynamic_graph_fed_rl.environments.cartpole.settings import CartPoleSettings
from dynamic_graph_fed_rl.environments.drift.settings import DriftSettings
from dynamic_graph_fed_rl.environments.pendulum.settings import PendulumSettings
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.environments.recall.settings import RecallSettings
from dynamic_graph_fed_rl.environments.registry import ENVIRONMENTS
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings

WORLDS, DECISIONS = 8, 120


class Row(NamedTuple):
    """A small version of an environment, events frequent enough that a short rollout meets them."""

    environment: str
    agents: int
    settings: Any


# more demand than fits on the roads, and all kinds of events
_TRAFFIC = TrafficSettings(
    signals=9,
    load=3.0,
    training_s=900.0,
    decision_s=10.0,
    scenarios=("incidents", "dark_signals", "sensor_failures"),
)

TABLE = {
    "cartpole": Row("cartpole", 1, CartPoleSettings(time_limit=20)),
    "drift": Row("drift", 1, DriftSettings(first_difficulty=5.0, time_limit=20)),
    "pendulum": Row("pendulum", 1, PendulumSettings(time_limit=20)),
    "power-grid": Row(
        "power-grid",
        3,
        PowerGridSettings(case="ieee14", training_decisions=30, line_failure_rate=0.05, decision_interval=2),
    ),
    "recall-flag": Row("recall", 1, RecallSettings(delay=5)),
    "traffic": Row("traffic", 2, _TRAFFIC),
    "traffic-splits": Row(
        "traffic",
        3,
        TrafficSettings(
            network="city",
            signals=7,
            load=3.0,
            control="splits",
            dt_s=5.0,
            decision_s=10.0,
            cycle_s=40.0,
            training_s=800.0,
            scenarios=("incidents", "dark_signals", "sensor_failures"),
        ),
    ),
    "recall-average": Row("recall", 1, RecallSettings(task="average", delay=5)),
}


class Subject(NamedTuple):
    """An environment, its compiled functions over a batch of worlds, and a random rollout `[T, B, ...]`."""

    environment: Environment
    reset: Callable
    step: Callable
    states: object
    observations: object
    transitions: object


def random_action(rng: np.random.Generator, environment: Environment) -> jax.Array:
    spec = environment.spec
    if spec.action == "discrete":
        return jnp.asarray(rng.integers(0, spec.action_size, (WORLDS, spec.agents, spec.slots)), jnp.int32)
    uniform = rng.uniform(-1, 1, (WORLDS, spec.agents, spec.slots, spec.action_size))
    return jnp.asarray(uniform, jnp.float32)


def start_over(done, fresh, old):
    return jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b), fresh, old)


@pytest.fixture(scope="module", params=TABLE)
def subject(request) -> Subject:
    row = TABLE[request.param]
    domain = importlib.import_module(ENVIRONMENTS[row.environment].module).build(row.settings, row.agents)
    environment = domain.training
    if domain.owners is not None:
        environment = jax.tree.map(lambda leaf: leaf[0], environment)
    reset = jax.jit(jax.vmap(environment.reset))
    step = jax.jit(jax.vmap(environment.step))
    rng, key = np.random.default_rng(0), jax.random.key(0)
    state, observation = reset(jax.random.split(key, WORLDS))
    rows = []
    for t in range(DECISIONS):
        step_key, reset_key = jax.random.split(jax.random.fold_in(key, t))
        before = state, observation
        state, transition = step(jax.random.split(step_key, WORLDS), state, random_action(rng, environment))
        rows.append((*before, transition))
        done = (transition.terminated | transition.truncated).any(1)
        observation = transition.observation
        if done.any():
            fresh = reset(jax.random.split(reset_key, WORLDS))
            state, observation = start_over(done, fresh, (state, observation))
    states, observations, transitions = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
    return Subject(environment, reset, step, states, observations, transitions)


def world(tree, t: int, b: int):
    return jax.tree.map(lambda leaf: leaf[t, b], tree)


def assert_finite(tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert not np.isnan(leaf).any(), jax.tree_util.keystr(path)


def test_every_registered_environment_is_in_the_table():
    # worlds on the host cannot be mapped, nor stepped twice from one state: tests/environments/gymnasium
    pure = {name for name, entry in ENVIRONMENTS.items() if not entry.hosted}
    assert {row.environment for row in TABLE.values()} == pure


def test_shapes_are_those_of_the_spec(subject):
    spec, lead = subject.environment.spec, (DECISIONS, WORLDS, subject.environment.spec.agents)
    for observation in (subject.observations, subject.transitions.observation):
        graph = observation.graph
        assert graph.nodes.shape == (*lead, spec.nodes, len(spec.node_features))
        assert graph.edges.shape == (*lead, spec.edges, len(spec.edge_features))
        assert graph.globals.shape == (*lead, len(spec.global_features))
        assert graph.senders.shape == graph.receivers.shape == graph.edge_mask.shape == (*lead, spec.edges)
        assert graph.node_mask.shape == observation.births.shape == (*lead, spec.nodes)
        assert observation.slots.shape == (*lead, spec.slots, len(spec.slot_features))
        assert observation.slot_owner.shape == (*lead, spec.slots)
        choices = (spec.action_size,) if spec.action == "discrete" else ()
        assert observation.action_mask.shape == (*lead, spec.slots, *choices)
        assert observation.first.shape == lead
    transition = subject.transitions
    assert transition.reward.shape == transition.terminated.shape == transition.truncated.shape == lead
    assert transition.cost.shape == (*lead, len(spec.costs))
    names = [column.name for column in spec.node_features]
    assert len(set(names)) == len(names)
    assert spec.headline in {metric.name for metric in spec.metrics}


def test_episode_metrics_are_those_of_the_spec(subject):
    totals = jax.tree.map(lambda leaf: leaf.sum(0), subject.transitions.info["metrics"])
    metrics = subject.environment.episode_metrics(totals)
    assert {metric.name for metric in subject.environment.spec.metrics} <= set(metrics)
    assert_finite(metrics)


def test_an_episode_ends_once_and_in_one_way(subject):
    transition, limit = subject.transitions, subject.environment.spec.episode_decisions
    terminated, truncated = np.asarray(transition.terminated), np.asarray(transition.truncated)
    assert not (terminated & truncated).any()
    # all agents of a world end together
    assert (terminated == terminated[..., :1]).all() and (truncated == truncated[..., :1]).all()
    done, first = (terminated | truncated)[..., 0], np.asarray(subject.observations.first)[..., 0]
    assert first[0].all()
    np.testing.assert_array_equal(first[1:], done[:-1])
    assert not transition.observation.first.any()
    for b in range(WORLDS):
        starts = np.flatnonzero(first[:, b])
        lengths = np.diff(np.append(starts, DECISIONS))
        assert (lengths <= limit).all()
        for start, length in zip(starts[:-1], lengths[:-1], strict=True):
            assert truncated[start + length - 1, b, 0] == (length == limit) or terminated[start + length - 1, b, 0]


def test_indices_and_masks_are_sound(subject):
    spec = subject.environment.spec
    observation = subject.transitions.observation
    graph = observation.graph
    for ends in (graph.senders, graph.receivers):
        assert ((ends >= 0) & (ends < max(spec.nodes, 1))).all()
    assert ((observation.slot_owner >= 0) & (observation.slot_owner <= spec.nodes)).all()
    assert (np.asarray(graph.nodes)[~np.asarray(graph.node_mask)] == 0).all()
    assert not (observation.births & ~graph.node_mask).any()
    # a live edge joins nodes that are there
    for ends in (graph.senders, graph.receivers):
        there = np.take_along_axis(np.asarray(graph.node_mask), np.asarray(ends), axis=-1)
        assert there[np.asarray(graph.edge_mask)].all()
    usable = np.asarray(observation.action_mask)
    usable = usable.any(-1) if spec.action == "discrete" else usable
    owner = np.minimum(np.asarray(observation.slot_owner), spec.nodes - 1)
    assert np.take_along_axis(np.asarray(graph.node_mask), owner, axis=-1)[usable].all()
    assert (np.asarray(observation.slots)[~usable] == 0).all()
    assert_finite((subject.states, subject.observations, subject.transitions))


def columns(subject: Subject) -> list[tuple[str, bool, float]]:
    """Every feature column with whether it is called dynamic, and the widest range that an unmasked item runs
    through in any world."""
    spec, observation = subject.environment.spec, subject.observations
    usable = observation.action_mask.any(-1) if spec.action == "discrete" else observation.action_mask
    everywhere = jnp.ones(observation.graph.globals.shape[:-1], bool)[..., None]
    # an edge that is out of service still shows what it is
    padding = jnp.broadcast_to(observation.graph.edge_mask.any((0, 1)), observation.graph.edge_mask.shape)
    blocks = (
        ("node", spec.node_features, observation.graph.nodes, observation.graph.node_mask),
        ("edge", spec.edge_features, observation.graph.edges, padding),
        ("global", spec.global_features, observation.graph.globals[..., None, :], everywhere),
        ("slot", spec.slot_features, observation.slots, usable),
    )
    return [
        (f"{kind} {column.name}", column.dynamic, float(np.ptp(np.where(mask, values[..., i], 0.0), axis=0).max()))
        for kind, features, values, mask in blocks
        for i, column in enumerate(features)
    ]


def test_columns_change_exactly_where_the_spec_calls_them_dynamic(subject):
    for name, dynamic, span in columns(subject):
        assert (span > 1e-4) == dynamic, f"{name}: spec says dynamic={dynamic}, but it spans {span} in the rollout"


def test_what_is_not_dynamic_is_the_same_in_every_episode_and_world(subject):
    spec, observation = subject.environment.spec, subject.observations
    graph = observation.graph
    for index in (graph.senders, graph.receivers, observation.slot_owner):
        assert (index == index[0, 0]).all()
    usable = observation.action_mask.any(-1) if spec.action == "discrete" else observation.action_mask
    blocks = (
        (spec.node_features, graph.nodes, graph.node_mask),
        (spec.edge_features, graph.edges, graph.edge_mask),
        (spec.global_features, graph.globals[..., None, :], jnp.ones((*graph.globals.shape[:-1], 1), bool)),
        (spec.slot_features, observation.slots, usable),
    )
    for features, values, there in blocks:
        for i, column in enumerate(features):
            if not column.dynamic:
                rows = np.asarray(values[..., i])
                known = rows.max((0, 1), initial=-np.inf, where=np.asarray(there))
                assert (rows == known)[np.asarray(there)].all(), column.name


def test_compiled_over_a_batch_and_one_world_by_hand_agree(subject):
    environment, rng = subject.environment, np.random.default_rng(1)
    action, keys = random_action(rng, environment), jax.random.split(jax.random.key(5), WORLDS)
    states = jax.tree.map(lambda leaf: leaf[7], subject.states)
    batched = subject.step(keys, states, action)
    b = 2
    with jax.disable_jit():
        alone = environment.step(keys[b], jax.tree.map(lambda leaf: leaf[b], states), action[b])
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(alone), jax.tree.leaves(batched), strict=True):
        if not jnp.issubdtype(left.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(left, right[b], rtol=2e-3, atol=2e-2, err_msg=jax.tree_util.keystr(path))


def test_a_step_is_a_function_of_its_key(subject):
    action = random_action(np.random.default_rng(2), subject.environment)
    states = jax.tree.map(lambda leaf: leaf[3], subject.states)
    keys = jax.random.split(jax.random.key(1), WORLDS)
    first, again = subject.step(keys, states, action), subject.step(keys, states, action)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


EXTREMES = (-1.0, 1.0, 0.0, np.nan, np.inf, -np.inf, 1e30, -1e30, 0.5, -0.5)


@settings(max_examples=15)
@given(seed=st.integers(0, 10_000), only=st.none() | st.sampled_from(EXTREMES))
def test_no_action_whatever_breaks_the_numbers(subject, seed, only):
    spec, rng = subject.environment.spec, np.random.default_rng(seed)
    t = int(rng.integers(DECISIONS))
    state = jax.tree.map(lambda leaf: leaf[t], subject.states)
    for k in range(4):
        if spec.action == "discrete":
            action = jnp.asarray(rng.choice([0, spec.action_size - 1, -1, 10**6], (WORLDS, spec.agents, spec.slots)))
            action = action.astype(jnp.int32)
        else:
            shape = (WORLDS, spec.agents, spec.slots, spec.action_size)
            action = jnp.asarray(rng.choice(EXTREMES if only is None else [only], shape), jnp.float32)
        keys = jax.random.split(jax.random.key(seed + k), WORLDS)
        state, transition = subject.step(keys, state, action)
        # what was requested is reported as it came
        kept = eqx.tree_at(lambda t: t.info, transition, {"metrics": transition.info["metrics"]})
        assert_finite((state, kept))
        assert np.isfinite(transition.reward).all() and np.isfinite(transition.cost).all()
        assert not (transition.terminated & transition.truncated).any()


def test_padding_slots_move_nothing(subject):
    environment = subject.environment
    states = jax.tree.map(lambda leaf: leaf[10], subject.states)
    mask = np.asarray(subject.observations.action_mask[10])
    if environment.spec.action == "discrete" or mask.all():
        pytest.skip("no padding slots here")
    action, keys = np.zeros((*mask.shape, 1), np.float32), jax.random.split(jax.random.key(3), WORLDS)
    quiet = subject.step(keys, states, jnp.asarray(action))
    action[~mask] = 1.0
    loud = subject.step(keys, states, jnp.asarray(action))
    for a, b in zip(jax.tree.leaves(quiet), jax.tree.leaves(loud), strict=True):
        np.testing.assert_array_equal(a, b)
