"""Observations as worse sensors would have given them: edges and nodes that fall silent, noise, delay."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.augmentation.augmenter import GraphAugmenter

__all__ = ["GraphAugmenter"]


def __getattr__(name: str) -> Any:
    # settings of this package are read without jax
    if name == "GraphAugmenter":
        from dynamic_graph_fed_rl.augmentation.augmenter import GraphAugmenter

        return GraphAugmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
