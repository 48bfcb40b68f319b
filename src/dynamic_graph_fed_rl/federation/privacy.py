"""Differential privacy of whole agents: clipped updates, Gaussian noise on their sum, and what it costs.

The research kind: Gaussian noise made of float32 numbers by a generator that is not cryptographic (see Mironov 2012,
"On significance of the least significant bits for differential privacy"). Not audited.
"""

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, clip_factors, product


class ClientLevelDP(Aggregator):
    """The mean of clipped updates, with noise that hides whether any one agent's update is in it.

    Every present row is clipped to the norm `clip`; their sum gets Gaussian noise of standard deviation
    `noise_multiplier * clip` in every number and is divided by how many are present (McMahan et al. 2018,
    arXiv:1710.06963). A weight only says who is present: above 0 counts as 1, or else weights would change what one
    agent can do to the sum, which is at most `clip`. How many are present is taken to be public.

    The noise is drawn where the mean is taken, so whoever takes it is trusted; and it covers the update, not the
    other figures of a round that a run records. `epsilon` holds for one such mean a round: a receiver more, as in
    gossip, is a release more.

    Raises:
        ValueError: `clip` is not above 0, or `noise_multiplier` is below 0.
    """

    sees_single_updates: ClassVar[bool] = False
    clip: float | Float[Array, ""] = 1.0
    noise_multiplier: float | Float[Array, ""] = 1.0

    def __check_init__(self) -> None:
        if isinstance(self.clip, float | int) and not 0 < self.clip < math.inf:
            raise ValueError(f"privacy: clip {self.clip} is not a norm above 0")
        if isinstance(self.noise_multiplier, float | int) and not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"privacy: noise multiplier {self.noise_multiplier} is below 0 or not finite")

    def init(self, size: int) -> None:
        return None

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: None,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], None, dict[str, Float[Array, ""]]]:
        """The noisy mean of those present, 0 where nobody is.

        Records the noise's standard deviation only: anything computed from the updates would leave without noise.
        """
        is_present = weights > 0
        present = is_present.sum()
        noise = jax.random.normal(key, base.shape, updates.dtype) * (self.noise_multiplier * self.clip)
        count = jnp.maximum(present, 1)
        mean = (self.clipped_sum(updates, weights) + noise) / count
        deviation = jnp.asarray(self.noise_multiplier * self.clip, updates.dtype) / count
        return jnp.where(present > 0, mean, 0.0), None, {"noise_std": jnp.where(present > 0, deviation, 0.0)}

    def clipped_sum(self, updates: Float[Array, "K P"], weights: Float[Array, " K"]) -> Float[Array, " P"]:
        """Sum of the clipped rows of those present; one agent coming or going moves it by `clip` at most."""
        factors = clip_factors(jnp.linalg.norm(updates, axis=1), self.clip)
        return product(jnp.where(weights > 0, factors, 0.0), updates)

    def tolerance(self, senders: int) -> int:
        return 0


@functools.lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, rounds: int, sampling_rate: float, delta: float) -> float:
    """The epsilon of (epsilon, delta)-differential privacy after `rounds` of `ClientLevelDP`.

    Two runs are neighbours where one has an agent's updates and the other has nothing in their place.

    With everybody in every round (`sampling_rate` 1) `rounds` Gaussian mechanisms are exactly one with the noise
    divided by sqrt(rounds), and its epsilon is known (Balle & Wang 2018, arXiv:1805.06530). Below 1 each agent is
    taken to join every round by a draw of its own that stays secret (Poisson sampling); the privacy loss
    distribution is composed numerically and never understates (Doroshenko et al. 2022, arXiv:2207.04380).

    Needs the extra `dp` (the library dp-accounting). Kept for arguments seen before.

    Args:
        noise_multiplier: standard deviation of the noise in units of the clipping norm; at 0 epsilon is infinite.
        rounds: exchanges so far, 0 or more.
        sampling_rate: probability that an agent takes part in a round, in (0, 1].
        delta: probability with which the guarantee may fail, in (0, 1); well below 1 over the number of agents.

    Raises:
        ValueError: an argument out of its range, or the extra is not installed.
    """
    if not 0 <= noise_multiplier < math.inf:
        raise ValueError(f"epsilon: noise multiplier {noise_multiplier} is below 0 or not finite")
    if rounds < 0:
        raise ValueError(f"epsilon: {rounds} rounds: cannot be below 0")
    if not 0 < sampling_rate <= 1:
        raise ValueError(f"epsilon: sampling rate {sampling_rate} is not above 0 and at most 1")
    if not 0 < delta < 1:
        raise ValueError(f"epsilon: delta {delta} is not between 0 and 1")
    accounting = _accounting()
    if rounds == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    if sampling_rate == 1:
        return float(accounting.get_epsilon_gaussian(noise_multiplier / math.sqrt(rounds), delta))
    composed = _one_round(noise_multiplier, sampling_rate).self_compose(rounds)
    # an epsilon in the thousands may overflow inside the library, which then says infinity: no privacy either way
    with np.errstate(over="ignore"):
        return float(composed.get_epsilon_for_delta(delta))


@functools.lru_cache(maxsize=64)
def _one_round(noise_multiplier: float, sampling_rate: float) -> Any:
    """Privacy loss distribution of one round."""
    from dp_accounting.pld import privacy_loss_distribution

    # a round's losses are about 1 / noise, under little noise 1 / noise^2; the grid follows, so that the work stays
    # the same (tens of milliseconds) and what the grid adds to epsilon, too (measured: 0.2 % at most)
    interval = 2e-3 * max(1.0 / noise_multiplier, noise_multiplier**-2)
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_rate
    )


def _accounting() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise ValueError(
            "privacy accounting needs the library dp-accounting: pip install 'dynamic-graph-fed-rl[dp]'"
        ) from error
    return dp_accounting
