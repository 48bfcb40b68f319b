import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stacks import AGENTS, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.mean import Mean


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.lists(st.floats(0.0, 10.0), min_size=AGENTS, max_size=AGENTS).filter(any))
def test_weighted_mean(seed, weights):
    if sum(weights) < 1e-30:
        return
    updates = draw(seed)
    expected = np.average(updates, axis=0, weights=weights)
    np.testing.assert_allclose(apply(Mean(), updates, weights)[0], expected, atol=1e-5)


def test_one_sender_moves_it_anywhere():
    updates = draw(0)
    updates[3] = 7e6
    assert apply(Mean(), updates)[0] == pytest.approx(1e6, rel=1e-3)
    assert Mean().tolerance(100) == 0
