import numpy as np
from stacks import apply, draw

from dynamic_graph_fed_rl.federation.aggregators.majority import Majority


def test_signs_by_weight_and_the_median_size():
    updates = draw(0)
    weights = np.array([1, 4, 0, 1, 1, 2, 0.5])
    sizes = np.abs(updates[weights > 0]).mean(1)
    expected = np.sign(weights @ np.sign(updates)) * np.median(sizes)
    np.testing.assert_allclose(apply(Majority(), updates, weights)[0], expected, rtol=1e-5)


def test_a_minority_changes_no_sign_that_the_honest_agree_on_and_not_the_size():
    honest = np.sign(draw(1, 1)[0]) * np.linspace(0.9, 1.1, 4)[:, None]
    updates = np.concatenate([honest, -1e6 * honest[:3]])
    update, _, _ = apply(Majority(), updates)
    np.testing.assert_array_equal(np.sign(update), np.sign(honest[0]))
    assert (np.abs(update) <= 1.1 + 1e-5).all()
