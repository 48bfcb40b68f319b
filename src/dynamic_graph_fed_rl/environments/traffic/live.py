"""The same rules in SUMO: its looks as a `Sensed`, whole episodes, and plans in both simulators."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.environments.traffic.constants import demand_constants, road_constants
from dynamic_graph_fed_rl.environments.traffic.dynamics import (
    Conditions,
    Counts,
    TrafficState,
    advance,
    empty_roads,
    switched,
)
from dynamic_graph_fed_rl.environments.traffic.network import Demand, Network
from dynamic_graph_fed_rl.environments.traffic.rules import Program, Rule, plan_phases
from dynamic_graph_fed_rl.environments.traffic.sensing import Sensed
from dynamic_graph_fed_rl.environments.traffic.sumo_process import Look, Outcome, SumoProcess, SumoSettings

_CALM_S = 300.0


def sensed(look: Look) -> Sensed:
    """SUMO's look, where all detectors work and no signal is dark."""
    real, whole = lambda x: jnp.asarray(x, jnp.float32), lambda x: jnp.asarray(x, jnp.int32)  # noqa: E731
    return Sensed(
        lane_queue=real(look.lane_queue),
        link_vehicles=real(look.link_vehicles),
        link_arriving=real(look.link_arriving),
        link_near=real(look.link_near),
        link_entry=real(look.link_entry),
        closed=jnp.asarray(look.closed),
        since_s=real(look.since_s),
        working=jnp.ones(len(look.link_vehicles), bool),
        dark=jnp.zeros(len(look.phase), bool),
        phase=whole(look.phase),
        target=whole(look.target),
        phase_s=real(look.phase_s),
        clearing_s=real(look.clearing_s),
        time_s=real(look.time_s),
    )


def drive(network: Network, settings: SumoSettings, rule: Rule | None, decision_s: int = 5) -> Outcome:
    """One episode in SUMO under a rule; None leaves the file's own programs alone.

    Raises:
        RuntimeError: SUMO failed; see `SumoProcess`.
    """
    with SumoProcess(network, settings) as world:
        if rule is None:
            for _ in range(int(settings.duration_s) // decision_s):
                world.advance(None, decision_s)
            return world.finish()
        decide, memory = eqx.filter_jit(rule.wanted), rule.initial()
        for _ in range(int(settings.duration_s) // decision_s):
            wanted, memory = decide(memory, sensed(world.look))
            world.advance(np.asarray(wanted)[None], decision_s)
        return world.finish()


def recovery_s(
    standing: Float[np.ndarray, " looks"],
    undisturbed: Float[np.ndarray, " looks"],
    until_s: float,
    step_s: float,
) -> float:
    """Time from the end of an incident until, over five minutes, no more cars stand than in the same seed without it,
    but for 10 %, and one; infinite if that never comes.

    Looks lie `step_s` apart, the first of them at the episode's beginning.
    """
    first, length = int(np.ceil(until_s / step_s)), int(np.ceil(_CALM_S / step_s))
    if len(standing) < first + length:
        return np.inf
    mean = lambda cars: np.convolve(cars[first:], np.ones(length) / length, "valid")  # noqa: E731
    calm = mean(standing) <= 1.1 * mean(undisturbed) + 1.0
    return float(np.argmax(calm) * step_s) if calm.any() else np.inf


def drive_plan(network: Network, settings: SumoSettings, plan: Program) -> Outcome:
    """One episode in SUMO under a fixed plan, to the second."""
    seconds = jnp.arange(settings.duration_s, dtype=jnp.float32)
    rows = np.asarray(plan_phases(plan, seconds))
    with SumoProcess(network, replace(settings, min_green_s=1.0)) as world:
        world.advance(rows, 1)
        return world.finish()


def play_plan(
    network: Network, demand: Demand, plan: Program, worlds: int, yellow_s: float = 3.0
) -> dict[str, Float[np.ndarray, " worlds"]]:
    """The same in the dynamics: mean delay of a car [s] and how many never entered, in so many worlds."""
    roads, wishes = road_constants(network), demand_constants(network, demand)
    signals, normal = network.signals, Conditions.normal(network.links, network.signals)

    def one(key: PRNGKeyArray) -> dict[str, Array]:
        def second(state: TrafficState, row: tuple[Array, Array]) -> tuple[TrafficState, Counts]:
            wanted, own_key = row
            ordered = switched(state, wanted, jnp.full(signals, yellow_s))
            return advance(roads, wishes, ordered, own_key, normal, jnp.ones(()), 1)

        rows = plan_phases(plan, jnp.arange(demand.duration_s))
        keys = jax.random.split(key, len(rows))
        _, counts = jax.lax.scan(second, empty_roads(roads, signals), (rows, keys))
        waited_s = counts.queued_s.sum() + counts.outside_s.sum() + counts.slowed_s.sum()
        return {
            "delay_s": waited_s / counts.wanted.sum(),
            "never_entered": counts.wanted.sum() - counts.entered.sum(),
        }

    keys = jax.random.split(jax.random.key(0), worlds)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys))
