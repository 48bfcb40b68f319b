"""How a policy for the power grid scores against the rules in use, for parts that train on it."""

from collections.abc import Mapping
from functools import cache

import jax
import numpy as np
from jaxtyping import Array, Key

from dynamic_graph_fed_rl.environments.base import Controller
from dynamic_graph_fed_rl.environments.domain import Domain
from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes
from dynamic_graph_fed_rl.evaluation.statistics import POLICY, interquartile_mean, score
from dynamic_graph_fed_rl.training.trainer import Trainer, Training

# all that the score is drawn between; the perfect-model DC-OPF is a reference, not a rule in use
_BASELINES = ("do-nothing", "proportional", "merit-order", "ptdf-redispatch")


def trained(trainer: Trainer, key: Key[Array, ""], rounds: int) -> tuple[Training, float]:
    """A whole training without files, and the bytes that were exchanged in it."""
    training, traffic = trainer.init(key), 0.0
    for _ in range(rounds):
        training, metrics = trainer.run_round(training)
        traffic += float(metrics["federation"]["bytes"])
    return jax.block_until_ready(training), traffic


class Judge:
    """Scores policies on held-out days of one domain; the baselines are run once."""

    def __init__(self, domain: Domain, days: int):
        self._domain, self._keys = domain, evaluation_keys(0, days)
        self._baselines = cache(self._run_baselines)

    def scores(self, policy: Controller) -> Mapping[str, float]:
        """Score a scenario: 0 is do-nothing, 100 the best rule in use; scenarios without a score are left out."""
        found = {}
        for scenario in self._domain.scenarios:
            costs = self._baselines(scenario) | {POLICY: self._cost(policy, scenario)}
            value = score(costs, worst=self._domain.idle, exclude=(POLICY, *self._domain.references))[POLICY]
            if value is not None:
                found[scenario] = value
        return found

    def saving(self, policy: Controller) -> float:
        """Operating cost below that of the best rule in use [%], averaged over the scenarios."""
        found = []
        for scenario in self._domain.scenarios:
            best = min(float(interquartile_mean(cost)) for cost in self._baselines(scenario).values())
            found.append(100.0 * (1.0 - float(interquartile_mean(self._cost(policy, scenario))) / best))
        return float(np.mean(found))

    def _run_baselines(self, scenario: str) -> dict[str, np.ndarray]:
        environment = self._domain.scenarios[scenario]
        return {name: self._cost(self._domain.baselines[name](environment), scenario) for name in _BASELINES}

    def _cost(self, controller: Controller, scenario: str) -> np.ndarray:
        environment = self._domain.scenarios[scenario]
        episode = run_episodes(controller, environment, self._domain.owners, self._keys)
        return np.asarray(episode[environment.spec.headline])
