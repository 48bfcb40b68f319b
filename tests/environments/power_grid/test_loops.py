"""The loop over few worlds against a plain loop over each of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynamic_graph_fed_rl.environments.power_grid.loops import while_few

WORLDS = 16
UNBATCHED = jnp.asarray(0.5)


def countdown(rounds, start, shift):
    """`rounds` times: half the value, plus a shift that differs by world, plus one that does not."""
    state = (rounds, start, jnp.zeros(()))
    return while_few(
        lambda carry: carry[0] > 0, lambda carry: (carry[0] - 1, UNBATCHED * carry[1] + shift, carry[2] + 1), state
    )


def expected(rounds, start, shift):
    value = np.float32(start)
    for _ in range(rounds):
        value = np.float32(0.5) * value + np.float32(shift)
    return 0, value, rounds


many = jax.jit(jax.vmap(countdown))


@pytest.mark.parametrize("going_on", [0, 1, 3, 4, 5, 15, 16])
def test_every_world_ends_where_it_would_alone(going_on):
    """4 of 16 are few: with more the whole batch goes on first. The last world is also the one that fills rows."""
    rng = np.random.default_rng(going_on)
    for place in range(3):
        rounds = np.zeros(WORLDS, np.int32)
        rounds[rng.permutation(WORLDS)[:going_on]] = rng.integers(1, 9, going_on)
        if place and going_on:
            rounds[-1] = 11 * (place - 1)
        start, shift = rng.normal(size=(2, WORLDS)).astype(np.float32)
        ended = many(jnp.asarray(rounds), jnp.asarray(start), jnp.asarray(shift))
        oracle = [expected(*world) for world in zip(rounds, start, shift, strict=True)]
        np.testing.assert_allclose(np.stack(ended, -1), oracle, rtol=1e-6, atol=1e-6)


def test_of_one_world_and_of_groups_of_worlds():
    rng = np.random.default_rng(0)
    rounds = rng.integers(0, 9, (3, WORLDS)).astype(np.int32)
    start, shift = rng.normal(size=(2, 3, WORLDS)).astype(np.float32)
    grouped = jax.jit(jax.vmap(jax.vmap(countdown), in_axes=(0, 0, 0)))(rounds, start, shift)
    oracle = [expected(*world) for world in zip(rounds.ravel(), start.ravel(), shift.ravel(), strict=True)]
    np.testing.assert_allclose(np.stack(grouped, -1).reshape(-1, 3), oracle, rtol=1e-6, atol=1e-6)
    alone = jax.jit(countdown)(rounds[0, 0], start[0, 0], shift[0, 0])
    np.testing.assert_allclose(np.stack(alone), oracle[0], rtol=1e-6, atol=1e-6)


def test_few_worlds_are_worked_on_alone():
    """One world of 16 goes on for 50 rounds: 16 worlds once and 4 for 49 rounds, not 16 for 50."""
    worked = []

    def advance(carry):
        jax.debug.callback(lambda _: worked.append(1), carry[0])
        return carry[0] - 1, carry[1]

    rounds = np.ones(WORLDS, np.int32)
    rounds[7] = 50
    jax.block_until_ready(jax.jit(jax.vmap(lambda r: while_few(lambda carry: carry[0] > 0, advance, (r, r))))(rounds))
    jax.effects_barrier()
    assert WORLDS + 49 <= len(worked) <= WORLDS + 4 * 49
