"""Run by test_placement.py in processes of its own: trains on one device and spread over several, and writes what
came out of both.

Usage: placement_worker.py FILE DEVICES FEDERATION,... [COORDINATOR PROCESSES PROCESS]
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from dynamic_graph_fed_rl.algorithms.a2c import build
from dynamic_graph_fed_rl.algorithms.settings import A2CSettings
from dynamic_graph_fed_rl.environments.worlds import Worlds
from dynamic_graph_fed_rl.federation.build import build as build_federation
from dynamic_graph_fed_rl.federation.settings import FederationSettings
from dynamic_graph_fed_rl.training import placement
from dynamic_graph_fed_rl.training.trainer import Group, Trainer, Training

AGENTS, ROUNDS = 8, 3
FEDERATIONS = {
    "server": FederationSettings(),
    "tree": FederationSettings(branches=(2,), clocks=(1, 2)),
    "gossip": FederationSettings(overlay="random"),
}


def trainer_of(federation: str) -> Trainer:
    # it makes arrays, for which it is too early before processes have joined
    from probes import PROBES

    owned = jax.tree.map(lambda leaf: jnp.repeat(leaf[None], AGENTS, axis=0), PROBES["two-step"].environment)
    group = Group(build(A2CSettings(width=4), 100), Worlds(owned, 2, owners=AGENTS))
    return Trainer((group,), build_federation(FEDERATIONS[federation], federation, AGENTS), 3)


def numbers(training: Training, metrics: dict) -> list[np.ndarray]:
    """What agents have learned, what the federation keeps, and what the last round measured."""
    kept = (training.learners, training.actors, training.federation, metrics)
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(kept)]


def train(trainer, training: Training) -> tuple[Training, dict]:
    metrics = {}
    for _ in range(ROUNDS):
        training, metrics = trainer.run_round(training)
    return training, metrics


def refusal(trainer: Trainer, devices: int) -> str:
    try:
        placement.spread(trainer, placement.agent_mesh(devices))
    except ValueError as error:
        return str(error)
    return ""


def main(file: str, devices: int, federations: list[str]) -> None:
    found = {}
    for federation in federations:
        trainer = trainer_of(federation)
        spread = placement.spread(trainer, placement.agent_mesh(devices))
        start = placement.the_same_everywhere(trainer.init(jax.random.key(0)))
        training, metrics = train(spread, spread.place(start))
        # the agents stay apart from round to round
        for leaf in jax.tree.leaves((training.learners, training.federation.method)):
            has_rows = leaf.size > 0 and leaf.shape[0] == AGENTS
            assert leaf.sharding.is_fully_replicated != has_rows, (leaf.shape, leaf.sharding)
        assert placement.any_process(jax.process_index() == jax.process_count() - 1)
        found |= {
            f"{federation}/{i:03}/spread": leaf for i, leaf in enumerate(numbers(spread.whole(training), metrics))
        }
        alone = numbers(*train(trainer, trainer.init(jax.random.key(0))))
        found |= {f"{federation}/{i:03}/alone": leaf for i, leaf in enumerate(alone)}
    if devices == 4:
        assert refusal(trainer, 3) == "agents 8: must be a multiple of the 3 devices"
    np.savez(file, **found)


if __name__ == "__main__":
    file, devices, federations, *together = sys.argv[1:]
    if together:
        placement.join_processes(together[0], int(together[1]), int(together[2]))
    main(file, int(devices), federations.split(","))
