"""A policy sees in SUMO what it would see in the dynamics, and acts alike; whole episodes where SUMO is installed."""

import importlib.util

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.traffic.build import build
from dynamic_graph_fed_rl.environments.traffic.observation import PHASE_COLUMNS
from dynamic_graph_fed_rl.environments.traffic.proof import InSumo, Learned, _one_world
from dynamic_graph_fed_rl.environments.traffic.rules import MaxPressure
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings
from dynamic_graph_fed_rl.evaluation.held_out import prove

installed = importlib.util.find_spec("libsumo") is not None
PRESSURE = [column.name for column in PHASE_COLUMNS].index("pressure")
GREEN = [column.name for column in PHASE_COLUMNS].index("green")


class MostPressure(Controller):
    """Max pressure from nothing but an agent's observation; counts its decisions."""

    phases: int

    def initial_memory(self, state, observation):
        return jnp.zeros(observation.first.shape, jnp.int32)

    def act(self, key, memory, state, observation):
        # whatever comes first is a beginning
        memory = jnp.where(observation.first, 0, memory + 1)
        blocks = observation.slots.reshape(*observation.slots.shape[:-1], self.phases, -1)
        score = blocks[..., PRESSURE] + 1e-4 * blocks[..., GREEN]
        return jnp.argmax(jnp.where(observation.action_mask, score, -jnp.inf), axis=-1), memory


def test_a_policy_in_sumo_orders_what_it_would_order_in_the_dynamics():
    environment = build(TrafficSettings(network="city", signals=7, duration_s=900.0, training_s=300.0), 3).training
    step = eqx.filter_jit(environment.step)
    state, observation = environment.reset(jax.random.key(1))
    view = environment.view
    learned = Learned(view.signals, view, MostPressure(view.signals.phases), _one_world(observation))
    rule = MaxPressure(view.signals)
    memory, orders = learned.initial(), []
    for t in range(40):
        sensed = environment.sensed(state)
        wanted, memory = learned.wanted(memory, sensed)
        other, _ = rule.wanted(None, sensed)
        # where a green may be left, both see the same pressures
        free = np.asarray(view.allowed(sensed).sum(1) > 1)
        np.testing.assert_array_equal(np.asarray(wanted)[free], np.asarray(other)[free])
        orders.append(np.asarray(wanted))
        assert (memory[1] == t).all()
        state, _ = step(jax.random.key(t), state, view.districts.spread(wanted))
    assert len({tuple(row) for row in orders}) > 5


@pytest.mark.skipif(not installed, reason="needs libsumo, of the extra 'sumo'")
def test_the_comparison_in_sumo_pairs_seeds_and_holds_every_controller():
    settings = TrafficSettings(network="cologne1", duration_s=120.0)
    domain = build(settings, 1)
    assert isinstance(domain.simulator, InSumo)
    policy, done = MostPressure(domain.training.view.signals.phases), []
    chosen = {name: domain.simulator.rules[name] for name in ("max-pressure", "fixed-time")}
    simulator = InSumo(domain.simulator.network, domain.simulator.settings, domain.training, chosen)
    found = prove(domain, simulator, policy, [3, 4], lambda name, seed: done.append((name, seed)))["SUMO"]
    assert sorted(done) == [(name, seed) for name in ("fixed-time", "max-pressure", "policy") for seed in (3, 4)]
    # one signal: what is the best of an agent is that of the rule
    assert found["policy"]["delay"]["values"] == found["max-pressure"]["delay"]["values"]
    assert found["paired_difference"]["baseline"] == "max-pressure" and found["paired_difference"]["iqm"] == 0
    assert found["fixed-time"]["delay"]["values"] != found["max-pressure"]["delay"]["values"]


@pytest.mark.skipif(not installed, reason="needs libsumo, of the extra 'sumo'")
def test_what_a_closure_costs_is_told_beside_the_same_hour_without_it():
    domain = build(TrafficSettings(network="ingolstadt7", duration_s=300.0), 1)
    assert isinstance(domain.simulator, InSumo)
    whole = InSumo(domain.simulator.network, domain.simulator.settings, domain.training, {"fixed-time": None})
    policy = MostPressure(domain.training.view.signals.phases)
    closed = whole.disturbed(["201963537#1"], 60.0, 240.0)
    open_s = whole.controllers(policy)["fixed-time"](0)["delay"]
    found = closed.controllers(policy)["fixed-time"](0)
    assert found["excess"] == found["delay"] - open_s != 0.0
    # five minutes of calm cannot come within the last one
    assert found["recovery"] == 60.0
    assert set(found) == {metric.name for metric in closed.metrics}
    with pytest.raises(ValueError, match="network 'ingolstadt7': has no edge 'nowhere' to close"):
        whole.disturbed(["nowhere"], 60.0, 240.0)
    with pytest.raises(ValueError, match="closed from 60 to 400 s: must lie within the 300 s"):
        whole.disturbed(["201963537#1"], 60.0, 400.0)


@pytest.mark.skipif(not installed, reason="needs libsumo, of the extra 'sumo'")
def test_an_episode_that_fails_is_named(tmp_path):
    domain = build(TrafficSettings(network="cologne1", duration_s=120.0), 1)
    assert isinstance(domain.simulator, InSumo)
    broken = domain.simulator.settings.__class__(tmp_path / "none.net.xml", domain.simulator.settings.routes, 0.0)
    simulator = InSumo(domain.simulator.network, broken, domain.training, {})
    policy = MostPressure(domain.training.view.signals.phases)
    with pytest.raises(ValueError, match=r"SUMO, policy, seed 0: SUMO failed in 'start'"):
        prove(domain, simulator, policy, [0], lambda name, seed: None)


def test_a_generated_city_has_no_other_simulator():
    assert build(TrafficSettings(signals=4), 1).simulator is None
