"""Affine maps over any batch shape, and the initialisation that policy gradients like."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


class Affine(eqx.Module):
    """`x @ weight + bias` over any leading axes; orthogonal weight of the given gain, zero bias."""

    weight: Float[Array, "inputs outputs"]
    bias: Float[Array, " outputs"]

    def __init__(self, key: PRNGKeyArray, inputs: int, outputs: int, gain: float = 2**0.5):
        shape = (inputs, outputs)
        self.weight = jax.nn.initializers.orthogonal(gain)(key, shape) if inputs else jnp.zeros(shape)
        self.bias = jnp.zeros(outputs)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return x @ self.weight + self.bias


class LayerNorm(eqx.Module):
    """Layer normalisation over the last axis (Ba et al. 2016)."""

    scale: Float[Array, " width"]
    shift: Float[Array, " width"]

    def __init__(self, width: int):
        self.scale, self.shift = jnp.ones(width), jnp.zeros(width)

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        centred = x - x.mean(-1, keepdims=True)
        deviation = jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return centred * deviation * self.scale + self.shift


class Perceptron(eqx.Module):
    """Affine layers with tanh between them, normalised before it if so wished; the last is linear, with a gain of
    its own."""

    layers: tuple[Affine, ...]
    norms: tuple[LayerNorm, ...] | None

    def __init__(self, key: PRNGKeyArray, sizes: tuple[int, ...], last_gain: float = 1.0, layer_norm: bool = False):
        keys = jax.random.split(key, len(sizes) - 1)
        gains = (2**0.5,) * (len(sizes) - 2) + (last_gain,)
        self.layers = tuple(
            Affine(k, a, b, gain) for k, a, b, gain in zip(keys, sizes[:-1], sizes[1:], gains, strict=True)
        )
        self.norms = tuple(LayerNorm(size) for size in sizes[1:-1]) if layer_norm else None

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        for i, layer in enumerate(self.layers[:-1]):
            x = layer(x)
            x = jnp.tanh(x if self.norms is None else self.norms[i](x))
        return self.layers[-1](x)
