"""Action distributions against scipy."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special, stats

from dynamic_graph_fed_rl.models.distributions import Categorical, Gaussian


@given(st.integers(0, 10_000))
def test_gaussian_against_scipy(seed):
    rng = np.random.default_rng(seed)
    mean, log_std = rng.normal(size=(2, 3, 2)), rng.normal(size=(2, 3, 2)) - 1
    action = mean + rng.normal(size=(2, 3, 2)) * np.exp(log_std)
    distribution = Gaussian(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))
    oracle = stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(
        distribution.log_prob(jnp.asarray(action, jnp.float32)), oracle.logpdf(action).sum(-1), rtol=1e-3, atol=1e-3
    )
    np.testing.assert_allclose(distribution.entropy(), oracle.entropy().sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(distribution.mode(), distribution.mean)


def test_gaussian_samples_have_its_moments():
    distribution = Gaussian(jnp.full((20_000, 1, 1), 2.0), jnp.full((20_000, 1, 1), np.log(0.5)))
    sample = np.asarray(distribution.sample(jax.random.key(0)))
    # five standard errors of 20,000 draws
    assert abs(sample.mean() - 2.0) < 5 * 0.5 / np.sqrt(20_000)
    assert abs(sample.std() - 0.5) < 5 * 0.5 / np.sqrt(40_000)


@given(st.integers(0, 10_000))
def test_categorical_against_scipy(seed):
    rng = np.random.default_rng(seed)
    logits, mask = rng.normal(size=(3, 2, 4)), rng.random((3, 2, 4)) < 0.6
    mask[..., 0] |= ~mask.any(-1)
    distribution = Categorical(jnp.asarray(logits, jnp.float32), jnp.asarray(mask))
    expected = special.softmax(np.where(mask, logits, -np.inf), axis=-1)
    probability = np.exp(distribution.log_probs)
    np.testing.assert_allclose(probability, expected, rtol=1e-5, atol=1e-7)
    assert (probability[~mask] == 0).all()
    np.testing.assert_allclose(distribution.entropy(), stats.entropy(expected, axis=-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(distribution.mode(), expected.argmax(-1))
    action = distribution.sample(jax.random.key(seed))
    assert np.take_along_axis(mask, np.asarray(action)[..., None], axis=-1).all()
    np.testing.assert_allclose(
        distribution.log_prob(action),
        np.log(np.take_along_axis(expected, np.asarray(action)[..., None], axis=-1)[..., 0]),
        rtol=1e-4,
        atol=1e-5,
    )


def test_a_slot_without_options_stays_finite_with_its_gradient():
    def entropy(logits):
        return Categorical(logits, jnp.zeros((1, 3), bool)).entropy().sum()

    value, gradient = jax.value_and_grad(entropy)(jnp.asarray([[1.0, 2.0, 3.0]]))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@given(st.integers(0, 10_000))
def test_gaussian_divergence_against_numerical_integration(seed):
    rng = np.random.default_rng(seed)
    mean, log_std = rng.normal(size=(2, 2, 2)), 0.5 * rng.normal(size=(2, 2, 2)) - 1
    one, other = (Gaussian(*(jnp.asarray(part[i], jnp.float32) for part in (mean, log_std))) for i in (0, 1))
    p, q = (stats.norm(mean[i][..., None], np.exp(log_std[i])[..., None]) for i in (0, 1))
    grid = mean[0][..., None] + np.linspace(-10, 10, 20_001) * np.exp(log_std[0])[..., None]
    integral = integrate.trapezoid(p.pdf(grid) * (p.logpdf(grid) - q.logpdf(grid)), grid).sum(-1)
    np.testing.assert_allclose(one.divergence(other), integral, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.divergence(one), 0)


@given(st.integers(0, 10_000))
def test_categorical_divergence_against_scipy(seed):
    rng = np.random.default_rng(seed)
    logits, mask = rng.normal(size=(2, 3, 2, 4)), rng.random((3, 2, 4)) < 0.6
    mask[..., 0] |= ~mask.any(-1)
    one, other = (Categorical(jnp.asarray(part, jnp.float32), jnp.asarray(mask)) for part in logits)
    p, q = (special.softmax(np.where(mask, part, -np.inf), axis=-1) for part in logits)
    np.testing.assert_allclose(one.divergence(other), special.rel_entr(p, q).sum(-1), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.divergence(one), 0)
