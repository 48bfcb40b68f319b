"""CartPole as a graph of one node: the smallest check that vectors and graphs share one code path."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation, Transition
from dynamic_graph_fed_rl.environments.cartpole.settings import CartPoleSettings
from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec
from dynamic_graph_fed_rl.environments.vector import Idle, Uniform, observe


class CartPoleState(eqx.Module):
    """Position [m], velocity [m/s], pole angle [rad], angular velocity [rad/s], the steps so far, and whether the
    limits have ever been left."""

    physics: Float[Array, "4"]
    step: Int[Array, ""]
    over: Bool[Array, ""]


class CartPole(Environment):
    """Pole balancing after Barto, Sutton and Anderson (1983), with the limits of Gymnasium's CartPole-v1.

    Observation: one node, four features. Action: one discrete slot, push left or right with `force_n`. Reward: 1
    a step. Terminated when the cart leaves ±2.4 m or the pole ±12 degrees; truncated after `time_limit` steps.
    """

    gravity_m_s2: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=9.8)
    cart_mass_kg: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=1.0)
    pole_mass_kg: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.1)
    half_length_m: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.5)
    force_n: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=10.0)
    time_limit: int = eqx.field(static=True, default=500)

    @property
    def spec(self) -> Spec:
        return Spec(
            agents=1,
            nodes=1,
            edges=0,
            slots=1,
            action="discrete",
            action_size=2,
            node_features=(
                Column("position", "m"),
                Column("velocity", "m/s"),
                Column("pole_angle", "rad"),
                Column("pole_angular_velocity", "rad/s"),
            ),
            metrics=(Metric("episode_return", "return", lower_is_better=False),),
            headline="episode_return",
            episode_decisions=self.time_limit,
        )

    def reset(self, key: PRNGKeyArray) -> tuple[CartPoleState, Observation]:
        physics = jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
        state = CartPoleState(physics, jnp.zeros((), jnp.int32), jnp.asarray(False))
        return state, observe(state.physics, 2, jnp.asarray(True))

    def step(
        self, key: PRNGKeyArray, state: CartPoleState, action: Int[Array, "agents slots"]
    ) -> tuple[CartPoleState, Transition]:
        _, velocity, angle, spin = state.physics
        force = jnp.where(action[0, 0] == 1, self.force_n, -self.force_n)
        total = self.cart_mass_kg + self.pole_mass_kg
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        push = (force + self.pole_mass_kg * self.half_length_m * spin**2 * sine) / total
        angular = (self.gravity_m_s2 * sine - cosine * push) / (
            self.half_length_m * (4.0 / 3.0 - self.pole_mass_kg * cosine**2 / total)
        )
        linear = push - self.pole_mass_kg * self.half_length_m * angular * cosine / total
        dt_s = 0.02
        physics = state.physics + dt_s * jnp.stack([velocity, linear, spin, angular])
        fallen = state.over | (jnp.abs(physics[0]) > 2.4) | (jnp.abs(physics[2]) > jnp.deg2rad(12.0))
        after = CartPoleState(physics, state.step + 1, fallen)
        # a world that evaluation steps on after its end earns nothing more, wherever the cart goes
        reward = jnp.where(state.over, 0.0, 1.0)
        return after, Transition(
            observation=observe(after.physics, 2, jnp.asarray(False)),
            reward=reward[None],
            cost=jnp.zeros((1, 0)),
            terminated=fallen[None],
            truncated=(~fallen & (after.step >= self.time_limit))[None],
            info={"metrics": {"episode_return": reward}},
        )


class LeanCorrection(Controller):
    """Push towards where the pole is falling: the textbook rule."""

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(self, key: PRNGKeyArray, memory: None, state, observation: Observation) -> tuple[Array, None]:
        _, _, angle, spin = jnp.moveaxis(observation.graph.nodes[..., 0, :], -1, 0)
        return (angle + 0.5 * spin > 0).astype(jnp.int32)[..., None], None


def build(settings: CartPoleSettings, agents: int) -> Domain:
    """Each agent has worlds of its own; a centralised run is a single agent."""
    one = CartPole(half_length_m=settings.half_length_m, time_limit=settings.time_limit)
    owned = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], agents, axis=0), one)
    rules = {"do-nothing": Idle, "random": Uniform, "lean-correction": LeanCorrection}
    help = {name: str(rule.__doc__) for name, rule in rules.items()}
    help["standard"] = "the cart starts near its middle, the pole nearly upright"
    baselines = {name: lambda _, rule=rule: rule() for name, rule in rules.items()}
    return Domain(owned, agents, {"standard": owned}, baselines, idle="do-nothing", help=help)
