"""Random rows of experience on a small graph, of numbers that half precision holds exactly."""

import jax
import jax.numpy as jnp
import numpy as np

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column, Spec
from dynamic_graph_fed_rl.graph import Graph

NODES, EDGES, SLOTS = 5, 7, 3
KINDS = {"continuous": 2, "discrete": 4}


def columns(*dynamic: bool) -> tuple[Column, ...]:
    return tuple(Column(f"column_{i}", dynamic=flag) for i, flag in enumerate(dynamic))


def spec_of(kind) -> Spec:
    return Spec(
        agents=1,
        nodes=NODES,
        edges=EDGES,
        slots=SLOTS,
        action=kind,
        action_size=KINDS[kind],
        node_features=columns(False, True, True, False, False, True),
        edge_features=columns(True, True),
        global_features=columns(False),
        slot_features=columns(True, False),
    )


def random_rows(
    spec: Spec, lead: tuple[int, ...], seed: int, node_mask: np.ndarray | None = None
) -> tuple[Observation, jax.Array]:
    """Observations, static columns alike in all rows, and actions."""
    rng = np.random.default_rng(seed)

    def numbers(items: int, features: tuple[Column, ...]) -> np.ndarray:
        values = rng.integers(-1000, 1000, (*lead, items, len(features))) / 8
        static = np.array([not column.dynamic for column in features])
        fixed = np.random.default_rng(99).integers(1, 9, (items, len(features)))
        return np.where(static, fixed, values).astype(np.float32)

    def truths(*shape: int) -> np.ndarray:
        return rng.random((*lead, *shape)) < 0.6

    def alike(values: list[int]) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(values, jnp.int32), (*lead, len(values)))

    node_mask = truths(NODES) if node_mask is None else node_mask
    mask = truths(SLOTS) if spec.action == "continuous" else truths(SLOTS, spec.action_size)
    usable = mask if spec.action == "continuous" else mask.any(-1)
    observation = Observation(
        graph=Graph(
            nodes=jnp.asarray(numbers(NODES, spec.node_features) * node_mask[..., None]),
            edges=jnp.asarray(numbers(EDGES, spec.edge_features)),
            senders=alike([0, 1, 2, 3, 4, 0, 0]),
            receivers=alike([1, 2, 3, 4, 0, 2, 3]),
            node_mask=jnp.asarray(node_mask),
            edge_mask=jnp.asarray(truths(EDGES)),
            globals=jnp.asarray(numbers(1, spec.global_features)[..., 0, :]),
        ),
        slots=jnp.asarray(numbers(SLOTS, spec.slot_features) * usable[..., None]),
        slot_owner=alike([0, 2, 5]),
        action_mask=jnp.asarray(mask),
        first=jnp.asarray(truths()),
        births=jnp.asarray(truths(NODES) & node_mask),
    )
    if spec.action == "discrete":
        return observation, jnp.asarray(rng.integers(0, spec.action_size, (*lead, SLOTS)), jnp.int32)
    return observation, jnp.asarray(rng.integers(-8, 8, (*lead, SLOTS, spec.action_size)) / 8, jnp.float32)
