import numpy as np
import pytest
import scipy.stats

from dynamic_graph_fed_rl.evaluation.statistics import (
    best_baseline,
    bootstrap_interval,
    interquartile_mean,
    paired_difference,
    score,
    score_intervals,
    score_undefined_because,
    summarise,
    summarise_scenario,
)

COST = {
    "policy": [25.0, 25.0, 25.0, 25.0],
    "do-nothing": [40.0, 40.0, 40.0, 40.0],
    "random": [70.0, 70.0, 70.0, 70.0],
    "merit-order": [30.0, 30.0, 30.0, 30.0],
    "dc-opf": [20.0, 20.0, 20.0, 20.0],
}


def test_interquartile_mean_is_the_mean_of_the_middle_half():
    assert interquartile_mean([1000.0, 3.0, 5.0, -1000.0]) == 4.0
    assert interquartile_mean([-9.0, 1.0, 2.0, 3.0, 4.0, 9.0]) == 2.5
    assert interquartile_mean([7.0]) == 7.0
    values = np.random.default_rng(0).normal(size=23)
    assert interquartile_mean(values) == pytest.approx(np.sort(values)[5:-5].mean())


def test_interquartile_mean_refuses_what_has_none():
    with pytest.raises(ValueError, match="at least one seed"):
        interquartile_mean([])
    with pytest.raises(ValueError, match=r"nan at \[1\]"):
        interquartile_mean([1.0, np.nan])


def test_interval_equals_a_plain_numpy_percentile_bootstrap():
    values = np.random.default_rng(1).normal(size=40)
    draws = np.random.default_rng(2).integers(40, size=(20_000, 40))
    middle = np.sort(values[draws], axis=1)[:, 10:30].mean(1)
    low, high = bootstrap_interval(values, resamples=20_000)
    assert [low, high] == pytest.approx(np.quantile(middle, [0.025, 0.975]).tolist(), abs=0.015)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(300):
        low, high = bootstrap_interval(generator.normal(5.0, 2.0, size=30), confidence=0.9, resamples=400)
        hits += low <= 5.0 <= high
    # The percentile bootstrap covers a little too rarely in small samples; 3 standard errors are 0.05.
    assert 0.82 <= hits / 300 <= 0.95


def test_interval_repeats_and_shrinks_with_the_number_of_seeds():
    values = np.random.default_rng(3).normal(size=400)
    assert bootstrap_interval(values[:20]) == bootstrap_interval(values[:20])
    few = np.mean([np.ptp(bootstrap_interval(part)) for part in values.reshape(16, 25)])
    assert few / np.ptp(bootstrap_interval(values)) == pytest.approx(4.0, rel=0.2)


def test_interval_takes_another_statistic():
    values = np.random.default_rng(4).normal(10.0, 1.0, size=200)
    low, high = bootstrap_interval(values, np.mean)
    half_width = scipy.stats.norm.ppf(0.975) * values.std(ddof=1) / np.sqrt(200)
    assert [low, high] == pytest.approx([values.mean() - half_width, values.mean() + half_width], abs=0.02)


def test_interval_of_one_seed_and_impossible_confidence():
    assert bootstrap_interval([3.0]) == (3.0, 3.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0, 2.0], confidence=95.0)


def test_summary_of_a_metric_undefined_on_a_seed_has_no_mean_but_keeps_the_others():
    assert summarise([1.0, float("inf"), 3.0]) == {
        "iqm": None, "low": None, "high": None, "values": [1.0, None, 3.0],
    }  # fmt: skip


def test_paired_difference_removes_what_both_share():
    generator = np.random.default_rng(5)
    shared = generator.normal(0.0, 100.0, size=20)
    difference = paired_difference(shared + 1.0 + generator.normal(0, 0.01, 20), shared)
    assert difference["iqm"] == pytest.approx(1.0, abs=0.01)
    assert 0.0 < difference["high"] - difference["low"] < 0.05
    with pytest.raises(ValueError, match="3 and 2 values"):
        paired_difference([1.0, 2.0, 3.0], [1.0, 2.0])


def test_score_is_measured_from_doing_nothing_to_the_best_practitioner_baseline():
    assert best_baseline(COST) == "merit-order"
    assert score(COST) == {
        "policy": 150.0, "do-nothing": 0.0, "random": -300.0, "merit-order": 100.0, "dc-opf": 200.0,
    }  # fmt: skip
    profit = {name: [-value for value in values] for name, values in COST.items()}
    assert score(profit, lower_is_better=False) == score(COST)


@pytest.mark.parametrize(
    ("cost", "reason"),
    [
        ({**COST, "merit-order": [39.7] * 4}, "merit-order.* only 0.75 % better than do-nothing"),
        ({**COST, "merit-order": [41.0] * 4}, "do-nothing.* only 0 % better than do-nothing"),
        ({"policy": [1.0], "merit-order": [2.0]}, "no 'do-nothing'"),
        ({"do-nothing": [0.0, 0.0], "policy": [0.0, 0.0]}, "only 0 % better"),
    ],
)
def test_score_is_undefined_where_it_would_divide_by_noise(cost, reason):
    assert set(score(cost).values()) == {None}
    assert set(score_intervals(cost).values()) == {None}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(score_undefined_because(cost))


def test_score_intervals_are_those_of_the_ratio():
    generator = np.random.default_rng(6)
    cost = {name: np.array(COST[name][0]) + generator.normal(size=20) for name in COST}
    means, intervals = score(cost), score_intervals(cost)
    assert intervals["do-nothing"] == pytest.approx((0.0, 0.0))
    assert intervals["merit-order"] == pytest.approx((100.0, 100.0))
    low, high = intervals["policy"]
    assert low < means["policy"] < high
    # Error propagation: J_do-nothing - J and J_do-nothing - J_best are 15 and 10, each J with an error of
    # 1.1 / sqrt(20), an interquartile mean being a tenth less certain than a mean.
    draws = generator.normal(0.0, 1.1 / np.sqrt(20), size=(3, 10_000))
    ratio = 100.0 * (15.0 + draws[0] - draws[1]) / (10.0 + draws[0] - draws[2])
    assert high - low == pytest.approx(np.ptp(np.quantile(ratio, [0.025, 0.975])), rel=0.4)


def test_scenario_summary_holds_controllers_difference_and_score():
    results = {name: {"cost": values, "calls": [1, 2, 3, 4]} for name, values in COST.items()}
    entry = summarise_scenario(results, "cost")
    assert entry["policy"]["calls"]["iqm"] == 2.5
    assert entry["score"]["policy"] == 150.0
    difference = entry["paired_difference"]
    assert (difference["baseline"], difference["iqm"], difference["values"]) == (
        "merit-order",
        5.0,
        [5.0] * 4,
    )
    negated = {name: {"cost": [-value for value in values]} for name, values in COST.items()}
    assert summarise_scenario(negated, "cost", lower_is_better=False)["paired_difference"]["iqm"] == 5.0
    with pytest.raises(KeyError, match="no 'price'; it has: cost, calls"):
        summarise_scenario(results, "price")
