"""A learned policy and today's rules in SUMO: unchanged, on the same seeds, seeing what they see in the dynamics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dynamic_graph_fed_rl.environments.base import Controller, Observation
from dynamic_graph_fed_rl.environments.spec import Metric
from dynamic_graph_fed_rl.environments.traffic.environment import Traffic
from dynamic_graph_fed_rl.environments.traffic.live import drive, recovery_s
from dynamic_graph_fed_rl.environments.traffic.network import Network
from dynamic_graph_fed_rl.environments.traffic.observation import TrafficView
from dynamic_graph_fed_rl.environments.traffic.rules import Program, Rule, plan_phases
from dynamic_graph_fed_rl.environments.traffic.sensing import Sensed
from dynamic_graph_fed_rl.environments.traffic.splits import GreenSplits
from dynamic_graph_fed_rl.environments.traffic.sumo_process import SumoSettings

EXCESS = Metric("excess", "delay more than without the incident", "s")
RECOVERY = Metric("recovery", "time to recover, or until the end", "s")
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


class LearnedSplits(Rule):
    """The same for a policy that shares out cycles: asked every second, it decides at each cycle's begin."""

    environment: GreenSplits
    policy: Controller
    begun: Observation

    def initial(self) -> PyTree:
        slots = self.begun.slot_owner[:, 0].shape
        plan = self.environment.plan(jnp.zeros((*slots, 1)))
        return jnp.zeros((), jnp.int32), plan, self.policy.initial_memory(None, self.begun)

    def wanted(self, memory: PyTree, sensed: Sensed) -> tuple[Int[Array, " signals"], PyTree]:
        second, plan, kept = memory
        into_s = second % round(self.environment.decision_s)

        def anew(old: tuple[Program, PyTree]) -> tuple[Program, PyTree]:
            city = self.environment.city
            seen = self.environment.seen(city.view.observe(sensed, second == 0))
            action, remembered = self.policy.act(jax.random.key(0), old[1], None, _one_world(seen))
            return self.environment.plan(action[:, 0]), remembered

        plan, kept = jax.lax.cond(into_s == 0, anew, lambda old: old, (plan, kept))
        return plan_phases(plan, into_s.astype(jnp.float32)), (second + 1, plan, kept)


def _one_world(observation: Observation) -> Observation:
    return jax.tree.map(lambda leaf: leaf[:, None], observation)


@dataclass(frozen=True, eq=False)
class InSumo:
    """Whole episodes in SUMO; `environment` is one of the network's, `rules` what runs beside the policy, None for
    the network's own programs as SUMO runs them."""

    network: Network
    settings: SumoSettings
    environment: Traffic | GreenSplits
    rules: Mapping[str, Rule | None]
    name: str = "SUMO"
    metrics: tuple[Metric, ...] = METRICS
    headline: str = "delay"

    def controllers(self, policy: Controller) -> Mapping[str, Callable[[int], dict[str, float]]]:
        """An episode a call, from its seed, for the policy and every rule.

        Raises:
            RuntimeError: of a call: SUMO failed, ended, or did not answer.
        """
        environment, city = self.environment, self.environment.city
        _, observation = environment.reset(jax.random.key(0))
        begun = _one_world(observation)
        if isinstance(environment, GreenSplits):
            learned = self._player(LearnedSplits(city.view.signals, environment, policy, begun), 1)
        else:
            learned = self._player(Learned(city.view.signals, city.view, policy, begun), round(city.decision_s))
        rules = {name: self._player(rule, round(city.decision_s)) for name, rule in self.rules.items()}
        return {"policy": learned, **rules}

    def disturbed(self, parts: Sequence[str], from_s: float, until_s: float) -> "InSumo":
        """The same with these edges closed; every episode is played without that as well, for its excess delay and
        the time that it takes to recover.

        Raises:
            ValueError: an edge that the network lacks, or times outside the episode.
        """
        unknown = [edge for edge in parts if edge not in self.network.link_of_edge]
        if unknown:
            raise ValueError(f"network '{self.network.name}': has no edge '{unknown[0]}' to close")
        if not 0.0 <= from_s < until_s <= self.settings.duration_s:
            raise ValueError(
                f"closed from {from_s:g} to {until_s:g} s: must lie within the {self.settings.duration_s:g} s "
                "that are played"
            )
        links = sorted({self.network.link_of_edge[edge] for edge in parts})
        settings = replace(self.settings, closures=tuple((link, from_s, until_s) for link in links))
        return replace(self, settings=settings, metrics=(METRICS[0], EXCESS, RECOVERY, *METRICS[1:]))

    def _player(self, rule: Rule | None, decision_s: int) -> Callable[[int], dict[str, float]]:
        def play(seed: int) -> dict[str, float]:
            settings = replace(self.settings, seed=seed)
            outcome = drive(self.network, settings, rule, decision_s)
            costs = {}
            if settings.closures:
                calm = drive(self.network, replace(settings, closures=()), rule, decision_s)
                until_s = settings.closures[0][2]
                back_s = recovery_s(outcome.standing, calm.standing, until_s, float(decision_s))
                costs[EXCESS.name] = outcome.mean_delay_s - calm.mean_delay_s
                costs[RECOVERY.name] = min(back_s, settings.duration_s - until_s)
            return costs | {
                "delay": outcome.mean_delay_s,
                "delay_p95": outcome.p95_delay_s,
                "finished": float(outcome.finished),
                "never_entered": float(outcome.never_entered),
                "gridlock": float(outcome.gridlocked),
            }

        return play
