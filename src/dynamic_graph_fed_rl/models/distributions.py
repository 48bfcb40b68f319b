"""Action distributions, one independent factor a slot."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray


class Gaussian(eqx.Module):
    """A diagonal normal over the D numbers of each slot."""

    mean: Float[Array, "*batch slots size"]
    log_std: Float[Array, "*batch slots size"]

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*batch slots size"]:
        return self.mean + jnp.exp(self.log_std) * jax.random.normal(key, self.mean.shape)

    def mode(self) -> Float[Array, "*batch slots size"]:
        return self.mean

    def log_prob(self, action: Float[Array, "*batch slots size"]) -> Float[Array, "*batch slots"]:
        z = (action - self.mean) * jnp.exp(-self.log_std)
        return (-0.5 * z**2 - self.log_std - 0.5 * jnp.log(2 * jnp.pi)).sum(-1)

    def entropy(self) -> Float[Array, "*batch slots"]:
        return (self.log_std + 0.5 * jnp.log(2 * jnp.pi * jnp.e)).sum(-1)

    def divergence(self, other: "Gaussian") -> Float[Array, "*batch slots"]:
        """Kullback-Leibler divergence of `other` from this one, KL(self || other)."""
        log_ratio = self.log_std - other.log_std
        z = (self.mean - other.mean) * jnp.exp(-other.log_std)
        return (0.5 * (jnp.exp(2 * log_ratio) + z**2 - 1) - log_ratio).sum(-1)


class SquashedGaussian(eqx.Module):
    """A diagonal normal through tanh, over the D numbers in [-1, 1] of each slot (Haarnoja et al. 2018)."""

    mean: Float[Array, "*batch slots size"]
    log_std: Float[Array, "*batch slots size"]

    def mode(self) -> Float[Array, "*batch slots size"]:
        return jnp.tanh(self.mean)

    def sample(self, key: PRNGKeyArray) -> tuple[Float[Array, "*batch slots size"], Float[Array, "*batch slots"]]:
        """A draw that can be differentiated, and its log-density; from the draw before tanh, as near +-1 the inverse
        of tanh is lost to rounding."""
        z = jax.random.normal(key, self.mean.shape)
        before = self.mean + jnp.exp(self.log_std) * z
        normal = -0.5 * z**2 - self.log_std - 0.5 * jnp.log(2 * jnp.pi)
        # log(1 - tanh(x)^2), without overflow
        slope = 2.0 * (jnp.log(2.0) - before - jax.nn.softplus(-2.0 * before))
        return jnp.tanh(before), (normal - slope).sum(-1)


class Categorical(eqx.Module):
    """A choice among the K allowed options of each slot; forbidden options have probability 0."""

    log_probs: Float[Array, "*batch slots choices"]

    def __init__(self, logits: Float[Array, "*batch slots choices"], mask: Bool[Array, "*batch slots choices"]):
        # a slot with no option at all (padding) falls back to uniform, so that nothing becomes NaN
        usable = mask | ~mask.any(-1, keepdims=True)
        self.log_probs = jax.nn.log_softmax(jnp.where(usable, logits, -1e9))

    def sample(self, key: PRNGKeyArray) -> Int[Array, "*batch slots"]:
        return jax.random.categorical(key, self.log_probs)

    def mode(self) -> Int[Array, "*batch slots"]:
        return jnp.argmax(self.log_probs, axis=-1)

    def log_prob(self, action: Int[Array, "*batch slots"]) -> Float[Array, "*batch slots"]:
        return jnp.take_along_axis(self.log_probs, action[..., None], axis=-1)[..., 0]

    def entropy(self) -> Float[Array, "*batch slots"]:
        return -(jnp.exp(self.log_probs) * self.log_probs).sum(-1)

    def divergence(self, other: "Categorical") -> Float[Array, "*batch slots"]:
        """Kullback-Leibler divergence of `other` from this one, KL(self || other), over the same allowed options."""
        return (jnp.exp(self.log_probs) * (self.log_probs - other.log_probs)).sum(-1)
