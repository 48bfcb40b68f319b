"""Returns and advantages; the maths that algorithms share."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def generalised_advantage(
    reward: Float[Array, "T *batch"],
    value: Float[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    terminated: Bool[Array, "T *batch"],
    truncated: Bool[Array, "T *batch"],
    discount: Float[Array, ""] | float,
    trace: Float[Array, ""] | float,
) -> Float[Array, "T *batch"]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16).

    `next_value` is the value of each row's true successor: it counts after a truncation and not after a
    termination; the trace is cut by both.
    """
    delta = reward + discount * jnp.where(terminated, 0.0, next_value) - value
    carry = jnp.where(terminated | truncated, 0.0, discount * trace)

    def back(later: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        advantage = row[0] + row[1] * later
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(delta[0]), (delta, carry), reverse=True)[1]


def lambda_returns(
    reward: Float[Array, "T *batch"],
    next_value: Float[Array, "T *batch"],
    terminated: Bool[Array, "T *batch"],
    truncated: Bool[Array, "T *batch"],
    discount: Float[Array, ""] | float,
    trace: Float[Array, ""] | float,
) -> Float[Array, "T *batch"]:
    """`G = r + discount * ((1 - trace) * V' + trace * G')` (Gallici et al. 2024, equation 5, with V' the value of the
    best choice: Peng's Q(lambda)).

    `next_value` as in `generalised_advantage`; it stands for all that follows a truncation and the last row.
    """
    ended = terminated | truncated

    def back(later: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        gained, value, over, dead = row
        follows = jnp.where(over, value, (1 - trace) * value + trace * later)
        now = gained + discount * jnp.where(dead, 0.0, follows)
        return now, now

    return jax.lax.scan(back, next_value[-1], (reward, next_value, ended, terminated), reverse=True)[1]


def returns_to_go(
    reward: Float[Array, "T *batch"], ended: Bool[Array, "T *batch"], discount: Float[Array, ""] | float
) -> tuple[Float[Array, "T *batch"], Bool[Array, "T *batch"]]:
    """Discounted sums of the rewards from each row to the end of its episode, and whether that end is among the
    rows: where it is not, the sum is cut short."""

    def back(later: tuple[Array, Array], row: tuple[Array, Array]) -> tuple[tuple[Array, Array], tuple]:
        gained, over = row
        now = gained + discount * jnp.where(over, 0.0, later[0]), over | later[1]
        return now, now

    start = jnp.zeros_like(reward[0]), jnp.zeros_like(ended[0])
    return jax.lax.scan(back, start, (reward, ended), reverse=True)[1]


def beside_siblings(values: Float[Array, "T worlds"], siblings: int) -> Float[Array, "T worlds"]:
    """Advantages or returns less the mean of their sibling worlds: luck that all of them had teaches nothing.

    Common random numbers (Glasserman and Yao 1992) as a baseline. Neighbours along the last axis are siblings; with
    one each, nothing changes.
    """
    if siblings == 1:
        return values
    families = values.reshape(*values.shape[:-1], -1, siblings)
    return ((families - families.mean(-1, keepdims=True)) * siblings / (siblings - 1)).reshape(values.shape)


def masked_standardise(values: Float[Array, "*rows"], mask: Bool[Array, "*rows"]) -> Float[Array, "*rows"]:
    """Values less the mean of the masked ones, over their standard deviation; 0 outside the mask."""
    count = jnp.maximum(mask.sum(), 1)
    mean = jnp.where(mask, values, 0.0).sum() / count
    centred = jnp.where(mask, values - mean, 0.0)
    return centred / (jnp.sqrt((centred**2).sum() / count) + 1e-6)


class ReturnScale(eqx.Module):
    """Running location and spread of the agent's returns; the critic predicts standardised returns.

    Robust ones, so that rare disasters do not flatten everything else.
    """

    location: Float[Array, ""]
    spread: Float[Array, ""]
    weight: Float[Array, ""]

    @staticmethod
    def initial() -> "ReturnScale":
        return ReturnScale(jnp.zeros(()), jnp.ones(()), jnp.zeros(()))

    def update(self, returns: Float[Array, "*rows"], memory: float = 0.9) -> "ReturnScale":
        """Exponential moving averages with bias correction: the first batch counts fully."""
        weight = memory * self.weight + (1 - memory)
        rate = (1 - memory) / weight
        location, spread = robust_moments(returns)
        return ReturnScale(
            self.location + rate * (location - self.location),
            self.spread + rate * (spread - self.spread),
            weight,
        )

    def standardise(self, returns: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
        return (returns - self.location) / self.spread

    def restore(self, value: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
        return value * self.spread + self.location


class ValueScale(eqx.Module):
    """Where values lie and how far they spread, guessed from the rewards before learning began and then left alone:
    networks predict standardised values, and a scale that moved would move what they have learned."""

    location: Float[Array, ""]
    spread: Float[Array, ""]

    @staticmethod
    def initial(spread: float = 1.0) -> "ValueScale":
        return ValueScale(jnp.zeros(()), jnp.full((), spread, jnp.float32))

    @staticmethod
    def guess(
        reward: Float[Array, "*rows"], terminated: Bool[Array, "*rows"], discount: Float[Array, ""]
    ) -> "ValueScale":
        """Rewards that go on as these: their mean over the horizon that discount and terminations leave, and their
        spread as if they were independent."""
        mean, spread = robust_moments(reward)
        horizon = 1.0 / (1.0 - discount * (1.0 - terminated.mean()))
        # rewards that hardly differ say nothing about the spread of values; their size does
        spread = jnp.where(spread > 1e-3 * jnp.abs(mean), spread, jnp.maximum(jnp.abs(mean), 1e-3))
        return ValueScale(mean * horizon, spread * jnp.sqrt(horizon))

    def standardise(self, value: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
        return (value - self.location) / self.spread

    def restore(self, value: Float[Array, "*rows"]) -> Float[Array, "*rows"]:
        return value * self.spread + self.location


def robust_moments(values: Float[Array, "*rows"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean and standard deviation of the values, those far from the median pulled in first.

    Far is five times the median absolute deviation (scaled by 1.4826, its normal consistency), or where more than
    half of the values agree, five standard deviations.
    """
    median = jnp.median(values)
    deviation = 1.4826 * jnp.median(jnp.abs(values - median))
    reach = 5.0 * jnp.where(deviation > 1e-6, deviation, values.std())
    near = jnp.clip(values, median - reach, median + reach)
    return near.mean(), near.std() + 1e-6
