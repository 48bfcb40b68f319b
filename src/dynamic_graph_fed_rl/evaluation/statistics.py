"""Interquartile means, bootstrap intervals, paired differences and the score.

The estimators are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical
Precipice" (NeurIPS 2021): the mean of the middle half of the seeds, with a percentile bootstrap interval.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

POLICY = "policy"
DO_NOTHING = "do-nothing"
NO_CANDIDATES = (POLICY, "dc-opf")
"""Controllers that are never "the best baseline": what is being judged, and a reference that no operator
has (an optimal power flow that knows the model perfectly)."""

SMALLEST_GAP = 0.01
"""Share of do-nothing's value under which the best baseline is no yardstick: scores would divide by noise."""

Statistic = Callable[..., Any]
"""`statistic(values[..., n], axis=-1) -> [...]`."""


def interquartile_mean(values: ArrayLike, axis: int = -1) -> Any:
    """Mean of the values left after dropping `floor(n / 4)` at each end; `[..., n] -> [...]`.

    Raises `ValueError` for no values or for one that is not finite.
    """
    from scipy.stats import trim_mean

    array = _finite(values)
    return trim_mean(array, 0.25, axis=axis)


def bootstrap_interval(
    values: ArrayLike,
    statistic: Statistic = interquartile_mean,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over `values [n]`, in the unit of the values.

    One value gives `(value, value)`: it holds no information about its spread, so a reader has to look at the
    number of seeds (the report says so below five).
    """
    array = _finite(values)
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence}: must lie between 0 and 1, such as 0.95")
    if array.size == 1:
        return float(array[0]), float(array[0])
    return _percentile_bootstrap((array,), statistic, confidence, resamples, seed)


def summarise(values: ArrayLike) -> dict[str, Any]:
    """`{"iqm", "low", "high", "values"}` of one number a seed, ready for JSON.

    A metric that is undefined on some seed (NaN, infinite) has no mean: `iqm`, `low` and `high` are `None`,
    and so is that seed's entry in `values`.
    """
    array = np.asarray(values, dtype=float).reshape(-1)
    listed = [float(value) if math.isfinite(value) else None for value in array]
    if None in listed:
        return {"iqm": None, "low": None, "high": None, "values": listed}
    low, high = bootstrap_interval(array)
    return {"iqm": float(interquartile_mean(array)), "low": low, "high": high, "values": listed}


def paired_difference(a: ArrayLike, b: ArrayLike) -> dict[str, Any]:
    """`summarise(a - b)` for two controllers, `a [n]` and `b [n]`, on the same seeds in the same order."""
    first, second = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if first.shape != second.shape:
        raise ValueError(
            f"paired difference of {first.size} and {second.size} values: both must have one value for each "
            "of the same seeds"
        )
    return summarise(first - second)


def best_baseline(
    cost: Mapping[str, ArrayLike],
    exclude: Sequence[str] = NO_CANDIDATES,
    lower_is_better: bool = True,
) -> str | None:
    """The controller not in `exclude` with the best interquartile mean; `None` if there is none."""
    sign = 1.0 if lower_is_better else -1.0
    candidates = {name: sign * float(interquartile_mean(cost[name])) for name in cost if name not in exclude}
    return min(candidates, key=candidates.__getitem__) if candidates else None


def score_undefined_because(
    cost: Mapping[str, ArrayLike],
    worst: str = DO_NOTHING,
    exclude: Sequence[str] = NO_CANDIDATES,
    lower_is_better: bool = True,
) -> str | None:
    """Why there is no score among these controllers, in a sentence; `None` where there is one."""
    if worst not in cost:
        return f"there is no '{worst}' to measure from (controllers: {', '.join(cost)})"
    best = best_baseline(cost, exclude, lower_is_better)
    if best is None:
        return f"there is no baseline besides {', '.join(exclude)}"
    reference = float(interquartile_mean(cost[worst]))
    gap = abs(reference - float(interquartile_mean(cost[best])))
    if gap < SMALLEST_GAP * abs(reference) or gap == 0.0:
        share = gap / abs(reference) if reference else 0.0
        return (
            f"the best baseline ({best}) is only {100 * share:.2g} % better than {worst}, "
            f"less than the {100 * SMALLEST_GAP:.0f} % that a score needs"
        )
    return None


def score(
    cost: Mapping[str, ArrayLike],
    worst: str = DO_NOTHING,
    exclude: Sequence[str] = NO_CANDIDATES,
    lower_is_better: bool = True,
) -> dict[str, float | None]:
    """`100 (J_worst - J) / (J_worst - J_best)` of every controller: 0 is `worst`, 100 the best baseline.

    `cost` maps a controller to its headline metric, one value a seed; J is the interquartile mean. All are
    `None` where that is undefined; `score_undefined_because` says why.
    """
    best = best_baseline(cost, exclude, lower_is_better)
    if best is None or score_undefined_because(cost, worst, exclude, lower_is_better):
        return dict.fromkeys(cost)
    mean = {name: float(interquartile_mean(values)) for name, values in cost.items()}
    return {name: 100.0 * (mean[worst] - mean[name]) / (mean[worst] - mean[best]) for name in cost}


def score_intervals(
    cost: Mapping[str, ArrayLike],
    worst: str = DO_NOTHING,
    exclude: Sequence[str] = NO_CANDIDATES,
    lower_is_better: bool = True,
) -> dict[str, tuple[float, float] | None]:
    """95 % interval of every `score`, seeds resampled jointly for the three controllers in it.

    Which baseline is best is held fixed. `None` where the score is undefined, or was in too many resamples.
    """
    best = best_baseline(cost, exclude, lower_is_better)
    if best is None or score_undefined_because(cost, worst, exclude, lower_is_better):
        return dict.fromkeys(cost)
    reference, yardstick = _finite(cost[worst]), _finite(cost[best])

    def resampled(values: Any, worst_values: Any, best_values: Any, axis: int = -1) -> Any:
        value, low, high = (interquartile_mean(x, axis=axis) for x in (values, worst_values, best_values))
        with np.errstate(divide="ignore", invalid="ignore"):
            return 100.0 * (low - value) / (low - high)

    intervals: dict[str, tuple[float, float] | None] = {}
    for name, values in cost.items():
        samples = (_finite(values), reference, yardstick)
        if len({sample.size for sample in samples}) > 1 or reference.size < 2:
            intervals[name] = None
            continue
        low, high = _percentile_bootstrap(samples, resampled, 0.95, 2000, 0)
        intervals[name] = (low, high) if math.isfinite(low) and math.isfinite(high) else None
    return intervals


def summarise_scenario(
    results: Mapping[str, Mapping[str, ArrayLike]],
    headline: str,
    worst: str = DO_NOTHING,
    exclude: Sequence[str] = NO_CANDIDATES,
    lower_is_better: bool = True,
) -> dict[str, Any]:
    """One scenario's entry of `summary.json` from `results[controller][metric]`, one value a seed.

    Beside the controllers stand `score`, `score_zero`, the controller whose score is 0, and, where there are a policy
    and a baseline, `paired_difference`: `{baseline, iqm, low, high, values}`, in the unit of the headline, positive
    where the policy is better.
    """
    for controller, metrics in results.items():
        if headline not in metrics:
            raise KeyError(f"controller '{controller}' has no '{headline}'; it has: {', '.join(metrics)}")
    cost = {controller: metrics[headline] for controller, metrics in results.items()}
    entry: dict[str, Any] = {
        controller: {name: summarise(values) for name, values in metrics.items()}
        for controller, metrics in results.items()
    }
    best = best_baseline(cost, exclude, lower_is_better)
    if POLICY in cost and best is not None:
        pair = (cost[best], cost[POLICY]) if lower_is_better else (cost[POLICY], cost[best])
        entry["paired_difference"] = {"baseline": best, **paired_difference(*pair)}
    entry |= {"score": score(cost, worst, exclude, lower_is_better), "score_zero": worst}
    return entry


def _finite(values: ArrayLike) -> Float[np.ndarray, "*seeds"]:
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("no values: a statistic needs at least one seed")
    if not np.isfinite(array).all():
        where = np.argwhere(~np.isfinite(array))[0].tolist()
        raise ValueError(f"value {array[tuple(where)]} at {where}: every seed must give a finite number")
    return array


def _percentile_bootstrap(
    samples: tuple[Any, ...], statistic: Statistic, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    from scipy.stats import bootstrap

    interval = bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        paired=len(samples) > 1,
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
