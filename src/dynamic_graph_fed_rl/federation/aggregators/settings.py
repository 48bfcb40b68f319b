"""Options of the aggregation rules. No jax import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AggregatorSettings:
    """Which rule turns the received updates into one, and what it is told."""

    aggregator: str = "mean"
    """Rule: mean, trust, median, trimmed-mean, krum, multi-krum, geometric-median, centred-clipping,
    self-centred-clipping and self-paced-clipping (gossip) or majority."""
    assumed_byzantine: int = 0
    """Byzantine senders the rule is to bear: what the trimmed mean cuts at either end, Krum's f, and how many
    an adaptive clipping radius leaves outside."""
    trust_alpha: float = 0.5
    """Share of its own parameters that the receiver keeps under trust."""
    clip_radius: float = 0.0
    """Radius of centred and self-centred clipping; 0: the distance of the nearest all but assumed-byzantine."""
    pace: float = 0.5
    """Radius of self-paced clipping over what an agent has learned since its last exchange."""
    clip_norm: float = 0.0
    """Before any rule, scale every update down to this length; 0: leave them."""
    bucket: int = 1
    """Before any rule, average random buckets of this many senders; 1: none."""
