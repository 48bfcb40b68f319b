"""Inside the peers' environment: Stable-Baselines3 PPO that learns redispatching on grid2op.

One measurement is whole rollouts with their updates and resets, as `PPO.learn` does them. A decision is for
the whole grid and moves the world by one step. Hyperparameters are SB3's defaults; 2,048 decisions a rollout.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

from peer_grid2op_speed import describe, make
from peers import serve, versions

ROLLOUT = 2048
OBSERVED = (
    "rho",
    "gen_p",
    "load_p",
    "load_q",
    "line_status",
    "actual_dispatch",
    "target_dispatch",
    "hour_of_day",
    "minute_of_hour",
)


def gymnasium_environment() -> Any:
    """Continuous redispatching in [-1, 1] of the ramp, and a box of 742 scaled numbers to decide on."""
    from grid2op.Chronics import MultifolderWithCache
    from grid2op.gym_compat import BoxGymActSpace, BoxGymObsSpace, GymEnv

    # grid2op's own advice for training: series stay in memory between episodes, nothing prepares simulate()
    world = make(chronics_class=MultifolderWithCache)
    world.chronics_handler.reset()
    world.deactivate_forecast()
    first = world.reset()
    environment = GymEnv(world)
    environment.observation_space = BoxGymObsSpace(
        world.observation_space,
        attr_to_keep=list(OBSERVED),
        divide={
            "gen_p": world.gen_pmax,
            "load_p": abs(first.load_p) + 1,
            "load_q": abs(first.load_q) + 1,
            "actual_dispatch": world.gen_pmax,
            "target_dispatch": world.gen_pmax,
            "hour_of_day": [24.0],
            "minute_of_hour": [60.0],
        },
    )
    # not normalize_attr, which maps to [0, 1]: a policy that starts around 0 would ask for full ramps down,
    # and grid2op refused 64 % of such actions
    environment.action_space = BoxGymActSpace(
        world.action_space,
        attr_to_keep=["redispatch"],
        multiply={"redispatch": world.gen_max_ramp_up[world.gen_redispatchable]},
    )
    return environment


def refused_share(environment: Any, actions: int = 200) -> float:
    """Share of an untrained policy's actions that grid2op would not carry out.

    A refused action moves nothing: a peer that mostly has its actions refused is measured at something else.
    """
    import numpy as np

    random = np.random.default_rng(0)
    space = environment.action_space
    environment.reset(seed=0)
    refused = 0
    for _ in range(actions):
        action = np.clip(random.normal(size=space.shape), space.low, space.high).astype(space.dtype)
        _, _, terminated, truncated, information = environment.step(action)
        refused += any(information[k] for k in ("is_ambiguous", "is_illegal", "failed_redispatching"))
        if terminated or truncated:
            environment.reset()
    return refused / actions


def prepare() -> tuple[dict[str, Any], Callable[[], dict[str, float]]]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--environments", type=int, default=8, help="copies of the world in one process")
    parser.add_argument("--rollouts", type=int, default=1, help="rollouts, each with its update, a measurement")
    options = parser.parse_args()
    if options.environments < 1 or ROLLOUT % options.environments:
        raise ValueError(f"--environments {options.environments}: must be a divisor of {ROLLOUT}")

    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    torch.set_num_threads(1)
    refused = refused_share(gymnasium_environment())
    if refused > 0.1:
        raise RuntimeError(f"grid2op refuses {refused:.0%} of the peer's actions: it would not be redispatching")
    worlds = DummyVecEnv([gymnasium_environment] * options.environments)
    learner = PPO("MlpPolicy", worlds, n_steps=ROLLOUT // options.environments, device="cpu", seed=0)

    def measure() -> dict[str, float]:
        before = learner.num_timesteps
        wall, cpu = time.perf_counter(), time.process_time()
        learner.learn(options.rollouts * ROLLOUT, reset_num_timesteps=False)
        wall_seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
        decisions = learner.num_timesteps - before
        return {
            "decisions": decisions,
            "world_steps": decisions,
            "cpu_seconds": cpu_seconds,
            "wall_seconds": wall_seconds,
            "decisions_per_cpu_second": decisions / cpu_seconds,
            "decisions_per_second": decisions / wall_seconds,
            "world_steps_per_cpu_second": decisions / cpu_seconds,
            "world_steps_per_second": decisions / wall_seconds,
        }

    measure()
    description = describe(worlds.get_attr("init_env")[0]) | {
        "versions": versions("grid2op", "lightsim2grid", "numpy", "stable-baselines3", "torch", "gymnasium"),
        "environments": options.environments,
        "refused_share": refused,
        "n_steps": learner.n_steps,
        "n_epochs": learner.n_epochs,
        "batch_size": learner.batch_size,
        "observation_size": int(worlds.observation_space.shape[0]),
        "action_size": int(worlds.action_space.shape[0]),
        "parameters": sum(parameter.numel() for parameter in learner.policy.parameters()),
    }
    return description, measure


if __name__ == "__main__":
    serve(prepare)
