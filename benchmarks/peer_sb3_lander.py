"""Inside the peers' environment: Stable-Baselines3 DQN that learns LunarLander, a gradient step a decision.

One measurement is 2,000 decisions with their gradient steps, as `DQN.learn` does them, after the warm-up.
"""

import time
from collections.abc import Callable
from typing import Any

from peers import serve, versions

DECISIONS = 2_000


def prepare() -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    import gymnasium
    import torch
    from stable_baselines3 import DQN

    torch.set_num_threads(1)
    learner = DQN(
        "MlpPolicy",
        gymnasium.make("LunarLander-v3"),
        learning_rate=1e-3,
        buffer_size=200_000,
        learning_starts=1_000,
        batch_size=64,
        tau=0.005,
        target_update_interval=1,
        train_freq=4,
        gradient_steps=4,
        policy_kwargs={"net_arch": [64, 64], "activation_fn": torch.nn.Tanh},
        device="cpu",
        seed=0,
    )
    learner.learn(1_500)

    def measure() -> dict[str, float]:
        before = learner.num_timesteps
        wall, cpu = time.perf_counter(), time.process_time()
        learner.learn(DECISIONS, reset_num_timesteps=False)
        wall_seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        decisions = learner.num_timesteps - before
        return {
            "decisions": decisions,
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "decisions_per_cpu_second": decisions / cpu_seconds,
            "decisions_per_second": decisions / wall_seconds,
        }

    description = {
        "versions": versions("stable-baselines3", "torch", "gymnasium", "numpy"),
        "network": [64, 64],
        "batch_size": learner.batch_size,
        "gradient_steps_a_decision": 1,
    }
    return description, measure


if __name__ == "__main__":
    serve(prepare)
