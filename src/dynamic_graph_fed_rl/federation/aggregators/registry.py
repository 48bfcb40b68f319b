"""Every aggregation rule by name, and how settings become one. No jax import before a rule is built."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from dynamic_graph_fed_rl.federation.aggregators.settings import AggregatorSettings

if TYPE_CHECKING:
    from dynamic_graph_fed_rl.federation.aggregators.base import Aggregator

_PACKAGE = "dynamic_graph_fed_rl.federation.aggregators"


@dataclass(frozen=True)
class Entry:
    """A rule: the class `rule` of this package's `module`; `options` maps its fields to those of the settings."""

    help: str
    module: str
    rule: str
    options: Mapping[str, str] = field(default_factory=dict)

    def build(self, settings: AggregatorSettings) -> "Aggregator":
        """The rule alone, without what settings put before it."""
        given = {name: getattr(settings, option) for name, option in self.options.items()}
        return getattr(import_module(f"{_PACKAGE}.{self.module}"), self.rule)(**given)


_BYZANTINE = {"byzantine": "assumed_byzantine"}
_CLIPPING = {"radius": "clip_radius", **_BYZANTINE}

AGGREGATORS: dict[str, Entry] = {
    "mean": Entry("weighted mean (federated averaging); bears no Byzantine sender", "mean", "Mean"),
    "trust": Entry(
        "weights by the cosine to the receiver's parameters; bears no Byzantine sender",
        "trust",
        "Trust",
        {"alpha": "trust_alpha"},
    ),
    "median": Entry("median of every coordinate; bears fewer than half", "order_statistics", "Median"),
    "trimmed-mean": Entry(
        "mean of every coordinate without its extremes; bears fewer than half",
        "order_statistics",
        "TrimmedMean",
        _BYZANTINE,
    ),
    "krum": Entry("the update with the closest company; bears f of 2f + 3", "krum", "Krum", _BYZANTINE),
    "multi-krum": Entry(
        "mean of the updates with the closest company; bears f of 2f + 3", "krum", "MultiKrum", _BYZANTINE
    ),
    "geometric-median": Entry(
        "point of the smallest sum of distances (RFA); bears fewer than half", "geometric_median", "GeometricMedian"
    ),
    "centred-clipping": Entry(
        "mean of what is clipped around the last aggregate; bears fewer than half",
        "clipping",
        "CentredClipping",
        _CLIPPING,
    ),
    "self-centred-clipping": Entry(
        "gossip: mean of differences to oneself, clipped; bears fewer than half",
        "clipping",
        "SelfCentredClipping",
        _CLIPPING,
    ),
    "self-paced-clipping": Entry(
        "gossip: the same, by no more than a share of what one has just learned oneself",
        "clipping",
        "SelfPacedClipping",
        {"pace": "pace", **_BYZANTINE},
    ),
    "majority": Entry("sign of the majority, for the sign codec; bears fewer than half", "majority", "Majority"),
}


def build(settings: AggregatorSettings) -> "Aggregator":
    """The rule with what goes before it: norm clipping of each update, then buckets.

    Raises:
        ValueError: unknown rule, or an option outside its range.
    """
    if settings.aggregator not in AGGREGATORS:
        raise ValueError(f"aggregator '{settings.aggregator}': unknown; known: {', '.join(AGGREGATORS)}")
    if not 0 <= settings.trust_alpha <= 1:
        raise ValueError(f"trust_alpha {settings.trust_alpha}: must be from 0 to 1")
    if settings.bucket < 1:
        raise ValueError(f"bucket {settings.bucket}: must be 1 (no buckets) or more")
    for name in ("assumed_byzantine", "clip_radius", "clip_norm", "pace"):
        if getattr(settings, name) < 0:
            raise ValueError(f"{name} {getattr(settings, name)}: must not be negative")
    rule = AGGREGATORS[settings.aggregator].build(settings)
    if settings.bucket > 1:
        rule = import_module(f"{_PACKAGE}.bucketing").Bucketing(rule, settings.bucket)
    if settings.clip_norm > 0:
        rule = import_module(f"{_PACKAGE}.clipping").NormClipping(rule, settings.clip_norm)
    return rule
