"""The virtual clock, absences, joining and leaving."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.federation.schedule import Schedule

TIMES = [1.0, 1.0, 1.0, 4.0]


def schedule(times=TIMES, **changes) -> Schedule:
    """Everybody, always, each in its own time."""
    agents, never = len(times), jnp.iinfo(jnp.int32).max
    plain = Schedule(
        jnp.asarray(times), jnp.zeros(agents), jnp.ones(()), jnp.zeros(agents, jnp.int32), jnp.full(agents, never)
    )
    return replace(plain, **changes)


@eqx.filter_jit
def who_works(one: Schedule, ticks: int, seed: int = 0) -> jax.Array:
    """Activity `[ticks, A]`; compiled once for all schedules of a length."""

    def tick(state, key):
        state, active, _ = one.advance(key, state)
        return state, active

    return jax.lax.scan(tick, one.init(), jax.random.split(jax.random.key(seed), ticks))[1]


def test_time_law_of_asynchrony():
    """Updates a tick: sum of 1/t_i asynchronously, N / t_max synchronously (the facts' 3.25 against 1)."""
    assert who_works(schedule(asynchronous=True), 400).sum() / 400 == 3.25
    assert who_works(schedule(), 400).sum() / 400 == 1.0


@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.5, 3.0, 7.0]), min_size=1, max_size=4))
def test_every_agent_finishes_once_in_its_own_time(times):
    padded = times + [1.0] * (4 - len(times))
    done = who_works(schedule(padded, asynchronous=True), 210).sum(0)
    np.testing.assert_array_equal(done, np.floor(210 / np.asarray(padded) + 1e-6))


def test_equal_clocks_make_no_difference():
    np.testing.assert_array_equal(
        who_works(schedule([2.0] * 4, asynchronous=True), 20), who_works(schedule([2.0] * 4), 20)
    )


@pytest.mark.parametrize("absence", [1.0, 5.0])
def test_absences_have_their_share_and_their_length(absence):
    one = schedule([1.0] * 50, dropout=jnp.full(50, 0.2), absence=jnp.asarray(absence))
    works = np.asarray(who_works(one, 2000))[100:]
    assert (~works).mean() == pytest.approx(0.2, abs=0.01)
    ended = (~works[:-1]) & works[1:]
    assert (~works).sum() / ended.sum() == pytest.approx(absence if absence > 1 else 1 / 0.8, rel=0.05)


def test_agents_join_and_leave():
    one = schedule([1.0] * 4, joins=jnp.asarray([0, 0, 3, 0]), leaves=jnp.asarray([99, 5, 99, 99]))
    works = who_works(one, 8)
    np.testing.assert_array_equal(works[:, 2], np.arange(8) >= 3)
    np.testing.assert_array_equal(works[:, 1], np.arange(8) < 5)
    assert works[:, [0, 3]].all()


def test_nobody_waits_for_a_straggler_that_is_no_member():
    works = who_works(schedule(TIMES, leaves=jnp.asarray([99, 99, 99, 4])), 8)
    np.testing.assert_array_equal(works[:, 0], [False, False, False, True, True, True, True, True])


def test_membership_does_not_compile_again():
    compiled = jax.jit(lambda one, key: one.advance(key, one.init()))
    for joins in ([0, 0, 0, 0], [0, 9, 0, 0]):
        compiled(schedule(joins=jnp.asarray(joins)), jax.random.key(0))
    assert compiled._cache_size() == 1
