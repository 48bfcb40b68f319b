"""Kinds of hour: how much demand there is."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Scenario(eqx.Module):
    """Demand over that of the network's file, drawn uniformly for an episode."""

    demand_low: Float[Array, "*kinds"]
    demand_high: Float[Array, "*kinds"]


SCENARIOS = {"normal": (1.0, 1.0)}
SCENARIO_HELP = {"normal": "the demand of the network's file; all roads open, all detectors at work"}


def stack_scenarios(names: tuple[str, ...], spread: tuple[float, float] = (1.0, 1.0)) -> Scenario:
    """These kinds along a leading axis, their demand times that of `spread`.

    Raises:
        ValueError: unknown name, or none.
    """
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown or not names:
        raise ValueError(f"scenarios {list(names)}: at least one of {', '.join(SCENARIOS)}")
    rows = np.array([SCENARIOS[name] for name in names], np.float32) * np.array(spread, np.float32)
    return Scenario(jnp.asarray(rows[:, 0]), jnp.asarray(rows[:, 1]))
