"""The weighted mean."""

from typing import ClassVar

from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator, product, shares


class Mean(Aggregator):
    """Federated averaging (McMahan et al. 2017). A single Byzantine sender moves it anywhere."""

    sees_single_updates: ClassVar[bool] = False

    def __call__(
        self,
        updates: Float[Array, "K P"],
        weights: Float[Array, " K"],
        base: Float[Array, " P"],
        state: PyTree,
        key: PRNGKeyArray,
    ) -> tuple[Float[Array, " P"], PyTree, dict[str, Float[Array, ""]]]:
        return product(shares(weights), updates), state, {}

    def tolerance(self, senders: int) -> int:
        return 0
