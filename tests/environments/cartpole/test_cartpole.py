"""What an episode pays once it has ended."""

import jax
import jax.numpy as jnp

from dynamic_graph_fed_rl.environments.cartpole.environment import CartPole, CartPoleState


def test_a_cart_that_comes_back_after_its_end_earns_nothing():
    cartpole, push_left = CartPole(), jnp.zeros((1, 1), jnp.int32)
    # just outside on the right, moving back in fast, the pole upright
    outside = CartPoleState(jnp.asarray([2.41, -3.0, 0.0, 0.0]), jnp.asarray(5), jnp.asarray(True))
    state, transition = cartpole.step(jax.random.key(0), outside, push_left)
    assert abs(float(state.physics[0])) < 2.4
    assert float(transition.reward[0]) == 0
    _, transition = cartpole.step(jax.random.key(0), state, push_left)
    assert float(transition.reward[0]) == 0 and bool(transition.terminated[0])


def test_the_step_that_leaves_the_limits_is_the_last_that_pays():
    cartpole, push_right = CartPole(), jnp.ones((1, 1), jnp.int32)
    inside = CartPoleState(jnp.asarray([2.39, 3.0, 0.0, 0.0]), jnp.asarray(5), jnp.asarray(False))
    state, transition = cartpole.step(jax.random.key(0), inside, push_right)
    assert float(transition.reward[0]) == 1 and bool(transition.terminated[0])
    _, transition = cartpole.step(jax.random.key(0), state, push_right)
    assert float(transition.reward[0]) == 0
