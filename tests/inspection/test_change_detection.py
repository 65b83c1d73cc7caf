import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import kstest

from sk_calex.inspection._change_detection import (
    BETS,
    N_BINS,
    ConformalRanks,
    Curve,
    ShiryaevRoberts,
    confidence_bins,
    place_bets,
)
from tests._reference.monitor import slow_p_values, slow_statistic


def detector(kinds=2):
    return ShiryaevRoberts(np.zeros((kinds, BETS)))


@given(
    st.lists(st.integers(0, 3), max_size=5),
    st.lists(st.integers(0, 3), min_size=1, max_size=150),
    st.randoms(use_true_random=False),
)
def test_p_values_are_the_slow_ones(reference, scores, random):
    uniform = np.array([random.random() for _ in scores])
    ranks = ConformalRanks(np.bincount(np.array(reference, dtype=int), minlength=4))
    fast = ranks.p_values(np.array(scores), uniform)
    assert fast == pytest.approx(slow_p_values(reference, scores, uniform))
    both = np.array(reference + scores, dtype=int)
    assert ranks.counts.tolist() == np.bincount(both, minlength=4).tolist()


def test_p_values_of_exchangeable_rows_are_uniform_and_independent():
    """Also with five reference rows, and with nearly all scores alike."""
    rng = np.random.default_rng(0)
    p = []
    for _ in range(400):
        scores = rng.choice(3, p=[0.8, 0.15, 0.05], size=25)
        ranks = ConformalRanks(np.bincount(scores[:5], minlength=3))
        p.append(ranks.p_values(scores[5:], rng.random(20)))
    p = np.array(p)
    assert kstest(p.ravel(), "uniform").pvalue > 0.01
    following = np.corrcoef(p[:, :-1].ravel(), p[:, 1:].ravel())[0, 1]
    assert abs(following) < 4 / np.sqrt(p[:, 1:].size)


@pytest.mark.parametrize("number", range(BETS))
def test_bet_has_mean_one(number):
    mean, _ = quad(
        lambda p: place_bets(np.array([[p]]))[0, number, 0],
        0,
        1,
        points=[1e-6, 1 - 1e-6],
        limit=200,
    )
    assert mean == pytest.approx(1, abs=1e-3)


def test_statistic_is_the_slow_one():
    p_values = np.random.default_rng(1).random((2, 300)) ** [[1.0], [0.8]]
    assert detector().update(p_values) == pytest.approx(slow_statistic(p_values))


def test_statistic_does_not_depend_on_how_rows_are_cut():
    p_values = np.random.default_rng(2).random((2, 200))
    whole, parts = detector(), detector()
    pieces = [parts.update(p) for p in np.split(p_values, [1, 2, 60, 190], axis=1)]
    assert np.concatenate(pieces) == pytest.approx(whole.update(p_values))
    assert parts.sums == pytest.approx(whole.sums)


def test_sums_minus_rows_have_mean_zero():
    """The martingale that bounds false alarms, by bets of bounded variance."""
    rng = np.random.default_rng(3)
    finals = []
    for _ in range(3000):
        detection = detector(1)
        detection.update(rng.random((1, 5)))
        finals.append(detection.sums[0, 1:3])  # slopes of 0.9
    finals = np.array(finals)
    error = finals.std(axis=0) / np.sqrt(len(finals))
    assert (np.abs(finals.mean(axis=0) - 5) < 4 * error).all()


def test_statistic_stays_finite_long_after_a_change():
    detection = detector()
    statistic = detection.update(np.full((2, 20_000), 1e-9))
    assert np.isfinite(statistic).all()
    assert statistic[-1] > 1e90


def test_false_alarms_keep_their_bound():
    """P(alarm within t rows) <= t / A, by 600 streams of 100 rows at A = 1,000."""
    rng = np.random.default_rng(4)
    alarms = sum(
        (detector().update(rng.random((2, 100))) >= 1000).any() for _ in range(600)
    )
    assert alarms <= 600 * 0.1


def test_confidences_keep_their_order_on_the_grid():
    confidence = np.r_[0, np.sort(np.random.default_rng(0).random(500)), 1]
    bins = confidence_bins(confidence)
    assert (np.diff(bins) >= 0).all()
    assert (bins[0], bins[-1]) == (0, N_BINS - 1)
    near_one = confidence_bins([0.99, 0.999, 0.9999, 0.99999])
    assert (np.diff(near_one) > 300).all()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8))
def test_curve_keeps_the_largest_value_of_each_step(sizes):
    values = np.random.default_rng(0).random(sum(sizes))
    curve = Curve()
    curve.MAX_POINTS = 10
    start = 0
    for size in sizes:
        curve.extend(values[start : start + size])
        start += size
    assert len(curve.points) <= 10
    steps = range(0, len(values), curve.step)
    assert curve.points.tolist() == [values[i : i + curve.step].max() for i in steps]
    assert curve.rows.tolist() == [min(i + curve.step, len(values)) for i in steps]
