"""Every environment by name: its settings, and the module that builds it. No jax import."""

from dataclasses import dataclass
from typing import Any

from dynamic_graph_fed_rl.environments.cartpole.settings import CartPoleSettings
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings


@dataclass(frozen=True)
class Entry:
    """`module` offers `build(settings, agents) -> Domain`; `defaults` are the experiment's."""

    help: str
    settings: type
    module: str
    defaults: dict[str, Any]


ENVIRONMENTS = {
    "power-grid": Entry(
        "transmission grid under AC power flow (IEEE 14 to 300 bus, or a MATPOWER file), split into regions",
        PowerGridSettings,
        "dynamic_graph_fed_rl.environments.power_grid.build",
        {
            "rounds": 240,
            # what a set-point does shows within a few decisions; a longer horizon only adds the weather's noise
            "discount": 0.8,
            "trace": 0.8,
            "learning_rate": 2e-3,
            "epochs": 2,
            "minibatches": 16,
            "agent_map": "map",
        },
    ),
    "cartpole": Entry(
        "pole balancing as a graph of one node; every agent has worlds of its own",
        CartPoleSettings,
        "dynamic_graph_fed_rl.environments.cartpole.environment",
        {
            "rounds": 200,
            "worlds": 32,
            "decisions_per_round": 32,
            "learning_rate": 2.5e-3,
            "entropy_weight": 0.01,
            "width": 64,
        },
    ),
}
