"""Every environment by name: its settings, and the module that builds it. No jax import."""

from dataclasses import dataclass, field
from typing import Any

from dynamic_graph_fed_rl.environments.cartpole.settings import CartPoleSettings
from dynamic_graph_fed_rl.environments.drift.settings import DriftSettings
from dynamic_graph_fed_rl.environments.gymnasium.settings import GymnasiumSettings
from dynamic_graph_fed_rl.environments.lunar_lander.settings import LunarLanderSettings
from dynamic_graph_fed_rl.environments.pendulum.settings import PendulumSettings
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.environments.recall.settings import RecallSettings
from dynamic_graph_fed_rl.environments.traffic.settings import TrafficSettings


@dataclass(frozen=True)
class Entry:
    """`module` offers `build(settings, agents) -> Domain`.

    `defaults` are fields of the experiment and its settings, whatever the algorithm; `learning` has, for an
    algorithm by name, its hyperparameters here and what else it needs to be otherwise; `algorithm` is the one that is
    taken unless another is asked for. `hosted` worlds live outside jax: on one device, without bit-for-bit promises.
    """

    help: str
    settings: type
    module: str
    defaults: dict[str, Any]
    learning: dict[str, dict[str, Any]] = field(default_factory=dict)
    hosted: bool = False
    algorithm: str = "ppo"


# half of the world steps that learning from each round once takes
_GRID_REPLAY = {
    "worlds": 32,
    "discount": 0.8,
    "learning_rate": 1e-3,
    "initial_std": 0.1,
    "siblings": 4,
    "updates": 16,
    "batch_size": 128,
    "window": 4,
    "replay": 32_000,
    "warm_up": 4096,
    "value_limit": 8.0,
    # nothing is changed that the critics see no reason for; see docs/off-policy-grid.md
    "critic": "quadratic",
    "actor_rate_falls": True,
}
# of green splits, where a decision is a cycle
_SPLITS_REPLAY = {
    "rounds": 40,
    "worlds": 16,
    "decisions_per_round": 20,
    "discount": 0.9,
    "learning_rate": 1e-3,
    "updates": 64,
    "batch_size": 128,
    "warm_up": 1000,
}

ENVIRONMENTS = {
    "power-grid": Entry(
        "transmission grid under AC power flow (IEEE 14 to 300 bus, or a MATPOWER file), split into regions",
        PowerGridSettings,
        "dynamic_graph_fed_rl.environments.power_grid.build",
        {"rounds": 240, "agent_map": "map"},
        # what a set-point does shows within a few decisions; a longer horizon only adds the weather's noise
        {
            "ppo": {
                "discount": 0.8,
                "trace": 0.8,
                "learning_rate": 2e-3,
                "epochs": 1,
                "minibatches": 16,
                # faults and weather move the reward far more than any one set-point does
                "siblings": 4,
            },
            "a2c": {"discount": 0.8, "trace": 0.8},
            # whole training episodes: what has not ended does not teach
            "reinforce": {"decisions_per_round": 48, "rounds": 80, "discount": 0.8},
            # noise of the size of useful set-points
            "td3": _GRID_REPLAY | {"exploration_std": 0.05, "target_noise": 0.02, "target_noise_limit": 0.05},
            "sac": _GRID_REPLAY | {"target_entropy": -2.0, "temperature": 0.01},
        },
    ),
    "traffic": Entry(
        "traffic signals of a city (generated, or any network of SUMO), split into districts; cars as spatial queues",
        TrafficSettings,
        "dynamic_graph_fed_rl.environments.traffic.build",
        {"agents": 4, "rounds": 120, "worlds": 64, "decisions_per_round": 30},
        # a phase shows in the queues around it within minutes
        {
            "ppo": {"discount": 0.95, "trace": 0.9, "learning_rate": 2e-3, "epochs": 2, "minibatches": 8},
            "td3": _SPLITS_REPLAY,
            "sac": _SPLITS_REPLAY,
        },
    ),
    "cartpole": Entry(
        "pole balancing as a graph of one node; every agent has worlds of its own",
        CartPoleSettings,
        "dynamic_graph_fed_rl.environments.cartpole.environment",
        {"rounds": 200, "worlds": 32, "decisions_per_round": 32},
        {
            "ppo": {"learning_rate": 2.5e-3, "entropy_weight": 0.01, "width": 64},
            # a step a round: rounds long enough that the scale of returns hardly moves between them
            "a2c": {
                "rounds": 125,
                "decisions_per_round": 128,
                "learning_rate": 0.01,
                "trace": 0.95,
                "entropy_weight": 0.01,
                "width": 64,
            },
            # whole episodes: what has not ended does not teach
            "reinforce": {"decisions_per_round": 500, "worlds": 8, "entropy_weight": 0.01, "width": 64},
            # a gradient step every four decisions
            "dqn": {
                "rounds": 600,
                "worlds": 8,
                "decisions_per_round": 16,
                "updates": 32,
                "batch_size": 128,
                "warm_up": 2000,
                "replay": 80_000,
                "steps": 5,
                "update_delay": 50,
                "layer_norm": True,
                "width": 64,
                "memory": "none",
            },
            "pqn": {"rounds": 300, "trace": 0.9, "minibatches": 4, "width": 64, "memory": "none"},
        },
    ),
    "drift": Entry(
        "four numbers held near 0 by pushing them together; agents push with unlike strength",
        DriftSettings,
        "dynamic_graph_fed_rl.environments.drift.environment",
        # a round is an episode in every world
        {"agents": 5, "rounds": 100, "worlds": 10, "decisions_per_round": 200},
        # a push shows at once; what comes later is mostly that of other pushes
        {
            "ppo": {"discount": 0.8, "trace": 0.8, "minibatches": 5},
            "a2c": {"discount": 0.8, "trace": 0.8},
            "reinforce": {"discount": 0.8, "learning_rate": 0.02},
            "dqn": {
                "discount": 0.8,
                "decisions_per_round": 40,
                "updates": 32,
                "update_delay": 50,
                "layer_norm": True,
                "memory": "none",
            },
            "pqn": {"discount": 0.8, "minibatches": 5, "memory": "none"},
        },
    ),
    "pendulum": Entry(
        "pendulum swung up and held by a torque, as a graph of one node; every agent has worlds of its own",
        PendulumSettings,
        "dynamic_graph_fed_rl.environments.pendulum.environment",
        {"rounds": 625, "worlds": 1, "decisions_per_round": 32},
        {
            "ppo": {"rounds": 100, "worlds": 32, "minibatches": 8, "epochs": 8, "discount": 0.95, "width": 64},
            "a2c": {"rounds": 500, "worlds": 32, "discount": 0.9, "width": 64},
            "reinforce": {"decisions_per_round": 200, "worlds": 16, "discount": 0.9, "width": 64},
            # one gradient step a decision
            "td3": {"updates": 32, "learning_rate": 1e-3, "width": 64, "memory": "none", "rounds": 937},
            "sac": {"updates": 32, "learning_rate": 1e-3, "width": 64, "memory": "none"},
        },
    ),
    "gymnasium": Entry(
        "any environment of Gymnasium by its id, such as LunarLander-v3, as a graph of one node; runs on the host",
        GymnasiumSettings,
        "dynamic_graph_fed_rl.environments.gymnasium.environment",
        {"rounds": 100, "worlds": 8, "decisions_per_round": 128},
        {
            "ppo": {"learning_rate": 2.5e-3, "entropy_weight": 0.01, "width": 64},
            "a2c": {"learning_rate": 0.01, "trace": 0.95, "entropy_weight": 0.01, "width": 64},
            "reinforce": {"decisions_per_round": 500, "entropy_weight": 0.01, "width": 64},
        },
        hosted=True,
    ),
    "lunar-lander": Entry(
        "Gymnasium's LunarLander-v3: a lander set down on its pad; every agent has worlds of its own, on the host",
        LunarLanderSettings,
        "dynamic_graph_fed_rl.environments.lunar_lander.environment",
        # with five agents, 100 held-out episodes
        {"agents": 5, "rounds": 200, "worlds": 1, "evaluation_seeds": 20},
        {
            # an exchange every 500 decisions, a gradient step a decision; docs/lunar-lander.md has what each is worth
            "dqn": {
                "federation": "hybrid",
                "decisions_per_round": 500,
                "lessons": 125,
                "updates": 4,
                "batch_size": 64,
                "learning_rate": 1e-3,
                "steps": 5,
                "target_rate": 0.005,
                "update_delay": 1,
                "layer_norm": True,
                "value_scale": 50.0,
                "replay": 200_000,
                "last_epsilon": 0.01,
                # 3,000 decisions of an agent
                "exploration_share": 0.03,
                "width": 64,
                "layers": 0,
                "memory": "none",
            },
            "ppo": {
                "worlds": 16,
                "decisions_per_round": 128,
                "learning_rate": 1e-3,
                "discount": 0.995,
                "entropy_weight": 0.01,
                "width": 64,
            },
        },
        hosted=True,
        algorithm="dqn",
    ),
    "recall": Entry(
        "three nodes in a ring, each asked about what it saw some decisions ago: needs memory",
        RecallSettings,
        "dynamic_graph_fed_rl.environments.recall.environment",
        {"agents": 1, "rounds": 100, "worlds": 16, "decisions_per_round": 64},
        # an answer pays at once; questions are so rare that what is left of a guess must not become a habit
        {"ppo": {"discount": 0.0, "learning_rate": 1e-2, "entropy_weight": 1.0, "minibatches": 2}},
    ),
}
