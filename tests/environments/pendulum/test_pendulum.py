"""Pendulum against Gymnasium's Pendulum-v1."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from dynamic_graph_fed_rl.environments.pendulum.environment import Pendulum, PendulumState, SwingUp


def test_the_same_torques_lead_to_the_same_places_and_rewards():
    theirs = gymnasium.make("Pendulum-v1").unwrapped
    theirs.reset(seed=3)
    angle, speed = theirs.state
    ours = PendulumState(jnp.asarray(angle, jnp.float32), jnp.asarray(speed, jnp.float32), jnp.zeros((), jnp.int32))
    environment = Pendulum()
    step = jax.jit(lambda *given: environment.step(*given))
    # beyond the limit, too: the torque is cut off there
    for torque in np.random.default_rng(0).uniform(-3, 3, 60):
        seen, reward, *_ = theirs.step(np.array([torque]))
        ours, transition = step(jax.random.key(0), ours, jnp.full((1, 1, 1), torque / 2))
        np.testing.assert_allclose(transition.observation.graph.nodes[0, 0], seen, atol=2e-4)
        np.testing.assert_allclose(transition.reward[0], reward, atol=2e-3)


def test_the_textbook_rule_swings_up_and_holds():
    environment, rule = Pendulum(), SwingUp()

    def decide(carry, key):
        state, seen = carry
        batch = jax.tree.map(lambda leaf: leaf[:, None], seen)
        action = rule.act(key, None, None, batch)[0][:, 0]
        state, transition = environment.step(key, state, action)
        return (state, transition.observation), transition.reward[0]

    begun = environment.reset(jax.random.key(1))
    (state, _), reward = jax.jit(lambda: jax.lax.scan(decide, begun, jax.random.split(jax.random.key(2), 200)))()
    assert abs(float(jnp.sin(state.angle))) < 0.05 and float(jnp.cos(state.angle)) > 0.99
    assert float(reward.sum()) > -600
