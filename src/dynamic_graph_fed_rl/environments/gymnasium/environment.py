"""An environment of Gymnasium under our contract: a graph of one node, one slot to act in."""

from dataclasses import replace
from typing import Any

import numpy as np
import yaml

from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.environments.gymnasium.settings import GymnasiumSettings
from dynamic_graph_fed_rl.environments.host import HostEnvironment
from dynamic_graph_fed_rl.environments.spec import Column, Metric, Spec
from dynamic_graph_fed_rl.environments.vector import Idle, Uniform

try:
    import gymnasium
    from gymnasium import spaces

    from dynamic_graph_fed_rl.environments.gymnasium.pool import GymnasiumPool
except ImportError as missing:
    raise ValueError(
        "environment 'gymnasium' needs the library gymnasium: pip install 'dynamic-graph-fed-rl[gym]'"
    ) from missing


def wrapped(settings: GymnasiumSettings, held_out: bool) -> HostEnvironment:
    """An environment of Gymnasium as one of ours.

    Observations are flattened to one vector (a Discrete one is one-hot). A Box of n numbers becomes one slot of n in
    [-1, 1], which stand for its bounds.

    Raises:
        ValueError: no such environment, or one with a part that does not fit, by name.
    """
    arguments = _arguments(settings)

    def make() -> gymnasium.Env:
        return gymnasium.make(
            settings.id, max_episode_steps=settings.time_limit, disable_env_checker=True, **arguments
        )

    try:
        one = make()
    except (gymnasium.error.Error, ImportError, TypeError, ValueError) as error:
        raise ValueError(f"id '{settings.id}': {error}") from error
    try:
        spec = _spec(settings, one)
        pool = GymnasiumPool(make, one.observation_space, one.action_space)
    finally:
        one.close()
    return HostEnvironment(settings.id, spec, pool, held_out)


def _arguments(settings: GymnasiumSettings) -> dict[str, Any]:
    if settings.time_limit is not None and settings.time_limit < 1:
        raise ValueError(f"time_limit {settings.time_limit}: must be at least 1")
    try:
        arguments = yaml.safe_load(settings.arguments or "{}")
    except yaml.YAMLError as error:
        raise ValueError(f"arguments '{settings.arguments}': not YAML: {error}") from error
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        raise ValueError(f"arguments '{settings.arguments}': must be names and values, such as {{continuous: true}}")
    return arguments


def _spec(settings: GymnasiumSettings, one: gymnasium.Env) -> Spec:
    name, action = settings.id, one.action_space
    limit = None if one.spec is None else one.spec.max_episode_steps
    if limit is None:
        raise ValueError(f"id '{name}': has no time limit of its own; give it one (time_limit)")
    try:
        features = spaces.flatten_space(one.observation_space)
    except NotImplementedError as error:
        raise ValueError(f"id '{name}': cannot make a vector of {one.observation_space}") from error
    if not isinstance(features, spaces.Box):
        raise ValueError(f"id '{name}': what it shows has no fixed size: {one.observation_space}")
    spec = Spec(
        agents=1,
        nodes=1,
        edges=0,
        slots=1,
        action="discrete",
        action_size=0,
        node_features=tuple(Column(f"feature_{i}") for i in range(int(np.prod(features.shape)))),
        metrics=(Metric("episode_return", "return", lower_is_better=False),),
        headline="episode_return",
        episode_decisions=limit,
    )
    if isinstance(action, spaces.Discrete):
        return replace(spec, action_size=int(action.n))
    if isinstance(action, spaces.Box) and np.issubdtype(action.dtype, np.floating):
        if not action.is_bounded():
            raise ValueError(f"id '{name}': its actions have no bounds to scale [-1, 1] to: {action}")
        return replace(spec, action="continuous", action_size=int(np.prod(action.shape)))
    raise ValueError(f"id '{name}': actions must be Discrete or a Box of real numbers, not {action}")


def build(settings: GymnasiumSettings, agents: int) -> Domain:
    """Each agent has worlds of its own; a centralised run is a single agent."""
    training, standard = wrapped(settings, held_out=False), wrapped(settings, held_out=True)
    size = training.spec.action_size
    return Domain(
        training,
        agents,
        {"standard": standard},
        {"do-nothing": lambda _: Idle(size), "random": lambda _: Uniform(size)},
        idle="do-nothing",
        help={
            "do-nothing": str(Idle.__doc__),
            "random": str(Uniform.__doc__),
            "standard": "as the environment begins",
        },
    )
