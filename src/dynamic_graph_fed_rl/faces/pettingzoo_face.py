"""A shared network as a PettingZoo `ParallelEnv`: an agent of theirs for each of ours. Needs the extra `gym`."""

from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import jax
import numpy as np
from gymnasium.error import ResetNeeded
from pettingzoo import ParallelEnv

from dynamic_graph_fed_rl.environments.base import Environment
from dynamic_graph_fed_rl.faces import play
from dynamic_graph_fed_rl.faces.gymnasium_face import (
    Shown,
    added,
    as_number,
    first_seed,
    numbers,
    of_episode,
    seen_on_host,
)
from dynamic_graph_fed_rl.faces.spaces import action_space, as_action, mask_name, observation_space


class PettingZooEnv(ParallelEnv[str, Shown, Any]):
    """One world, in which the agents `agent_0`, `agent_1`, ... act together; all of them until the world ends.

    Observations, actions, infos, `flat` and `held_out` as in `GymnasiumEnv`: an agent's `info` has its own `cost`,
    the world's `metrics` and, where actions are discrete, the mask of what it may choose.
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "dynamic_graph_fed_rl",
        "render_modes": [],
        "is_parallelizable": True,
    }

    def __init__(
        self,
        environment: Environment,
        *,
        flat: bool | None = None,
        held_out: bool = False,
    ):
        spec = environment.spec
        flat = spec.nodes == 1 if flat is None else flat
        self.player = play.Player(environment, "each", flat, held_out)
        self.possible_agents = [f"agent_{i}" for i in range(spec.agents)]
        self.agents: list[str] = []
        # spaces of their own, as each carries a random number generator
        self.observation_spaces = {agent: observation_space(spec, flat) for agent in self.possible_agents}
        self.action_spaces = {agent: action_space(spec) for agent in self.possible_agents}
        self.render_mode = None
        self._seed: int | None = None
        self._episode = 0
        self._play: play.Play | None = None
        self._totals: dict[str, float] = {}

    def observation_space(self, agent: str) -> gymnasium.Space[Any]:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> gymnasium.Space[Any]:
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Shown], dict[str, dict[str, Any]]]:
        """The next episode, or the first one of a seed."""
        if seed is None and self._seed is not None:
            self._episode += 1
        else:
            self._seed, self._episode = first_seed(seed, self.player.held_out, np.random.default_rng()), 0
        self.agents = list(self.possible_agents)
        self._play, seen = play.begin(self.player, as_number(self._seed), as_number(self._episode))
        self._totals = {}
        return self._show(seen)

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[
        dict[str, Shown], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
    ]:  # fmt: skip
        """One decision of all agents.

        Raises:
            ResetNeeded: no episode has begun, or it has ended.
            ValueError: an agent without an action, or with one of another shape.
        """
        if self._play is None or not self.agents:
            raise ResetNeeded("step: call reset() first; no episode has begun, or it has ended")
        if set(actions) != set(self.agents):
            raise ValueError(f"actions of {sorted(actions)}: must be of {self.agents}")
        rows = [as_action(self.action_spaces[agent], actions[agent]) for agent in self.agents]
        self._play, seen, outcome = play.advance(self.player, self._play, np.stack(rows))
        observations, infos = self._show(seen)
        outcome = jax.device_get(outcome)
        ended = outcome.terminated | outcome.truncated
        costs = self.player.environment.spec.costs
        self._totals = added(self._totals, numbers(outcome.metrics))
        for i, agent in enumerate(self.possible_agents):
            infos[agent]["cost"] = {column.name: float(outcome.cost[i, k]) for k, column in enumerate(costs)}
            infos[agent]["metrics"] = numbers(outcome.metrics)
            if ended[i]:
                infos[agent]["episode_metrics"] = of_episode(self.player, self._totals)
        if ended.any():
            self.agents = []
        return (
            observations,
            self._each(outcome.reward, float),
            self._each(outcome.terminated, bool),
            self._each(outcome.truncated, bool),
            infos,
        )

    def close(self) -> None:
        """Let go of the world; `reset` begins another."""
        self._play, self.agents = None, []

    def _each(self, values: np.ndarray, kind: type) -> dict[str, Any]:
        return {agent: kind(value) for agent, value in zip(self.possible_agents, values, strict=True)}

    def _show(self, seen: play.Seen) -> tuple[dict[str, Shown], dict[str, dict[str, Any]]]:
        shown, choices = seen_on_host(seen, self.player)
        observations, infos = {}, {}
        for i, agent in enumerate(self.possible_agents):
            own = (
                {name: value[i].copy() for name, value in shown.items()}
                if isinstance(shown, dict)
                else shown[i].copy()
            )
            observations[agent] = own
            infos[agent] = {} if choices is None else {mask_name(self.player.environment.spec): choices[i].copy()}
        return observations, infos


def make(
    name: str,
    *,
    agents: int = 4,
    scenario: str | None = None,
    flat: bool | None = None,
    held_out: bool = False,
    **settings: Any,
) -> PettingZooEnv:
    """A `PettingZooEnv` of an environment by name (`dgfrl list`), with any of its settings; see
    `gymnasium_face.make`.

    Raises:
        ValueError: what is not known or cannot be, by name; also an environment whose agents share no world.
    """
    environment, owner = play.named(name, agents, 0, scenario, settings)
    if owner or environment.spec.agents != agents:
        raise ValueError(
            f"environment '{name}': its agents have worlds of their own, there is nothing to act in together; "
            "use gymnasium_face.make"
        )
    return PettingZooEnv(environment, flat=flat, held_out=held_out)
