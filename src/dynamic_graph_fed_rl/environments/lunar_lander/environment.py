"""LunarLander-v3 of Gymnasium, with the figures that it is judged by, and Gymnasium's own rule for landing."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import yaml
from jaxtyping import Array, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.base import Controller, Observation
from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.gymnasium.settings import GymnasiumSettings
from dynamic_graph_fed_rl.environments.host import HostEnvironment
from dynamic_graph_fed_rl.environments.lunar_lander.settings import LunarLanderSettings
from dynamic_graph_fed_rl.environments.spec import Column, Metric
from dynamic_graph_fed_rl.environments.vector import Idle, Uniform

try:
    with warnings.catch_warnings():
        # its extension types warn as they are made, and where warnings are errors the process dies of it
        warnings.simplefilter("ignore", DeprecationWarning)
        import Box2D  # noqa: F401  (Gymnasium asks for it only when the first world is made)
    import gymnasium
    from gymnasium.envs.box2d.lunar_lander import heuristic

    from dynamic_graph_fed_rl.environments.gymnasium.environment import wrapped
except ImportError as missing:
    raise ValueError(
        "environment 'lunar-lander' needs Gymnasium and Box2D: pip install 'dynamic-graph-fed-rl[lander]'"
    ) from missing

ID = "LunarLander-v3"
CHOICES = 4
OFF_CENTRE = 0.05
"""What the shaped reward takes away for each unit of horizontal distance from the pad, at every decision."""

_SEEN = (
    Column("horizontal_distance", "2/viewport"),
    Column("height", "2/viewport"),
    Column("horizontal_velocity"),
    Column("vertical_velocity"),
    Column("angle", "rad"),
    Column("angular_velocity"),
    Column("left_leg_touches"),
    Column("right_leg_touches"),
)
_METRICS = (
    Metric("episode_return", "return", lower_is_better=False),
    Metric("shaped_return", "shaped return", lower_is_better=False),
    Metric("length", "length", "decisions"),
)


def judged(
    reward: Float[Array, "*worlds"], features: Float[Array, "*worlds features"]
) -> tuple[Float[Array, "*worlds"], dict[str, Float[Array, "*worlds"]]]:
    """Gymnasium's reward; episodes add up that, the shaped one, and decisions."""
    shaped = reward - OFF_CENTRE * jnp.abs(features[..., 0])
    return reward, {"episode_return": reward, "shaped_return": shaped, "length": jnp.ones_like(reward)}


def judged_shaped(
    reward: Float[Array, "*worlds"], features: Float[Array, "*worlds features"]
) -> tuple[Float[Array, "*worlds"], dict[str, Float[Array, "*worlds"]]]:
    """The same, but what is learned from is the shaped reward."""
    _, metrics = judged(reward, features)
    return metrics["shaped_return"], metrics


def lander(settings: LunarLanderSettings, held_out: bool) -> HostEnvironment:
    """LunarLander-v3 as one of our environments.

    Raises:
        ValueError: a setting that Gymnasium does not take.
    """
    _refuse(settings)
    names = ("gravity", "enable_wind", "wind_power", "turbulence_power")
    arguments = yaml.safe_dump({name: getattr(settings, name) for name in names})
    one = wrapped(GymnasiumSettings(ID, arguments, settings.time_limit), held_out)
    spec = replace(one.spec, node_features=_SEEN, metrics=_METRICS)
    return replace(one, name="lunar-lander", details=spec, judge=judged_shaped if settings.shaped else judged)


def _refuse(settings: LunarLanderSettings) -> None:
    if not -12.0 < settings.gravity < 0.0:
        raise ValueError(f"gravity {settings.gravity}: must be above -12 and below 0")
    for name, most in (("wind_power", 20.0), ("turbulence_power", 2.0)):
        if not 0.0 <= getattr(settings, name) <= most:
            raise ValueError(f"{name} {getattr(settings, name)}: must be from 0 to {most:g}")


class Heuristic(Controller):
    """Gymnasium's own rule, which aims at the pad and brakes; it reads only what is seen."""

    choose: Callable[[np.ndarray], int] = eqx.field(static=True)

    def initial_memory(self, state, observation: Observation) -> None:
        return None

    def act(
        self, key: PRNGKeyArray, memory: None, state: Any, observation: Observation
    ) -> tuple[Int[Array, "*batch slots"], None]:
        shape = jax.ShapeDtypeStruct(observation.slot_owner.shape, jnp.int32)
        return jax.pure_callback(self._choices, shape, observation.graph.nodes[..., 0, :]), None

    def _choices(self, features: Array) -> np.ndarray:
        """The choice for each row of features `[..., 8]`."""
        rows = np.asarray(features)
        choices = [self.choose(row) for row in rows.reshape(-1, rows.shape[-1])]
        return np.asarray(choices, np.int32).reshape(*rows.shape[:-1], 1)


def _own_rule() -> Heuristic:
    # the rule asks an environment whether its engines are discrete
    one = gymnasium.make(ID)
    return Heuristic(lambda row: int(heuristic(one, row)))


def build(settings: LunarLanderSettings, agents: int) -> Domain:
    """Each agent has worlds of its own; a centralised run is a single agent."""
    rules = {"do-nothing": Idle(CHOICES), "random": Uniform(CHOICES), "heuristic": _own_rule()}
    return Domain(
        lander(settings, held_out=False),
        agents,
        {"standard": lander(replace(settings, shaped=False), held_out=True)},
        {name: lambda _, rule=rule: rule for name, rule in rules.items()},
        idle="do-nothing",
        references=("heuristic",),
        help={name: str(type(rule).__doc__) for name, rule in rules.items()}
        | {"standard": "as the environment begins"},
    )
