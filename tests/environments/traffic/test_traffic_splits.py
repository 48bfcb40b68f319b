"""Cycles whose green agents share out: in the dynamics, beside the rules, and as SUMO is ordered."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.traffic.build import build
from dynamic_graph_fed_rl.environments.traffic.proof import LearnedSplits, _one_world
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings
from dynamic_graph_fed_rl.environments.traffic.splits import GreenSplits
from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes

SETTINGS = TrafficSettings(
    network="city", signals=7, duration_s=300.0, training_s=300.0, control="splits", cycle_s=60.0
)


class Wish(Controller):
    """The same numbers at every cycle, and the count of cycles."""

    action: jax.Array

    def initial_memory(self, state, observation):
        return jnp.zeros(observation.first.shape, jnp.int32)

    def act(self, key, memory, state, observation):
        worlds = observation.first.shape[1]
        return jnp.broadcast_to(self.action[:, None], (len(self.action), worlds, *self.action.shape[1:])), memory + 1


@pytest.fixture(scope="module")
def domain():
    return build(SETTINGS, 3)


@pytest.fixture(scope="module")
def environment(domain) -> GreenSplits:
    return domain.training


@pytest.fixture(scope="module")
def wish(environment):
    shape = (3, environment.spec.slots, 1)
    return jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, shape), jnp.float32)


def test_a_plan_fills_the_cycle_and_gives_more_to_what_asks_for_more(environment, wish):
    plan, city = environment.plan(wish), environment.city
    mask = np.asarray(city.view.signals.phase_mask)
    np.testing.assert_allclose((plan.green_s + plan.clearance_s).sum(1), 60.0, rtol=1e-5)
    assert (np.asarray(plan.green_s)[mask] >= 5.0).all() and (np.asarray(plan.green_s)[~mask] == 0).all()
    by_signal = np.asarray(wish).reshape(-1, mask.shape[1])[np.asarray(city.view.districts.place)]
    for asked, green, there in zip(by_signal, np.asarray(plan.green_s), mask, strict=True):
        np.testing.assert_array_equal(np.argsort(asked[there]), np.argsort(green[there]))
    # equal wishes, equal greens, whatever their size
    for value in (-1.0, 0.0, 1.0, 7.0, np.nan):
        green = np.asarray(environment.plan(jnp.full_like(wish, value)).green_s)
        np.testing.assert_allclose(green, np.where(mask, green.sum(1, keepdims=True) / mask.sum(1)[:, None], 0.0))


def test_every_phase_is_green_as_long_as_planned(environment, wish):
    """Second by second; what SUMO is ordered is the same."""
    city, plan = environment.city, environment.plan(wish)
    state, observation = environment.reset(jax.random.key(3))
    rule = LearnedSplits(city.view.signals, environment, Wish(wish), _one_world(observation))
    decide, memory = eqx.filter_jit(rule.wanted), rule.initial()
    tick, now, seconds = eqx.filter_jit(environment._by_steps.step), state, []
    for second in range(120):
        wanted, memory = decide(memory, city.sensed(now))
        now, _ = tick(jax.random.fold_in(jax.random.key(9), second), now, city.view.districts.spread(wanted))
        green = now.traffic.clearing_s <= 0
        seconds.append(
            np.asarray(green[:, None] & (jnp.arange(city.view.signals.phases) == now.traffic.phase[:, None]))
        )
        if second == 59:
            first_cycle = now
    assert (memory[2] == 2).all()
    greens = np.stack(seconds).reshape(2, 60, *seconds[0].shape).sum(1)
    # looked at when a second is over: a yellow's last one already shows the next phase
    shown = np.asarray(plan.green_s) + city.view.signals.phase_mask
    assert (np.abs(greens - shown) < 1.0).all()
    # a step of the environment does all this at once
    after, transition = eqx.filter_jit(environment.step)(jax.random.key(9), state, wish)
    for mine, theirs in zip(jax.tree.leaves(after), jax.tree.leaves(first_cycle), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert float(transition.info["metrics"]["total_s"]) == 60.0


def test_rules_beside_such_a_policy_decide_as_ever(domain):
    keys, split = evaluation_keys(0, 2), domain.scenarios["normal"]
    phased = build(TrafficSettings(network="city", signals=7, duration_s=300.0), 3)
    here = run_episodes(domain.baselines["max-pressure"](split), split, None, keys)
    there = phased.scenarios["normal"]
    alone = run_episodes(phased.baselines["max-pressure"](there), there, None, keys)
    for name, values in alone.items():
        np.testing.assert_array_equal(here[name], values)
    assert (run_episodes(domain.baselines["random"](split), split, None, keys)["delay"] > here["delay"]).all()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"cycle_s": 20.0}, r"cycle_s 20: the \d phases of signal '.*' take \d+ s"),
        ({"cycle_s": 42.0}, "cycle_s 42: must be a multiple of decision_s, 5"),
        ({"cycle_s": 70.0}, "training_s 300: must be a multiple of cycle_s, 70"),
        ({"duration_s": 330.0}, "duration_s 330: must be a multiple of cycle_s, 60"),
        ({"cycle_s": 0.0}, "cycle_s 0.0: must be above 0"),
    ],
)
def test_a_cycle_that_cannot_be_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        build(replace(SETTINGS, **fields), 3)
