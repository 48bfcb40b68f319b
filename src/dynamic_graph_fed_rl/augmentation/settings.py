"""What a user may set about augmentation; no jax import, so that the command line stays quick."""

from collections.abc import Sequence
from dataclasses import dataclass

STRATEGIES = {
    "temporal_shift": "the whole observation is late: that of the decision before, within an episode",
    "node_feature_noise": "a node's features are noisy",
    "node_dropout": "a node is silent: its features and those of its slots are 0",
    "edge_dropout": "an edge is silent: its features are 0 and it is not there",
}
"""By name, in the order in which they are applied."""


@dataclass(frozen=True)
class AugmentationSettings:
    """Learning to act alike with and without good sensors (Raileanu et al. 2021)."""

    augmentation_weight: float = 0.0
    """Weight of acting and valuing alike when the observation is augmented; 0: off (0.1 is usual)."""
    augment: tuple[str, ...] = tuple(STRATEGIES)
    """How observations are augmented: temporal_shift, node_feature_noise, node_dropout, edge_dropout."""
    augmentation_probability: float = 0.1
    """Probability, each on its own, that an observation is late, a node noisy or silent, an edge silent."""
    augmentation_noise: float = 0.1
    """Standard deviation of noise on node features, in spreads of the feature in the batch."""
    critical_edge: str | None = None
    """Edge feature that says how critical an edge is, such as the grid's loading; edges above the threshold are
    never silent."""
    critical_threshold: float = 0.9
    """Magnitude of that feature above which an edge is critical."""

    def check_augmentation(self) -> None:
        """
        Raises:
            ValueError: naming the setting, its value, and what would be right.
        """
        if self.augmentation_weight < 0:
            raise ValueError(f"augmentation_weight {self.augmentation_weight}: must be at least 0")
        check_augmentation(self.augment, self.augmentation_probability, self.augmentation_noise)


def check_augmentation(strategies: Sequence[str], probability: float, noise: float) -> None:
    """
    Raises:
        ValueError: an unknown strategy, none at all, a probability that is none, or negative noise.
    """
    if isinstance(strategies, str) or not strategies:
        raise ValueError(f"augment {strategies!r}: at least one of {', '.join(STRATEGIES)}, in a list")
    for name in strategies:
        if name not in STRATEGIES:
            raise ValueError(f"augment '{name}': unknown; known: {', '.join(STRATEGIES)}")
    if not 0 <= probability <= 1:
        raise ValueError(f"augmentation_probability {probability}: must be within 0 and 1")
    if noise < 0:
        raise ValueError(f"augmentation_noise {noise}: must be at least 0")


def critical_column(name: str | None, edge_features: Sequence[str]) -> int | None:
    """Where the feature that says how critical an edge is stands among those of an edge; None if there is to be none.

    Raises:
        ValueError: it is not among them.
    """
    if name is None:
        return None
    if name not in edge_features:
        known = ", ".join(edge_features) or "none, since edges have no features"
        raise ValueError(f"critical_edge '{name}': unknown edge feature; known: {known}")
    return list(edge_features).index(name)
