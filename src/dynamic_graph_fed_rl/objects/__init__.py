"""Objects with state, for people who write their own loop: shells over the pure core. No jax import here."""

import importlib
from collections.abc import Callable
from typing import Any

_HOMES = {
    "agents": ("GraphPPO", "GraphSAC", "GraphTD3"),
    "buffers": ("GraphTemporalBuffer",),
    "environments": ("DynamicGraphEnv", "PowerGridEnv"),
    "federation": ("FederatedActorCritic", "FederatedHierarchy", "FederatedOptimizer"),
    "graphs": ("GraphTransition",),
    "models": ("MultiScaleTemporalGNN",),
}


def offered(package: str, *names: str) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports objects when they are asked for: the packages below stay free of jax,
    and of what stands above them, until then."""
    homes = {name: home for home, known in _HOMES.items() for name in known if name in names}

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        return getattr(importlib.import_module(f"{__name__}.{homes[name]}"), name)

    return find
