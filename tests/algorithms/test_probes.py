"""Every algorithm on environments of known value: one table, the same tests for each."""

from dataclasses import asdict, fields, replace
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array, PRNGKeyArray, PyTree
from probes import PROBES

from dynamic_graph_fed_rl.algorithms import a2c, dqn, ppo, pqn, reinforce
from dynamic_graph_fed_rl.algorithms.base import Algorithm, Experience
from dynamic_graph_fed_rl.algorithms.on_policy import OnPolicy, unroll
from dynamic_graph_fed_rl.algorithms.settings import (
    ALGORITHMS,
    A2CSettings,
    DQNSettings,
    PPOSettings,
    PQNSettings,
    ReinforceSettings,
)
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.models.values import best, together
from dynamic_graph_fed_rl.training.rollout import collect, start

ROUNDS, WORLDS, DECISIONS = 200, 16, 8
KEY = jax.random.key(4)
SMALL = {"width": 8, "layers": 1}
DISCRETE = [name for name, entry in ALGORITHMS.items() if "discrete" in entry.actions]
MODULES = {"ppo": ppo, "a2c": a2c, "reinforce": reinforce, "dqn": dqn, "pqn": pqn}
LEARNING = {
    "ppo": PPOSettings(learning_rate=0.01, trace=0.9, minibatches=2, **SMALL),
    "a2c": A2CSettings(learning_rate=0.05, trace=0.9, **SMALL),
    "reinforce": ReinforceSettings(learning_rate=0.05, **SMALL),
    "dqn": DQNSettings(
        learning_rate=5e-3, batch_size=64, updates=8, replay=2000, warm_up=100, update_delay=40, dueling=True, **SMALL
    ),
    "pqn": PQNSettings(learning_rate=0.01, minibatches=2, **SMALL),
}


def suits(algorithm: str, name: str) -> bool:
    if algorithm == "reinforce":
        # without a critic there is only the choice to ask for
        return bool(PROBES[name].choice)
    # what follows a time limit is not in the replay, so there episodes of one decision teach nothing
    return algorithm != "dqn" or name != "truncated"


CASES = [(algorithm, name) for algorithm in DISCRETE for name in PROBES if suits(algorithm, name)]


def recall_and_learn(
    algorithm: Algorithm, key: PRNGKeyArray, learner: PyTree, experience: Experience
) -> tuple[PyTree, dict[str, Array]]:
    recall_key, learn_key = jax.random.split(key)
    return algorithm.learn(learn_key, *algorithm.recall(recall_key, learner, experience))


@eqx.filter_jit
def learn(algorithm: Algorithm, worlds: Worlds) -> tuple[PyTree, dict[str, Array]]:
    """One agent's learner after ROUNDS rounds, and the metrics of all."""
    key, init_key, world_key = jax.random.split(jax.random.key(1), 3)
    learners = jax.tree.map(lambda leaf: leaf[None], algorithm.init(init_key, worlds.spec, worlds.copies))

    def round_of(carry, key):
        learners, actors = carry
        act_key, learn_key = jax.random.split(key)
        actors, experience, _ = collect(act_key, algorithm, worlds, learners, actors, DECISIONS)
        learners, metrics = jax.vmap(partial(recall_and_learn, algorithm))(learn_key[None], learners, experience)
        return (learners, actors), metrics

    begun = learners, start(world_key, algorithm, worlds, learners)
    (learners, _), metrics = jax.lax.scan(round_of, begun, jax.random.split(key, ROUNDS))
    return jax.tree.map(lambda leaf: leaf[0], learners), metrics


def test_every_algorithm_is_in_the_table():
    assert set(LEARNING) == set(MODULES) == set(DISCRETE)


def estimate(algorithm: Algorithm, learner: PyTree, memory: PyTree, observation: Observation) -> float:
    """What the learner makes of a state."""
    if isinstance(algorithm, OnPolicy):
        value = learner.network.value(memory, observation)
    else:
        values, allowed = learner.networks(memory, observation), observation.action_mask
        value = together(values, best(values, allowed), allowed)
    return learner.scale.restore(value).item()


@pytest.mark.parametrize(("algorithm", "name"), CASES)
def test_probe(algorithm, name):
    probe = PROBES[name]
    made = MODULES[algorithm].build(replace(LEARNING[algorithm], discount=probe.discount), ROUNDS)
    learner, metrics = learn(made, Worlds(probe.environment, WORLDS))
    assert all(np.isfinite(value).all() for value in metrics.values())
    # one after the other, as an episode meets them: memory is part of what the critic sees
    memory = None
    for state, value in probe.value.items():
        starts = probe.environment.start[state] > 0
        observation = probe.environment.observe(jnp.asarray(state), starts)
        memory = made.initial_memory(learner, observation) if memory is None else memory
        action, memory, _ = made.act(None, learner, memory, observation)
        if algorithm != "reinforce":
            found = estimate(made, learner, memory, observation)
            assert found == pytest.approx(value, abs=0.1), f"value of state {state}"
        if state in probe.choice:
            assert action.item() == probe.choice[state], f"choice in state {state}"


@pytest.fixture(params=DISCRETE)
def fresh(request):
    """A small algorithm of each kind and a learner of it."""
    made = MODULES[request.param].build(LEARNING[request.param], ROUNDS)
    return made, made.init(jax.random.key(0), PROBES["one-step"].environment.spec, WORLDS)


def test_only_the_networks_leave_the_agent(fresh):
    algorithm, learner = fresh
    name = "network" if isinstance(algorithm, OnPolicy) else "networks"
    shared = algorithm.shared(learner)
    assert jax.tree.structure(shared) == jax.tree.structure(getattr(learner, name))
    if isinstance(algorithm, OnPolicy):
        # a critic that never learns must not travel
        assert (learner.network.critic is not None) == algorithm.has_critic
    moved = algorithm.with_shared(learner, jax.tree.map(lambda leaf: leaf + 1, shared))
    for before, after in zip(jax.tree.leaves(shared), jax.tree.leaves(algorithm.shared(moved)), strict=True):
        np.testing.assert_array_equal(after, before + 1)
    for field in fields(learner):
        if field.name != name:
            left, right = (jax.tree.leaves(getattr(one, field.name)) for one in (learner, moved))
            for before, after in zip(left, right, strict=True):
                np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("algorithm", DISCRETE)
def test_every_setting_reaches_the_algorithm(algorithm):
    settings = ALGORITHMS[algorithm].settings()
    made = MODULES[algorithm].build(settings, 7)
    for name, value in asdict(settings).items():
        expected = pytest.approx(value) if isinstance(value, float) else value
        assert getattr(made, name) == expected, name
    assert float(made.decay_rounds) == 7


@eqx.filter_jit
def first_experience(algorithm: Algorithm, learner: PyTree) -> Experience:
    worlds = Worlds(PROBES["observation-and-action"].environment, WORLDS)
    learners = jax.tree.map(lambda leaf: leaf[None], learner)
    actors = start(jax.random.key(2), algorithm, worlds, learners)
    _, experience, _ = collect(jax.random.key(3), algorithm, worlds, learners, actors, DECISIONS)
    return jax.tree.map(lambda leaf: leaf[0], experience)


def distance(left: PyTree, right: PyTree) -> float:
    squares = jax.tree.map(lambda a, b: ((a - b) ** 2).sum(), left, right)
    return float(jnp.sqrt(sum(jax.tree.leaves(squares))))


@pytest.mark.parametrize("algorithm", DISCRETE)
def test_the_proximal_term_holds_parameters_to_what_was_received(algorithm):
    """FedProx with a huge weight: what is left is about one step of the optimiser, whatever the gradient."""
    many = {"updates": 32} if algorithm == "dqn" else {"epochs": 8, "minibatches": 4}
    settings = replace(LEARNING[algorithm], learning_rate=1e-3, **many)
    make = MODULES[algorithm].build
    learner = make(settings, 100).init(jax.random.key(0), PROBES["one-step"].environment.spec, WORLDS)
    experience = first_experience(make(settings, 100), learner)
    free, held = (
        distance(*map(made.shared, (eqx.filter_jit(recall_and_learn)(made, KEY, learner, experience)[0], learner)))
        for made in (make(replace(settings, proximal=weight), 100) for weight in (0.0, 1e4))
    )
    assert held < 0.25 * free


@pytest.mark.parametrize(("proximal", "memory"), [(0.0, None), (0.7, None), (0.0, "gru")])
def test_learning_descends_the_loss_through_memory_with_the_proximal_term(proximal, memory):
    """Against a plain loop over `jax.grad` of the whole local objective (Li et al. 2020, equation 2), in which memory
    always starts from the round's first row."""
    settings = replace(LEARNING["ppo"], epochs=3, minibatches=2, proximal=proximal, memory=memory)
    algorithm = ppo.build(settings, 100)
    learner = algorithm.init(jax.random.key(0), PROBES["one-step"].environment.spec, WORLDS)
    experience = first_experience(algorithm, learner)
    learned, _ = eqx.filter_jit(algorithm.learn)(KEY, learner, experience)

    def objective(network, part, begun):
        gaps = jax.tree.map(lambda now, then: ((now - then) ** 2).sum(), network, learner.network)
        part = part._replace(memory=unroll(network, begun, part.observation))
        return algorithm.loss(network, part)[0] + proximal / 2 * sum(jax.tree.leaves(gaps))

    lesson = algorithm.prepare(
        learner, unroll(learner.network, experience.memory, experience.observation), experience
    )[0]
    clip = optax.clip_by_global_norm(settings.max_gradient_norm)
    gradient_of, adam = jax.jit(jax.grad(objective)), optax.scale_by_adam(eps=1e-5)
    network, state, step = learner.network, adam.init(learner.network), 0
    for epoch_key in jax.random.split(KEY, settings.epochs):
        for index in jax.random.permutation(epoch_key, WORLDS).reshape(settings.minibatches, -1):
            part = jax.tree.map(lambda leaf, index=index: leaf[:, index], lesson)
            begun = jax.tree.map(lambda leaf, index=index: leaf[index], experience.memory)
            gradient = gradient_of(network, part, begun)
            direction, state = adam.update(clip.update(gradient, clip.init(network))[0], state)
            rate = settings.learning_rate * (1 - step / (100 * settings.epochs * settings.minibatches))
            network = jax.tree.map(lambda w, d, rate=rate: w - rate * d, network, direction)
            step += 1
    assert distance(learned.network, learner.network) > 0.01
    for ours, theirs in zip(jax.tree.leaves(learned.network), jax.tree.leaves(network), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
