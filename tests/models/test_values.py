"""Values of discrete choices against NumPy; masked choices neither count nor are made."""

from dataclasses import replace
from itertools import product

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_policies import NODES, SPEC, random_observation

from dynamic_graph_fed_rl.algorithms.discrete import ChoiceNetworks, decayed, epsilon_greedy
from dynamic_graph_fed_rl.environments.base import Observation
from dynamic_graph_fed_rl.environments.spec import Column
from dynamic_graph_fed_rl.models.values import best, duel, together

CHOICES, SLOTS, BATCH = 3, 4, 5
DISCRETE = replace(SPEC, action="discrete", action_size=CHOICES)


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and masks; some slots have a single choice, some none."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(BATCH, SLOTS, CHOICES)).astype(np.float32)
    return values, rng.random(values.shape) < rng.choice([0.2, 0.5, 1.0])


@given(st.integers(0, 10_000))
def test_the_best_choices_together_are_the_best_of_all_allowed_ones(seed):
    """Against every joint choice there is: what is masked is never chosen, and the mean over slots is the agent's
    value, so that the best choice of each slot is the best of the agent."""
    values, allowed = drawn(seed)
    chosen = np.asarray(best(jnp.asarray(values), jnp.asarray(allowed)))
    found = np.asarray(together(jnp.asarray(values), jnp.asarray(chosen), jnp.asarray(allowed)))
    for row in range(BATCH):
        usable = [slot for slot in range(SLOTS) if allowed[row, slot].any()]
        assert all(allowed[row, slot, chosen[row, slot]] for slot in usable)
        options = product(*(np.flatnonzero(allowed[row, slot]) for slot in usable))
        worth = max(
            np.mean([values[row, s, c] for s, c in zip(usable, each, strict=True)] or [0.0]) for each in options
        )
        assert found[row] == pytest.approx(worth, abs=1e-6)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 1.0]))
def test_exploration_keeps_to_the_mask(seed, epsilon):
    values, allowed = drawn(seed)
    choice = np.asarray(epsilon_greedy(jax.random.key(seed), jnp.asarray(values), jnp.asarray(allowed), epsilon))
    usable = allowed.any(-1)
    taken = np.take_along_axis(allowed, choice[..., None], -1)[..., 0]
    assert (taken | ~usable).all()
    if epsilon == 0:
        np.testing.assert_array_equal(choice, best(jnp.asarray(values), jnp.asarray(allowed)))


def test_epsilon_is_the_share_of_choices_drawn_at_random():
    values = jnp.tile(jnp.asarray([0.0, 1.0, 0.0]), (4000, 2, 1))
    allowed = jnp.tile(jnp.asarray([True, True, False]), (4000, 2, 1))
    choice = np.asarray(epsilon_greedy(jax.random.key(0), values, allowed, 0.4))
    # half of the draws among two choices hit the best one
    assert (choice == 0).mean() == pytest.approx(0.2, abs=0.02)
    # slots explore by themselves
    assert np.corrcoef(choice.T)[0, 1] == pytest.approx(0.0, abs=0.06)


def test_epsilon_falls_linearly_and_stays():
    progress = jnp.asarray([0.0, 0.1, 0.2, 0.4, 0.9])
    found = decayed(jnp.asarray(0.9), jnp.asarray(0.1), jnp.asarray(0.4), progress)
    np.testing.assert_allclose(found, [0.9, 0.7, 0.5, 0.1, 0.1], atol=1e-6)


@given(st.integers(0, 10_000))
def test_dueling_splits_value_and_advantage_of_what_is_allowed(seed):
    """Wang et al. 2016, equation 9; the mean of the allowed values is the slot's own."""
    advantage, allowed = drawn(seed)
    value = np.random.default_rng(seed + 1).normal(size=(BATCH, SLOTS)).astype(np.float32)
    found = np.asarray(duel(jnp.asarray(value), jnp.asarray(advantage), jnp.asarray(allowed)))
    for row, slot in np.argwhere(allowed.any(-1)):
        mask = allowed[row, slot]
        own = advantage[row, slot] - advantage[row, slot][mask].mean()
        np.testing.assert_allclose(found[row, slot], value[row, slot] + own, atol=1e-6)


@pytest.fixture(scope="module", params=[(False, False), (True, True)], ids=["plain", "dueling and normalised"])
def networks(request) -> ChoiceNetworks:
    dueling, layer_norm = request.param
    made = ChoiceNetworks(jax.random.key(0), DISCRETE, 8, 2, "edge-gated", None, dueling, layer_norm)
    # the small last layer would hide differences
    last = lambda one: one.values.network.head.layers[-1].weight  # noqa: E731
    return eqx.tree_at(last, made, replace_fn=lambda weight: 100.0 * weight)


@eqx.filter_jit
def valued(networks, observation):
    memory = networks.memory.remember(networks.memory.initial(observation), observation)
    return networks(memory, observation)


def test_values_do_not_depend_on_what_a_missing_node_or_a_forbidden_choice_holds(networks):
    observation = random_observation(0)
    # in world 1 the last node is not there; in dueling networks the mask is part of the value
    allowed = jnp.asarray(np.random.default_rng(0).random((3, SLOTS, CHOICES)) < 0.7)
    observation = eqx.tree_at(lambda one: one.action_mask, observation, allowed)
    values = valued(networks, observation)
    assert values.shape == (3, SLOTS, CHOICES)
    assert values.std() > 0.1
    other = eqx.tree_at(lambda one: one.graph.nodes, observation, observation.graph.nodes.at[1, NODES - 1].set(9.0))
    np.testing.assert_allclose(valued(networks, other), values, atol=1e-5)


def test_layer_norm_is_there_before_every_activation():
    """Activations of the embedding and of the head do not change with the scale of their weights."""
    made = ChoiceNetworks(jax.random.key(0), DISCRETE, 8, 1, "edge-gated", "none", False, True)
    network = made.values.network
    weights = lambda one: (  # noqa: E731
        one.values.network.encoder.embed_node.weight,
        one.values.network.encoder.embed_globals.weight,
        one.values.network.head.layers[0].weight,
    )
    scaled = eqx.tree_at(weights, made, replace_fn=lambda weight: 50.0 * weight)
    assert network.encoder.norm is not None
    observation = random_observation(1)
    observation = eqx.tree_at(lambda one: one.action_mask, observation, jnp.ones((3, SLOTS, CHOICES), bool))
    np.testing.assert_allclose(valued(scaled, observation), valued(made, observation), atol=1e-4)


ALIKE = replace(
    DISCRETE,
    slot_features=tuple(Column(f"choice{k}_{name}") for k in range(CHOICES) for name in "ab"),
    choice_features=(Column("a"), Column("b")),
)


@pytest.mark.parametrize("dueling", [False, True])
def test_choices_that_are_scored_alike_may_come_in_any_order_and_number(dueling):
    made = ChoiceNetworks(jax.random.key(0), ALIKE, 8, 2, "edge-gated", None, dueling, False)
    weights = lambda one: (one.values.network.head.layers[-1].weight, one.values.network.direct.weight)  # noqa: E731
    made = eqx.tree_at(weights, made, replace_fn=lambda weight: 100.0 * weight + 0.5)
    rng = np.random.default_rng(0)
    own = jnp.asarray(rng.normal(size=(3, SLOTS, CHOICES, 2)), jnp.float32)
    # where the last is forbidden, it is as if it were not there
    allowed = jnp.asarray(rng.random((3, SLOTS, CHOICES)) < 0.7).at[0, :, 2].set(False)

    def seen(order: list[int]) -> Observation:
        columns = own[:, :, jnp.asarray(order)].reshape(3, SLOTS, -1)
        fields = lambda one: (one.slots, one.action_mask)  # noqa: E731
        return eqx.tree_at(fields, random_observation(0), (columns, allowed[..., jnp.asarray(order)]))

    straight, turned, fewer = (valued(made, seen(order)) for order in ([0, 1, 2], [2, 0, 1], [0, 1]))
    assert straight.std() > 0.1
    np.testing.assert_allclose(turned, straight[..., jnp.asarray([2, 0, 1])], atol=1e-5)
    np.testing.assert_allclose(fewer[0], straight[0, ..., :2], atol=1e-5)
