import numpy as np
import pytest
from stacks import AGENTS, SIZE, apply, draw

from dynamic_graph_fed_rl.federation.aggregators.clipping import (
    CentredClipping,
    NormClipping,
    SelfCentredClipping,
    SelfPacedClipping,
)
from dynamic_graph_fed_rl.federation.aggregators.mean import Mean


def clip(rows: np.ndarray, radius: float) -> np.ndarray:
    return rows * np.minimum(1, radius / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30))


def adaptive(rows: np.ndarray, byzantine: int) -> float:
    return np.sort(np.linalg.norm(rows, axis=1))[len(rows) - byzantine - 1]


@pytest.mark.parametrize("radius", [0.0, 0.7, 50.0])
def test_centred_clipping_step_by_step_over_three_exchanges(radius):
    rule = CentredClipping(radius, byzantine=2)
    weights = np.array([1, 2, 0, 1, 3, 1, 0.5])
    present = weights > 0
    share = weights[present] / weights.sum()
    centre, state = np.zeros(SIZE), rule.init(SIZE)
    for exchange in range(3):
        updates = draw(exchange)
        update, state, info = apply(rule, updates, weights, state=state)
        for _ in range(3):
            apart = updates[present] - centre
            limit = radius or adaptive(apart, 2)
            outside = (np.linalg.norm(apart, axis=1) > limit * (1 + 1e-6)).mean()
            centre = centre + share @ clip(apart, limit)
        np.testing.assert_allclose(update, centre, atol=1e-4)
        np.testing.assert_array_equal(update, state)
        assert radius == 0 or info["clipped"] == pytest.approx(outside)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e12])
def test_centred_clipping_is_bounded_by_its_radius(scale):
    rule = CentredClipping(radius=0.3, steps=2)
    before = draw(8, 1)[0]
    update, _, _ = apply(rule, scale * draw(9), state=before)
    assert np.linalg.norm(update - before) <= 2 * 0.3 * (1 + 1e-5)


def test_absent_agents_leave_the_centre():
    rule = CentredClipping(radius=0.3)
    before = draw(8, 1)[0]
    update, after, _ = apply(rule, draw(9), np.zeros(AGENTS), state=before)
    assert not update.any()
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("radius", [0.0, 0.7, 50.0])
def test_self_centred_clipping(radius):
    updates = draw(1)
    updates[0] = 0.0  # the receiver hears itself
    updates[6] *= 1e4
    weights = np.array([3, 1, 1, 0, 1, 1, 2.0])
    present = weights > 0
    clipped = clip(updates[present], radius or adaptive(updates[present], 1))
    expected = weights[present] @ clipped / weights.sum()
    np.testing.assert_allclose(apply(SelfCentredClipping(radius, 1), updates, weights)[0], expected, atol=1e-5)


def test_adaptive_radius_leaves_exactly_the_assumed_outside():
    updates = draw(2)
    for byzantine in range(4):
        _, _, info = apply(SelfCentredClipping(0.0, byzantine), updates)
        assert info["clipped"] == pytest.approx(byzantine / AGENTS)


def test_self_paced_clipping_over_two_exchanges():
    """Nobody moves in the first exchange; then each neighbour pulls by at most half of what was learned."""
    rule, base = SelfPacedClipping(0.5, 1), np.ones(SIZE, np.float32)
    update, state, _ = apply(rule, draw(1), base=base)
    assert not update.any()
    for length in (0.2, 1e3):
        learned = base + length * np.eye(SIZE, dtype=np.float32)[0]
        updates = draw(2)
        limit = min(0.5 * length, adaptive(updates, 1))
        update, _, _ = apply(rule, updates, base=learned, state=state)
        np.testing.assert_allclose(update, clip(updates, limit).mean(0), atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_an_agent_among_attackers_alone_goes_its_own_way(scale):
    rule, base = SelfPacedClipping(0.5, 1), np.ones(SIZE, np.float32)
    _, state, _ = apply(rule, draw(1), base=base)
    attacks = scale * draw(5)
    attacks[0] = 0.0  # the receiver hears itself
    update, _, _ = apply(rule, attacks, base=base + 0.1, state=state)
    assert np.linalg.norm(update) <= 0.5 * np.linalg.norm(np.full(SIZE, 0.1)) * (1 + 1e-5)


def test_norm_clipping_before_a_rule():
    updates = draw(3) * np.geomspace(0.01, 1e6, AGENTS)[:, None]
    update, _, info = apply(NormClipping(Mean(), 2.0), updates)
    np.testing.assert_allclose(update, clip(updates, 2.0).mean(0), atol=1e-6)
    assert info["shortened"] == pytest.approx((np.linalg.norm(updates, axis=1) > 2.0).mean())
