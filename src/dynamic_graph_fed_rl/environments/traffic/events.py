"""What happens on the roads of one episode: drawn by a key at its beginning, the same whatever the signals do."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from dynamic_graph_fed_rl.environments.traffic.constants import DemandConstants, demand_constants
from dynamic_graph_fed_rl.environments.traffic.detours import ClosureSet
from dynamic_graph_fed_rl.environments.traffic.dynamics import Conditions
from dynamic_graph_fed_rl.environments.traffic.network import Network
from dynamic_graph_fed_rl.environments.traffic.scenarios import Scenario

INCIDENT_S = 600.0
LONG_AGO_S = 1e6
_DROP = 0.5
_NEVER_S = 1e9


class Closures(eqx.Module):
    """Sets of links that close together, and what drivers do then; the first set is empty."""

    members: Bool[Array, "sets links"]
    demand: DemandConstants
    """Leaves `[sets, windows, ...]`."""
    instead: Int[Array, "sets movements"]
    """See `detours.ClosureSet.instead`."""

    def demand_of(self, row: Int[Array, ""], time_s: Float[Array, ""]) -> DemandConstants:
        """That of the time's window alone."""
        windows = self.demand.rate_per_s.shape[1]
        window = jnp.clip((time_s // self.demand.window_s).astype(jnp.int32), 0, windows - 1)
        return jax.tree.map(lambda leaf: leaf[row, window][None], self.demand)


def closure_constants(network: Network, sets: list[ClosureSet]) -> Closures:
    demands = [demand_constants(network, one.demand) for one in sets]
    return Closures(
        members=jnp.asarray([np.isin(np.arange(network.links), one.links) for one in sets]),
        demand=jax.tree.map(lambda *leaves: jnp.stack(leaves), *demands),
        instead=jnp.asarray(np.stack([one.instead(network) for one in sets]), jnp.int32),
    )


class Events(eqx.Module):
    """An episode's events; times count as `TrafficState.time_s` does. A closure that ends is a link that opens."""

    level: Float[Array, ""]
    """Demand over that of the network's file, before its course."""
    course_low: Float[Array, ""]
    course_high: Float[Array, ""]
    peak_s: Float[Array, ""]
    closing: Int[Array, " slots"]
    """Row of `Closures`; the slots' times do not overlap."""
    from_s: Float[Array, " slots"]
    until_s: Float[Array, " slots"]
    capacity: Float[Array, " links"]
    """Share of the saturation flow during the incident."""
    dark: Bool[Array, " signals"]
    """During the incident."""
    incident_from_s: Float[Array, ""]
    incident_until_s: Float[Array, ""]
    working: Bool[Array, " links"]
    """Detectors, all the time."""

    def row(self, time_s: Float[Array, ""]) -> Int[Array, ""]:
        """Of `Closures`: what is closed now."""
        return jnp.where((self.from_s <= time_s) & (time_s < self.until_s), self.closing, 0).max()

    def conditions(self, closures: Closures, time_s: Float[Array, ""], since_s: Float[Array, " links"]) -> Conditions:
        incident = (self.incident_from_s <= time_s) & (time_s < self.incident_until_s)
        return Conditions(
            closed=closures.members[self.row(time_s)],
            since_s=since_s,
            capacity=jnp.where(incident, self.capacity, 1.0),
            dark=self.dark & incident,
            working=self.working,
        )

    def demand_level(self, demand: DemandConstants, time_s: Float[Array, ""]) -> Float[Array, ""]:
        """Over that of the network's file, in this window: a raised cosine over the demand's time, its mean that of
        its ends, with the peak where it was drawn."""
        length_s = demand.window_s * demand.rate_per_s.shape[-2]
        middle_s = (jnp.floor(time_s / demand.window_s) + 0.5) * demand.window_s
        peak = 0.5 + 0.5 * jnp.cos(2.0 * jnp.pi * (middle_s - self.peak_s) / length_s)
        return self.level * (self.course_low + (self.course_high - self.course_low) * peak)


def draw_events(
    key: PRNGKeyArray,
    kind: Scenario,
    links: int,
    signals: int,
    busy: Int[Array, " candidates"],
    demand_s: float,
    start_s: Float[Array, ""],
    length_s: float,
) -> Events:
    """Events of an episode that lasts from `start_s` for `length_s`, within a demand of `demand_s`."""
    keys = jax.random.split(key, 7)
    slots = max(int(np.ceil(length_s / INCIDENT_S)), 1)
    spare_s = max(length_s - INCIDENT_S, 0.0)
    begin_s = start_s + jax.random.uniform(keys[0], minval=0.2, maxval=0.5) * spare_s
    slot = jnp.arange(slots)
    turn_s = start_s + INCIDENT_S * slot
    only_s = jnp.where(slot == 0, begin_s, _NEVER_S)
    from_s = jnp.where(kind.rotating, turn_s, jnp.where(kind.lasting & (slot == 0), -_NEVER_S, only_s))
    until_s = jnp.where(kind.lasting & (slot == 0), _NEVER_S, from_s + INCIDENT_S)
    drops = jnp.zeros(links, bool).at[busy].set(_some(keys[1], kind.dropped_links, busy.shape[0]))
    level = jax.random.uniform(keys[2])
    return Events(
        level=kind.demand_low + (kind.demand_high - kind.demand_low) * level,
        course_low=kind.course_low,
        course_high=kind.course_high,
        peak_s=0.5 * demand_s + kind.peak_shift_s * jax.random.uniform(keys[3], minval=-1.0, maxval=1.0),
        closing=kind.first_set + jax.random.randint(keys[4], (slots,), 0, kind.sets),
        from_s=from_s,
        until_s=until_s,
        capacity=jnp.where(drops, _DROP, 1.0),
        dark=_some(keys[5], kind.dark_signals, signals),
        incident_from_s=begin_s,
        incident_until_s=begin_s + INCIDENT_S,
        working=~_some(keys[6], kind.failed_links, links),
    )


def _some(key: PRNGKeyArray, count: Int[Array, ""], of: int) -> Bool[Array, " items"]:
    """So many of them, at random."""
    return jnp.argsort(jnp.argsort(jax.random.uniform(key, (of,)))) < count
