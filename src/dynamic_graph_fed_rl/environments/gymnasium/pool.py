"""Gymnasium environments as the worlds of a pool: a plain loop over plain environments.

A loop and not a vector environment: on few cores Gymnasium's are no faster, and these need no process of their own.
"""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, Int, Num, UInt

from dynamic_graph_fed_rl.environments.host import Pool

Make = Callable[[], gymnasium.Env]


@dataclass
class World:
    """One environment, the ticket of its last decision, what was seen after it, and how the episode ended."""

    environment: gymnasium.Env
    ticket: int
    features: Float[np.ndarray, " features"]
    terminated: bool = False
    truncated: bool = False


class GymnasiumPool(Pool):
    """Worlds that `make` gives, made as they are needed."""

    def __init__(self, make: Make, observation: spaces.Space[Any], action: spaces.Space[Any]):
        self._make, self._observation, self._action = make, observation, action
        self._features = int(np.prod(spaces.flatten_space(observation).shape or ()))
        self._worlds: list[World] = []

    def begin(self, seeds: UInt[np.ndarray, " worlds"]) -> tuple[np.ndarray, ...]:
        self.close(len(seeds))
        worlds = [self._begin(place, int(seed)) for place, seed in enumerate(seeds)]
        tickets = np.array([world.ticket for world in worlds])
        return np.arange(len(seeds)), tickets, np.stack([world.features for world in worlds])

    def advance(
        self,
        place: Int[np.ndarray, " worlds"],
        ticket: Int[np.ndarray, " worlds"],
        action: Num[np.ndarray, "worlds ..."],
        seeds: UInt[np.ndarray, " worlds"] | None,
    ) -> tuple[np.ndarray, ...]:
        count = len(place)
        tickets, reward = ticket.copy(), np.zeros(count)
        terminated, truncated, lost = (np.zeros(count, bool) for _ in range(3))
        features, upcoming = (np.zeros((count, self._features), np.float32) for _ in range(2))
        for row, (where, move) in enumerate(zip(place.tolist(), as_actions(self._action, action), strict=True)):
            world = self._worlds[where] if where < len(self._worlds) else None
            if world is None or world.ticket != ticket[row]:
                lost[row] = truncated[row] = True
            else:
                if not (world.terminated or world.truncated):
                    reward[row] = self._step(world, move)
                features[row] = world.features
                terminated[row], truncated[row] = world.terminated, world.truncated
                tickets[row] = world.ticket
            if seeds is not None and (terminated[row] or truncated[row]):
                world = self._begin(where, int(seeds[row]))
                tickets[row] = world.ticket
            if world is not None:
                upcoming[row] = world.features
        return tickets, features, reward, terminated, truncated, lost, upcoming

    def close(self, keep: int = 0) -> None:
        """Close all environments but so many."""
        for world in self._worlds[keep:]:
            world.environment.close()
        del self._worlds[keep:]

    def _begin(self, place: int, seed: int) -> World:
        while len(self._worlds) <= place:
            # no world of another process, whose state may come from a checkpoint, is taken for one of these
            self._worlds.append(World(self._make(), secrets.randbelow(2**30), np.zeros(self._features, np.float32)))
        world = self._worlds[place]
        seen, _ = world.environment.reset(seed=seed)
        world.features, world.ticket = self._flat(seen), world.ticket + 1
        world.terminated = world.truncated = False
        return world

    def _step(self, world: World, move: Any) -> float:
        seen, reward, terminated, truncated, _ = world.environment.step(move)
        world.features, world.ticket = self._flat(seen), world.ticket + 1
        # a death at the time limit is a death
        world.terminated, world.truncated = bool(terminated), bool(truncated) and not terminated
        return float(reward)

    def _flat(self, seen: Any) -> Float[np.ndarray, " features"]:
        return np.asarray(spaces.flatten(self._observation, seen), np.float32)


def as_actions(space: spaces.Space[Any], action: Num[np.ndarray, "worlds ..."]) -> list[Any]:
    """Choices, or numbers in [-1, 1], as the space has them; what lies outside is clipped, no number counts as 0."""
    if isinstance(space, spaces.Discrete):
        return [int(space.start) + choice for choice in np.clip(action, 0, int(space.n) - 1).tolist()]
    assert isinstance(space, spaces.Box)
    low, high = space.low.ravel().astype(np.float64), space.high.ravel().astype(np.float64)
    share = (np.clip(np.nan_to_num(action.astype(np.float64), posinf=1.0, neginf=-1.0), -1.0, 1.0) + 1.0) / 2.0
    scaled = np.clip((low + share * (high - low)).astype(space.dtype), space.low.ravel(), space.high.ravel())
    return list(scaled.reshape(-1, *space.shape))
