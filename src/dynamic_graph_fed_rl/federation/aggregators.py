"""Rules that turn K received updates into one."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree


class Aggregator(eqx.Module):
    """`init` and one pure rule over stacked updates `[K, ...]`; an absent agent has weight 0."""

    @abc.abstractmethod
    def init(self, shared: PyTree) -> PyTree: ...

    @abc.abstractmethod
    def __call__(
        self, updates: PyTree, weights: Float[Array, " K"], state: PyTree, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, dict[str, Float[Array, ""]]]: ...


class Mean(Aggregator):
    """The weighted mean (federated averaging, McMahan et al. 2017)."""

    def init(self, shared: PyTree) -> None:
        return None

    def __call__(
        self, updates: PyTree, weights: Float[Array, " K"], state: None, key: PRNGKeyArray
    ) -> tuple[PyTree, None, dict[str, Float[Array, ""]]]:
        share = weights / jnp.maximum(weights.sum(), 1e-12)

        def mean(leaf: Float[Array, "K *shape"]) -> Float[Array, "*shape"]:
            # a vector-matrix product: far faster on CPU than a reduction over the agent axis
            return (share.astype(leaf.dtype) @ leaf.reshape(leaf.shape[0], -1)).reshape(leaf.shape[1:])

        return jax.tree.map(mean, updates), None, {}


AGGREGATORS = {"mean": Mean}
