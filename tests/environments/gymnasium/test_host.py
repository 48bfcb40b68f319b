"""A compiled program and the host: both ways of calling it say the same."""

import jax
import jax.numpy as jnp
import numpy as np

from dynamic_graph_fed_rl.environments import host
from dynamic_graph_fed_rl.environments.gymnasium.environment import wrapped
from dynamic_graph_fed_rl.environments.gymnasium.settings import GymnasiumSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds

OWNERS, COPIES, DECISIONS = 2, 2, 20


def run():
    worlds = Worlds(wrapped(GymnasiumSettings(id="CartPole-v1", time_limit=9), held_out=False), COPIES, OWNERS)
    moves = jnp.asarray(np.random.default_rng(0).integers(0, 2, (DECISIONS, OWNERS, COPIES, 1)), jnp.int32)

    @jax.jit
    def play(key):
        begin_key, step_key = jax.random.split(key)

        def decide(state, row):
            state, observation, transition = worlds.step(row[0], state, row[1])
            return state, (observation, transition)

        state, observation = worlds.reset(begin_key)
        return observation, jax.lax.scan(decide, state, (jax.random.split(step_key, DECISIONS), moves))[1]

    return jax.tree.map(np.asarray, play(jax.random.key(0)))


def test_in_place_and_array_by_array_are_the_same(monkeypatch) -> None:
    calls = []

    def counted(*arguments, **options):
        calls.append(1)
        return original(*arguments, **options)

    original = host.io_callback
    monkeypatch.setattr(host, "io_callback", counted)
    in_place = run()
    assert not calls
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    array_by_array = run()
    assert calls
    jax.tree.map(np.testing.assert_array_equal, in_place, array_by_array)
    ended = in_place[1][1].terminated | in_place[1][1].truncated
    assert ended.any() and in_place[1][1].reward.all()
