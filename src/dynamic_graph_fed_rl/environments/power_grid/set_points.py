"""Actions and what they stand for: price-like moves of units around the merit-order schedule, and load shedding."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dynamic_graph_fed_rl.environments.power_grid.state import Outlook, Units
from dynamic_graph_fed_rl.graph import padded_rows

# curvature [$/MW2h] given to units of linear cost, so that a price always has one answer
_LEAST_C2 = 1e-3
_SHED_ABOVE = 0.5


class SlotLayout(eqx.Module):
    """Which agent's which slot moves which actuator; actuators are all U units, then all M sheddable loads."""

    actuator: Int[Array, "agents slots"]
    mask: Bool[Array, "agents slots"]
    place: Int[Array, " actuators"]
    """Flat position in `[A, S]` of each actuator's slot."""

    def gather(self, action: Float[Array, "agents slots 1"]) -> Float[Array, " actuators"]:
        """From agents' slots to actuators."""
        return action.reshape(-1)[self.place]

    def spread(self, values: Float[Array, " actuators"]) -> Float[Array, "agents slots"]:
        """From actuators to agents' slots; 0 in padding."""
        return jnp.where(self.mask, values[self.actuator], 0.0)


def slot_layout(
    region: Int[np.ndarray, " buses"],
    unit_bus: Int[np.ndarray, " units"],
    shed_bus: Int[np.ndarray, " loads"],
) -> SlotLayout:
    """Each agent's units first, then its sheddable loads."""
    owner = region[np.concatenate([unit_bus, shed_bus])]
    index, mask = padded_rows([np.flatnonzero(owner == agent) for agent in range(int(region.max()) + 1)])
    place = np.zeros(len(owner), np.int32)
    place[index[mask]] = np.flatnonzero(mask.reshape(-1))
    return SlotLayout(jnp.asarray(index), jnp.asarray(mask), jnp.asarray(place))


def _price_answer(units: Units, outlook: Outlook, change: Float[Array, "*units"]) -> Float[Array, " units"]:
    """Output [MW] at which each unit's marginal cost meets the schedule's price plus a change [$/MWh]."""
    curvature = 2.0 * jnp.maximum(units.cost_c2, _LEAST_C2)
    return (outlook.price + change - units.cost_c1) / curvature


def _inner_range(
    units: Units, outlook: Outlook, span: Float[Array, ""], lower: Array, upper: Array
) -> tuple[Array, Array, Array]:
    """Set-points at -0.5 and 0.5, and what must be added for 0 to meet the schedule exactly."""
    at = lambda change: jnp.clip(_price_answer(units, outlook, change), lower, upper)  # noqa: E731
    shift = outlook.schedule_mw - at(jnp.zeros(()))
    return jnp.clip(at(-span) + shift, lower, upper), jnp.clip(at(span) + shift, lower, upper), shift


def set_points(
    action: Float[Array, " units"], units: Units, outlook: Outlook, span: Float[Array, ""]
) -> Float[Array, " units"]:
    """Set-points [MW] that actions in [-1, 1] ask for.

    0 is the merit-order schedule. The inner half moves a unit as a price change of up to `span` [$/MWh] would, so
    that equal actions cost about the same whatever the unit; the outer half goes on linearly to the limits.
    """
    lower, upper = jnp.minimum(units.p_min_mw, outlook.available_mw), outlook.available_mw
    low, high, shift = _inner_range(units, outlook, span, lower, upper)
    inner = jnp.clip(_price_answer(units, outlook, 2.0 * span * jnp.clip(action, -0.5, 0.5)), lower, upper)
    inner = jnp.clip(inner + shift, lower, upper)
    beyond = jnp.clip(2.0 * jnp.abs(action) - 1.0, 0.0, 1.0)
    outer = jnp.where(action > 0, high + beyond * (upper - high), low + beyond * (lower - low))
    return jnp.where(jnp.abs(action) <= 0.5, inner, outer)


def actions(
    target_mw: Float[Array, " units"], units: Units, outlook: Outlook, span: Float[Array, ""]
) -> Float[Array, " units"]:
    """The action that asks for a set-point: the inverse of `set_points`, for baselines that think in MW."""
    lower, upper = jnp.minimum(units.p_min_mw, outlook.available_mw), outlook.available_mw
    target = jnp.clip(target_mw, lower, upper)
    low, high, shift = _inner_range(units, outlook, span, lower, upper)
    curvature = 2.0 * jnp.maximum(units.cost_c2, _LEAST_C2)
    change = curvature * (target - shift) + units.cost_c1 - outlook.price
    inner = jnp.clip(change / (2.0 * span), -0.5, 0.5)
    rising = 0.5 + 0.5 * (target - high) / jnp.maximum(upper - high, 1e-6)
    falling = -0.5 - 0.5 * (low - target) / jnp.maximum(low - lower, 1e-6)
    outside = jnp.where(target > high, rising, falling)
    # at the schedule itself 0 is the answer, also where several actions are
    at_rest = jnp.abs(target - outlook.schedule_mw) < 1e-4
    return jnp.where(at_rest, 0.0, jnp.where((target > high) | (target < low), outside, inner))


def shed_share(action: Float[Array, " loads"], max_shed: Float[Array, ""]) -> Float[Array, " loads"]:
    """Share of each load given up: nothing up to 0.5, then linear to `max_shed` at 1."""
    return max_shed * jnp.clip((action - _SHED_ABOVE) / (1.0 - _SHED_ABOVE), 0.0, 1.0)


def shed_action(share: Float[Array, " loads"], max_shed: Float[Array, ""]) -> Float[Array, " loads"]:
    """The action that sheds a share; 0 for none."""
    wanted = _SHED_ABOVE + (1.0 - _SHED_ABOVE) * jnp.clip(share / max_shed, 0.0, 1.0)
    return jnp.where(share > 0, wanted, 0.0)


def ramped(
    target_mw: Float[Array, " units"], now_mw: Float[Array, " units"], units: Units, minutes: float
) -> Float[Array, " units"]:
    """The target as far as ramp limits allow from `now_mw` in `minutes`."""
    reach = units.ramp_mw_per_min * minutes
    return jnp.clip(target_mw, now_mw - reach, now_mw + reach)
