"""A server's half in NumPy: the mean of what has arrived, and a memory of experience that tells every order apart."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dynamic_graph_fed_rl.deployment import wire
from dynamic_graph_fed_rl.deployment.wire import ArraySpec, Schema

EXPERIENCE = Schema(
    "made-up transitions",
    (ArraySpec("reward", (None,), "float32"), ArraySpec("action", (None, 2), "int32")),
    max_rows=8,
)


class FakeHalf:
    """`ServerSide` for tests: nothing to compile."""

    def __init__(self, agents: int = 3, rows: int = 4, pools: bool = True, start: float = 1.0):
        self.agents, self.rows, self.pools, self._start = agents, rows, pools, start
        self.parameters_schema = wire.parameters_schema(rows)
        self.experience_schema = EXPERIENCE if pools else None

    def init(self) -> dict[str, np.ndarray]:
        return {
            "held": np.full((self.agents, self.rows), self._start, np.float32),
            "memory": np.zeros((), np.float32),
            "pooled": np.zeros((), np.int32),
        }

    def held(self, state: Mapping) -> np.ndarray:
        return np.asarray(state["held"])

    def decode(self, batches: Sequence[Mapping[str, np.ndarray] | None]) -> list[np.ndarray | None]:
        assert len(batches) == self.agents
        return [None if batch is None else batch["reward"] for batch in batches]

    def close(
        self, state: Mapping, own: np.ndarray, arrived: np.ndarray, experience: list[np.ndarray | None] | None
    ) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        held, memory = np.asarray(state["held"]), np.asarray(state["memory"])
        # float32 additions in another order give another sum
        mean = own[arrived].mean(0, dtype=np.float32)
        rewards = [reward for reward in experience or [] if reward is not None]
        for reward in rewards:
            memory = np.float32(0.7) * memory + reward.sum(dtype=np.float32)
        pooled = np.asarray(state["pooled"]) + np.int32(len(rewards))
        new = {
            "held": np.where(arrived[:, None], mean, held).astype(np.float32),
            "memory": np.asarray(memory, np.float32),
            "pooled": np.asarray(pooled, np.int32),
        }
        return new, {"server/replay_size": float(pooled), "arrived": float(arrived.sum())}


def parameters(values: float | Sequence[float] | np.ndarray, rows: int = 4) -> bytes:
    """The body of a weights upload."""
    return wire.pack({wire.PARAMETERS: np.broadcast_to(np.asarray(values, np.float32), rows)})


def transitions(reward: float, rows: int = 2) -> bytes:
    """The body of a transitions upload."""
    return wire.pack(
        {"reward": np.full(rows, reward, np.float32), "action": np.zeros((rows, 2), np.int32)},
    )


class Canary:
    """Sings where it is unpickled: makes a file."""

    def __init__(self, path: Path):
        self._path = str(path)

    def __reduce__(self) -> tuple:
        return open, (self._path, "w")
