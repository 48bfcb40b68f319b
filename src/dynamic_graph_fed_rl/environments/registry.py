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
        {},
    ),
    "cartpole": Entry(
        "pole balancing as a graph of one node; every agent has worlds of its own",
        CartPoleSettings,
        "dynamic_graph_fed_rl.environments.cartpole.environment",
        {},
    ),
}
