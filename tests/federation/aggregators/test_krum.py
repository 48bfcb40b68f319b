import numpy as np
import pytest
from stacks import AGENTS, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.krum import Krum, MultiKrum


def scores(rows: np.ndarray, byzantine: int) -> np.ndarray:
    """Sum of squared distances to the `n - f - 2` nearest others, one agent at a time."""
    result = []
    for one, row in enumerate(rows):
        squares = ((np.delete(rows, one, 0).astype(float) - row) ** 2).sum(1)
        result.append(np.sort(squares)[: len(rows) - byzantine - 2].sum())
    return np.array(result)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("byzantine", [1, 2])
def test_against_numpy(seed, byzantine):
    updates = draw(seed)
    # at least f + 4 present: with a single neighbour counted, the two of the closest pair would tie
    present = np.arange(AGENTS) != seed if byzantine < 2 else np.ones(AGENTS, bool)
    rows, score = updates[present], scores(updates[present], byzantine)
    np.testing.assert_array_equal(apply(Krum(byzantine), updates, present)[0], rows[score.argmin()])
    weights = present * (1.0 + np.arange(AGENTS))
    best = np.argsort(score)[: len(rows) - byzantine - 2]
    expected = np.average(rows[best], axis=0, weights=weights[present][best])
    np.testing.assert_allclose(apply(MultiKrum(byzantine), updates, weights)[0], expected, atol=1e-5)


@pytest.mark.parametrize("present", range(1, AGENTS + 1))
def test_krum_returns_one_of_the_inputs_however_few(present):
    updates = draw(present)
    update, _, _ = apply(Krum(2), updates, np.arange(AGENTS) < present)
    assert any((update == row).all() for row in updates[:present])


def test_colluders_are_not_chosen():
    updates = draw(0)
    updates[:2] = 50.0  # close to each other, but Krum counts three neighbours
    chosen, _, _ = apply(Krum(2), updates)
    assert any((chosen == row).all() for row in updates[2:])
    assert (apply(MultiKrum(2), updates)[0] < updates[2:].max(0) + 1e-5).all()


def test_tolerance_needs_two_f_and_three():
    assert [Krum(3).tolerance(senders) for senders in (0, 2, 5, 8, 9, 20)] == [0, 0, 1, 2, 3, 3]
