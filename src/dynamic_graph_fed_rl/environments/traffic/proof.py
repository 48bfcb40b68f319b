"""A learned policy and today's rules in SUMO: unchanged, on the same seeds, seeing what they see in the dynamics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dynamic_graph_fed_rl.environments.base import Controller, Observation
from dynamic_graph_fed_rl.environments.spec import Metric
from dynamic_graph_fed_rl.environments.traffic.environment import Traffic
from dynamic_graph_fed_rl.environments.traffic.live import drive
from dynamic_graph_fed_rl.environments.traffic.network import Network
from dynamic_graph_fed_rl.environments.traffic.observation import TrafficView
from dynamic_graph_fed_rl.environments.traffic.rules import Rule
from dynamic_graph_fed_rl.environments.traffic.sensing import Sensed
from dynamic_graph_fed_rl.environments.traffic.sumo_process import SumoSettings

METRICS = (
    Metric("delay", "delay a car", "s"),
    Metric("delay_p95", "95th percentile", "s"),
    Metric("finished", "cars that reach their end", lower_is_better=False),
    Metric("never_entered", "cars that never entered"),
    Metric("gridlock", "gridlocked"),
)


class Learned(Rule):
    """A policy as a rule at all signals: it is shown the observation that its environment would make of a look."""

    view: TrafficView
    policy: Controller
    begun: Observation
    """Any observation; memories begin with its shapes."""

    def initial(self) -> PyTree:
        return jnp.asarray(True), self.policy.initial_memory(None, self.begun)

    def wanted(self, memory: PyTree, sensed: Sensed) -> tuple[Int[Array, " signals"], PyTree]:
        first, kept = memory
        action, kept = self.policy.act(jax.random.key(0), kept, None, _one_world(self.view.observe(sensed, first)))
        return self.view.districts.gather(action[:, 0]).astype(jnp.int32), (jnp.asarray(False), kept)


def _one_world(observation: Observation) -> Observation:
    return jax.tree.map(lambda leaf: leaf[:, None], observation)


@dataclass(frozen=True, eq=False)
class InSumo:
    """Whole episodes in SUMO; `environment` is one of the network's, `rules` what runs beside the policy, None for
    the network's own programs as SUMO runs them."""

    network: Network
    settings: SumoSettings
    environment: Traffic
    rules: Mapping[str, Rule | None]
    name: str = "SUMO"
    metrics: tuple[Metric, ...] = METRICS
    headline: str = "delay"

    def controllers(self, policy: Controller) -> Mapping[str, Callable[[int], dict[str, float]]]:
        """An episode a call, from its seed, for the policy and every rule.

        Raises:
            RuntimeError: of a call: SUMO failed, ended, or did not answer.
        """
        _, observation = self.environment.reset(jax.random.key(0))
        learned = Learned(self.environment.view.signals, self.environment.view, policy, _one_world(observation))
        return {name: self._player(rule) for name, rule in {"policy": learned, **self.rules}.items()}

    def _player(self, rule: Rule | None) -> Callable[[int], dict[str, float]]:
        decision_s = round(self.environment.decision_s)

        def play(seed: int) -> dict[str, float]:
            outcome = drive(self.network, replace(self.settings, seed=seed), rule, decision_s)
            return {
                "delay": outcome.mean_delay_s,
                "delay_p95": outcome.p95_delay_s,
                "finished": float(outcome.finished),
                "never_entered": float(outcome.never_entered),
                "gridlock": float(outcome.gridlocked),
            }

        return play
