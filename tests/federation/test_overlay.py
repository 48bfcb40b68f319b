"""Links and mixing weights of every overlay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.federation.overlay import OVERLAYS as REGISTERED
from dynamic_graph_fed_rl.federation.overlay import (
    Complete,
    DirectedRandom,
    Given,
    Overlay,
    RandomRegular,
    Ring,
    build,
    read_overlay,
)

# a new overlay is a row here
PATH = np.eye(7, k=1, dtype=bool) | np.eye(7, k=-1, dtype=bool)
ONE_WAY = np.eye(7, k=1, dtype=bool) | np.eye(7, k=-6, dtype=bool) | np.eye(7, k=3, dtype=bool)
OVERLAYS: dict[str, Overlay] = {
    "complete": Complete(7),
    "ring": Ring(7),
    "random": RandomRegular(7, 4),
    "directed-random": DirectedRandom(7, 2),
    "given-mutual": Given(PATH),
    "given-directed": Given(ONE_WAY),
}


def test_every_overlay_of_the_registry_is_tested():
    assert set(REGISTERED) <= set(OVERLAYS)


@pytest.mark.parametrize(
    ("name", "agents", "degree", "expected"),
    [("complete", 5, 2, 5), ("ring", 5, 4, 3), ("ring", 2, 2, 2), ("ring", 1, 2, 1), ("random", 9, 4, 5)]
    + [("random", 4, 6, 4), ("directed-random", 9, 3, 4), ("directed-random", 3, 6, 3)],
)
def test_fewest_heard(name, agents, degree, expected):
    assert build(name, agents, degree).fewest_heard() == expected


def test_fewest_heard_of_a_given_overlay():
    assert OVERLAYS["given-mutual"].fewest_heard() == 2
    assert OVERLAYS["given-directed"].fewest_heard() == 1 + ONE_WAY.sum(1).min()


@pytest.mark.parametrize("name", OVERLAYS)
def test_sums_of_mixing_weights(name):
    """Rows and columns sum to 1 where hearing is mutual, columns alone on a directed overlay."""
    overlay = OVERLAYS[name]
    for seed in range(3):
        matrix = np.asarray(overlay.links(jax.random.key(seed)).matrix())
        assert (matrix >= 0).all() and (np.diag(matrix) > 0).all()
        np.testing.assert_allclose(matrix.sum(0), 1.0, atol=1e-6)
        if not overlay.directed:
            np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)


@given(st.integers(0, 1000), st.floats(0.0, 1.0))
def test_lost_links_keep_the_sums(seed, up):
    rng = np.random.default_rng(seed)
    for overlay in OVERLAYS.values():
        links = overlay.links(jax.random.key(seed))
        down = rng.random(links.senders.shape) > up
        if not overlay.directed:
            # both directions of a mutual link fail together
            dead = np.asarray(links.matrix()) * 0
            dead[np.arange(7)[:, None], links.senders] = down
            dead = np.minimum(dead, dead.T)
            down = dead[np.arange(7)[:, None], np.asarray(links.senders)] > 0
        kept = np.asarray(links.among(jnp.asarray(~down), overlay.directed).matrix())
        np.testing.assert_allclose(kept.sum(0), 1.0, atol=1e-5)
        if not overlay.directed:
            np.testing.assert_allclose(kept.sum(1), 1.0, atol=1e-5)
        receivers = np.broadcast_to(np.arange(7)[:, None], down.shape)
        gone = down & (np.asarray(links.weights) > 0)
        assert (kept[receivers[gone], np.asarray(links.senders)[gone]] == 0).all()


def test_neighbours_on_a_ring():
    matrix = np.asarray(Ring(5).links(jax.random.key(0)).matrix())
    for agent in range(5):
        assert set(np.flatnonzero(matrix[agent])) == {agent, (agent + 1) % 5, (agent - 1) % 5}
    np.testing.assert_allclose(matrix[matrix > 0], 1 / 3, rtol=1e-6)


@pytest.mark.parametrize("agents", [1, 2, 3])
@pytest.mark.parametrize("kind", [Complete, Ring, RandomRegular, DirectedRandom])
def test_few_agents_all_hear_each_other(kind, agents):
    matrix = np.asarray(kind(agents).links(jax.random.key(0)).matrix())
    np.testing.assert_allclose(matrix, 1.0 / agents, rtol=1e-6)


def test_random_overlays_have_their_degree_and_change():
    for overlay in (RandomRegular(12, 4), DirectedRandom(12, 4)):
        drawn = np.stack([overlay.links(jax.random.key(seed)).matrix() for seed in range(4)])
        assert ((drawn > 0).sum(-1) == 5).all()
        assert (drawn[0] != drawn[1]).any()


def test_ten_thousand_agents_cost_links_not_pairs():
    links = jax.eval_shape(RandomRegular(10_000, 4).links, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(links)) < 100_000


def test_components_of_given_overlays():
    assert OVERLAYS["given-mutual"].components() == [list(range(7))]
    split = PATH.copy()
    split[3, 4] = split[4, 3] = False
    assert sorted(Given(split).components()) == [[0, 1, 2, 3], [4, 5, 6]]
    # everybody hears the first, who hears nobody: it never learns of the others
    star = np.zeros((4, 4), bool)
    star[1:, 0] = True
    assert len(Given(star).components()) == 4


def test_an_overlay_from_a_file(tmp_path):
    path = tmp_path / "overlay.csv"
    np.savetxt(path, PATH.astype(int), fmt="%d", delimiter=",")
    overlay = read_overlay(path, 7)
    np.testing.assert_array_equal(
        np.asarray(overlay.links(jax.random.key(0)).matrix()) > 0, PATH | np.eye(7, dtype=bool)
    )
    with pytest.raises(ValueError, match=r"overlay.csv: must hold 5 lines of 5 zeros and ones"):
        read_overlay(path, 5)
    path.write_text("0,one\n1,0\n")
    with pytest.raises(ValueError, match=r"overlay.csv: must hold 2 lines"):
        read_overlay(path, 2)
