"""Returns and advantages; the maths that algorithms share."""

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
