"""Local margins: what an exit may cost at each confidence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_calex import SurvivorThresholdCalibrator
from sk_calex.calibration._thresholds import find_local_thresholds, find_thresholds
from tests._reference.calibration import slow_local_thresholds


def draw(seed, n=120, n_classes=3):
    """A branch that is right less often than the last stage, the more so unsure."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(4, 17, n) / 16
    predicted = rng.integers(0, n_classes, n)
    correct = rng.random(n) < scores
    last_correct = rng.random(n) < 0.85
    weight = rng.integers(0, 4, n) / 2
    return scores, predicted, correct, last_correct, weight


def find(data, margin, n_classes=3, *, min_support=2, shrinkage=20.0):
    return find_local_thresholds(
        *data, n_classes, margin, min_support=min_support, shrinkage=shrinkage
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.05, 0.2, 0.6])
@pytest.mark.parametrize("shrinkage", [0.0, 20.0, np.inf])
def test_thresholds_against_plain_loops(seed, margin, shrinkage):
    scores, predicted, correct, last_correct, weight = data = draw(seed)
    found = find(data, margin, shrinkage=shrinkage)
    slow = slow_local_thresholds(
        scores,
        predicted,
        np.where(correct, predicted, -1),
        last_correct,
        weight,
        [True] * len(scores),
        3,
        margin,
        min_support=2,
        shrinkage=shrinkage,
    )
    assert found.enabled.tolist() == [s.enabled for s in slow]
    for c, expected in enumerate(slow):
        if expected.enabled:
            assert expected.next_below < found.thresholds[c] < expected.lowest
            assert found.precision[c] == pytest.approx(expected.precision)
            assert found.support[c] == expected.support
        else:
            assert found.thresholds[c] == np.inf
            assert np.isnan(found.precision[c])
            assert np.isnan(found.bars[c])


def test_easy_samples_do_not_pay_for_hard_ones():
    # 90 sure samples, all right; 10 unsure ones, which only the last stage gets.
    scores = np.repeat([0.95, 0.55], [90, 10])
    predicted = np.zeros(100, dtype=int)
    correct = scores > 0.9
    last = np.ones(100, dtype=bool)
    weight = np.ones(100)
    mean = find_thresholds(
        scores,
        predicted,
        correct,
        weight,
        np.array([0.9, 1.0]),
        min_support=1,
        rule="smallest",
    )
    local = find((scores, predicted, correct, last, weight), 0.1, 2)
    assert mean.thresholds[0] < 0.55  # everyone exits: right 90 times of 100
    assert 0.55 < local.thresholds[0] < 0.95
    assert local.precision[0] == 1
    assert local.bars[0] == 0.9


def test_samples_that_the_last_stage_gets_wrong_as_well_cost_nothing():
    scores, predicted = np.repeat([0.9, 0.5], 20), np.zeros(40, dtype=int)
    correct, weight = scores > 0.6, np.ones(40)
    for last_correct, exits in [(correct, True), (np.ones(40, dtype=bool), False)]:
        found = find((scores, predicted, correct, last_correct, weight), 0.0, 2)
        assert (found.thresholds[0] < 0.5) == exits


def test_a_small_class_goes_with_the_trend_and_a_large_one_its_own_way():
    # Class 0 costs nothing anywhere, class 1 costs half of its answers.
    n = 400
    scores = np.tile([0.9, 0.8, 0.7, 0.6], n // 4)
    correct = np.ones(n, dtype=bool)
    last = np.ones(n, dtype=bool)
    for n_dear, exits in [(8, True), (200, False)]:
        predicted = (np.arange(n) < n_dear).astype(int)
        right = correct & ~((predicted == 1) & (np.arange(n) % 8 < 4))
        data = (scores, predicted, right, last, np.ones(n))
        assert find(data, 0.2, 2, shrinkage=50.0).enabled[1] == exits
        assert not find(data, 0.2, 2, shrinkage=0.0).enabled[1]


@given(seed=st.integers(0, 10_000), shrinkage=st.sampled_from([0.0, 5.0, np.inf]))
def test_a_larger_margin_never_raises_a_threshold(seed, shrinkage):
    data = draw(seed, n=60)
    found = [find(data, m, shrinkage=shrinkage) for m in (-0.2, 0.0, 0.1, 0.4)]
    thresholds = np.stack([f.thresholds for f in found])
    assert (thresholds[1:] <= thresholds[:-1]).all()


@given(seed=st.integers(0, 10_000))
def test_integer_weights_are_repetition_and_order_is_nothing(seed):
    rng = np.random.default_rng(seed)
    *rows, weight = draw(seed, n=60)
    repeats = (2 * weight).astype(int)
    copies = rng.permutation(np.repeat(np.arange(60), repeats))
    there = repeats > 0  # callers leave absent samples out
    weighted = find((*(r[there] for r in rows), repeats[there].astype(float)), 0.1)
    repeated = find((*(r[copies] for r in rows), np.ones(len(copies))), 0.1)
    np.testing.assert_allclose(weighted.thresholds, repeated.thresholds)
    np.testing.assert_array_equal(weighted.support, repeated.support)


@given(seed=st.integers(0, 10_000), margin=st.sampled_from([0.0, 0.05, 0.2]))
def test_what_exits_costs_no_more_than_the_margin_on_average(seed, margin):
    scores, predicted, correct, last_correct, weight = data = draw(seed, n=80)
    # With one trend for all there is one threshold but for gaps between scores.
    found = find(data, margin, min_support=0, shrinkage=np.inf)
    out = scores >= found.thresholds[predicted]
    cost = weight * (last_correct.astype(float) - correct)
    lowest = np.min(scores[out & (weight > 0)], initial=np.inf)
    everyone = scores >= lowest
    assert cost[everyone].sum() <= (margin + 1e-6) * weight[everyone].sum()


def test_scores_that_differ_in_their_last_bit_do_not_matter():
    """Copies of a sample may, where batches of another size answer them."""
    scores = np.repeat([0.5, 0.6, 0.9], 4) + np.tile([0, 1e-16, -1e-16, 2e-16], 3)
    right = np.ones(12, dtype=bool)
    found = find((scores, np.repeat([0, 1, 0], 4), right, right, np.ones(12)), 0.0, 2)
    assert found.enabled.all()
    np.testing.assert_array_equal(found.support, [8, 4])


def test_nobody_reaches_the_branch():
    found = find(tuple(a[:0] for a in draw(0)), 0.1)
    assert not found.enabled.any()
    assert np.isnan(found.bars).all()


def test_the_calibrator_needs_the_answers_of_the_reference():
    X, y = [[0.8, 0.2], [0.3, 0.7]], [0, 1]
    calibrator = SurvivorThresholdCalibrator(margin_mode="local", min_support=1)
    with pytest.raises(ValueError, match=r"reference_correct=None.*boolean mask"):
        calibrator.fit(X, y)
    with pytest.raises(ValueError, match=r"reference_correct must be .* \(2,\)"):
        calibrator.fit(X, y, reference_correct=[True])
    calibrator.fit(X, y, reference_correct=[True, True])
    np.testing.assert_array_equal(calibrator.bars_, [1, 1])
    assert calibrator.exits(0, X).all()
