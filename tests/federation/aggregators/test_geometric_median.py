import numpy as np
import pytest
from stacks import AGENTS, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.geometric_median import GeometricMedian


def weiszfeld(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Plain Weiszfeld in double precision, long past convergence."""
    rows = rows.astype(float)
    point = np.average(rows, axis=0, weights=weights)
    for _ in range(3000):
        pull = weights / np.maximum(np.linalg.norm(rows - point, axis=1), 1e-12)
        point = pull @ rows / pull.sum()
    return point


@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_against_a_long_weiszfeld(seed, outlier):
    updates = draw(seed)
    updates[0] *= outlier
    weights = np.random.default_rng(seed).uniform(0.5, 2.0, AGENTS)
    np.testing.assert_allclose(apply(GeometricMedian(), updates, weights)[0], weiszfeld(updates, weights), atol=2e-4)


def test_a_point_with_half_of_the_weight_is_the_median():
    updates = draw(4)
    updates[1:4] = updates[0]
    # to within the distance that float32 inner products can tell from 0
    np.testing.assert_allclose(apply(GeometricMedian(), updates)[0], updates[0], atol=5e-3)


@pytest.mark.parametrize("distance", [1e4, 1e9, 1e14])
def test_colluders_just_short_of_half_pull_no_more_than_one_step(distance):
    honest = draw(5)[3:]
    updates = np.concatenate([np.full((3, honest.shape[1]), distance, np.float32), honest])
    update, _, _ = apply(GeometricMedian(), updates)
    assert np.linalg.norm(update - honest.mean(0)) < 3 * np.linalg.norm(honest - honest.mean(0), axis=1).max()
