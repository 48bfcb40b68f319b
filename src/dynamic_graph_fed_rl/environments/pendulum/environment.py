"""Pendulum: the smallest task with a continuous action, as a graph of one node."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.pendulum.settings import PendulumSettings
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec
from dynamic_graph_fed_rl.environments.vector import Idle, Uniform, observe

TORQUE_LIMIT_N_M = 2.0
SPEED_LIMIT_RAD_S = 8.0
STEP_S = 0.05


class PendulumState(eqx.Module):
    """Angle from upright [rad], angular velocity [rad/s], and the steps so far."""

    angle: Float[Array, ""]
    speed: Float[Array, ""]
    step: Int[Array, ""]


class Pendulum(Environment):
    """Swing a pendulum up and hold it with a torque too weak to lift it at once; Gymnasium's Pendulum-v1.

    Observation: one node; cosine and sine of the angle, angular velocity [rad/s]. Action: one continuous slot, the
    torque over its limit of 2 N m. Reward: `-(angle^2 + 0.1 speed^2 + 0.001 torque^2)` before the step. Truncated
    after `time_limit` steps, never terminated.
    """

    gravity_m_s2: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=10.0)
    mass_kg: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)
    length_m: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)
    time_limit: int = eqx.field(static=True, default=200)

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=1,
            nodes=1,
            edges=0,
            slots=1,
            action="continuous",
            action_size=1,
            node_features=(Column("cosine"), Column("sine"), Column("angular_velocity", "rad/s")),
            metrics=(Metric("episode_return", "return", lower_is_better=False),),
            headline="episode_return",
            episode_decisions=self.time_limit,
        )

    def reset(self, key: PRNGKeyArray) -> tuple[PendulumState, Observation]:
        angle, speed = jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0) * jnp.asarray([jnp.pi, 1.0])
        state = PendulumState(angle, speed, jnp.zeros((), jnp.int32))
        return state, self._observe(state, first=True)

    def step(
        self, key: PRNGKeyArray, state: PendulumState, action: Float[Array, "agents slots size"]
    ) -> tuple[PendulumState, Transition]:
        torque = TORQUE_LIMIT_N_M * jnp.clip(jnp.nan_to_num(action[0, 0, 0]), -1.0, 1.0)
        angle = jnp.mod(state.angle + jnp.pi, 2 * jnp.pi) - jnp.pi
        reward = -(angle**2 + 0.1 * state.speed**2 + 0.001 * torque**2)
        acceleration = (
            1.5 * self.gravity_m_s2 / self.length_m * jnp.sin(state.angle)
            + 3.0 / (self.mass_kg * self.length_m**2) * torque
        )
        speed = jnp.clip(state.speed + acceleration * STEP_S, -SPEED_LIMIT_RAD_S, SPEED_LIMIT_RAD_S)
        after = PendulumState(state.angle + speed * STEP_S, speed, state.step + 1)
        # a world that evaluation steps on after its end earns nothing more
        reward = jnp.where(state.step >= self.time_limit, 0.0, reward)
        return after, Transition(
            observation=self._observe(after, first=False),
            reward=reward[None],
            cost=jnp.zeros((1, 0)),
            terminated=jnp.zeros(1, bool),
            truncated=(after.step >= self.time_limit)[None],
            info={"metrics": {"episode_return": reward}},
        )

    def _observe(self, state: PendulumState, first: bool) -> Observation:
        features = jnp.stack([jnp.cos(state.angle), jnp.sin(state.angle), state.speed])
        return observe(features, None, jnp.asarray(first))


def build(settings: PendulumSettings, agents: int) -> Domain:
    """Each agent has worlds of its own; a centralised run is a single agent."""
    one = Pendulum(gravity_m_s2=settings.gravity_m_s2, time_limit=settings.time_limit)
    owned = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], agents, axis=0), one)
    rules: dict[str, type[Controller]] = {"do-nothing": Idle, "random": Uniform, "swing-up": SwingUp}
    help = {name: str(rule.__doc__) for name, rule in rules.items()}
    help["standard"] = "any angle, up to 1 rad/s either way"
    baselines = {name: lambda _, rule=rule: rule() for name, rule in rules.items()}
    return Domain(owned, agents, {"standard": owned}, baselines, idle="do-nothing", help=help)


class SwingUp(Controller):
    """Pump energy until it suffices, then hold upright by feedback (Astrom and Furuta 2000)."""

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        cosine, sine, speed = jnp.moveaxis(observation.graph.nodes[..., 0, :], -1, 0)
        angle = jnp.arctan2(sine, cosine)
        # half the inertia times speed squared, and height: 0 at rest upright
        energy = speed**2 / 6.0 + 5.0 * (cosine - 1.0)
        pump = jnp.where(energy < 0.0, jnp.sign(speed), -jnp.sign(speed))
        hold = -(10.0 * angle + 2.0 * speed) / TORQUE_LIMIT_N_M
        near = (jnp.abs(angle) < 0.35) & (jnp.abs(speed) < 2.0)
        return jnp.clip(jnp.where(near, hold, pump), -1.0, 1.0)[..., None, None], None
