from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.traffic.baselines import RuleController
from dynamic_graph_fed_rl.environments.traffic.build import build, link_districts, load
from dynamic_graph_fed_rl.environments.traffic.environment import REWARDS
from dynamic_graph_fed_rl.environments.traffic.network import districts
from dynamic_graph_fed_rl.environments.traffic.rules import MaxPressure
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds

SETTINGS = TrafficSettings(network="city", signals=7, duration_s=900.0, training_s=300.0)


@pytest.fixture(scope="module")
def domain():
    return build(SETTINGS, 3)


@pytest.fixture(scope="module")
def stepped(domain):
    """The training environment, compiled, and a rollout of random phases."""
    environment = domain.training
    reset, step = eqx.filter_jit(environment.reset), eqx.filter_jit(environment.step)
    state, observation = reset(jax.random.key(0))
    rng, rows = np.random.default_rng(0), []
    for t in range(environment.spec.episode_decisions):
        action = jnp.asarray(rng.integers(0, environment.spec.action_size, (3, environment.spec.slots)), jnp.int32)
        after, transition = step(jax.random.key(t), state, action)
        rows.append((state, action, after, transition))
        state = after
    return environment, step, rows


def test_shapes_are_those_of_the_spec(stepped):
    environment, _, rows = stepped
    spec, observation = environment.spec, rows[-1][3].observation
    assert observation.graph.nodes.shape == (3, spec.nodes, len(spec.node_features))
    assert observation.graph.edges.shape == (3, spec.edges, len(spec.edge_features))
    assert observation.slots.shape == (3, spec.slots, len(spec.slot_features))
    assert observation.action_mask.shape == (3, spec.slots, spec.action_size)
    assert int(observation.action_mask.any(-1).sum()) == 7
    owner = np.asarray(observation.slot_owner)
    owned = np.asarray(observation.graph.nodes[..., 0])
    usable = np.asarray(observation.action_mask.any(-1))
    assert (np.take_along_axis(owned, owner, axis=1)[usable] == 1).all()


def test_a_green_lasts_its_minimum_and_a_yellow_its_time(stepped):
    _, _, rows = stepped
    switches = 0
    for state, _, after, transition in rows:
        before, now = state.traffic, transition.info["applied"]
        early = (before.phase_s < SETTINGS.min_green_s) | (before.clearing_s > 0)
        assert (now == before.target)[early].all()
        changed = (now != before.phase) & (before.clearing_s <= 0)
        # 3 s of yellow and 2 s of green in a decision of 5 s
        assert (after.traffic.phase_s[changed] == 2.0).all() and (after.traffic.phase == now)[changed].all()
        switches += int(changed.sum())
    assert switches > 20


def test_what_the_mask_allows_is_what_is_done(stepped):
    environment, _, rows = stepped
    for state, action, _, transition in rows[:20]:
        allowed = environment.view.allowed(environment.sensed(state))
        requested = environment.view.districts.gather(action)
        may = jnp.take_along_axis(allowed, requested[:, None], axis=1)[:, 0]
        np.testing.assert_array_equal(transition.info["applied"], jnp.where(may, requested, state.traffic.target))


@pytest.mark.parametrize("choice", [-1, 4, 10**6])
def test_a_phase_that_there_is_not_changes_nothing(stepped, choice):
    environment, step, rows = stepped
    state, action = rows[10][0], rows[10][1]
    _, transition = step(jax.random.key(1), state, jnp.full_like(action, choice))
    np.testing.assert_array_equal(transition.info["applied"], state.traffic.target)


def test_rewards_add_up_to_the_time_that_cars_stood(stepped):
    environment, _, rows = stepped
    for _, _, _, transition in rows:
        metrics = transition.info["metrics"]
        stood = -(transition.reward * environment.district_signals).sum() * 10.0 * environment.decision_s
        assert stood <= metrics["total_delay_s"] + 1e-3
        # cars in motion lose a tenth of their time
        most = environment.decision_s * environment.roads.link_storage.sum() * 0.11
        assert metrics["total_delay_s"] <= stood + most
    wanted = sum(float(t.info["metrics"]["total_wanted"]) for *_, t in rows)
    left = sum(float(t.info["metrics"]["total_left"]) for *_, t in rows)
    end = rows[-1][2].traffic
    assert wanted == left + float(end.vehicles.sum() + end.entry.sum())


def test_the_pressure_reward_is_that_of_the_movements_of_the_district(stepped):
    environment, _, rows = stepped
    network, _ = load(SETTINGS)
    of_lane = np.zeros((network.lanes, network.movements))
    of_lane[network.movement_lane, np.arange(network.movements)] = 1.0
    for state, _, after, _ in rows[::15]:
        queue = of_lane @ np.asarray(after.traffic.queue)
        # streets are longer than the 100 m of a detector
        ahead = np.array([queue[network.lane_link == link].mean() for link in range(network.links)])
        pressure = np.maximum(queue[network.movement_lane] - ahead[network.movement_to], 0.0)
        controlled = network.movement_signal >= 0
        signal = np.bincount(network.movement_signal[controlled], pressure[controlled], network.signals)
        stood_s = jnp.zeros(network.links)
        found = REWARDS["pressure"](environment, state.traffic, after, stood_s)
        np.testing.assert_allclose(found, -np.bincount(districts(network.signal_xy_m, 3), signal), rtol=1e-5)


def test_the_delay_difference_of_an_episode_is_the_discounted_number_that_stands(stepped):
    environment, _, rows = stepped
    g, stood_s = 0.9, jnp.zeros(environment.roads.link_steps.shape[0])
    reward = REWARDS["delay_difference"]
    each = np.stack([reward(environment, state.traffic, after, stood_s) for state, _, after, _ in rows])
    standing = np.array([(after.traffic.queue.sum() + after.traffic.entry.sum()) for *_, after, _ in rows])
    assert standing.min() >= 0 and standing.max() > 20
    weight = g ** np.arange(len(rows))
    telescoped = (1 - g) * (weight * standing).sum() + g ** len(rows) * standing[-1]
    np.testing.assert_allclose((weight * each.sum(1)).sum(), -telescoped, rtol=1e-4)


def test_the_environment_gives_the_reward_that_was_asked_for(stepped):
    _, _, rows = stepped
    other = build(replace(SETTINGS, reward="delay_difference"), 3).training
    state, action, after, _ = rows[30]
    _, transition = eqx.filter_jit(other.step)(jax.random.key(30), state, action)
    expected = REWARDS["delay_difference"](other, state.traffic, after, jnp.zeros(other.roads.link_steps.shape[0]))
    assert np.abs(expected).max() > 0
    np.testing.assert_allclose(transition.reward, expected / (10.0 * other.district_signals), rtol=1e-6)


def test_an_episode_ends_by_time_alone(stepped):
    environment, _, rows = stepped
    assert environment.spec.episode_decisions == 60
    assert [bool(t.truncated.all()) for *_, t in rows] == [False] * 59 + [True]
    assert not any(bool(t.terminated.any()) for *_, t in rows)


def test_every_link_belongs_to_the_district_that_serves_it():
    network, _ = load(SETTINGS)
    district = districts(network.signal_xy_m, 3)
    whose = link_districts(network, district)
    served = network.link_end >= 0
    np.testing.assert_array_equal(whose[served], district[network.link_end[served]])


def test_the_baselines_rank_as_they_do_in_sumo(domain):
    """Max pressure beats the fixed program; the score's ends are among the baselines."""
    environment = domain.scenarios["normal"]
    worlds, delay = Worlds(environment, 2), {}
    assert domain.idle in domain.baselines and set(domain.references) < set(domain.baselines)
    for name in ("fixed-time", "max-pressure"):
        controller = domain.baselines[name](environment)

        def episode(key, controller=controller):
            state, observation = worlds.reset(key)
            memory = controller.initial_memory(state, observation)

            def one(carry, own):
                state, observation, memory = carry
                action, memory = controller.act(own, memory, state, observation)
                state, transition = worlds.advance(worlds.keys(own), state, action)
                return (state, transition.observation, memory), transition.info["metrics"]

            keys = jax.random.split(key, environment.spec.episode_decisions)
            _, metrics = jax.lax.scan(one, (state, observation, memory), keys)
            return environment.episode_metrics(jax.tree.map(lambda leaf: leaf.sum(0), metrics))

        metrics = jax.jit(episode)(jax.random.key(0))
        delay[name] = float(metrics["delay"].mean())
        assert (metrics["gridlock"] == 0).all()
    assert delay["max-pressure"] < 0.8 * delay["fixed-time"]


def test_a_rule_acts_the_same_through_slots_as_by_itself(stepped):
    environment, _, rows = stepped
    rule = MaxPressure(environment.view.signals)
    state, observation = rows[-1][2], rows[-1][3].observation
    batch = lambda tree, axis: jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), tree)  # noqa: E731
    controller = RuleController(environment, rule)
    action, _ = controller.act(jax.random.key(0), None, batch(state, 0), batch(observation, 1))
    wanted, _ = rule.wanted(None, environment.sensed(state))
    np.testing.assert_array_equal(environment.view.districts.gather(action[:, 0]), wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TrafficSettings(net="a.net.xml"), "net and routes"),
        (TrafficSettings(network="gotham"), "network 'gotham': unknown"),
        (TrafficSettings(decision_s=7.0, dt_s=5.0), "decision_s 7.0: must be a multiple of dt_s"),
        (TrafficSettings(yellow_s=-1.0), "yellow_s -1.0: must be at least 0"),
        (TrafficSettings(load=0.0), "load 0.0: must be above 0"),
        (TrafficSettings(scenarios=("snow",)), r"scenarios \['snow'\]: at least one of normal"),
        (TrafficSettings(training_demand=(1.2, 0.7)), "training_demand"),
        (TrafficSettings(signals=2), "3 districts asked for, but there are 2 signals"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        build(settings, 3)
