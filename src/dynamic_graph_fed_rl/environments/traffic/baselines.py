"""Today's rules as controllers of the environment."""

from collections.abc import Callable, Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.environments.base import Controller, Environment, Observation
from dynamic_graph_fed_rl.environments.traffic.environment import CityState, Traffic
from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network
from dynamic_graph_fed_rl.environments.traffic.rules import (
    Actuated,
    FixedTime,
    LongestQueue,
    MaxPressure,
    Program,
    Rule,
    SelfOrganising,
    webster,
)
from dynamic_graph_fed_rl.environments.traffic.sensing import SignalConstants
from dynamic_graph_fed_rl.environments.vector import Uniform


class RuleController(Controller):
    """A rule at all signals. It reads what detectors tell, and of the state nothing else."""

    environment: Traffic
    rule: Rule

    def plays_in(self, environment: Environment) -> Traffic:
        """Phase by phase, whatever a policy beside it sets."""
        return self.environment

    def initial_memory(self, state: PyTree, observation: Observation) -> PyTree:
        worlds = observation.first.shape[1]
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (worlds, *leaf.shape)), self.rule.initial())

    def act(
        self, key: PRNGKeyArray, memory: PyTree, state: CityState, observation: Observation
    ) -> tuple[Array, PyTree]:
        def one(kept: PyTree, world: CityState) -> tuple[Array, PyTree]:
            wanted, kept = self.rule.wanted(kept, self.environment.sensed(world))
            return self.environment.view.districts.spread(wanted), kept

        return eqx.filter_vmap(one, out_axes=(1, 0))(memory, state)


def rules(network: Network, demand: Demand, signals: SignalConstants, decision_s: float = 5.0) -> Mapping[str, Rule]:
    """The rules by name, made for a network."""
    return {
        "fixed-time": FixedTime(signals, Program.of(network)),
        "webster": FixedTime(signals, webster(network, demand, decision_s)),
        "actuated": Actuated(signals),
        "self-organising": SelfOrganising(signals),
        "longest-queue": LongestQueue(signals),
        "max-pressure": MaxPressure(signals),
    }


def baselines(own: Mapping[str, Rule]) -> dict[str, Callable[..., Controller]]:
    """Controllers by name, from an environment of the network whose rules these are."""
    made: dict[str, Callable[..., Controller]] = {"random": lambda environment: Uniform()}
    for name, rule in own.items():
        made[name] = lambda environment, rule=rule: RuleController(environment.city, rule)
    return made


BASELINE_HELP = {
    "random": "any phase that is allowed, anew at every decision",
    "fixed-time": "the network's own fixed program",
    "webster": "cycle and splits after Webster (1958) from the mean demand",
    "actuated": "phases in turn; a green goes on while cars come, 5 to 50 s",
    "self-organising": "SOTL (Gershenson 2005): red time times cars that wait, against a threshold",
    "longest-queue": "the phase whose lanes hold most standing cars",
    "max-pressure": "max pressure (Varaiya 2013), movement by movement, of each the positive part",
}
