import numpy as np
import pytest
from stacks import SIZE, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.trust import Trust


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_formula_on_parameters(alpha):
    base = draw(1, 1)[0]
    parameters = draw(2)
    parameters[3] = -base
    cosine = parameters @ base / np.linalg.norm(parameters, axis=1) / np.linalg.norm(base)
    trust = np.maximum(0, cosine) / np.maximum(0, cosine).sum()
    expected = alpha * base + (1 - alpha) * trust @ parameters
    update, _, info = apply(Trust(alpha), parameters - base, base=base)
    np.testing.assert_allclose(base + update, expected, atol=1e-5)
    assert info["distrusted"] == pytest.approx((cosine <= 0).mean())


def test_nobody_agrees_or_nothing_to_agree_with():
    base = np.ones(SIZE)
    assert not apply(Trust(0.5), np.full((4, SIZE), -3.0), base=base)[0].any()
    updates = draw(3)
    np.testing.assert_allclose(apply(Trust(0.5), updates, base=0 * base)[0], 0.5 * updates.mean(0), atol=1e-6)
