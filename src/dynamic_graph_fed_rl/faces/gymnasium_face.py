"""Any of our environments as a Gymnasium `Env` or `VectorEnv`. Needs the extra `gym`."""

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Num

from dynamic_graph_fed_rl.environments.base import Environment
from dynamic_graph_fed_rl.environments.host import HostEnvironment
from dynamic_graph_fed_rl.faces import play
from dynamic_graph_fed_rl.faces.spaces import action_space, as_action, mask_name, observation_space

Numbers = Num[np.ndarray, "..."]
Shown = Numbers | dict[str, Numbers]
"""An observation: a vector, or the parts of a graph by name."""


class GymnasiumEnv(gymnasium.Env[Shown, Any]):
    """One world of an environment.

    Of an environment with several agents it is the view of one of them (`agent`; the others do nothing: action 0,
    or the first choice), or of all together, with observations `[A, ...]`, their actions in a row and the mean of
    their rewards. `flat` observations are one vector, in which masked entries are 0; the default where the graph has
    one node only.

    `info` has the `cost` and `metrics` of the decision by name and, at the end, the `episode_metrics` up to there.
    Where actions are discrete it also has the mask of what may be chosen (see `mask_name`).

    With `held_out` the episodes are those of `dgfrl evaluate`: `reset(seed=k)` begins evaluation seed k, later
    resets the seeds after it. Otherwise they come from the stream that training draws from, and never meet those.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(
        self,
        environment: Environment,
        *,
        agent: int | None = None,
        flat: bool | None = None,
        held_out: bool = False,
        owner: tuple[int, int] | None = None,
    ):
        self.player = player(environment, agent, flat, held_out, 1, owner)
        self.observation_space, self.action_space = _spaces(self.player)
        self.render_mode = None
        self._seed: int | None = None
        self._episode = 0
        self._play: play.Play | None = None
        self._totals: dict[str, float] = {}
        self._choices: Numbers | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Shown, dict[str, Any]]:
        """The next episode, or the first one of a seed."""
        super().reset(seed=seed)
        if seed is None and self._seed is not None:
            self._episode += 1
        else:
            self._seed, self._episode = first_seed(seed, self.player.held_out, self.np_random), 0
        self._play, seen = play.begin(self.player, as_number(self._seed), as_number(self._episode))
        self._totals = {}
        return self._show(seen)

    def step(self, action: Any) -> tuple[Shown, float, bool, bool, dict[str, Any]]:
        """One decision.

        Raises:
            ResetNeeded: no episode has begun, or it has ended.
            ValueError: an action of another shape.
        """
        if self._play is None:
            raise ResetNeeded("step: call reset() first; no episode has begun, or it has ended")
        values = as_action(self.action_space, action)
        self._play, seen, outcome = play.advance(self.player, self._play, values)
        shown, info = self._show(seen)
        outcome = jax.device_get(outcome)
        terminated, truncated = bool(outcome.terminated), bool(outcome.truncated)
        info |= _figures(self.player, outcome)
        self._totals = added(self._totals, info["metrics"])
        if terminated or truncated:
            self._play = None
            info["episode_metrics"] = of_episode(self.player, self._totals)
        return shown, float(outcome.reward), terminated, truncated, info

    def action_masks(self) -> Bool[np.ndarray, " choices"]:
        """What may be chosen, slot after slot, in the form that `MaskablePPO` of sb3-contrib asks for.

        Raises:
            ValueError: actions are continuous.
            ResetNeeded: nothing has been observed yet.
        """
        if self.player.environment.spec.action == "continuous":
            raise ValueError("action_masks: actions are continuous, nothing is chosen")
        if self._choices is None:
            raise ResetNeeded("action_masks: call reset() first")
        return self._choices.reshape(-1).astype(bool)

    def close(self) -> None:
        """Let go of the world; `reset` begins another."""
        self._play = self._choices = None

    def _show(self, seen: play.Seen) -> tuple[Shown, dict[str, Any]]:
        shown, self._choices = seen_on_host(seen, self.player)
        if self._choices is None:
            return shown, {}
        return shown, {_mask_name(self.player): self._choices.copy()}


class GymnasiumVectorEnv(gymnasium.vector.VectorEnv[Shown, Any, np.ndarray]):
    """Many worlds of an environment, stepped in one compiled call; see `GymnasiumEnv` for what each of them shows.

    World i of `reset(seed=s)` plays the very episodes of a `GymnasiumEnv` that was reset with seed s + i. A world
    that ends begins anew within the same step (`AutoresetMode.SAME_STEP`): the step returns the first observation of
    the next episode, and `info` has the last one of the episode in `final_obs`, its `cost`, `metrics` and
    `episode_metrics` in `final_info`. With `held_out`, where worlds share the evaluation seeds, world i plays every
    `num_envs`-th of them from its seed on.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.SAME_STEP}

    def __init__(
        self,
        environment: Environment,
        num_envs: int,
        *,
        agent: int | None = None,
        flat: bool | None = None,
        held_out: bool = False,
        owner: tuple[int, int] | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs {num_envs}: must be at least 1")
        if isinstance(environment, HostEnvironment):
            raise ValueError(f"environment '{environment.name}': is one of Gymnasium's own; use gymnasium.make_vec")
        self.player = player(environment, agent, flat, held_out, num_envs, owner)
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = _spaces(self.player)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.render_mode = None
        self._play: play.Play | None = None
        self._totals: dict[str, np.ndarray] = {}

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Shown, dict[str, Any]]:
        """The next episode of every world, or the first ones of a seed for each; an int is counted up."""
        super().reset(seed=seed if isinstance(seed, int) else None)
        if seed is None and self._play is not None:
            seeds, episodes = self._play.seed, self._play.episode + 1
        else:
            if seed is None or isinstance(seed, int):
                first = first_seed(seed, self.player.held_out, self.np_random)
                seed = range(first, first + self.num_envs)
            if len(seed) != self.num_envs:
                raise ValueError(f"seed: {len(seed)} of them, but there are {self.num_envs} worlds")
            seeds = jnp.stack([as_number(one) for one in seed])
            episodes = jnp.zeros_like(seeds)
        self._play, seen = play.begin_many(self.player, seeds, episodes)
        self._totals = {}
        shown, info = self._show(seen)
        return shown, _masked(info, np.ones(self.num_envs, bool))

    def step(
        self, actions: Any
    ) -> tuple[Shown, np.ndarray, Bool[np.ndarray, " worlds"], Bool[np.ndarray, " worlds"], dict[str, Any]]:
        """One decision in every world.

        Raises:
            ResetNeeded: no episode has begun.
            ValueError: actions of another shape.
        """
        if self._play is None:
            raise ResetNeeded("step: call reset() first")
        values = as_action(self.single_action_space, actions, (self.num_envs,))
        self._play, seen, final, outcome = play.advance_many(self.player, self._play, values)
        shown, info = self._show(seen)
        outcome = jax.device_get(outcome)
        terminated, truncated = np.array(outcome.terminated), np.array(outcome.truncated)
        ended = terminated | truncated
        figures = _figures(self.player, outcome)
        infos = _masked(info, np.ones(self.num_envs, bool)) | _masked(figures, ~ended)
        self._totals = added(self._totals, figures["metrics"])
        if ended.any():
            last, last_info = self._show(final)
            last_info |= figures | {"episode_metrics": of_episode(self.player, self._totals)}
            self._totals = {name: np.where(ended, 0.0, total) for name, total in self._totals.items()}
            infos |= _masked({"final_obs": _per_world(last, ended), "final_info": last_info}, ended)
        return shown, np.array(outcome.reward, np.float64), terminated, truncated, infos

    def close_extras(self, **kwargs: Any) -> None:
        """Let go of the worlds."""
        self._play = None

    def _show(self, seen: play.Seen) -> tuple[Shown, dict[str, Any]]:
        shown, choices = seen_on_host(seen, self.player)
        return shown, {} if choices is None else {_mask_name(self.player): choices}


def make(
    name: str,
    *,
    agents: int = 1,
    agent: int | None = None,
    scenario: str | None = None,
    flat: bool | None = None,
    held_out: bool = False,
    **settings: Any,
) -> GymnasiumEnv:
    """A `GymnasiumEnv` of an environment by name (`dgfrl list`), with any of its settings.

    `agents` share the network, or have worlds of their own, of which `agent` names one. `scenario` is one of the
    environments of evaluation; without it, that of training.

    Raises:
        ValueError: what is not known or cannot be, by name.
    """
    environment, owner = play.named(name, agents, agent or 0, scenario, settings)
    slot = None if owner else agent
    return GymnasiumEnv(environment, agent=slot, flat=flat, held_out=held_out, owner=owner)


def make_vec(
    name: str,
    num_envs: int,
    *,
    agents: int = 1,
    agent: int | None = None,
    scenario: str | None = None,
    flat: bool | None = None,
    held_out: bool = False,
    **settings: Any,
) -> GymnasiumVectorEnv:
    """A `GymnasiumVectorEnv` of so many worlds; see `make`."""
    environment, owner = play.named(name, agents, agent or 0, scenario, settings)
    slot = None if owner else agent
    return GymnasiumVectorEnv(environment, num_envs, agent=slot, flat=flat, held_out=held_out, owner=owner)


def player(
    environment: Environment,
    agent: int | None,
    flat: bool | None,
    held_out: bool,
    stride: int,
    owner: tuple[int, int] | None,
) -> play.Player:
    """Whose view a face has; see `GymnasiumEnv`.

    Raises:
        ValueError: there is no such agent.
    """
    spec = environment.spec
    if agent is not None and not 0 <= agent < spec.agents:
        raise ValueError(f"agent {agent}: there are {spec.agents}, counted from 0")
    who: play.Who = 0 if spec.agents == 1 else "all" if agent is None else agent
    return play.Player(environment, who, spec.nodes == 1 if flat is None else flat, held_out, stride, owner)


def seen_on_host(seen: play.Seen, player: play.Player) -> tuple[Shown, Numbers | None]:
    """What is seen as NumPy arrays of the caller's own, and the open choices."""
    observation, choices = jax.device_get((seen.observation, seen.choices))
    name = _mask_name(player)
    if choices is not None:
        choices = np.array(choices[..., 0, :] if name == "action_mask" else choices)
    if player.flat:
        return np.array(observation), choices
    shown = {key: np.array(value) for key, value in observation.items()}
    mask = shown.pop("action_mask")
    shown[name] = mask[..., 0, :] if name == "action_mask" else mask
    return shown, choices


def _spaces(player: play.Player) -> tuple[gymnasium.Space[Any], gymnasium.Space[Any]]:
    spec = player.environment.spec
    together = spec.agents if player.who == "all" else None
    return observation_space(spec, player.flat, together), action_space(spec, together)


def _mask_name(player: play.Player) -> str:
    spec = player.environment.spec
    return mask_name(spec, spec.agents if player.who == "all" else None)


def first_seed(seed: int | None, held_out: bool, random: np.random.Generator) -> int:
    """The seed asked for; without one the first evaluation seed, or any."""
    if seed is not None:
        return seed
    return 0 if held_out else int(random.integers(2**31))


def as_number(value: int) -> jax.Array:
    return jnp.asarray(value % 2**31, jnp.int32)


def numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if np.ndim(value) == 0 else np.asarray(value) for name, value in values.items()}


def added(totals: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """The sums over an episode so far, with those of one more decision."""
    return {name: totals.get(name, 0.0) + value for name, value in metrics.items()}


def of_episode(player: play.Player, totals: dict[str, Any]) -> dict[str, Any]:
    """The figures of an episode that the specification names, from the sums over its decisions."""
    sums = {name: jnp.asarray(total, jnp.float32) for name, total in totals.items()}
    return numbers(jax.device_get(play.episode_metrics(player, sums)))


def _figures(player: play.Player, outcome: play.Outcome) -> dict[str, Any]:
    """The metrics and costs of a decision, of one world or of many, by name."""
    cost = {column.name: outcome.cost[..., i] for i, column in enumerate(player.environment.spec.costs)}
    return {"cost": numbers(cost), "metrics": numbers(outcome.metrics)}


def _masked(info: dict[str, Any], present: Bool[np.ndarray, " worlds"]) -> dict[str, Any]:
    """Gymnasium's convention: beside every entry `name` an entry `_name` with the worlds that have it."""
    masked: dict[str, Any] = {}
    for name, value in info.items():
        masked[name] = _masked(value, present) if isinstance(value, dict) else _zero_elsewhere(value, present)
        masked[f"_{name}"] = present.copy()
    return masked if present.any() else {}


def _zero_elsewhere(value: np.ndarray, present: Bool[np.ndarray, " worlds"]) -> np.ndarray:
    if value.dtype == object:
        return value
    return np.where(present.reshape(-1, *[1] * (value.ndim - 1)), value, np.zeros((), value.dtype))


def _per_world(shown: Shown, ended: Bool[np.ndarray, " worlds"]) -> np.ndarray:
    """The observations of worlds that ended, None for the others."""
    rows = np.full(len(ended), None, dtype=object)
    for world in np.flatnonzero(ended):
        rows[world] = {k: v[world] for k, v in shown.items()} if isinstance(shown, dict) else shown[world]
    return rows
