"""Which parameters travel, by name, also between groups of unlike agents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.federation.sharing import everything, from_vectors, matching, to_vectors


def tree(agents: int, seed: int = 0, actions: int = 2) -> dict:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(agents, *shape)), jnp.float32)  # noqa: E731
    return {"encoder": {"weight": draw(3, 2), "bias": draw(2)}, "actor": draw(2, actions), "critic": draw()}


@given(st.sampled_from(["all", "encoder", "actor|critic", "bias"]), st.integers(1, 4))
def test_there_and_back(pattern, agents):
    groups = [tree(agents), tree(2, seed=1)]
    vectors = to_vectors(groups, matching(pattern))
    assert vectors.shape[0] == agents + 2
    for before, after in zip(groups, from_vectors(vectors, groups, matching(pattern)), strict=True):
        jax.tree.map(np.testing.assert_array_equal, before, after)


def test_only_what_is_chosen_changes():
    before = tree(3)
    chosen = matching("encoder")
    after = from_vectors(to_vectors([before], chosen) * 0, [before], chosen)[0]
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(after["encoder"]))
    np.testing.assert_array_equal(after["actor"], before["actor"])


def test_groups_share_what_they_have_alike():
    groups = [tree(1, actions=2), tree(1, actions=5)]
    assert to_vectors(groups, matching("encoder")).shape == (2, 8)
    with pytest.raises(ValueError, match=r"groups differ in .*actor"):
        to_vectors(groups, everything)


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match=r"matches no parameter; there are .*actor"):
        to_vectors([tree(1)], matching("decoder"))
    with pytest.raises(ValueError, match=r"share '\(': must be all, trunk or a regular expression"):
        matching("(")


def test_the_trunk_is_the_encoder():
    chosen = matching("trunk")
    assert chosen("encoder.layers[0].weight") and chosen("memory.rates")
    assert not chosen("actor.layers[0].weight") and not chosen("critic.nodes.weight")
