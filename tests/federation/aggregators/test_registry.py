"""What must hold for every rule: a new rule is one row of `ROWS`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stacks import AGENTS, SIZE, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.registry import AGGREGATORS, build
from dynamic_graph_fed_rl.federation.aggregators.settings import AggregatorSettings


def unchanged(update: np.ndarray) -> np.ndarray:
    return update


def shortened(update: np.ndarray, length: float) -> np.ndarray:
    return update * min(1.0, length / np.linalg.norm(update))


def same_size(update: np.ndarray) -> np.ndarray:
    return np.sign(update) * np.abs(update).mean()


@dataclass(frozen=True)
class Row:
    settings: AggregatorSettings
    identical: Callable[[np.ndarray], np.ndarray] = unchanged
    """What the rule makes of updates that are all the same."""
    symmetric: bool = True
    """Whether the order of the agents is without effect."""


def row(aggregator: str, identical=unchanged, symmetric=True, **options) -> Row:
    return Row(AggregatorSettings(aggregator, **{"assumed_byzantine": 1, **options}), identical, symmetric)


ROWS = {
    "mean": row("mean"),
    # alpha of the receiver's own parameters stays
    "trust": row("trust", lambda update: 0.75 * update, trust_alpha=0.25),
    "median": row("median"),
    "trimmed-mean": row("trimmed-mean"),
    "krum": row("krum"),
    "multi-krum": row("multi-krum"),
    "geometric-median": row("geometric-median"),
    "centred-clipping": row("centred-clipping"),
    # three steps from the centre 0
    "centred-clipping, radius": row("centred-clipping", partial(shortened, length=0.9), clip_radius=0.3),
    "self-centred-clipping": row("self-centred-clipping"),
    "self-centred-clipping, radius": row("self-centred-clipping", partial(shortened, length=0.3), clip_radius=0.3),
    # the first exchange moves nobody
    "self-paced-clipping": row("self-paced-clipping", np.zeros_like),
    # of signs only, the rule keeps one size for all coordinates
    "majority": row("majority", same_size),
    "norm clipping": row("mean", partial(shortened, length=2.0), clip_norm=2.0),
    # who shares a bucket depends on the place in the stack
    "bucketing": row("median", symmetric=False, bucket=2),
    "all at once": row("krum", partial(shortened, length=2.0), symmetric=False, bucket=2, clip_norm=2.0),
}
every_rule = pytest.mark.parametrize("name", ROWS)
every_symmetric_rule = pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].symmetric])
PRESENT = np.array([1, 1, 0, 1, 1, 0, 1], bool)
WEIGHTS = np.array([1, 2, 1, 0.5, 3, 1, 1])


def rule(name: str):
    return build(ROWS[name].settings)


def test_every_rule_has_a_row():
    assert {one.settings.aggregator for one in ROWS.values()} == set(AGGREGATORS)


@every_symmetric_rule
def test_order_of_the_agents(name):
    updates, order = draw(0), np.random.default_rng(0).permutation(AGENTS)
    straight, _, _ = apply(rule(name), updates, WEIGHTS)
    mixed, _, _ = apply(rule(name), updates[order], WEIGHTS[order])
    np.testing.assert_allclose(mixed, straight, atol=1e-5)


@every_rule
@pytest.mark.parametrize("content", [0.0, -5.0, 1e38])
def test_what_the_absent_hold_is_ignored(name, content):
    updates = draw(1)
    expected, state, _ = apply(rule(name), updates, WEIGHTS * PRESENT)
    updates[~PRESENT] = content
    got, other, _ = apply(rule(name), updates, WEIGHTS * PRESENT)
    np.testing.assert_array_equal(got, expected)
    jax.tree.map(np.testing.assert_array_equal, other, state)


@every_symmetric_rule
def test_absent_agents_are_as_good_as_not_there(name):
    updates = draw(2)
    masked, _, _ = apply(rule(name), updates, WEIGHTS * PRESENT)
    without, _, _ = apply(rule(name), updates[PRESENT], WEIGHTS[PRESENT])
    np.testing.assert_allclose(masked, without, atol=1e-5)


@every_rule
def test_identical_updates(name):
    update = draw(3, 1)[0]
    got, _, _ = apply(rule(name), np.tile(update, (AGENTS, 1)), WEIGHTS * PRESENT, base=update)
    np.testing.assert_allclose(got, ROWS[name].identical(update), rtol=1e-5, atol=1e-6)


@every_rule
@pytest.mark.parametrize("size", [1e15, 1e20, 1e38])
def test_finite_in_finite_out(name, size):
    for rows in (slice(0, 1), slice(None)):
        updates = draw(4)
        updates[rows] = size * np.sign(updates[rows])
        update, state, info = apply(rule(name), updates, WEIGHTS)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((update, state, info)))


@every_rule
@pytest.mark.parametrize("size", [1e1, 1e3, 1e6, 1e17, 1e38])
def test_as_many_as_the_rule_bears_do_not_drag_it_away(name, size):
    one = rule(name)
    bears = one.tolerance(AGENTS)
    assert bears < AGENTS / 2
    updates = draw(5)
    updates[:bears] = size
    furthest = np.linalg.norm(updates[bears:], axis=1).max()
    update, _, _ = apply(one, updates)
    if bears:
        assert np.linalg.norm(update) <= 4 * furthest


@every_rule
def test_nobody_present(name):
    update, _, info = apply(rule(name), draw(6), np.zeros(AGENTS))
    assert not update.any()
    assert all(np.isfinite(one) for one in info.values())


@every_rule
def test_mapped_is_one_at_a_time(name):
    one = rule(name)
    stacks = np.stack([draw(seed) for seed in range(3)])
    weights = np.stack([WEIGHTS, WEIGHTS * PRESENT, 0 * WEIGHTS])
    base = np.ones(SIZE)

    @eqx.filter_jit
    def mapped(updates, weights, seeds):
        return jax.vmap(lambda u, w, s: one(u, w, jnp.asarray(base), one.init(SIZE), jax.random.key(s))[0])(
            updates, weights, seeds
        )

    together = mapped(jnp.asarray(stacks), jnp.asarray(weights, jnp.float32), jnp.arange(3))
    alone = [apply(one, stacks[k], weights[k], base, seed=k)[0] for k in range(3)]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


@pytest.mark.parametrize(
    ("aggregator", "at_20"),
    [("mean", 0), ("trust", 0), ("median", 9), ("trimmed-mean", 9), ("krum", 8), ("multi-krum", 8)]
    + [("geometric-median", 9), ("centred-clipping", 9), ("self-centred-clipping", 9)]
    + [("self-paced-clipping", 9), ("majority", 9)],
)
def test_tolerance_of_twenty(aggregator, at_20):
    assert build(AggregatorSettings(aggregator, assumed_byzantine=20)).tolerance(20) == at_20
    assert build(AggregatorSettings(aggregator, assumed_byzantine=20)).tolerance(0) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aggregator": "mode"}, "'mode': unknown; known: mean, trust, median"),
        ({"bucket": 0}, "bucket 0"),
        ({"trust_alpha": 1.5}, "trust_alpha 1.5"),
        ({"clip_norm": -1.0}, "clip_norm -1.0"),
        ({"assumed_byzantine": -1}, "assumed_byzantine -1"),
    ],
)
def test_bad_settings_are_named(options, said):
    with pytest.raises(ValueError, match=said):
        build(AggregatorSettings(**options))
