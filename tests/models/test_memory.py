"""The leaky bank against a NumPy loop over its definition."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.graph import Graph
from dynamic_graph_fed_rl.models.memory import LeakyBank

WORLDS, NODES, FEATURES, STEPS = 2, 3, 2, 12


def observation(nodes: np.ndarray, first: np.ndarray, births: np.ndarray) -> Observation:
    worlds = nodes.shape[0]
    return Observation(
        graph=Graph(
            nodes=jnp.asarray(nodes, jnp.float32),
            edges=jnp.zeros((worlds, 0, 0)),
            senders=jnp.zeros((worlds, 0), jnp.int32),
            receivers=jnp.zeros((worlds, 0), jnp.int32),
            node_mask=jnp.ones((worlds, NODES), bool),
            edge_mask=jnp.zeros((worlds, 0), bool),
            globals=jnp.zeros((worlds, 0)),
        ),
        slots=jnp.zeros((worlds, 1, 0)),
        slot_owner=jnp.zeros((worlds, 1), jnp.int32),
        action_mask=jnp.ones((worlds, 1), bool),
        first=jnp.asarray(first),
        births=jnp.asarray(births),
    )


def expected_average(history: np.ndarray, scale: int) -> np.ndarray:
    """Exponentially weighted mean of `[steps, features]`, weights summing to one."""
    weights = (1 - 1 / scale) ** np.arange(len(history))[::-1].astype(np.float64)
    return (weights[:, None] * history).sum(0) / weights.sum()


def test_it_holds_normalised_leaky_means_since_the_birth_of_each_node():
    rng = np.random.default_rng(0)
    bank = LeakyBank()
    values = rng.normal(size=(STEPS, WORLDS, NODES, FEATURES)).astype(np.float32)
    first = np.zeros((STEPS, WORLDS), bool)
    first[0], first[7, 1] = True, True
    births = np.zeros((STEPS, WORLDS, NODES), bool)
    births[4, 0, 2] = births[9, 1, 0] = True
    rows = [observation(values[t], first[t], births[t]) for t in range(STEPS)]
    memory = bank.initial(rows[0])
    for t, row in enumerate(rows):
        memory = bank.remember(memory, row)
        read = np.asarray(bank.read(memory)).reshape(WORLDS, NODES, FEATURES, len(bank.scales))
        for world in range(WORLDS):
            for node in range(NODES):
                began = max(s for s in range(t + 1) if first[s, world] or births[s, world, node])
                history = values[began : t + 1, world, node].astype(np.float64)
                expected = np.stack([expected_average(history, scale) for scale in bank.scales], axis=-1)
                np.testing.assert_allclose(read[world, node], expected, rtol=2e-4, atol=2e-5)


def test_the_width_of_what_is_read_is_known_beforehand():
    bank = LeakyBank(scales=(1, 3))
    row = observation(np.ones((WORLDS, NODES, FEATURES)), np.ones(WORLDS, bool), np.zeros((WORLDS, NODES), bool))
    memory = bank.remember(bank.initial(row), row)
    assert bank.read(memory).shape == (WORLDS, NODES, bank.features(FEATURES))


def test_nothing_of_an_earlier_episode_is_left():
    bank = LeakyBank()
    none = np.zeros((WORLDS, NODES), bool)
    loud = observation(np.full((WORLDS, NODES, FEATURES), 1e6), np.ones(WORLDS, bool), none)
    calm = observation(np.ones((WORLDS, NODES, FEATURES)), np.ones(WORLDS, bool), none)
    memory = bank.initial(loud)
    for _ in range(5):
        memory = bank.remember(memory, eqx.tree_at(lambda o: o.first, loud, jnp.zeros(WORLDS, bool)))
    np.testing.assert_allclose(bank.read(bank.remember(memory, calm)), 1.0, rtol=1e-5)
