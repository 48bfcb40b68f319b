"""Who hears whom in gossip, as lists of links: A agents with K links each cost A x K, never A x A.

Weights are doubly stochastic where hearing is mutual. On a directed overlay they are column-stochastic (each
sender splits itself among its hearers), and the gossip carries a push-sum weight (Kempe et al. 2003).
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray
from scipy.sparse.csgraph import connected_components


class Links(eqx.Module):
    """Whom each of A receivers hears in a round, with which share, and the share that it keeps of itself."""

    senders: Int[Array, "agents links"]
    weights: Float[Array, "agents links"]
    own: Float[Array, " agents"]

    def matrix(self) -> Float[Array, "agents agents"]:
        """The mixing matrix `W[receiver, sender]`."""
        receivers = jnp.arange(self.own.shape[0])[:, None]
        return jnp.diag(self.own).at[receivers, self.senders].add(self.weights)

    def among(self, usable: Bool[Array, "agents links"], directed: bool) -> "Links":
        """Links without those that are down: a lost share stays with whoever would lose it.

        That is the receiver, or on a directed overlay the sender, so that rows (columns) still sum to 1.
        """
        lost = jnp.where(usable, 0.0, self.weights)
        kept = self.weights - lost
        if directed:
            return Links(self.senders, kept, self.own.at[self.senders].add(lost))
        return Links(self.senders, kept, self.own + lost.sum(1))


class Overlay(eqx.Module):
    """Links of `agents` agents, drawn anew every round where they are random."""

    agents: int = eqx.field(static=True)

    @property
    def directed(self) -> bool:
        return False

    @abc.abstractmethod
    def links(self, key: PRNGKeyArray) -> Links: ...

    def components(self) -> list[list[int]]:
        """Groups of agents that hear each other, if only by way of others and over many rounds."""
        return [list(range(self.agents))]

    def fewest_heard(self) -> int:
        """How many an agent hears in a round at least, itself included."""
        return 1 + int((self.links(jax.random.key(0)).weights > 0).sum(1).min())


class Complete(Overlay):
    """Everybody hears everybody, equally."""

    def links(self, key: PRNGKeyArray) -> Links:
        others = (jnp.arange(self.agents)[:, None] + jnp.arange(1, self.agents)[None, :]) % self.agents
        return _even(others)


class Ring(Overlay):
    """Each agent hears its two neighbours; a third each (a half each for two agents)."""

    def links(self, key: PRNGKeyArray) -> Links:
        return _on_circle(jnp.arange(self.agents), 2)


class RandomRegular(Overlay):
    """Each agent hears `degree` others and is heard by the same, drawn anew every round.

    The agents are put on a circle in random order, and each hears its `degree` nearest.

    Raises:
        ValueError: `degree` is odd, and fewer than all others.
    """

    degree: int = eqx.field(static=True, default=2)

    def __check_init__(self) -> None:
        if self.degree % 2 and self.degree < self.agents - 1:
            raise ValueError(f"degree {self.degree}: must be at least 1, and even on the overlay 'random'")

    def links(self, key: PRNGKeyArray) -> Links:
        return _on_circle(jax.random.permutation(key, self.agents), self.degree)


class DirectedRandom(Overlay):
    """Each agent hears `degree` others, drawn anew, whoever else hears these: the overlay is directed."""

    degree: int = eqx.field(static=True, default=2)

    @property
    def directed(self) -> bool:
        return True

    def links(self, key: PRNGKeyArray) -> Links:
        def draw(one: PRNGKeyArray) -> Int[Array, " links"]:
            return jax.random.choice(one, self.agents - 1, (min(self.degree, self.agents - 1),), replace=False)

        ahead = 1 + jax.vmap(draw)(jax.random.split(key, self.agents))
        return _split_by_sender((jnp.arange(self.agents)[:, None] + ahead) % self.agents, jnp.ones(ahead.shape, bool))


class Given(Overlay):
    """An adjacency of the user's: `hears[receiver, sender]`, mutual or directed, its diagonal ignored.

    Mutual links get Metropolis-Hastings weights (Xiao et al. 2005): doubly stochastic whatever the degrees.
    """

    senders: Int[Array, "agents links"]
    weights: Float[Array, "agents links"]
    own: Float[Array, " agents"]
    mutual: bool = eqx.field(static=True)

    def __init__(self, hears: Bool[np.ndarray, "agents agents"]):
        self.agents = len(hears)
        hears = hears & ~np.eye(self.agents, dtype=bool)
        self.mutual = bool((hears == hears.T).all())
        width = max(int(hears.sum(1).max()), 1)
        senders = np.argsort(~hears, axis=1, kind="stable")[:, :width].astype(np.int32)
        exists = np.take_along_axis(hears, senders, axis=1)
        degree = hears.sum(1)
        share = np.where(exists, 1.0 / (1.0 + np.maximum(degree[:, None], degree[senders])), 0.0)
        own = jnp.asarray(1 - share.sum(1), jnp.float32)
        mixed = Links(jnp.asarray(senders), jnp.asarray(share, jnp.float32), own)
        if not self.mutual:
            mixed = _split_by_sender(jnp.asarray(senders), jnp.asarray(exists))
        self.senders, self.weights, self.own = mixed.senders, mixed.weights, mixed.own

    @property
    def directed(self) -> bool:
        return not self.mutual

    def links(self, key: PRNGKeyArray) -> Links:
        return Links(self.senders, self.weights, self.own)

    def components(self) -> list[list[int]]:
        matrix = np.asarray(self.links(jax.random.key(0)).matrix()) > 0
        count, label = connected_components(matrix, directed=True, connection="strong")
        return [np.flatnonzero(label == part).tolist() for part in range(count)]


def read_overlay(path: str | Path, agents: int) -> Given:
    """An overlay from a CSV file of 0 and 1, a row for each receiver and a column for each sender.

    Raises:
        ValueError: the file is not such a matrix of the number of agents; names the file and what it holds.
    """
    try:
        matrix = np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        raise ValueError(f"{path}: must hold {agents} lines of {agents} zeros and ones: {error}") from error
    if matrix.shape != (agents, agents) or not np.isin(matrix, (0, 1)).all():
        raise ValueError(f"{path}: must hold {agents} lines of {agents} zeros and ones, not a {matrix.shape} matrix")
    return Given(matrix.astype(bool))


@dataclass(frozen=True)
class Entry:
    """A line of help, and the overlay of `(agents, degree)`."""

    help: str
    build: Callable[[int, int], Overlay]


OVERLAYS: dict[str, Entry] = {
    "complete": Entry("everybody hears everybody", lambda agents, degree: Complete(agents)),
    "ring": Entry("each agent hears its two neighbours on a ring", lambda agents, degree: Ring(agents)),
    "random": Entry(
        "each agent hears `degree` others, drawn anew every round; hearing is mutual",
        RandomRegular,
    ),
    "directed-random": Entry(
        "each agent hears `degree` others, drawn anew; not mutual, so push-sum keeps the mean",
        DirectedRandom,
    ),
}


def build(name: str, agents: int, degree: int) -> Overlay:
    """The overlay of that name, or of the CSV file of that path.

    Raises:
        ValueError: neither a known name nor a file, or not with so many agents and links.
    """
    if name in OVERLAYS:
        return OVERLAYS[name].build(agents, degree)
    if not name.endswith(".csv"):
        raise ValueError(f"overlay '{name}': unknown; known: {', '.join(OVERLAYS)}, or a .csv file")
    return read_overlay(name, agents)


def _even(senders: Int[Array, "agents links"]) -> Links:
    agents, width = senders.shape
    share = 1.0 / (1 + width)
    return Links(senders, jnp.full((agents, width), share), jnp.full(agents, share))


def _on_circle(place: Int[Array, " agents"], degree: int) -> Links:
    """Each agent hears the `degree` (even) nearest on a circle on which it has a place."""
    agents = place.shape[0]
    if degree >= agents - 1:
        return Complete(agents).links(jax.random.key(0))
    order = jnp.argsort(place)
    offsets = jnp.asarray([side * (1 + step) for step in range(degree // 2) for side in (-1, 1)], jnp.int32)
    return _even(order[(place[:, None] + offsets[None, :]) % agents])


def _split_by_sender(senders: Int[Array, "agents links"], exists: Bool[Array, "agents links"]) -> Links:
    """Each sender splits itself evenly among itself and its hearers."""
    heard_by = jnp.zeros(senders.shape[0]).at[senders].add(exists.astype(jnp.float32))
    share = 1.0 / (1.0 + heard_by)
    return Links(senders, jnp.where(exists, share[senders], 0.0), share)
