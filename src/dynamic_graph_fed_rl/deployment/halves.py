"""The two halves of an experiment's rounds, with what travels between them as arrays by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from dynamic_graph_fed_rl.deployment.half import Batch
from dynamic_graph_fed_rl.deployment.wire import ArraySpec, Schema, parameters_schema
from dynamic_graph_fed_rl.evaluation.evaluate import TRAINING_STREAM, stream_key
from dynamic_graph_fed_rl.experiment import Experiment, build
from dynamic_graph_fed_rl.federation.settings import POOLED
from dynamic_graph_fed_rl.training.site import Server, ServerState, Site, Told
from dynamic_graph_fed_rl.training.trainer import Trainer

# what clients can do apart from each other; gossip needs no server, and has peers
SERVED = ("server", *POOLED)


def trainer_of(experiment: Experiment) -> Trainer:
    """The trainer that a server and its clients divide among them.

    Raises:
        ValueError: the experiment cannot be divided so; says why.
    """
    if experiment.federation not in SERVED:
        raise ValueError(f"federation '{experiment.federation}': over HTTP must be {', '.join(SERVED)}")
    exchange = experiment.exchange
    if exchange.privacy == "secure":
        raise ValueError("privacy 'secure': only within one process so far")
    if exchange.byzantine:
        raise ValueError(f"byzantine {exchange.byzantine}: attackers are simulated within one process only")
    if exchange.codec != "raw":
        raise ValueError(f"codec '{exchange.codec}': over HTTP must be raw")
    trainer = build(experiment).trainer
    # refuses agents that act in one world
    Site.of(trainer, 0)
    return trainer


class ServerHalf:
    """`half.ServerSide` of an experiment."""

    def __init__(self, experiment: Experiment):
        self.trainer = trainer = trainer_of(experiment)
        self._server, self._seed = Server.of(trainer), experiment.seed
        state = jax.eval_shape(self._start)
        self.agents, self.rows = state.held.shape
        self.pools = trainer.pool is not None
        self.parameters_schema = parameters_schema(self.rows, experiment.algorithm)
        self._told = self._server.told() if self.pools else None
        self.experience_schema = experience_schema(self._told) if self._told is not None else None

    def _start(self) -> ServerState:
        return self._server.init(stream_key(TRAINING_STREAM, self._seed))

    def init(self) -> ServerState:
        return self._start()

    def held(self, state: ServerState) -> Float[Array, "agents rows"]:
        return state.held

    def decode(self, batches: Sequence[Batch | None]) -> PyTree:
        """Experience `[A, T, B, ...]`, zeros for whom there is none, and who is there."""
        if self._told is None:
            return None
        blank = named(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), self._told))
        each = [from_named(self._told, blank if batch is None else batch) for batch in batches]
        there = jnp.asarray([batch is not None for batch in batches])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *each), there

    def close(
        self,
        state: ServerState,
        own: Float[np.ndarray, "agents rows"],
        arrived: Bool[np.ndarray, " agents"],
        experience: PyTree,
    ) -> tuple[ServerState, Mapping[str, Any]]:
        told, there = (None, jnp.zeros(self.agents, bool)) if experience is None else experience
        after, report = self._server.close(state, jnp.asarray(own), jnp.asarray(arrived), told, there)
        return after, {
            f"{part}/{name}": float(value) for part, figures in report.items() for name, value in figures.items()
        }


def experience_schema(told: Told) -> Schema:
    """What a client uploads of a round's experience."""
    arrays = named(told)
    return Schema("experience", tuple(ArraySpec(name, tuple(a.shape), str(a.dtype)) for name, a in arrays.items()))


def named(tree: PyTree) -> dict[str, Any]:
    """Leaves by their paths; those without numbers need not travel."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves if leaf.size}


def from_named(like: PyTree, arrays: Batch) -> PyTree:
    """The inverse of `named`."""

    def fill(path: tuple, leaf: Any) -> Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        return jnp.asarray(arrays[name]) if leaf.size else jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, like)
