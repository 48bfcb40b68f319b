import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean
from stacks import AGENTS, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.order_statistics import Median, TrimmedMean

PRESENT = st.lists(st.booleans(), min_size=AGENTS, max_size=AGENTS).filter(any)
SEED = st.integers(0, 10_000)


@settings(max_examples=25)
@given(SEED, PRESENT)
def test_median_of_the_present(seed, present):
    updates = draw(seed)
    expected = np.median(updates[present], axis=0)
    np.testing.assert_allclose(apply(Median(), updates, 3.0 * np.array(present))[0], expected, atol=1e-6)


@settings(max_examples=25)
@given(SEED, PRESENT)
def test_trimmed_mean_of_the_present(seed, present):
    updates = draw(seed)
    count = sum(present)
    expected = trim_mean(updates[present], min(2, (count - 1) // 2) / count + 1e-9, axis=0)
    np.testing.assert_allclose(apply(TrimmedMean(2), updates, present)[0], expected, atol=1e-6)


@settings(max_examples=25)
@given(SEED, st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3))
def test_fewer_than_half_cannot_leave_the_honest_range(seed, outliers):
    updates = draw(seed)
    honest = updates[3:]
    updates[:3] = np.array(outliers)[:, None]
    for rule in (Median(), TrimmedMean(3)):
        update, _, _ = apply(rule, updates)
        assert (update >= honest.min(0)).all() and (update <= honest.max(0)).all()


def test_half_can():
    updates = draw(0)
    updates[:4] = 1e9
    assert (apply(Median(), updates)[0] > 1e8).all()
    assert (apply(TrimmedMean(2), updates)[0] > 1e8).all()
