"""Recurrent units against a NumPy loop over their definitions, in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

from dynamic_graph_fed_rl.models.layers import Affine
from dynamic_graph_fed_rl.models.recurrent import LONGEST_SCALE, GRUCell, MinGRUCell, chrono_bias

INPUTS, WIDTH, STEPS = 3, 5, 20


def apply(layer: Affine, x: np.ndarray) -> np.ndarray:
    return x @ np.asarray(layer.weight, np.float64) + np.asarray(layer.bias, np.float64)


def gru(cell: GRUCell, x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    reset_x, keep_x, new_x = np.split(apply(cell.inputs, x), 3)
    reset_h, keep_h, new_h = np.split(apply(cell.hidden, hidden), 3)
    keep = expit(keep_x + keep_h)
    return keep * hidden + (1 - keep) * np.tanh(new_x + expit(reset_x + reset_h) * new_h)


def minimal_gru(cell: MinGRUCell, x: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    keep = expit(apply(cell.keep, x))
    return keep * hidden + (1 - keep) * apply(cell.new, x)


@pytest.mark.parametrize(("kind", "definition"), [(GRUCell, gru), (MinGRUCell, minimal_gru)])
def test_against_the_definition(kind, definition):
    cell, rng = kind(jax.random.key(0), INPUTS, WIDTH), np.random.default_rng(0)
    ours, theirs = jnp.zeros(WIDTH), np.zeros(WIDTH)
    for _ in range(STEPS):
        x = rng.normal(size=INPUTS)
        ours, theirs = cell(jnp.asarray(x, jnp.float32), ours), definition(cell, x, theirs)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_at_the_start_units_forget_over_all_time_scales():
    """A unit that keeps with `1 - 1/tau` forgets over tau steps; tau is uniform from 2 to the longest scale."""
    scales = 1 / (1 - expit(np.asarray(chrono_bias(jax.random.key(0), 4000), np.float64)))
    assert scales.min() >= 2 and scales.max() <= LONGEST_SCALE
    quarters = np.histogram(scales, np.linspace(2, LONGEST_SCALE, 5))[0]
    # five standard errors of a quarter of 4000 draws
    assert np.abs(quarters - 1000).max() < 5 * np.sqrt(4000 * 0.25 * 0.75)
