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
    """`init` and what the attackers send; they know what everybody was about to send."""

    acts_randomly: ClassVar[bool] = False
    """True: the attack is in the world, not in what is sent; the trainer makes the attackers act at random."""

    def init(self, agents: int, size: int) -> PyTree:
        """The attackers' memory for `agents` updates of `size` numbers; None if they need none."""
        return None

    @abc.abstractmethod
    def forged(
        self,
        updates: Float[Array, "A P"],
        attackers: Bool[Array, " A"],
        honest: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "*A P"], PyTree]:
        """What each attacker sends, or the one vector that all of them do, and the new memory."""

    def __call__(
        self,
        updates: Float[Array, "A P"],
        byzantine: Bool[Array, " A"],
        active: Bool[Array, " A"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, "A P"], PyTree]:
        """What is sent by all, and the new memory."""
        attackers = byzantine & active
        sent, state = self.forged(updates, attackers, active & ~byzantine, state, key)
        return jnp.where(attackers[:, None], sent, updates), state


class Truth(Attack):
    """Every attacker sends its own update."""

    def forged(self, updates, attackers, honest, state, key):
        return updates, state


class RandomAction(Truth):
    """Acts at random and honestly sends what it learnt from that (FedPG-BR, Fan et al. 2021)."""

    acts_randomly: ClassVar[bool] = True


class Noise(Attack):
    """Uniform noise in [-scale, scale], unrelated to anything (DecByzPG, Jordan et al. 2024: 1000)."""

    scale: float = eqx.field(static=True, default=1000.0)

    def forged(self, updates, attackers, honest, state, key):
        return jax.random.uniform(key, updates.shape, updates.dtype, -self.scale, self.scale), state


class SignFlip(Attack):
    """Its own update times `-scale`; 2.5 is what experiments on FedPG-BR use."""

    scale: float = eqx.field(static=True, default=2.5)

    def forged(self, updates, attackers, honest, state, key):
        return -self.scale * updates, state


class AverageZero(Attack):
    """All send the one vector that makes the plain mean of the active 0 (DecByzPG, Jordan et al. 2024)."""

    def forged(self, updates, attackers, honest, state, key):
        return -product(honest.astype(updates.dtype), updates) / jnp.maximum(attackers.sum(), 1), state


class ALittleIsEnough(Attack):
    """All send `mean - z * standard deviation` of the honest, coordinate by coordinate (Baruch et al. 2019).

    Of n active, m Byzantine, the attackers need `s = floor(n / 2 + 1) - m` honest supporters for a majority; z is
    where the normal distribution reaches `(n - m - s) / (n - m)`: so many of the honest deviate further than they.
    """

    def forged(self, updates, attackers, honest, state, key):
        share = shares(honest.astype(updates.dtype))
        mean = product(share, updates)
        deviation = jnp.sqrt(product(share, (updates - mean) ** 2))
        supporters = (attackers | honest).sum() // 2 + 1 - attackers.sum()
        below = (honest.sum() - supporters) / jnp.maximum(honest.sum(), 1)
        # 0 and 1, which a majority of attackers or a handful of agents can give, have no finite z
        z = jax.scipy.special.ndtri(jnp.clip(below, 0.001, 0.999))
        return jnp.where(honest.any(), mean - z * deviation, updates), state


class Replayed(eqx.Module):
    """The first update of every agent that has had one."""

    updates: Float[Array, "A P"]
    known: Bool[Array, " A"]


class StaleReplay(Attack):
    """Sends the first update it ever computed, again and again."""

    def init(self, agents: int, size: int) -> Replayed:
        return Replayed(jnp.zeros((agents, size)), jnp.zeros(agents, bool))

    def forged(self, updates, attackers, honest, state, key):
        first = jnp.where((attackers & ~state.known)[:, None], updates, state.updates)
        return first, Replayed(first, state.known | attackers)


@dataclass(frozen=True)
class Entry:
    """A line of help, and the attack with its own strength."""

    help: str
    build: Callable[[], Attack]


ATTACKS: dict[str, Entry] = {
    "none": Entry("everybody sends its own update", Truth),
    "noise": Entry("uniform noise of +-1000", Noise),
    "sign-flip": Entry("the attacker's own update times -2.5", SignFlip),
    "average-zero": Entry("what makes the plain mean of all updates 0", AverageZero),
    "alie": Entry("a little is enough: just inside the spread of the honest", ALittleIsEnough),
    "stale-replay": Entry("the attacker's first update, again and again", StaleReplay),
    "random-action": Entry("the attacker acts at random and sends what it learns", RandomAction),
}


def build(name: str) -> Attack:
    """The attack of that name.

    Raises:
        ValueError: unknown attack.
    """
    if name not in ATTACKS:
        raise ValueError(f"attack '{name}': unknown; known: {', '.join(ATTACKS)}")
    return ATTACKS[name].build()
