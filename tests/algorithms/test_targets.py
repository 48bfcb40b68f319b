"""n-step targets against sums written out row by row."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dynamic_graph_fed_rl.algorithms.targets import n_step, rows_at

DISCOUNT = 0.9


@given(
    seed=st.integers(0, 1000),
    steps=st.integers(1, 4),
    endings=st.lists(
        st.sampled_from(["on", "on", "terminated", "truncated", "no transition"]), min_size=6, max_size=6
    ),
)
def test_n_step_against_sums_by_hand(seed, steps, endings):
    reward = np.random.default_rng(seed).normal(size=6).astype(np.float32)
    ends = {name: np.array([one == name for one in endings]) for name in ("terminated", "truncated", "no transition")}
    column = lambda row: jnp.asarray(row)[:, None]  # noqa: E731
    taken = n_step(
        column(reward),
        column(ends["terminated"]),
        column(ends["truncated"]),
        column(~ends["no transition"]),
        steps,
        DISCOUNT,
    )
    for row in range(6 - steps):
        gain, factor, at = 0.0, 1.0, row
        for _ in range(steps):
            if endings[at] in ("truncated", "no transition"):
                break
            gain += factor * reward[at]
            factor *= DISCOUNT
            at += 1
            if endings[at - 1] == "terminated":
                factor = 0.0
                break
        assert bool(taken.counts[row, 0]) == (at > row)
        if at > row:
            np.testing.assert_allclose(float(taken.gain[row, 0]), gain, atol=1e-6)
            np.testing.assert_allclose(float(taken.factor[row, 0]), factor, atol=1e-6)
            if factor:
                assert int(taken.successor[row, 0]) == at


def test_rows_are_taken_window_by_window():
    values = jnp.arange(12.0).reshape(4, 3)
    index = jnp.array([[0, 1, 2], [3, 3, 0]])
    np.testing.assert_array_equal(rows_at({"x": values}, index)["x"], [[0, 4, 8], [9, 10, 2]])
