"""Losses and targets recomputed by NumPy from what the networks give, one row and one slot after the other."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.algorithms import dqn, ppo, pqn
from dynamic_graph_fed_rl.algorithms.off_policy import Batch
from dynamic_graph_fed_rl.algorithms.on_policy import Lesson
from dynamic_graph_fed_rl.algorithms.pqn import Lesson as ValueLesson
from dynamic_graph_fed_rl.algorithms.returns import ValueScale
from dynamic_graph_fed_rl.algorithms.settings import DQNSettings, PPOSettings, PQNSettings
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.memory import remembered

NODES, EDGES, SLOTS, CHOICES, T, WORLDS = 4, 5, 3, 3, 2, 4
SPEC = Spec(
    agents=1,
    nodes=NODES,
    edges=EDGES,
    slots=SLOTS,
    action="discrete",
    action_size=CHOICES,
    node_features=(Column("a"), Column("b")),
    edge_features=(Column("c"),),
    global_features=(Column("d"),),
    slot_features=(Column("e"),),
)
SMALL = {"width": 8, "memory": "none"}


def observed(rng: np.random.Generator) -> Observation:
    """Rows of a graph whose last node is missing in places; every slot has its mask, one slot is padding."""

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(T, WORLDS, *shape)), jnp.float32)

    allowed = rng.random((T, WORLDS, SLOTS, CHOICES)) < 0.6
    allowed[..., 0] |= ~allowed.any(-1)
    allowed[0, 0, -1] = False
    node_mask = np.ones((T, WORLDS, NODES), bool)
    node_mask[1, 2, -1] = False
    ends = jnp.asarray(rng.integers(0, NODES - 1, (2, T, WORLDS, EDGES)), jnp.int32)
    return Observation(
        graph=Graph(
            normal(NODES, 2), normal(EDGES, 1), ends[0], ends[1], jnp.asarray(node_mask),
            jnp.asarray(rng.random((T, WORLDS, EDGES)) < 0.8), normal(1),
        ),
        slots=normal(SLOTS, 1),
        slot_owner=jnp.asarray(rng.integers(0, NODES - 1, (T, WORLDS, SLOTS)), jnp.int32),
        action_mask=jnp.asarray(allowed),
        first=jnp.zeros((T, WORLDS), bool),
        births=jnp.zeros((T, WORLDS, NODES), bool),
    )  # fmt: skip


def taken(rng: np.random.Generator, observation: Observation) -> jax.Array:
    """An allowed choice in every slot."""
    draw = np.where(observation.action_mask, rng.random(observation.action_mask.shape), -1.0)
    return jnp.asarray(draw.argmax(-1), jnp.int32)


def loud(networks):
    """Small last layers would hide what is added to them."""
    grow = lambda leaf: 30.0 * leaf if leaf.ndim == 2 and leaf.shape[1] in (CHOICES, CHOICES + 1) else leaf  # noqa: E731
    return jax.tree.map(grow, networks)


def mean_over_slots(values: np.ndarray, choice: np.ndarray, allowed: np.ndarray) -> float:
    """Of one row: the mean of chosen values over the slots that have a choice."""
    chosen = [values[s, choice[s]] for s in range(SLOTS) if allowed[s].any()]
    return float(np.mean(chosen))


def huber(error: float) -> float:
    return 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("dueling", [False, True])
def test_loss_of_dqn(double, dueling):
    """Mnih et al. 2015, algorithm 1 with their clipped error; van Hasselt et al. 2016, equation 4."""
    rng = np.random.default_rng(0)
    made = dqn.build(DQNSettings(double=double, dueling=dueling, **SMALL), 10)
    fast, other = (loud(made.networks(jax.random.key(seed), SPEC)) for seed in (0, 1))
    slow = made.slow(other)
    scale = ValueScale(jnp.asarray(2.0), jnp.asarray(0.5))
    observation, following = observed(rng), observed(rng)
    action = taken(rng, observation)
    gain, factor = rng.normal(size=(T, WORLDS)), rng.choice([0.0, 0.9, 0.81], (T, WORLDS))
    weight = rng.random((T, WORLDS))
    memory, later = observation.graph.nodes, following.graph.nodes
    batch = Batch(
        memory, observation, action, *(jnp.asarray(one, jnp.float32) for one in (gain, factor)), later, following,
        jnp.asarray(weight, jnp.float32),
    )  # fmt: skip
    loss, size = eqx.filter_jit(made.loss)(fast, slow, scale, batch)

    now = np.asarray(fast(memory, observation), float)
    graph = remembered(fast.memory, later, following)
    chooser = np.asarray((fast.values if double else slow)(graph, following), float)
    judge = np.asarray(slow(graph, following), float)
    allowed, then = np.asarray(observation.action_mask), np.asarray(following.action_mask)
    expected, differs = 0.0, 0
    for t in range(T):
        for world in range(WORLDS):
            chosen = np.where(then[t, world], chooser[t, world], -np.inf).argmax(-1)
            differs += (chosen != np.where(then[t, world], judge[t, world], -np.inf).argmax(-1)).sum()
            value = 2.0 + 0.5 * mean_over_slots(judge[t, world], chosen, then[t, world])
            target = (gain[t, world] + factor[t, world] * value - 2.0) / 0.5
            error = mean_over_slots(now[t, world], np.asarray(action)[t, world], allowed[t, world]) - target
            assert size[t, world] == pytest.approx(abs(error), abs=1e-5)
            expected += weight[t, world] * huber(error)
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    # that double is another target shows here
    assert (differs > 0) == double


def test_the_target_of_dqn_is_not_differentiated():
    """The gradient is that of the loss with its target as a constant: targets bootstrap, they do not follow."""
    rng = np.random.default_rng(1)
    made = dqn.build(DQNSettings(**SMALL), 10)
    fast = loud(made.networks(jax.random.key(0), SPEC))
    slow, scale = made.slow(loud(made.networks(jax.random.key(1), SPEC))), ValueScale.initial()
    observation, following = observed(rng), observed(rng)
    rows = jnp.full((T, WORLDS), 0.5)
    batch = Batch(
        observation.graph.nodes,
        observation,
        taken(rng, observation),
        rows,
        rows,
        following.graph.nodes,
        following,
        rows,
    )
    # the same rows with nothing to bootstrap from and the target as their gain
    constant = batch._replace(gain=made.target(fast, slow, scale, batch), factor=jnp.zeros((T, WORLDS)))
    given, expected = (
        jax.tree.leaves(eqx.filter_jit(eqx.filter_grad(lambda one, b=b: made.loss(one, slow, scale, b)[0]))(fast))
        for b in (batch, constant)
    )
    assert max(float(jnp.abs(leaf).max()) for leaf in given) > 1e-3
    for left, right in zip(given, expected, strict=True):
        np.testing.assert_allclose(left, right, atol=1e-6)


def test_loss_of_pqn():
    rng = np.random.default_rng(2)
    made = pqn.build(PQNSettings(**SMALL), 10)
    network = loud(made.init(jax.random.key(0), SPEC, WORLDS).networks)
    observation = observed(rng)
    action, target = taken(rng, observation), rng.normal(size=(T, WORLDS))
    lesson = ValueLesson(observation.graph.nodes, observation, action, jnp.asarray(target, jnp.float32))
    loss, _ = eqx.filter_jit(made.loss)(network, lesson)
    values = np.asarray(network(observation.graph.nodes, observation), float)
    allowed = np.asarray(observation.action_mask)
    errors = [
        mean_over_slots(values[t, w], np.asarray(action)[t, w], allowed[t, w]) - target[t, w]
        for t in range(T)
        for w in range(WORLDS)
    ]
    assert float(loss) == pytest.approx(0.5 * np.mean(np.square(errors)), rel=1e-6)


@pytest.mark.parametrize("kind", ["discrete", "continuous"])
def test_loss_of_ppo(kind):
    """Schulman et al. 2017, equation 7 in every usable slot; Huber loss of the value; entropy bonus."""
    rng = np.random.default_rng(3)
    size = CHOICES if kind == "discrete" else 2
    settings = PPOSettings(clip=0.2, value_weight=0.7, entropy_weight=0.05, **SMALL)
    made = ppo.build(settings, 10)
    network = loud(made.init(jax.random.key(0), replace(SPEC, action=kind, action_size=size), WORLDS).network)
    observation = observed(rng)
    memory = observation.graph.nodes
    if kind == "continuous":
        observation = eqx.tree_at(lambda one: one.action_mask, observation, observation.action_mask.any(-1))
    distribution = network.actions(memory, observation)
    action = taken(rng, observation) if kind == "discrete" else distribution.sample(jax.random.key(1))
    before = np.asarray(distribution.log_prob(action)) + rng.normal(scale=0.3, size=(T, WORLDS, SLOTS))
    advantage, target = rng.normal(size=(2, T, WORLDS))
    lesson = Lesson(
        memory,
        observation,
        action,
        jnp.asarray(before, jnp.float32),
        jnp.asarray(advantage, jnp.float32),
        jnp.ones((T, WORLDS), bool),
        jnp.asarray(target, jnp.float32),
    )
    loss, metrics = eqx.filter_jit(made.loss)(network, lesson)

    mask, value = np.asarray(observation.action_mask), np.asarray(network.value(memory, observation), float)
    policy, entropy, clipped, count = 0.0, 0.0, 0, 0
    for t, world, slot in np.ndindex(T, WORLDS, SLOTS):
        usable = mask[t, world, slot].any()
        if not usable:
            continue
        if kind == "discrete":
            logs = np.asarray(distribution.log_probs, float)[t, world, slot]
            logs = logs[mask[t, world, slot]]
            assert np.exp(logs).sum() == pytest.approx(1.0, abs=1e-5)
            own = float(np.asarray(distribution.log_probs, float)[t, world, slot, action[t, world, slot]])
            entropy -= float((np.exp(logs) * logs).sum())
        else:
            mean, deviation = (
                np.asarray(one, float)[t, world, slot] for one in (distribution.mean, np.exp(distribution.log_std))
            )
            z = (np.asarray(action, float)[t, world, slot] - mean) / deviation
            own = float((-0.5 * z**2 - np.log(deviation * np.sqrt(2 * np.pi))).sum())
            entropy += float((0.5 * np.log(2 * np.pi * np.e * deviation**2)).sum())
        ratio = np.exp(own - np.float32(before[t, world, slot]))
        gain = advantage[t, world]
        policy -= min(ratio * gain, np.clip(ratio, 0.8, 1.2) * gain)
        clipped += abs(ratio - 1) > 0.2
        count += 1
    value_loss = np.mean([huber(error) for error in (value - target).ravel()])
    assert 0 < clipped < count
    assert float(metrics["clip_fraction"]) == pytest.approx(clipped / count)
    assert float(loss) == pytest.approx(
        policy / count + 0.7 * value_loss - 0.05 * entropy / count, abs=1e-6, rel=1e-6
    )
