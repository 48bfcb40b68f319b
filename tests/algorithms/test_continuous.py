"""TD3 and SAC: losses against NumPy, and environments of known value."""

import math
from dataclasses import asdict, replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float, Int

from dynamic_graph_fed_rl.algorithms import sac, td3
from dynamic_graph_fed_rl.algorithms.off_policy import Batch
from dynamic_graph_fed_rl.algorithms.settings import ALGORITHMS, SACSettings, TD3Settings
from dynamic_graph_fed_rl.environments.base import Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.environments.vector import observe
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.models.memory import remembered
from dynamic_graph_fed_rl.training.rollout import collect, start, study

MODULES = {"td3": td3, "sac": sac}
SMALL = {"width": 16, "batch_size": 64, "updates": 8, "warm_up": 128, "replay": 1024, "learning_rate": 5e-3}
LEARNING = {
    "td3": TD3Settings(**SMALL, update_delay=1, target_rate=0.05),
    "sac": SACSettings(**SMALL, target_rate=0.05, target_entropy=-2.0),
}


class Aim(Environment):
    """Two decisions. The first is shown again, and with the second costs its squared distance to half of the first
    thing seen, which is -1 or 1; the second decision costs its squared distance to -0.5."""

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=1,
            nodes=1,
            edges=0,
            slots=1,
            action="continuous",
            action_size=1,
            node_features=(Column("aim"), Column("shown"), Column("second")),
            episode_decisions=2,
        )

    def observe(self, state: Float[Array, "3"]) -> Observation:
        return observe(state, None, state[2] == 0)

    def reset(self, key):
        state = jnp.stack([jax.random.choice(key, jnp.array([-1.0, 1.0])), jnp.zeros(()), jnp.zeros(())])
        return state, self.observe(state)

    def step(self, key, state, action):
        aim, shown, second = state
        push = action[0, 0, 0]
        reward = jnp.where(second > 0, -((shown - 0.5 * aim) ** 2) - (push + 0.5) ** 2, 0.0)
        after = jnp.stack([aim, push, second + 1])
        transition = Transition(
            self.observe(after), reward[None], jnp.zeros((1, 0)), (second > 0)[None], jnp.zeros(1, bool), {}
        )
        return after, transition


@eqx.filter_jit
def learn(algorithm, worlds: Worlds, rounds: Int[Array, ""]):
    """One agent's learner after so many rounds, and the largest figure that learning reported."""
    key, init_key, world_key = jax.random.split(jax.random.key(1), 3)
    learners = jax.tree.map(lambda leaf: leaf[None], algorithm.init(init_key, worlds.spec, worlds.copies))

    def round_of(count, carry):
        learners, actors, worst = carry
        act_key, learn_key = jax.random.split(jax.random.fold_in(key, count))
        actors, experience, _ = collect(act_key, algorithm, worlds, learners, actors, 4)
        learners, metrics = study(learn_key[None], algorithm, learners, experience, "vmap")
        return learners, actors, jnp.maximum(worst, jnp.abs(jnp.stack(list(metrics.values()))).max())

    begun = learners, start(world_key, algorithm, worlds, learners), jnp.zeros(())
    learners, _, worst = jax.lax.fori_loop(0, rounds, round_of, begun)
    return jax.tree.map(lambda leaf: leaf[0], learners), worst


QUADRATIC = {"critic": "quadratic", "actor_rate_falls": True}


@pytest.mark.parametrize(
    ("name", "others"), [("td3", {}), ("td3", QUADRATIC), ("sac", {}), ("sac", {"steps": 2}), ("sac", QUADRATIC)]
)
def test_it_finds_what_pays_at_once_and_a_decision_later(name, others):
    algorithm = MODULES[name].build(replace(LEARNING[name], **others), 150)
    environment = Aim()
    learner, worst = learn(algorithm, Worlds(environment, 16), jnp.asarray(150))
    assert np.isfinite(worst)
    networks = learner.networks
    for aim in (-1.0, 1.0):
        seen = environment.observe(jnp.array([aim, 0.0, 0.0]))
        first, memory, _ = algorithm.act(None, learner, algorithm.initial_memory(learner, seen), seen)
        assert first.item() == pytest.approx(0.5 * aim, abs=0.15)
        # the value of what is best, and of what is 0.7 off the aim, a decision before it costs; two rewards in a
        # row would count what exploration cost in the second, and a parabola fits what is still being tried
        graph = remembered(networks.memory, memory, seen)
        for off in (0.0, -0.7 * aim)[: 2 * (algorithm.steps == 1 and algorithm.critic == "free")]:
            value = networks.critics[0](graph, seen, jnp.full((1, 1, 1), 0.5 * aim + off))
            expected = -0.99 * off**2
            assert learner.scale.restore(value).item() == pytest.approx(expected, abs=0.15)
        seen = environment.observe(jnp.array([aim, 0.5 * aim, 1.0]))
        second, _, _ = algorithm.act(None, learner, memory, seen)
        assert second.item() == pytest.approx(-0.5, abs=0.15)


SPEC = Spec(
    agents=1,
    nodes=3,
    edges=2,
    slots=2,
    action="continuous",
    action_size=2,
    node_features=(Column("x"),),
    edge_features=(Column("w"),),
    slot_features=(Column("s"),),
)
ROWS = (2, 5)


def batch_of(algorithm, learner, seed: int) -> Batch:
    """Random rows of a graph of three nodes whose second slot may not always be used."""
    random = np.random.default_rng(seed)

    def fill(leaf: Array) -> Array:
        shape = (*ROWS, *leaf.shape[1:])
        if leaf.dtype == bool:
            return jnp.asarray(random.random(shape) < 0.7)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.asarray(random.integers(0, 3, shape), leaf.dtype)
        return jnp.asarray(random.normal(size=shape), leaf.dtype)

    def look() -> Observation:
        seen = jax.tree.map(fill, Observation.blank(SPEC, 1))
        usable = seen.action_mask.at[..., 0].set(True)
        return eqx.tree_at(lambda one: one.action_mask, seen, usable)

    seen, following = look(), look()
    memories = [learner.networks.memory.remember(learner.networks.memory.initial(o), o) for o in (seen, following)]
    weight = random.random(ROWS)
    return Batch(
        memories[0],
        seen,
        jnp.asarray(random.uniform(-1, 1, (*ROWS, 2, 2)), jnp.float32),
        jnp.asarray(random.normal(size=ROWS), jnp.float32),
        jnp.asarray(random.choice([0.0, 0.99], ROWS), jnp.float32),
        memories[1],
        following,
        jnp.asarray(weight / weight.sum(), jnp.float32),
    )


@pytest.fixture(params=[("td3", "free"), ("td3", "quadratic"), ("sac", "free")], ids="-".join)
def prepared(request):
    """An algorithm, a learner whose slow copies differ from its networks, and a batch."""
    name, critic = request.param
    algorithm = MODULES[name].build(replace(LEARNING[name], critic=critic, memory="none"), 1)
    learner = algorithm.init(jax.random.key(0), SPEC, 1)
    noisy = jax.tree.map(
        lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), learner.targets
    )
    return algorithm, eqx.tree_at(lambda one: one.targets, learner, noisy), batch_of(algorithm, learner, 3)


def draw(actor, algorithm, key, graph, observation):
    """An action of the stochastic actor and its mean log-density over usable slots, in double precision."""
    policy = algorithm.policy(actor, graph, observation)
    noise = np.asarray(jax.random.normal(key, policy.mean.shape), np.float64)
    mean, log_std = np.asarray(policy.mean, np.float64), np.asarray(policy.log_std, np.float64)
    before = mean + np.exp(log_std) * noise
    density = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi) - np.log1p(-(np.tanh(before) ** 2))
    usable = np.asarray(observation.action_mask)
    return np.tanh(before), (density.sum(-1) * usable).sum(-1) / usable.sum(-1)


def test_targets_and_losses_against_numpy(prepared):
    algorithm, learner, batch = prepared
    networks, key = learner.networks, jax.random.key(5)
    following = remembered(networks.memory, batch.following_memory, batch.following)
    graph = remembered(networks.memory, batch.memory, batch.observation)
    values = lambda critics, graph, seen, action: [  # noqa: E731
        np.asarray(critic(graph, seen, jnp.asarray(action, jnp.float32)), np.float64) for critic in critics
    ]
    weight = np.asarray(batch.weight, np.float64)

    if isinstance(algorithm, sac.SAC):
        action, log_density = draw(networks.actor, algorithm, key, following, batch.following)
        expected = np.minimum(*values(learner.targets, following, batch.following, action)) - 0.1 * log_density
    else:
        actor, critics = learner.targets
        noise = np.clip(0.2 * np.asarray(jax.random.normal(key, (*ROWS, 2, 2))), -0.5, 0.5)
        action = np.clip(np.tanh(np.asarray(actor(following, batch.following))) + noise, -1, 1)
        expected = np.minimum(*values(critics, following, batch.following, action))
    target = algorithm.target(key, networks, learner.targets, following, batch.following)
    np.testing.assert_allclose(target, expected, atol=1e-6)

    errors = [q - expected for q in values(networks.critics, graph, batch.observation, batch.action)]
    loss, size = algorithm.critic_loss(networks.critics, graph, batch, target)
    np.testing.assert_allclose(loss, (weight * (errors[0] ** 2 + errors[1] ** 2)).sum(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(size, (np.abs(errors[0]) + np.abs(errors[1])) / 2, atol=1e-6)

    if isinstance(algorithm, sac.SAC):
        action, log_density = draw(networks.actor, algorithm, key, graph, batch.observation)
        value = np.minimum(*values(networks.critics, graph, batch.observation, action))
        loss, entropy = algorithm.actor_loss(
            networks.actor, key, networks.critics, networks.temperature, graph, batch
        )
        np.testing.assert_allclose(loss, (weight * (0.1 * log_density - value)).sum(), atol=1e-6)
        np.testing.assert_allclose(entropy, -(weight * log_density).sum(), atol=2e-6)
    else:
        action = np.tanh(np.asarray(networks.actor(graph, batch.observation)))
        value = values(networks.critics[:1], graph, batch.observation, action)[0]
        loss = algorithm.actor_loss(networks.actor, networks.critics, graph, batch)
        np.testing.assert_allclose(loss, -(weight * value).sum(), atol=1e-6)


def test_only_how_siblings_differ_is_learned(prepared):
    """The loss is that of values and targets less their family's means, by NumPy; common luck changes nothing."""
    algorithm, learner, batch = prepared
    together = replace(algorithm, siblings=ROWS[1], value_limit=1.5)
    graph = remembered(learner.networks.memory, batch.memory, batch.observation)
    target = jnp.asarray(np.random.default_rng(4).normal(size=ROWS), jnp.float32)
    loss, size = together.critic_loss(learner.networks.critics, graph, batch, target)

    beside = lambda rows: (rows - rows.mean(-1, keepdims=True)) * ROWS[1] / (ROWS[1] - 1)  # noqa: E731
    aim = np.clip(beside(np.asarray(target, np.float64)), -1.5, 1.5)
    assert (np.abs(aim) == 1.5).any()
    values = [np.asarray(critic(graph, batch.observation, batch.action)) for critic in learner.networks.critics]
    errors = np.stack([beside(value) - aim for value in values])
    np.testing.assert_allclose(loss, (np.asarray(batch.weight) * errors**2).sum(), rtol=1e-5)
    np.testing.assert_allclose(size, np.abs(errors).mean(0), atol=1e-5)
    lucky, _ = together.critic_loss(learner.networks.critics, graph, batch, target + jnp.array([[7.0], [-3.0]]))
    np.testing.assert_allclose(lucky, loss, rtol=1e-5)


def test_unusable_slots_and_padding_change_no_value(prepared):
    algorithm, learner, batch = prepared
    seen = batch.observation
    graph = remembered(learner.networks.memory, batch.memory, seen)
    masked = ~seen.action_mask[..., None]
    other = jnp.where(masked, 5.0, batch.action)
    for critic in learner.networks.critics:
        np.testing.assert_array_equal(critic(graph, seen, other), critic(graph, seen, batch.action))


def test_the_actor_and_slow_copies_follow_at_a_distance():
    # eight gradient steps in the one round
    algorithm = td3.build(replace(LEARNING["td3"], warm_up=64, update_delay=9), 1)
    worlds = Worlds(Aim(), 16)
    learner, _ = learn(algorithm, worlds, jnp.asarray(1))
    begun = algorithm.init(jax.random.split(jax.random.key(1), 3)[1], worlds.spec, 16)
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))  # noqa: E731
    assert same(learner.networks.actor, begun.networks.actor) and same(learner.targets, begun.targets)
    assert not same(learner.networks.critics, begun.networks.critics)


def test_the_actor_settles_while_the_critics_go_on():
    """Eight gradient steps in the one round that was planned, then a round more."""
    algorithm = td3.build(replace(LEARNING["td3"], warm_up=64, actor_rate_falls=True), 1)
    first, second = (learn(algorithm, Worlds(Aim(), 16), jnp.asarray(rounds))[0].networks for rounds in (1, 2))
    begun = algorithm.init(jax.random.split(jax.random.key(1), 3)[1], Aim().spec, 16).networks
    same = lambda a, b: all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))  # noqa: E731
    assert not same(begun.actor, first.actor) and same(first.actor, second.actor)
    assert not same(first.critics, second.critics)


def test_nothing_is_learned_before_the_warm_up_is_over():
    algorithm = sac.build(replace(LEARNING["sac"], warm_up=65), 1)
    learner, worst = learn(algorithm, Worlds(Aim(), 16), jnp.asarray(1))
    assert int(learner.updates) == 0 and int(learner.replay.size) == 64
    assert float(worst) == 0.0


@pytest.mark.parametrize("name", MODULES)
def test_only_networks_leave_the_agent(name):
    algorithm = MODULES[name].build(LEARNING[name], 1)
    learner = algorithm.init(jax.random.key(0), SPEC, 2)
    shared = algorithm.shared(learner)
    assert jax.tree.structure(shared) == jax.tree.structure(learner.networks)
    moved = algorithm.with_shared(learner, jax.tree.map(lambda leaf: leaf + 1, shared))
    for part in ("targets", "optimiser", "replay", "scale", "updates"):
        for before, after in zip(
            jax.tree.leaves(getattr(learner, part)), jax.tree.leaves(getattr(moved, part)), strict=True
        ):
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("name", MODULES)
def test_every_setting_reaches_the_algorithm(name):
    settings = ALGORITHMS[name].settings(memory="none")
    made = MODULES[name].build(settings, 7)
    for field, value in asdict(settings).items():
        ours = getattr(made, field)
        assert ours == value if isinstance(value, str | bool) else float(ours) == pytest.approx(value)


def test_siblings_must_fit_into_a_batch():
    with pytest.raises(ValueError, match=r"batch_size 64: .* the window \(4\) times the siblings \(3\)"):
        replace(LEARNING["td3"], window=4, siblings=3).check(worlds=6, decisions=4)
