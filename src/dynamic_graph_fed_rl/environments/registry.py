"""Every environment by name: its settings, and the module that builds it. No jax import."""

from dataclasses import dataclass, field
from typing import Any

from dynamic_graph_fed_rl.environments.cartpole.settings import CartPoleSettings
from dynamic_graph_fed_rl.environments.drift.settings import DriftSettings
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings


@dataclass(frozen=True)
class Entry:
    """`module` offers `build(settings, agents) -> Domain`.

    `defaults` are fields of the experiment and its settings, whatever the algorithm; `learning` has, for an
    algorithm by name, its hyperparameters here and what else it needs to be otherwise.
    """

    help: str
    settings: type
    module: str
    defaults: dict[str, Any]
    learning: dict[str, dict[str, Any]] = field(default_factory=dict)


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
        },
    ),
}
