"""Thresholds of the PTDF redispatch and the DC-OPF margin, chosen on training seeds by operating cost.

    python benchmarks/tune_baselines.py

Prints the mean operating cost [$/MWh] of every candidate over all scenarios. The best of each baseline are the
defaults in `environments/power_grid/baselines.py`; evaluation seeds come from another stream and are never used.
"""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import track

from dynamic_graph_fed_rl.environments.power_grid.baselines import DCOptimalPowerFlow, PTDFRedispatch
from dynamic_graph_fed_rl.environments.power_grid.build import build
from dynamic_graph_fed_rl.environments.power_grid.settings import PowerGridSettings
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, run_episodes, stream_key

SEEDS = 12
LOADINGS = (0.94, 0.96, 0.98, 1.0)


def candidates(environment):
    """Every variant of both baselines, by name."""
    for idle, target in itertools.product(LOADINGS, LOADINGS):
        if target <= idle:
            rule = PTDFRedispatch(environment)
            values = (jnp.asarray(idle), jnp.asarray(target))
            yield (
                f"ptdf-redispatch idle {idle:.2f} target {target:.2f}",
                eqx.tree_at(lambda r: (r.idle_loading, r.target_loading), rule, values),
            )
    for margin in LOADINGS:
        rule = DCOptimalPowerFlow(environment)
        yield f"dc-opf margin {margin:.2f}", eqx.tree_at(lambda r: r.margin, rule, jnp.asarray(margin))


def main() -> None:
    domain = build(PowerGridSettings(), 4)
    keys = jax.vmap(lambda seed: stream_key(TRAINING_STREAM, seed))(jnp.arange(SEEDS))
    costs: dict[str, list[float]] = {}
    for scenario, environment in domain.scenarios.items():
        for name, controller in track(list(candidates(environment)), scenario, console=Console(stderr=True)):
            metrics = run_episodes(controller, environment, None, keys)
            costs.setdefault(name, []).append(float(np.mean(metrics["operating_cost"])))
    for name, values in sorted(costs.items(), key=lambda item: np.mean(item[1])):
        print(f"{np.mean(values):10.4f}  {name}  " + "  ".join(f"{value:.4f}" for value in values))


if __name__ == "__main__":
    main()
