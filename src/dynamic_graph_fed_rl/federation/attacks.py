"""What Byzantine agents send instead of their update: pure functions over the stack of all updates.

Only rows of agents that are Byzantine and active are replaced. "Honest" below means active and not Byzantine.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import product, shares


class Attack(eqx.Module):
    """`init` and one pure function; the attackers know what everybody was about to send."""

    acts_randomly: ClassVar[bool] = False
    """True: the attack is in the world, not in what is sent; the trainer makes the attackers act at random."""

    def init(self, agents: int, size: int) -> PyTree:
        """The attackers' memory for `agents` updates of `size` numbers; None if they need none."""
        return None

    @abc.abstractmethod
    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], PyTree]:
        """What is sent, and the new memory."""


class Nothing(Attack):
    """Everybody sends its own update."""

    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], PyTree]:
        return updates, state


class RandomAction(Nothing):
    """Acts at random and honestly sends what it learnt from that (FedPG-BR, Fan et al. 2021)."""

    acts_randomly: ClassVar[bool] = True


class Noise(Attack):
    """Uniform noise in [-scale, scale], unrelated to anything (DecByzPG, Jordan et al. 2024: 1000)."""

    scale: float = eqx.field(static=True, default=1000.0)

    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], PyTree]:
        noise = jax.random.uniform(key, updates.shape, updates.dtype, -self.scale, self.scale)
        return _instead(updates, byzantine & active, noise), state


class SignFlip(Attack):
    """Its own update times `-scale` (FedPG-BR, Fan et al. 2021: 2.5)."""

    scale: float = eqx.field(static=True, default=2.5)

    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], PyTree]:
        return _instead(updates, byzantine & active, -self.scale * updates), state


class AverageZero(Attack):
    """All send the one vector that makes the plain mean of the active 0 (DecByzPG, Jordan et al. 2024)."""

    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], PyTree]:
        attackers = byzantine & active
        total = product((active & ~byzantine).astype(updates.dtype), updates)
        return _instead(updates, attackers, -total / jnp.maximum(attackers.sum(), 1)), state


class ALittleIsEnough(Attack):
    """All send `mean - z * standard deviation` of the honest, coordinate by coordinate (Baruch et al. 2019).

    Of n active, m Byzantine, the attackers need `s = floor(n / 2 + 1) - m` honest supporters for a majority; z is
    where the normal distribution reaches `(n - m - s) / (n - m)`: so many of the honest deviate further than they.
    """

    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], PyTree]:
        attackers, honest = byzantine & active, active & ~byzantine
        share = shares(honest.astype(updates.dtype))
        mean = product(share, updates)
        deviation = jnp.sqrt(product(share, (updates - mean) ** 2))
        supporters = active.sum() // 2 + 1 - attackers.sum()
        below = (honest.sum() - supporters) / jnp.maximum(honest.sum(), 1)
        # 0 and 1, which a majority of attackers or a handful of agents can give, have no finite z
        z = jax.scipy.special.ndtri(jnp.clip(below, 0.001, 0.999))
        return _instead(updates, attackers & honest.any(), mean - z * deviation), state


class Replayed(eqx.Module):
    """The first update of every agent that has had one."""

    updates: Float[Array, "A P"]
    known: Bool[Array, " A"]


class StaleReplay(Attack):
    """Sends the first update it ever computed, again and again."""

    def init(self, agents: int, size: int) -> Replayed:
        return Replayed(jnp.zeros((agents, size)), jnp.zeros(agents, bool))

    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: Replayed,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], Replayed]:
        attackers = byzantine & active
        first = _instead(state.updates, attackers & ~state.known, updates)
        return _instead(updates, attackers, first), Replayed(first, state.known | attackers)


def _instead(
    updates: Float[Array, "A P"], attackers: Bool[Array, " A"], sent: Float[Array, "*A P"]
) -> Float[Array, "A P"]:
    return jnp.where(attackers[:, None], sent, updates)


@dataclass(frozen=True)
class Entry:
    """`build(scale)`: None is the attack's own scale, which an attack without one ignores."""

    help: str
    build: Callable[[float | None], Attack]


def _scaled(attack: Callable[..., Attack]) -> Callable[[float | None], Attack]:
    return lambda scale: attack() if scale is None else attack(scale)


ATTACKS: dict[str, Entry] = {
    "none": Entry("everybody sends its own update", lambda _: Nothing()),
    "noise": Entry("uniform noise of +-scale (1000)", _scaled(Noise)),
    "sign-flip": Entry("the attacker's own update times -scale (2.5)", _scaled(SignFlip)),
    "average-zero": Entry("what makes the plain mean of all updates 0", lambda _: AverageZero()),
    "alie": Entry("a little is enough: just inside the spread of the honest", lambda _: ALittleIsEnough()),
    "stale-replay": Entry("the attacker's first update, again and again", lambda _: StaleReplay()),
    "random-action": Entry("the attacker acts at random and sends what it learns", lambda _: RandomAction()),
}


def build(name: str, scale: float | None = None) -> Attack:
    """The attack of that name.

    Raises:
        ValueError: unknown attack.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack '{name}': unknown; known: {', '.join(ATTACKS)}")
    return ATTACKS[name].build(scale)
