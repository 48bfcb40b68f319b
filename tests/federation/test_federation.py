"""Exchanges against NumPy, and what must be equal whoever computes it."""

from collections.abc import Callable
from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from probes import PROBES

from dynamic_graph_fed_rl.algorithms.ppo import build as build_ppo
from dynamic_graph_fed_rl.algorithms.settings import PPOSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.federation.build import build
from dynamic_graph_fed_rl.federation.federation import Federation, FederationState
from dynamic_graph_fed_rl.federation.overlay import Ring
from dynamic_graph_fed_rl.federation.schedule import Plan
from dynamic_graph_fed_rl.federation.settings import FederationSettings
from dynamic_graph_fed_rl.federation.sharing import everything, to_vectors
from dynamic_graph_fed_rl.training.rollout import collect
from dynamic_graph_fed_rl.training.trainer import Group, Trainer

AGENTS, SIZE = 4, 7


def made(federation: str, agents: int = AGENTS, **settings) -> Federation:
    return build(FederationSettings(**settings), federation, agents)


# a new way of exchanging is a row here
FEDERATIONS: dict[str, Callable[..., Federation]] = {
    "server": lambda **s: made("server", **s),
    "tree": lambda **s: made("tree", branches=(2,), **s),
    "gossip-complete": lambda **s: made("gossip", overlay="complete", **s),
    "gossip-ring": lambda **s: made("gossip", overlay="ring", **s),
    "gossip-random": lambda **s: made("gossip", overlay="random", **s),
    "gossip-directed": lambda **s: made("gossip", overlay="directed-random", degree=2, **s),
    "independent": lambda **s: made("independent", **s),
}
MIXING = [name for name in FEDERATIONS if name != "independent"]
TO_THE_MEAN = ("server", "tree", "gossip-complete")


def vectors(seed: int, agents: int = AGENTS) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(agents, SIZE)), jnp.float32)


def alike(rows: jax.Array) -> jax.Array:
    return jnp.broadcast_to(rows[:1], rows.shape)


def everybody(agents: int = AGENTS) -> Plan:
    return Plan(jnp.ones(agents, bool), jnp.ones(agents, bool), jnp.ones(agents))


def begun(federation: Federation, start: jax.Array) -> FederationState:
    """After the first tick has been planned."""
    return federation.plan(jax.random.key(1), federation.init(start))[0]


@eqx.filter_jit
def exchanged(federation: Federation, shared: jax.Array, plan: Plan, seed: int = 0) -> tuple[jax.Array, dict]:
    """After one exchange of agents that all started from the same parameters."""
    state = begun(federation, alike(vectors(99, shared.shape[0])))
    _, mixed, report = federation.exchange(jax.random.key(seed), state, shared, plan)
    return mixed, report


@eqx.filter_jit
def course(federation: Federation, start: jax.Array, steps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Parameters `[T, A, P]` after each of T ticks in which agents that work move by `steps[t]`; activity."""

    def tick(carry: tuple, row: tuple) -> tuple:
        state, own = carry
        plan_key, key, step = row
        state, plan = federation.plan(plan_key, state)
        own = jnp.where(plan.active[:, None], own + step, own)
        state, own, _ = federation.exchange(key, state, own, plan)
        return (state, own), (own, plan.active)

    keys = jax.random.split(jax.random.key(3), (2, steps.shape[0]))
    return jax.lax.scan(tick, (federation.init(start), start), (*keys, steps))[1]


@pytest.mark.parametrize("name", TO_THE_MEAN)
def test_everybody_goes_on_with_the_mean(name):
    mixed, _ = exchanged(FEDERATIONS[name](), vectors(0), everybody())
    np.testing.assert_allclose(mixed, alike(vectors(0).mean(0)[None]).repeat(AGENTS, 0), atol=1e-6)


@pytest.mark.parametrize("name", TO_THE_MEAN)
def test_updates_weigh_what_the_plan_says(name):
    weights = jnp.asarray([1.0, 2.0, 3.0, 4.0])
    mixed, _ = exchanged(FEDERATIONS[name](), vectors(0), replace(everybody(), weights=weights))
    expected = np.average(vectors(0), axis=0, weights=weights)
    np.testing.assert_allclose(mixed[2], expected, rtol=1e-5, atol=1e-6)


def test_gossip_mixes_by_the_overlay():
    mixed, _ = exchanged(FEDERATIONS["gossip-ring"](), vectors(0), everybody())
    ring = np.asarray(Ring(AGENTS).links(jax.random.key(0)).matrix())
    np.testing.assert_allclose(mixed, ring @ vectors(0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FEDERATIONS)
def test_agents_that_agree_go_on_unchanged(name):
    shared = alike(vectors(3))
    mixed, report = exchanged(FEDERATIONS[name](), shared, everybody())
    np.testing.assert_allclose(mixed, shared, atol=1e-6)
    assert float(report["disagreement"]) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", MIXING)
def test_repeated_exchange_reaches_the_true_mean(name):
    """Also on directed overlays, where plain averaging would drift (push-sum), and with links that fail."""
    changes = {"link_failure": 0.2} if name.startswith("gossip") else {}
    start = vectors(0)
    after, _ = course(FEDERATIONS[name](**changes), start, jnp.zeros((60, AGENTS, SIZE)))
    if name in ("server", "tree"):
        # a server's agents begin alike: what they differ in must be an update
        steps = jnp.zeros((60, AGENTS, SIZE)).at[0].set(start)
        after, _ = course(FEDERATIONS[name](), alike(start) * 0, steps)
    np.testing.assert_allclose(after[-1], np.broadcast_to(start.mean(0), start.shape), atol=2e-4)


@pytest.mark.parametrize("name", FEDERATIONS)
def test_absent_agents_change_nothing_for_the_others_and_keep_what_they_have(name):
    here = jnp.asarray([True, False, True, True])
    plan = Plan(here, here, jnp.ones(AGENTS))
    odd = vectors(0).at[1].set(1e3)
    with_one, _ = exchanged(FEDERATIONS[name](), vectors(0), plan)
    with_other, _ = exchanged(FEDERATIONS[name](), odd, plan)
    np.testing.assert_allclose(with_one[here], with_other[here], rtol=1e-6)
    np.testing.assert_array_equal(with_other[1], odd[1])


@pytest.mark.parametrize("name", FEDERATIONS)
def test_a_round_without_anybody_changes_nothing(name):
    nobody = jnp.zeros(AGENTS, bool)
    mixed, report = exchanged(FEDERATIONS[name](), vectors(0), Plan(nobody, nobody, jnp.ones(AGENTS)))
    np.testing.assert_array_equal(mixed, vectors(0))
    assert float(report["bytes"]) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("codec", ["raw", "int8"])
@pytest.mark.parametrize("name", MIXING)
def test_updates_that_are_not_finite_are_rejected_and_counted(name, codec, bad):
    federation = FEDERATIONS[name](codec=codec)
    mixed, report = exchanged(federation, vectors(0).at[1, 3].set(bad), everybody())
    others = jnp.asarray([0, 2, 3])
    assert float(report["rejected"]) == 1
    assert np.isfinite(mixed[others]).all()
    if name in ("server", "tree") and codec == "raw":
        np.testing.assert_allclose(mixed[0], vectors(0)[others].mean(0), atol=1e-5)


def test_equal_step_times_make_asynchrony_the_synchronous_server():
    steps = jax.random.normal(jax.random.key(0), (6, AGENTS, SIZE))
    times = (2.0,) * AGENTS
    for name in ("server", "tree", "gossip-ring"):
        early, _ = course(FEDERATIONS[name](schedule="asynchronous", step_times=times), alike(vectors(0)), steps)
        late, _ = course(FEDERATIONS[name](step_times=times), alike(vectors(0)), steps)
        np.testing.assert_array_equal(early, late)


def test_stale_updates_weigh_less():
    """Agent 3 needs four ticks; by then agents 0 to 2 have made three versions without it."""
    times = (1.0, 1.0, 1.0, 4.0)
    federation = made("server", schedule="asynchronous", step_times=times, staleness_power=0.5)
    steps = jnp.zeros((4, AGENTS, SIZE)).at[:, 3].set(1.0)
    after, active = course(federation, jnp.zeros((AGENTS, SIZE)), steps)
    np.testing.assert_array_equal(active[:, 3], [False, False, False, True])
    weight = (1.0 + 3.0) ** -0.5
    np.testing.assert_allclose(after[-1], weight / (3 + weight), rtol=1e-5)


def test_a_server_with_a_buffer_waits_for_it_and_loses_nothing():
    federation = made(
        "server", buffer=3, schedule="asynchronous", step_times=(1.0, 2.0, 3.0, 3.0), staleness_power=0.0
    )
    steps = jnp.ones((4, AGENTS, SIZE)) * jnp.asarray([1.0, 10.0, 100.0, 1000.0])[None, :, None]
    after, active = course(federation, jnp.zeros((AGENTS, SIZE)), steps)
    np.testing.assert_array_equal(active.sum(1), [1, 2, 3, 2])
    # two agents have sent by the second tick, four by the third: agent 0 three times, which add up to 3
    np.testing.assert_array_equal(after[1], 0.0)
    np.testing.assert_allclose(after[2, 0], (3 * 1 + 10 + 100 + 1000) / 4, rtol=1e-6)


@pytest.mark.parametrize("optimiser", ["plain", "momentum", "adam"])
def test_server_optimisers_against_numpy(optimiser):
    rate, rounds = 0.1, 5
    federation = made("server", server_optimiser=optimiser, server_learning_rate=rate)
    steps = jax.random.normal(jax.random.key(0), (rounds, AGENTS, SIZE))
    after, _ = course(federation, jnp.zeros((AGENTS, SIZE)), steps)
    model, first, second = np.zeros(SIZE), np.zeros(SIZE), np.zeros(SIZE)
    for t, mean in enumerate(np.asarray(steps).mean(1), start=1):
        if optimiser == "plain":
            model = model + rate * mean
        elif optimiser == "momentum":
            first = 0.9 * first + mean
            model = model + rate * first
        else:
            first, second = 0.9 * first + 0.1 * mean, 0.99 * second + 0.01 * mean**2
            model = model + rate * (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.99**t)) + 1e-3)
    np.testing.assert_allclose(after[-1, 0], model, rtol=1e-4)


def test_a_cosine_rate_ends_at_nothing():
    settings = FederationSettings(server_rate_schedule="cosine")
    federation = build(settings, "server", AGENTS, rounds=4)
    after, _ = course(federation, jnp.zeros((AGENTS, SIZE)), jnp.ones((6, AGENTS, SIZE)))
    moved = np.diff(np.concatenate([np.zeros(1), np.asarray(after[:, 0, 0])]))
    np.testing.assert_allclose(moved, [0.5 * (1 + np.cos(np.pi * min(t, 4) / 4)) for t in range(6)], atol=1e-6)


@pytest.mark.parametrize("codec", ["bf16", "int8", "top-k", "sign"])
def test_lossy_codecs_lose_nothing_in_the_long_run(codec):
    """After updates end, what was left out goes on arriving: everybody ends at the mean of what was sent."""
    steps = jnp.zeros((40, AGENTS, SIZE)).at[:3].set(jax.random.normal(jax.random.key(0), (3, AGENTS, SIZE)))
    for name in ("server", "gossip-complete"):
        step = {} if name == "server" or codec in ("bf16", "int8") else {"gossip_step": 0.3}
        after, _ = course(FEDERATIONS[name](codec=codec, kept_share=0.5, **step), jnp.zeros((AGENTS, SIZE)), steps)
        exact, _ = course(FEDERATIONS[name](), jnp.zeros((AGENTS, SIZE)), steps)
        if codec == "sign":
            assert np.abs(after[-1] - exact[-1]).mean() < 0.5 * np.abs(exact[-1]).mean()
        else:
            np.testing.assert_allclose(after[-1].mean(0), exact[-1].mean(0), atol=2e-2)


def test_bytes_of_an_exchange():
    one = 4 * SIZE
    assert float(exchanged(FEDERATIONS["server"](), vectors(0), everybody())[1]["bytes"]) == 2 * AGENTS * one
    assert float(exchanged(FEDERATIONS["gossip-ring"](), vectors(0), everybody())[1]["bytes"]) == 2 * AGENTS * one
    # agents to two nodes to a root, and back
    tree = 2 * AGENTS * one + 2 * 2 * one
    assert float(exchanged(FEDERATIONS["tree"](), vectors(0), everybody())[1]["bytes"]) == tree
    half = exchanged(FEDERATIONS["server"](codec="bf16"), vectors(0), everybody())[1]["bytes"]
    assert float(half) == AGENTS * one
    some = jnp.asarray([True, False, False, True])
    plan = Plan(some, some, jnp.ones(AGENTS))
    assert float(exchanged(FEDERATIONS["server"](), vectors(0), plan)[1]["bytes"]) == 2 * 2 * one


def test_independent_agents_exchange_nothing():
    mixed, report = exchanged(FEDERATIONS["independent"](), vectors(0), everybody())
    np.testing.assert_array_equal(mixed, vectors(0))
    assert float(report["bytes"]) == 0
    distance = ((vectors(0) - vectors(0).mean(0)) ** 2).sum()
    assert float(report["disagreement"]) == pytest.approx(float(jnp.sqrt(distance / AGENTS)), rel=1e-5)


def test_attackers_are_the_last_and_send_something_else():
    mixed, _ = exchanged(
        made("server", byzantine=1, attack="sign-flip", aggregator="median"), vectors(0), everybody()
    )
    honest, _ = exchanged(made("server", aggregator="median"), vectors(0), everybody())
    assert float(jnp.abs(mixed - honest).max()) > 1e-3


def test_a_membership_change_does_not_compile_again():
    first = made("server", joins=(0, 0, 0, 0), dropout=0.1)
    other = made("server", joins=(0, 5, 0, 2), dropout=0.3)
    compiled = jax.jit(lambda federation, rows: begun(federation, rows).schedule.tick)
    compiled(first, vectors(0))
    compiled(other, vectors(0))
    assert compiled._cache_size() == 1


@pytest.fixture(scope="module")
def learned_alike() -> tuple[jax.Array, jax.Array, jax.Array]:
    """Parameters `[A, P]` before learning, after learning together from the same experience, and of one alone."""
    settings = PPOSettings(epochs=2, minibatches=2, width=8, layers=1)
    group = Group(build_ppo(settings, 10), Worlds(PROBES["observation-and-action"].environment, 8))
    training = Trainer((group,), made("independent", 1), 4).init(jax.random.key(0))
    (learner,), (actors,) = training.learners, training.actors
    key = jax.random.key(7)
    _, experience, _ = eqx.filter_jit(collect)(key, group.algorithm, group.worlds, learner, actors, 4)

    def repeated(tree):
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, AGENTS, axis=0), tree)

    learn = jax.jit(jax.vmap(group.algorithm.learn))
    alone, _ = learn(key[None], learner, experience)
    together, _ = learn(jnp.repeat(key[None], AGENTS), repeated(learner), repeated(experience))
    return tuple(to_vectors([one.network], everything) for one in (repeated(learner), together, repeated(alone)))


@eqx.filter_jit
def once(federation: Federation, before: jax.Array, after: jax.Array) -> jax.Array:
    """What one exchange makes of what was learned in between."""
    return federation.exchange(jax.random.key(7), begun(federation, before), after, everybody())[1]


@pytest.mark.parametrize("name", ["server", "tree", "gossip-complete", "gossip-ring"])
def test_identical_agents_with_identical_data_are_one_agent(name, learned_alike):
    """Learn from the same experience with the same draws, exchange, and compare with an agent on its own."""
    before, together, alone = learned_alike
    shared = once(FEDERATIONS[name](), before, together)
    assert float(jnp.abs(alone - before).sum()) > 1e-2
    np.testing.assert_allclose(shared, alone, atol=1e-6)
