"""Exchanges against NumPy, and what must be equal whoever computes it."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from probes import PROBES

from dynamic_graph_fed_rl.algorithms.ppo import build
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.federation.aggregators import Mean
from dynamic_graph_fed_rl.federation.federation import (
    Federation,
    Gossip,
    Independent,
    Plan,
    Server,
    parameter_bytes,
)
from dynamic_graph_fed_rl.federation.overlay import Complete, RandomPairs, Ring
from dynamic_graph_fed_rl.training.rollout import collect
from dynamic_graph_fed_rl.training.trainer import Trainer

AGENTS = 4
FEDERATIONS: dict[str, Callable[[], Federation]] = {
    "server": lambda: Server(AGENTS, Mean()),
    "gossip-complete": lambda: Gossip(AGENTS, Mean(), Complete(AGENTS)),
    "gossip-ring": lambda: Gossip(AGENTS, Mean(), Ring(AGENTS)),
    "gossip-random": lambda: Gossip(AGENTS, Mean(), RandomPairs(AGENTS)),
    "independent": lambda: Independent(AGENTS),
}


def parameters(seed: int, agents: int = AGENTS) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    shapes = {"matrix": (3, 2), "vector": (5,), "number": ()}
    return {name: jnp.asarray(rng.normal(size=(agents, *s)), jnp.float32) for name, s in shapes.items()}


def alike(shared: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], leaf.shape[0], axis=0), shared)


def everybody() -> Plan:
    return Plan(jnp.ones(AGENTS, bool), jnp.ones(AGENTS))


@eqx.filter_jit
def exchanged(federation: Federation, shared: dict, plan: Plan, seed: int = 0) -> tuple[dict, dict]:
    """After one exchange of agents that all started from the first one's parameters of another draw."""
    state = federation.init(alike(parameters(99)))
    _, mixed, report = federation.exchange(jax.random.key(seed), state, shared, plan)
    return mixed, report


def assert_close(left, right, atol=1e-6):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(a, b, atol=atol)


@given(st.integers(0, 10_000), st.lists(st.floats(0.0, 10.0), min_size=AGENTS, max_size=AGENTS))
def test_mean_against_numpy(seed, weights):
    updates = parameters(seed)
    result, _, _ = Mean()(updates, jnp.asarray(weights, jnp.float32), None, jax.random.key(0))
    if sum(weights) < 1e-3:
        return
    for name, leaf in updates.items():
        np.testing.assert_allclose(result[name], np.average(leaf, axis=0, weights=weights), rtol=1e-4, atol=1e-5)


def test_mean_of_nobody_is_no_update():
    result, _, _ = Mean()(parameters(0), jnp.zeros(AGENTS), None, jax.random.key(0))
    assert_close(result, jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), parameters(0)))


def test_the_server_sends_everybody_the_mean():
    shared = parameters(0)
    mixed, _ = exchanged(FEDERATIONS["server"](), shared, everybody())
    assert_close(mixed, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf.mean(0), leaf.shape), shared))


def test_the_server_weighs_by_the_plan():
    shared, weights = parameters(0), jnp.asarray([1.0, 2.0, 3.0, 4.0])
    mixed, _ = exchanged(FEDERATIONS["server"](), shared, Plan(jnp.ones(AGENTS, bool), weights))
    for name, leaf in shared.items():
        np.testing.assert_allclose(mixed[name][2], np.average(leaf, axis=0, weights=weights), rtol=1e-5, atol=1e-5)


def test_gossip_mixes_by_the_overlay():
    shared = parameters(0)
    mixed, _ = exchanged(FEDERATIONS["gossip-ring"](), shared, everybody())
    ring = np.asarray(Ring(AGENTS).weights(jax.random.key(0)))
    for name, leaf in shared.items():
        np.testing.assert_allclose(mixed[name], np.tensordot(ring, leaf, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 0.5, 4.0]])
def test_gossip_on_a_complete_overlay_is_a_server_average(weights):
    plan = Plan(jnp.ones(AGENTS, bool), jnp.asarray(weights))
    by_gossip, _ = exchanged(FEDERATIONS["gossip-complete"](), parameters(0), plan)
    by_server, _ = exchanged(FEDERATIONS["server"](), parameters(0), plan)
    assert_close(by_gossip, by_server)


@pytest.mark.parametrize("name", FEDERATIONS)
def test_agents_that_agree_go_on_unchanged(name):
    shared = alike(parameters(3))
    mixed, report = exchanged(FEDERATIONS[name](), shared, everybody())
    assert_close(mixed, shared)
    assert float(report["disagreement"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in FEDERATIONS if n != "independent"])
def test_repeated_exchange_reaches_consensus_on_the_mean(name):
    federation, shared = FEDERATIONS[name](), parameters(0)
    mean = jax.tree.map(lambda leaf: leaf.mean(0), shared)
    state = federation.init(alike(parameters(99)))
    exchange = jax.jit(federation.exchange)
    for key in jax.random.split(jax.random.key(0), 25):
        state, shared, _ = exchange(key, state, shared, everybody())
    for name_of_leaf, leaf in shared.items():
        np.testing.assert_allclose(leaf, np.broadcast_to(mean[name_of_leaf], leaf.shape), atol=1e-4)


@pytest.mark.parametrize("name", FEDERATIONS)
def test_absent_agents_change_nothing_for_the_others(name):
    active = jnp.asarray([True, False, True, True])
    plan = Plan(active, jnp.ones(AGENTS))
    shared = parameters(0)
    odd = jax.tree.map(lambda leaf: leaf.at[1].set(1e3), shared)
    with_one, _ = exchanged(FEDERATIONS[name](), shared, plan)
    with_other, _ = exchanged(FEDERATIONS[name](), odd, plan)
    for a, b in zip(jax.tree.leaves(with_one), jax.tree.leaves(with_other), strict=True):
        np.testing.assert_allclose(np.asarray(a)[active], np.asarray(b)[active], rtol=1e-6)


def test_an_absent_gossiper_keeps_what_it_has():
    shared, active = parameters(0), jnp.asarray([True, False, True, True])
    mixed, _ = exchanged(FEDERATIONS["gossip-ring"](), shared, Plan(active, jnp.ones(AGENTS)))
    for name, leaf in shared.items():
        np.testing.assert_allclose(mixed[name][1], leaf[1], rtol=1e-6)


@pytest.mark.parametrize("name", ["server", "gossip-ring"])
def test_a_round_without_anybody_changes_no_model(name):
    nobody = Plan(jnp.zeros(AGENTS, bool), jnp.ones(AGENTS))
    mixed, report = exchanged(FEDERATIONS[name](), parameters(0), nobody)
    expected = alike(parameters(99)) if name == "server" else parameters(0)
    assert_close(mixed, expected)
    assert float(report["bytes"]) == 0


def test_independent_agents_exchange_nothing():
    shared = parameters(0)
    mixed, report = exchanged(FEDERATIONS["independent"](), shared, everybody())
    assert_close(mixed, shared, atol=0)
    assert float(report["bytes"]) == 0
    distance = sum(((leaf - leaf.mean(0)) ** 2).sum() for leaf in shared.values())
    assert float(report["disagreement"]) == pytest.approx(float(jnp.sqrt(distance / AGENTS)), rel=1e-5)


def test_bytes_of_an_exchange():
    shared = parameters(0)
    one = parameter_bytes(shared)
    assert one == 4 * (6 + 5 + 1)
    _, by_server = exchanged(FEDERATIONS["server"](), shared, everybody())
    assert float(by_server["bytes"]) == 2 * AGENTS * one
    _, on_ring = exchanged(FEDERATIONS["gossip-ring"](), shared, everybody())
    assert float(on_ring["bytes"]) == 2 * AGENTS * one
    some = Plan(jnp.asarray([True, False, False, True]), jnp.ones(AGENTS))
    _, by_server = exchanged(FEDERATIONS["server"](), shared, some)
    assert float(by_server["bytes"]) == 2 * 2 * one


@pytest.mark.parametrize("name", ["server", "gossip-complete", "gossip-ring"])
def test_identical_agents_with_identical_data_are_one_agent(name):
    """Learn from the same experience with the same draws, exchange, and compare with an agent on its own."""
    settings = PPOSettings(epochs=2, minibatches=2, width=8, layers=1)
    probe = PROBES["observation-and-action"]
    trainer = Trainer(build(settings, 10), Worlds(probe.environment, 8), Independent(1), 4)
    training = trainer.init(jax.random.key(0))
    key = jax.random.key(7)
    _, experience, _ = eqx.filter_jit(collect)(
        key, trainer.algorithm, trainer.worlds, training.learners, training.actors, 4, "vmap"
    )

    def repeated(tree):
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, AGENTS, axis=0), tree)

    learn = jax.jit(jax.vmap(trainer.algorithm.learn))
    alone, _ = learn(key[None], training.learners, experience)
    together, _ = learn(jnp.repeat(key[None], AGENTS), repeated(training.learners), repeated(experience))
    federation = FEDERATIONS[name]()
    state = federation.init(repeated(training.learners.network))
    _, shared, _ = federation.exchange(key, state, together.network, everybody())
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).sum()), alone.network, training.learners.network)
    assert sum(jax.tree.leaves(moved)) > 1e-2
    assert_close(shared, repeated(alone.network), atol=1e-6)
