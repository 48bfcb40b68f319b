"""Agents as objects: after the same data they have the same parameters as the pure core."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from streams import played

from dynamic_graph_fed_rl import DynamicGraphEnv
from dynamic_graph_fed_rl.algorithms import GraphPPO, GraphSAC, GraphTD3
from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.off_policy import Lesson
from dynamic_graph_fed_rl.environments.base import Transition
from dynamic_graph_fed_rl.objects.learning import as_sample

SMALL = {"width": 4, "gnn_type": "static_gcn", "window": 1, "batch_size": 8, "buffer_size": 50}


@pytest.fixture(scope="module")
def pendulum():
    return DynamicGraphEnv("pendulum", num_agents=1, time_limit=6)


@pytest.fixture(scope="module")
def rows(pendulum):
    return played(pendulum, 18)


def filled(kind, pendulum, rows, **arguments):
    agent = kind.for_environment(pendulum, **(SMALL | {"number": 0} | arguments))
    for row in rows:
        agent.buffer.add(row)
    return agent


def assert_alike(one, other, **close):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **({"rtol": 1e-5, "atol": 1e-6} | close)), one, other)


def test_updates_are_those_of_the_core(pendulum, rows):
    """Two gradient steps (the second moves the actor) against `Algorithm.learn` on the same batches; without noise
    nothing else is random."""
    agent = filled(GraphTD3, pendulum, rows, target_noise=0.0)
    twin = filled(GraphTD3, pendulum, rows, target_noise=0.0, number=1)
    batches = [agent.buffer.windows(8, 2) for _ in range(2)]
    for batch in batches:
        agent.update(batch)

    twin._guess_scale()
    learner = replace(twin.learner, replay=twin.buffer.replay)
    algorithm = replace(twin.algorithm, updates=2)
    windows = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(batch.sample for batch in batches))
    lesson = Lesson(windows, jnp.asarray(True))
    learned, _ = eqx.filter_jit(lambda *given: algorithm.learn(*given))(jax.random.key(0), learner, lesson)
    assert_alike(agent.learner, replace(learned, replay=None))
    assert int(agent.learner.updates) == 2


@pytest.mark.parametrize("kind", [GraphTD3, GraphSAC])
def test_both_halves_are_a_whole(kind, pendulum, rows):
    """Critics and actor one after the other against `update`: critics alike, and for TD3, whose actor is not
    random, everything."""
    noise = {"target_noise": 0.0} if kind is GraphTD3 else {}
    agent, twin = (filled(kind, pendulum, rows, **noise) for _ in range(2))
    for _ in range(2 if kind is GraphTD3 else 1):
        batch = agent.buffer.windows(8, 2)
        figures = agent.update(batch)
        # SAC's critics draw a next action by the first half of the key
        critic_loss, actor_loss = twin.update_critic(batch), twin.update_actor(batch)
        if kind is GraphTD3:
            assert critic_loss == pytest.approx(figures["critic_loss"], rel=1e-4)
    if kind is GraphTD3:
        # `update` reports a mean over a round, in which the actor moves every other time
        assert actor_loss == pytest.approx(figures["actor_loss"] / 2, rel=1e-4)
        assert_alike(agent.learner, twin.learner)
    else:
        assert np.isfinite([critic_loss, actor_loss]).all()
        begun = kind.for_environment(pendulum, **SMALL).learner.networks
        for part in ("actor", "critics", "log_temperature"):
            moved = jax.tree.map(np.array_equal, getattr(begun, part), getattr(twin.learner.networks, part))
            assert not all(jax.tree.leaves(moved)), part


def test_windows_that_look_back_teach_what_they_know(pendulum, rows):
    """In windows of 3 rows the first two have their successors; the last teaches only if it terminated. Rows before
    an episode's beginning teach nothing. Against a count by hand."""
    agent = filled(GraphTD3, pendulum, rows)
    batch = agent.buffer.sample_temporal(batch_size=18, lookback=3)
    ended = jnp.zeros((3, 18), bool).at[-1, ::2].set(True)
    sample = replace(batch.sample, terminated=ended)
    sample = as_sample(agent.algorithm, agent.learner, replace(batch, sample=sample))
    weight = np.asarray(agent.algorithm.batch(agent.learner.networks.memory, sample).weight)
    teaches = np.asarray(batch.valid).copy()
    teaches[-1, 1::2] = False
    assert teaches.any() and not teaches.all()
    np.testing.assert_allclose(weight, teaches / teaches.sum(), rtol=1e-6)


def test_a_loss_is_looked_at_without_learning(pendulum, rows):
    agent = filled(GraphTD3, pendulum, rows, target_noise=0.0)
    batch = agent.buffer.sample_temporal(batch_size=8, lookback=3)
    agent._guess_scale()
    before = agent.learner
    loss = agent.compute_loss(batch)
    assert agent.learner is before
    silent = batch.with_graphs(jax.tree.map(jnp.zeros_like, batch.graphs))
    assert agent.compute_loss(silent) != loss
    assert not np.allclose(agent.get_representations(batch), agent.get_representations(silent))
    assert loss == pytest.approx(agent.update_critic(batch), rel=1e-5)


@pytest.mark.parametrize("name", ["cartpole", "pendulum"])
def test_ppo_learns_as_the_core(name):
    """The same rollout, over an episode's end, acted and learned by the pure functions."""
    env = DynamicGraphEnv(name, num_agents=1, time_limit=4)
    agent = GraphPPO.for_environment(env, rollout=6, width=4, epochs=2, gnn_type="edge-gated")
    algorithm, learner = agent.algorithm, agent.learner
    rows, memory, extras = played(env, 6), None, []
    for row in rows:
        seen = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], row.graph_t.observation)
        memory = algorithm.initial_memory(learner, seen) if memory is None else memory
        memory = learner.network.remember(memory, seen)
        action = jnp.asarray(row.shaped_action)[None]
        extras.append(learner.network.actions(memory, seen).log_prob(action))
        with pytest.raises(ValueError, match=r"update\(\) learns from 6 at once"):
            agent.update()
        agent.buffer.add(row)

    seen, after = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *(one.observation for one in graphs))
        for graphs in ([row.graph_t for row in rows], [row.graph_t1 for row in rows])
    )
    terminated, truncated = (jnp.asarray([[row.ends[i]] for row in rows]) for i in range(2))
    assert (terminated | truncated).any()
    reward = jnp.asarray([[row.reward] for row in rows], jnp.float32)
    outcome = Transition(after, reward, jnp.zeros((6, 1, 0)), terminated, truncated, {})
    action = jnp.stack([jnp.asarray(row.shaped_action)[None] for row in rows])
    blank = algorithm.initial_memory(learner, jax.tree.map(lambda leaf: leaf[0], seen))
    experience = Experience(blank, seen, action, outcome, jnp.stack(extras))
    expected, _ = eqx.filter_jit(lambda *given: algorithm.learn(*given))(jax.random.key(5), learner, experience)
    agent.update()
    assert_alike(agent.learner, expected, rtol=1e-4, atol=1e-5)
    assert len(agent.buffer) == 0


def test_agents_of_a_seed_begin_alike_and_explore_apart(pendulum):
    first, second, other = (GraphTD3.for_environment(pendulum, seed=seed, **SMALL) for seed in (0, 0, 1))
    seen = pendulum.reset().get_subgraph(0)
    assert_alike(first.get_parameters(), second.get_parameters(), rtol=0, atol=0)
    np.testing.assert_array_equal(first.select_action(seen, deterministic=True), second.select_action(seen, True))
    assert not np.array_equal(first.select_action(seen), second.select_action(seen))
    assert not np.array_equal(second.select_action(seen, True), other.select_action(seen, True))


def test_parameters_come_and_go(pendulum):
    agent, other = (GraphTD3.for_environment(pendulum, seed=seed, **SMALL) for seed in (0, 1))
    optimiser = agent.learner.optimiser
    agent.set_parameters(other.get_parameters())
    assert_alike(agent.learner.networks, other.learner.networks, rtol=0, atol=0)
    assert eqx.tree_equal(agent.learner.optimiser, optimiser)
    wide = GraphTD3.for_environment(pendulum, **(SMALL | {"width": 8}))
    with pytest.raises(ValueError, match=r"parameters, actor\.encoder\..*: shape \[.*8.*\], must be"):
        agent.set_parameters(wide.get_parameters())


def test_graphs_are_encoded_by_the_policy(pendulum):
    agent = GraphTD3.for_environment(pendulum, **SMALL)
    seen = pendulum.reset().get_subgraph(0)
    networks = agent.learner.networks
    graph = jax.tree.map(jnp.asarray, seen.graph)
    np.testing.assert_allclose(agent.encode_graph(seen), networks.actor.encoder(graph), rtol=1e-5)


@pytest.mark.parametrize(
    "arguments, message, error",
    [
        ({"safety_layer": True}, "GraphSAC, safety_layer: safety layers arrive", NotImplementedError),
        ({"constraint_threshold": {"voltage": 0.05}}, "constraint_threshold: safety", NotImplementedError),
        ({"actor_lr": 1e-3, "critic_lr": 3e-4}, "actor_lr 0.001, critic_lr 0.0003: must be equal", ValueError),
        ({"gnn_type": "gcm"}, "encoder 'gcm': unknown; known: edge-gated", ValueError),
        ({"wdith": 4}, "GraphSAC, hyperparameter 'wdith': unknown; known: .*width", ValueError),
        ({"warm_up": 10}, "GraphSAC, warm_up: is for whole rounds", ValueError),
        ({"batch_size": 5, "window": 2}, "batch_size 5: must be a multiple of the window", ValueError),
    ],
)
def test_what_cannot_be_is_refused_by_name(arguments, message, error):
    with pytest.raises(error, match=message):
        GraphSAC(**arguments)


def test_sizes_are_checked_against_the_first_graph(pendulum):
    seen = pendulum.reset().get_subgraph(0)
    with pytest.raises(ValueError, match="GraphTD3, state_dim 5: the graph has 3 features a node"):
        GraphTD3(state_dim=5, action_dim=1, edge_dim=0).select_action(seen)
    with pytest.raises(ValueError, match="GraphSAC: has seen no graph yet"):
        GraphSAC().get_parameters()
    cartpole = DynamicGraphEnv("cartpole", num_agents=1)
    with pytest.raises(ValueError, match="acts with continuous actions; these are discrete"):
        GraphSAC.for_environment(cartpole)


def test_what_needs_a_safety_layer_says_so():
    agent = GraphSAC(actor_lr=3e-4, critic_lr=3e-4)
    assert agent.settings.learning_rate == 3e-4
    with pytest.raises(NotImplementedError, match="safety_violations"):
        _ = agent.safety_violations
    with pytest.raises(NotImplementedError, match="strengthen_safety_constraints"):
        agent.strengthen_safety_constraints()
