"""What defines each attack."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from dynamic_graph_fed_rl.federation.attacks import ATTACKS, Noise, SignFlip, build

AGENTS, SIZE = 8, 5
BYZANTINE = np.array([1, 0, 1, 0, 0, 1, 0, 0], bool)
ACTIVE = np.array([1, 1, 1, 1, 1, 0, 0, 1], bool)
ATTACKERS, HONEST = BYZANTINE & ACTIVE, ACTIVE & ~BYZANTINE


def draw(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(AGENTS, SIZE)).astype(np.float32)


@eqx.filter_jit
def _call(attack, updates, byzantine, active, state, seed):
    return attack(updates, byzantine, active, state, jax.random.key(seed))


def sent(attack, updates, byzantine=BYZANTINE, active=ACTIVE, state=None, seed=0):
    attack = build(attack) if isinstance(attack, str) else attack
    state = attack.init(AGENTS, SIZE) if state is None else state
    rows, state = _call(attack, *map(jnp.asarray, (updates, byzantine, active)), state, jnp.asarray(seed))
    return np.asarray(rows), state


@pytest.mark.parametrize("name", ATTACKS)
def test_only_active_attackers_send_something_else(name):
    updates = draw(0)
    np.testing.assert_array_equal(sent(name, updates)[0][~ATTACKERS], updates[~ATTACKERS])
    nobody = np.zeros(AGENTS, bool)
    np.testing.assert_array_equal(sent(name, updates, byzantine=nobody)[0], updates)
    everybody, _ = sent(name, updates, byzantine=~nobody)
    assert np.isfinite(everybody).all()


@pytest.mark.parametrize("name", ["none", "random-action"])
def test_attacks_that_send_the_truth(name):
    updates = draw(1)
    np.testing.assert_array_equal(sent(name, updates)[0], updates)
    assert build(name).acts_randomly == (name == "random-action")


def test_noise_is_uniform_and_new_every_time():
    noise = np.stack([sent("noise", draw(2), seed=seed)[0][ATTACKERS] for seed in range(100)])
    assert np.abs(noise).max() <= 1000 and np.abs(noise).max() > 990
    assert abs(noise.mean()) < 60 and noise.std() == pytest.approx(1000 / np.sqrt(3), rel=0.05)
    assert np.abs(sent(Noise(0.1), draw(2))[0][ATTACKERS]).max() <= 0.1


def test_sign_flip():
    updates = draw(3)
    np.testing.assert_allclose(sent("sign-flip", updates)[0][ATTACKERS], -2.5 * updates[ATTACKERS])
    np.testing.assert_allclose(sent(SignFlip(1.0), updates)[0][ATTACKERS], -updates[ATTACKERS])


def test_average_zero():
    rows, _ = sent("average-zero", draw(4))
    np.testing.assert_allclose(rows[ACTIVE].mean(0), 0.0, atol=1e-6)
    np.testing.assert_array_equal(rows[0], rows[2])


def test_a_little_is_enough_for_the_numbers_of_the_paper():
    agents, attackers = 50, 24  # Baruch et al. 2019, section 3.2: s = 26 - 24 = 2, (50 - 24 - 2) / 26
    updates = np.random.default_rng(5).normal(size=(agents, SIZE)).astype(np.float32)
    byzantine = np.arange(agents) < attackers
    rows, _ = sent("alie", updates, byzantine, np.ones(agents, bool))
    honest = updates[~byzantine]
    expected = honest.mean(0) - norm.ppf(24 / 26) * honest.std(0)
    np.testing.assert_allclose(rows[:attackers], np.tile(expected, (attackers, 1)), rtol=1e-4, atol=1e-5)


def test_a_little_is_enough_among_the_active_only():
    updates = draw(6)
    rows, _ = sent("alie", updates)
    honest = updates[HONEST]  # 6 active, 2 attackers: s = 4 - 2, (6 - 2 - 2) / 4 gives z = 0
    np.testing.assert_allclose(rows[ATTACKERS], np.tile(honest.mean(0), (2, 1)), atol=1e-5)


def test_stale_replay_from_the_first_round_that_an_attacker_is_active():
    first, second, third = draw(7), draw(8), draw(9)
    all_active = np.ones(AGENTS, bool)
    rows, state = sent("stale-replay", first)
    np.testing.assert_array_equal(rows, first)
    rows, state = sent("stale-replay", second, active=all_active, state=state)
    np.testing.assert_array_equal(rows[ATTACKERS], first[ATTACKERS])
    np.testing.assert_array_equal(rows[5], second[5])
    rows, _ = sent("stale-replay", third, active=all_active, state=state)
    np.testing.assert_array_equal(rows[ATTACKERS], first[ATTACKERS])
    np.testing.assert_array_equal(rows[5], second[5])


def test_unknown_attack_is_named():
    with pytest.raises(ValueError, match="'flip': unknown; known: none, noise, sign-flip"):
        build("flip")
