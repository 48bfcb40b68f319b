"""Augmentation against NumPy, and PPO with and without it."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.algorithms import ppo
from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.on_policy import Augmented, Lesson, unroll
from dynamic_graph_fed_rl.algorithms.ppo import inconsistency
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.augmentation import GraphAugmenter
from dynamic_graph_fed_rl.augmentation.settings import STRATEGIES
from dynamic_graph_fed_rl.augmentation.strategies import (
    augmented,
    edge_dropout,
    node_dropout,
    node_feature_noise,
    temporal_shift,
)
from dynamic_graph_fed_rl.environments.base import Controller, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.evaluation.dropped_sensors import DroppedSensors
from dynamic_graph_fed_rl.experiment import build, default_experiment
from dynamic_graph_fed_rl.graph import Graph

T, WORLDS, NODES, EDGES, SLOTS, SIZE = 4, 6, 5, 8, 4, 3
KEY = jax.random.key(7)
SPEC = Spec(
    agents=1,
    nodes=NODES,
    edges=EDGES,
    slots=SLOTS,
    action="continuous",
    action_size=SIZE,
    node_features=(Column("voltage"), Column("constant"), Column("load")),
    edge_features=(Column("flow"), Column("loading")),
    global_features=(Column("hour"),),
    slot_features=(Column("output"), Column("room")),
)
SMALL = {"width": 4, "epochs": 1, "minibatches": 2}


def observed(seed: int, rows: int = T, worlds: int = WORLDS, action: str = "continuous") -> Observation:
    """Random rows in which nodes, edges, ends of edges, owners and episodes come and go; 0 is a value of nothing."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(rows, worlds, *shape)) + 0.5

    nodes = normal(NODES, 3)
    nodes[..., 1] = 2.0
    edges = normal(EDGES, 2)
    edges[..., 1] = rng.uniform(-2, 2, edges[..., 1].shape)
    ends = rng.integers(0, NODES, (2, rows, worlds, EDGES)) * (rng.random((2, rows, worlds, EDGES)) < 0.3)
    usable = rng.random((rows, worlds, SLOTS)) < 0.8
    mask = usable if action == "continuous" else np.repeat(usable[..., None], SIZE, -1)
    real, whole = (lambda x: jnp.asarray(x, jnp.float32)), (lambda x: jnp.asarray(x, jnp.int32))
    return Observation(
        graph=Graph(
            real(nodes), real(edges), whole(ends[0]), whole(ends[1]),
            jnp.asarray(rng.random((rows, worlds, NODES)) < 0.8),
            jnp.asarray(rng.random((rows, worlds, EDGES)) < 0.8), real(normal(1)),
        ),
        slots=real(normal(SLOTS, 2)),
        slot_owner=whole(rng.integers(0, 2, (rows, worlds, SLOTS)) * NODES),
        action_mask=jnp.asarray(mask),
        first=jnp.asarray(rng.random((rows, worlds)) < 0.3),
        births=jnp.asarray(rng.random((rows, worlds, NODES)) < 0.2),
    )  # fmt: skip


def numbers(tree) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(left, right) -> None:
    for ours, theirs in zip(numbers(left), numbers(right), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def assert_frequency(count: int, draws: int, probability: float) -> None:
    # five standard errors
    assert abs(count / draws - probability) < 5 * np.sqrt(probability * (1 - probability) / draws)


def test_silent_edges_are_gone_and_nothing_else_changes():
    before = observed(0, 20, 50)
    after = eqx.filter_jit(edge_dropout)(KEY, before, 0.3)
    had, has = np.asarray(before.graph.edge_mask), np.asarray(after.graph.edge_mask)
    assert not (has & ~had).any()
    lost = (np.asarray(after.graph.edges) == 0).all(-1)
    assert not has[lost].any()
    np.testing.assert_array_equal(has, had & ~lost)
    np.testing.assert_array_equal(np.asarray(after.graph.edges)[~lost], np.asarray(before.graph.edges)[~lost])
    assert_frequency(lost.sum(), lost.size, 0.3)
    untouched = lambda one: (one.graph.edges, one.graph.edge_mask)  # noqa: E731
    assert_same(eqx.tree_at(untouched, after, untouched(before)), before)


def test_critical_edges_survive():
    before = observed(1, 20, 50)
    after = edge_dropout(KEY, before, 1.0, critical_column=1, critical_threshold=0.9)
    critical = np.abs(np.asarray(before.graph.edges)[..., 1]) > 0.9
    assert critical.any()
    assert not critical.all()
    np.testing.assert_array_equal(after.graph.edge_mask, np.asarray(before.graph.edge_mask) & critical)


def test_a_silent_node_takes_the_features_of_its_slots_with_it():
    before = observed(2, 20, 50)
    after = eqx.filter_jit(node_dropout)(KEY, before, 0.3)
    lost = (np.asarray(after.graph.nodes) == 0).all(-1)
    assert_frequency(lost.sum(), lost.size, 0.3)
    owner = np.asarray(before.slot_owner)
    slots = np.asarray(before.slots).copy()
    for t, world, slot in np.ndindex(owner.shape):
        if owner[t, world, slot] < NODES and lost[t, world, owner[t, world, slot]]:
            slots[t, world, slot] = 0
    assert (slots == 0).any()
    np.testing.assert_array_equal(after.slots, slots)
    np.testing.assert_array_equal(np.asarray(after.graph.nodes)[~lost], np.asarray(before.graph.nodes)[~lost])
    untouched = lambda one: (one.graph.nodes, one.slots)  # noqa: E731
    assert_same(eqx.tree_at(untouched, after, untouched(before)), before)


def test_noise_is_relative_to_the_spread_over_nodes_that_are_there():
    before = observed(3, 20, 50)
    mask = np.asarray(before.graph.node_mask)
    # what padding holds counts for nothing
    padded = jnp.where(before.graph.node_mask[..., None], before.graph.nodes, 1e6)
    before = eqx.tree_at(lambda one: one.graph.nodes, before, padded * jnp.asarray([10.0, 1.0, 0.1]))
    nodes = np.asarray(before.graph.nodes)
    moved = np.asarray(node_feature_noise(KEY, before, 0.4, 0.2).graph.nodes) - nodes
    assert (moved[~mask] == 0).all()
    assert (moved[..., 1] == 0).all()
    noisy = (moved != 0).any(-1) & mask
    assert_frequency(noisy.sum(), mask.sum(), 0.4)
    size = moved[noisy] / nodes[mask].std(0).clip(1e-6)
    for column in (0, 2):
        assert abs(size[:, column].std() - 0.2) < 5 * 0.2 / np.sqrt(2 * noisy.sum())


def test_late_observations_are_those_of_the_row_before():
    before = observed(4)
    after = eqx.filter_jit(temporal_shift)(KEY, before, 1.0)
    old = jax.tree.map(np.asarray, before)
    expected = jax.tree.map(np.array, before)
    changed = 0
    for t, world in np.ndindex(T, WORLDS):
        if t == 0 or old.first[t, world]:
            continue
        now, then = (t, world), (t - 1, world)
        expected.graph.globals[now] = old.graph.globals[then]
        for node in range(NODES):
            if old.graph.node_mask[then][node] and not old.births[now][node]:
                expected.graph.nodes[now][node] = old.graph.nodes[then][node]
        for edge in range(EDGES):
            ends = [(old.graph.senders[row][edge], old.graph.receivers[row][edge]) for row in (now, then)]
            if old.graph.edge_mask[then][edge] and ends[0] == ends[1]:
                expected.graph.edges[now][edge] = old.graph.edges[then][edge]
                changed += 1
        for slot in range(SLOTS):
            if old.slot_owner[now][slot] == old.slot_owner[then][slot]:
                expected.slots[now][slot] = old.slots[then][slot]
    assert 0 < changed < EDGES * (T - 1) * WORLDS
    assert_same(after, expected)


def test_a_share_of_observations_is_late():
    before = eqx.tree_at(lambda one: one.first, observed(5, 40, 50), jnp.zeros((40, 50), bool))
    after = temporal_shift(KEY, before, 0.2)
    late = (np.asarray(after.graph.globals) != np.asarray(before.graph.globals)).any(-1)[1:]
    assert_frequency(late.sum(), late.size, 0.2)


@pytest.mark.parametrize("strategies", [tuple(STRATEGIES), *((name,) for name in STRATEGIES)])
def test_probability_0_changes_nothing(strategies):
    before = observed(6)
    assert_same(augmented(KEY, before, strategies, probability=0.0, noise=1.0), before)
    changed = augmented(KEY, before, strategies, probability=0.5, noise=1.0)
    assert any((a != b).any() for a, b in zip(numbers(before), numbers(changed), strict=True))


def test_a_strategy_draws_the_same_whatever_others_there_are():
    before = observed(7)
    alone = augmented(KEY, before, ("edge_dropout",), 0.5)
    both = augmented(KEY, before, ("edge_dropout", "node_feature_noise"), 0.5)
    np.testing.assert_array_equal(alone.graph.edge_mask, both.graph.edge_mask)
    assert_same(augmented(KEY, before, ("node_feature_noise", "edge_dropout"), 0.5), both)


def test_augmenter_takes_lists_and_stacks_and_draws_anew():
    stacked = observed(8).graph
    listed = [jax.tree.map(lambda leaf, t=t: leaf[t], stacked) for t in range(T)]
    strategies = ["edge_dropout", "node_feature_noise", "temporal_shift"]
    one, other = (GraphAugmenter(strategies, augmentation_probability=0.3, critical_edge_column=1) for _ in range(2))
    first = one.augment_sequence(stacked, preserve_critical_edges=True, critical_edge_threshold=0.9)
    for t, graph in enumerate(other.augment_sequence(listed)):
        assert_same(graph, jax.tree.map(lambda leaf, t=t: leaf[t], first))
    second = one.augment_sequence(stacked)
    assert (np.asarray(first.edge_mask) != np.asarray(second.edge_mask)).any()
    every = GraphAugmenter(["edge_dropout"], 1.0, critical_edge_column=1)
    kept = np.asarray(every.augment_sequence(stacked).edge_mask)
    critical = np.abs(np.asarray(stacked.edges)[..., 1]) > 0.9
    np.testing.assert_array_equal(kept, np.asarray(stacked.edge_mask) & critical)
    assert not np.asarray(every.augment_sequence(stacked, preserve_critical_edges=False).edge_mask).any()


def test_what_the_augmenter_refuses():
    graph = observed(9).graph
    with pytest.raises(ValueError, match=r"augment 'node_swap': unknown; known: temporal_shift, node_feature_noise"):
        GraphAugmenter(["node_swap"])
    augmenter = GraphAugmenter(["edge_dropout"], critical_edge_column=2)
    with pytest.raises(ValueError, match="critical_edge_column 2: edges have 2 features"):
        augmenter.augment_sequence(graph)
    with pytest.raises(ValueError, match="graphs: none"):
        augmenter.augment_sequence([])
    with pytest.raises(ValueError, match="without an axis for time"):
        augmenter.augment_sequence(jax.tree.map(lambda leaf: leaf[0, 0], graph))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"augmentation_weight": -0.1}, "augmentation_weight -0.1: must be at least 0"),
        ({"augment": ("edge_drop",)}, "augment 'edge_drop': unknown; known: temporal_shift"),
        ({"augment": ()}, r"augment \(\): at least one of temporal_shift"),
        ({"augmentation_probability": 1.5}, "augmentation_probability 1.5: must be within 0 and 1"),
        ({"augmentation_noise": -1.0}, "augmentation_noise -1.0: must be at least 0"),
        # each also refuses what PPO refused before
        ({"proximal": -0.1}, "proximal -0.1: must be at least 0"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        default_experiment("cartpole", **values)


def test_an_unknown_critical_feature_is_refused():
    with pytest.raises(ValueError, match="critical_edge 'load': unknown edge feature; known: flow, loading"):
        PPOSettings(critical_edge="load").check_spec(SPEC)
    with pytest.raises(ValueError, match="critical_edge 'loading': unknown edge feature; known: none"):
        build(default_experiment("cartpole", critical_edge="loading"))


@eqx.filter_jit
def lived(algorithm: ppo.PPO, learner, observation: Observation) -> Experience:
    """A round of made-up outcomes of what the policy does."""
    network = learner.network
    begun = network.initial_memory(jax.tree.map(lambda leaf: leaf[0], observation))
    distribution = network.actions(unroll(network, begun, observation), observation)
    action = distribution.sample(jax.random.key(1))
    never = jnp.zeros((T, WORLDS), bool)
    reward = jax.random.normal(jax.random.key(2), (T, WORLDS))
    transition = Transition(observation, reward, jnp.zeros((T, WORLDS, 0)), never, never, {})
    return Experience(begun, observation, action, transition, distribution.log_prob(action))


def test_off_adds_not_an_operation():
    observation = observed(10)

    def program(**options) -> str:
        algorithm = ppo.build(PPOSettings(**SMALL, **options), 10)
        learner = algorithm.init(jax.random.key(0), SPEC, WORLDS)
        experience = lived(algorithm, learner, observation)
        return str(jax.make_jaxpr(algorithm.learn)(KEY, learner, experience))

    off = program()
    assert program(augment=("edge_dropout",), augmentation_probability=0.5, critical_edge="loading") == off
    assert len(program(augmentation_weight=0.1)) > 1.1 * len(off)


@pytest.mark.parametrize("memory", ["leaky", "gru"])
def test_acting_alike_already_teaches_nothing(memory):
    """With sensors as they were nothing is inconsistent, whatever the memory; with worse ones it is."""
    observation = observed(11)
    learned = {}
    for weight, probability in ((0.0, 0.0), (0.5, 0.0), (0.5, 0.3)):
        settings = PPOSettings(
            **SMALL, memory=memory, augmentation_weight=weight, augmentation_probability=probability
        )
        algorithm = ppo.build(settings, 10)
        learner = algorithm.init(jax.random.key(0), SPEC, WORLDS)
        experience = lived(algorithm, learner, observation)
        after, metrics = eqx.filter_jit(algorithm.learn)(KEY, learner, experience)
        learned[weight, probability] = numbers(after.network)
        assert ("inconsistency" in metrics) == bool(weight)
        if weight:
            assert (metrics["inconsistency"] > 1e-4) == bool(probability)
    for off, idle in zip(learned[0.0, 0.0], learned[0.5, 0.0], strict=True):
        np.testing.assert_allclose(off, idle, atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(learned[0.0, 0.0], learned[0.5, 0.3], strict=True)) > 1e-4


@pytest.mark.parametrize("action", ["continuous", "discrete"])
def test_the_loss_is_that_of_ppo_and_the_weighted_inconsistency(action):
    """Raileanu et al. 2021, equations 3 to 5, one row and one slot after the other; the memory of a row from that of
    the row before and what was augmented."""
    observation = observed(12, action=action)
    other = augmented(KEY, observation, tuple(STRATEGIES), 0.3, 0.5)
    settings = PPOSettings(**SMALL, augmentation_weight=0.3)
    made, plain = (ppo.build(one, 10) for one in (settings, replace(settings, augmentation_weight=0.0)))
    learner = made.init(jax.random.key(0), replace(SPEC, action=action), WORLDS)
    # a first policy is too quiet to differ
    grow = lambda leaf: (30.0 if leaf.ndim == 2 and leaf.shape[1] == SIZE else 2.0) * leaf  # noqa: E731
    network = jax.tree.map(grow, learner.network)
    experience = lived(made, eqx.tree_at(lambda one: one.network, learner, network), observation)
    memory = unroll(network, experience.memory, observation)
    rows = jnp.zeros((T, WORLDS))
    augmentation = Augmented(other, jax.tree.map(lambda leaf: leaf[None], experience.memory))
    lesson = Lesson(
        memory,
        observation,
        experience.action,
        experience.extras,
        rows,
        jnp.ones((T, WORLDS), bool),
        rows,
        augmentation,
    )

    mask = np.asarray(observation.action_mask)
    total, count, square = 0.0, 0, 0.0
    held = experience.memory
    for t in range(T):
        seen, worse = (jax.tree.map(lambda leaf, t=t: leaf[t], one) for one in (observation, other))
        after_worse, held = network.remember(held, worse), network.remember(held, seen)
        p, q = network.actions(held, seen), network.actions(after_worse, worse)
        square += np.square(np.asarray(network.value(held, seen) - network.value(after_worse, worse), float)).sum()
        for world, slot in np.ndindex(WORLDS, SLOTS):
            if not mask[t, world, slot].any():
                continue
            count += 1
            if action == "discrete":
                left, right = (np.asarray(one.log_probs, float)[world, slot] for one in (p, q))
                total += (np.exp(left) * (left - right)).sum()
            else:
                gap = np.asarray(p.mean - q.mean, float)[world, slot]
                total += (gap**2 / (2 * np.exp(2 * np.asarray(q.log_std, float)[world, slot]))).sum()
    expected = total / count + square / (T * WORLDS)
    loss, metrics = eqx.filter_jit(made.loss)(network, lesson)
    without, _ = eqx.filter_jit(plain.loss)(network, lesson)
    assert float(metrics["inconsistency"]) == pytest.approx(expected, rel=1e-4)
    assert float(loss - without) == pytest.approx(0.3 * expected, rel=1e-3)
    assert total / count > 1e-3
    assert square / (T * WORLDS) > 1e-3


def test_what_the_good_sensors_say_is_not_moved():
    """The gradient is that towards constants."""
    observation = observed(13)
    algorithm = ppo.build(PPOSettings(**SMALL, augmentation_weight=0.1), 10)
    learner = algorithm.init(jax.random.key(0), SPEC, WORLDS)
    network, experience = learner.network, lived(algorithm, learner, observation)
    memory, rows = unroll(network, experience.memory, observation), jnp.zeros((T, WORLDS))
    other = augmented(KEY, observation, tuple(STRATEGIES), 0.3)
    how = Augmented(other, jax.tree.map(lambda leaf: leaf[None], experience.memory))
    lesson = Lesson(
        memory, observation, experience.action, experience.extras, rows, jnp.ones((T, WORLDS), bool), rows
    )
    aims = network.actions(memory, observation), network.value(memory, observation)

    def moving(one):
        own = one.actions(memory, observation), one.value(memory, observation)
        return inconsistency(one, lesson, how, *own)

    given = eqx.filter_jit(jax.grad(moving))(network)
    expected = eqx.filter_jit(jax.grad(lambda one: inconsistency(one, lesson, how, *aims)))(network)
    assert max(np.abs(leaf).max() for leaf in numbers(given)) > 1e-4
    for left, right in zip(numbers(given), numbers(expected), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


class Watching(Controller):
    """Remembers what it was shown."""

    def initial_memory(self, state, observation: Observation) -> Observation:
        return observation

    def act(self, key, memory, state, observation: Observation) -> tuple[jax.Array, Observation]:
        return jnp.zeros((*observation.slot_owner.shape, SIZE)), observation


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_dropped_sensors(probability):
    observation = observed(14, 2, 200)
    _, seen = DroppedSensors(Watching(), probability).act(KEY, observation, None, observation)
    lost = (np.asarray(seen.graph.nodes) == 0).all(-1)
    gone = (np.asarray(seen.graph.edges) == 0).all(-1)
    if probability in (0, 1):
        assert lost.all() == gone.all() == bool(probability)
        assert lost.any() == gone.any() == bool(probability)
    else:
        assert_frequency(lost.sum(), lost.size, probability)
        assert_frequency(gone.sum(), gone.size, probability)
    if not probability:
        assert_same(seen, observation)
