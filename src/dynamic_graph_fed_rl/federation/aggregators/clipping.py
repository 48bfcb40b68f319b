"""Clipping around a centre: everybody may pull, nobody further than a radius."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, clip_factors, minority, product, shares
from dynamic_graph_fed_rl.federation.aggregators.distances import inner_products


class CentredClipping(Aggregator):
    """Centred clipping (Karimireddy et al. 2021), which remembers its last aggregate as the next centre.

    In each of `steps`, `centre += sum_k share_k clip(update_k - centre, radius)`, so that the update is at most
    `steps * radius` from the last one. Radius 0: in each step the distance within which the nearest
    `present - byzantine` lie; with an honest majority never more than the furthest honest update.
    """

    radius: float = eqx.field(static=True, default=0.0)
    byzantine: int = eqx.field(static=True, default=0)
    steps: int = eqx.field(static=True, default=3)

    def init(self, size: int) -> Float[Array, " P"]:
        return jnp.zeros(size)

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: Float[Array, " P"],
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], Float[Array, " P"], dict[str, Float[Array, ""]]]:
        products, present = inner_products(updates, weights)
        share = shares(jnp.where(present, weights, 0.0))
        with_centre = jnp.where(present, product(updates, state), 0.0)
        centre_square = product(state, state)
        # the centre moves as `old * state + new @ updates`, so that its distances follow from inner products
        old, new = jnp.ones(()), jnp.zeros_like(share)
        clipped = jnp.zeros(())
        for _ in range(self.steps):
            across = old * with_centre + product(products, new)
            own = old * (old * centre_square + 2.0 * product(new, with_centre)) + product(new, product(products, new))
            distances = jnp.sqrt(jnp.maximum(jnp.diagonal(products) - 2.0 * across + own, 0.0))
            factors = clip_factors(distances, _radius(self.radius, distances, present, self.byzantine))
            pull = share * factors
            old, new = old * (1.0 - pull.sum()), new * (1.0 - pull.sum()) + pull
            clipped = _share_below_one(factors, present)
        centre = old * state + product(new, updates)
        return jnp.where(present.any(), centre, 0.0), centre, {"clipped": clipped}

    def tolerance(self, senders: int) -> int:
        return minority(senders) if self.radius else min(self.byzantine, minority(senders))


class SelfCentredClipping(Aggregator):
    """Self-centred clipping for gossip (He, Karimireddy and Jaggi 2022): the centre is the receiver itself.

    The weighted mean of the differences to the neighbours, each clipped to `radius`. Radius 0: the distance within
    which the nearest `present - byzantine` lie (the receiver, at distance 0, is one of them if it has a weight), so
    that as many as may be Byzantine pull no further than the others.
    """

    radius: float = eqx.field(static=True, default=0.0)
    byzantine: int = eqx.field(static=True, default=0)

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        distances = jnp.sqrt((updates**2).sum(1))
        update, info = _clipped_mean(updates, weights, _radius(self.radius, distances, weights > 0, self.byzantine))
        return update, state, info

    def tolerance(self, senders: int) -> int:
        return minority(senders) if self.radius else min(self.byzantine, minority(senders))


class PaceMemory(eqx.Module):
    """What the receiver went on with after its last exchange, once it has had one."""

    parameters: Float[Array, " P"]
    known: Bool[Array, ""]


class SelfPacedClipping(Aggregator):
    """Self-centred clipping in which nobody is pulled by others further than it has just gone by itself.

    The radius is the adaptive one of `SelfCentredClipping`, but never more than `pace` times the length of the
    receiver's own learning since its last exchange. So an agent that hears none but Byzantine neighbours still
    learns, and their pull fades with its learning rate. The first exchange moves nobody: the length is not known yet.
    """

    pace: float = eqx.field(static=True, default=0.5)
    byzantine: int = eqx.field(static=True, default=0)

    def init(self, size: int) -> PaceMemory:
        return PaceMemory(jnp.zeros(size), jnp.asarray(False))

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PaceMemory,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PaceMemory, dict[str, Float[Array, ""]]]:
        distances = jnp.sqrt((updates**2).sum(1))
        learned = jnp.where(state.known, jnp.sqrt(((base - state.parameters) ** 2).sum()), 0.0)
        adaptive = _radius(0.0, distances, weights > 0, self.byzantine)
        update, info = _clipped_mean(updates, weights, jnp.minimum(adaptive, self.pace * learned))
        return update, PaceMemory(base + update, jnp.asarray(True)), info

    def tolerance(self, senders: int) -> int:
        return min(self.byzantine, minority(senders))


class NormClipping(Aggregator):
    """Before another rule: every update is scaled down to a length of at most `norm`.

    One so long that its squared length leaves float32 (above 1e19) becomes 0.
    """

    inner: Aggregator
    norm: float = eqx.field(static=True)

    def init(self, size: int) -> PyTree:
        return self.inner.init(size)

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        factors = clip_factors(jnp.sqrt((updates**2).sum(1)), jnp.asarray(self.norm))
        shortened = _share_below_one(factors, weights > 0)
        update, state, info = self.inner(updates * factors[:, None], weights, base, state, key)
        return update, state, {**info, "shortened": shortened}

    def tolerance(self, senders: int) -> int:
        return self.inner.tolerance(senders)


def _clipped_mean(
    updates: Float[Array, "K P"], weights: Float[Array, " K"], radius: Float[Array, ""]
) -> tuple[Float[Array, " P"], dict[str, Float[Array, ""]]]:
    """The weighted mean of the updates, none longer than `radius`, and which share of those present were."""
    factors = clip_factors(jnp.sqrt((updates**2).sum(1)), radius)
    return product(shares(weights) * factors, updates), {"clipped": _share_below_one(factors, weights > 0)}


def _share_below_one(factors: Float[Array, " K"], present: Bool[Array, " K"]) -> Float[Array, ""]:
    return (present & (factors < 1)).sum() / jnp.maximum(present.sum(), 1)


def _radius(
    given: float, distances: Float[Array, " K"], present: Bool[Array, " K"], byzantine: int
) -> Float[Array, ""]:
    if given:
        return jnp.asarray(given)
    nearest = jnp.sort(jnp.where(present, distances, jnp.inf))
    return nearest[jnp.maximum(present.sum() - byzantine - 1, 0)]
