"""What a fit keeps of its training weights."""

import numpy as np
import pytest

from sk_calex import effective_sample_size, exit_probability, survivor_weights
from sk_calex.cascade._alignment import N_BINS, TrainingProfile, bin_weights
from tests.inspection._inspected import NAMES, TRAIN, calexnet, data, reference


def slow_bins(confidence, weight):
    out = np.zeros(N_BINS)
    for c, w in zip(confidence, weight, strict=True):
        out[min(int(c * N_BINS), N_BINS - 1)] += w
    return out


def test_bins_hold_their_lower_edge_and_the_last_one_holds_one():
    confidence = np.array([0.0, 0.049, 0.05, 0.5, 0.999, 1.0, 1.0 + 1e-12])
    weight = np.arange(1.0, 8)
    binned = bin_weights(confidence, weight)
    np.testing.assert_array_equal(binned, slow_bins(confidence, weight))
    assert binned[[0, 1, 10, 19]].tolist() == [3, 3, 4, 18]


def test_rows_that_were_not_scored_make_the_bins_unknown_unless_they_are_absent():
    confidence = np.array([0.3, np.nan])
    assert np.isnan(bin_weights(confidence, np.ones(2))).all()
    assert np.isnan(bin_weights(None, np.ones(2))).all()
    assert bin_weights(confidence, np.array([2.0, 0.0])).sum() == 2


def test_profile_counts_by_class_and_confidence():
    rng = np.random.default_rng(0)
    codes, plain = rng.integers(0, 4, 50), rng.integers(0, 3, 50).astype(float)
    weights, scores = rng.random((2, 50)), rng.random(50)
    profile = TrainingProfile.of(codes, plain, list(weights), [None, scores], 5)
    for c in range(5):
        np.testing.assert_allclose(
            profile.class_weight[:, c], weights[:, codes == c].sum(axis=1)
        )
        assert profile.plain_class_weight[c] == plain[codes == c].sum()
    assert np.isnan(profile.confidence_weight[0]).all()
    np.testing.assert_allclose(
        profile.confidence_weight[1], slow_bins(scores, weights[1])
    )
    np.testing.assert_allclose(
        profile.plain_confidence_weight[1], slow_bins(scores, plain)
    )
    assert profile.n_samples == np.sum(plain > 0)


@pytest.mark.parametrize(
    ("branches", "known"),
    [([0, 1, 2], [0, 1, 1]), ([0, 2], [0, 0]), ([1, 2], [0, 1]), ([2], [0])],
)
def test_some_branches_know_what_came_right_before_them(branches, known):
    rng = np.random.default_rng(0)
    weights, scores = list(rng.random((3, 20))), rng.random((2, 20))
    codes = rng.integers(0, 2, 20)
    whole = TrainingProfile.of(codes, np.ones(20), weights, [None, *scores], 2)
    part = whole.select(branches)
    np.testing.assert_array_equal(part.class_weight, whole.class_weight[branches])
    for both in ("confidence_weight", "plain_confidence_weight"):
        got, want = getattr(part, both), getattr(whole, both)[branches]
        assert np.isfinite(got).all(axis=1).tolist() == [bool(k) for k in known]
        np.testing.assert_array_equal(
            got[np.array(known) > 0], want[np.array(known) > 0]
        )
    assert part.n_samples == 20


def test_a_fit_keeps_the_weights_that_it_trained_with():
    cascade, given = calexnet(), data()
    first = cascade.stage_probabilities(given.X[TRAIN])[0]
    tau = cascade._alignment_thresholds()[0][first.argmax(axis=1)]
    confidence = first.max(axis=1)
    survival = 1 - exit_probability(confidence, tau, bandwidth=0.1)
    weight = survivor_weights(survival, mixture=cascade.alignment.mixture)
    codes = np.searchsorted(NAMES, given.y[TRAIN])
    profile = cascade.training_profile_
    assert profile.n_samples == len(TRAIN)
    np.testing.assert_array_equal(profile.class_weight[0], np.bincount(codes))
    np.testing.assert_array_equal(profile.plain_class_weight, np.bincount(codes))
    np.testing.assert_allclose(
        profile.class_weight[1], np.bincount(codes, weight), rtol=1e-5
    )
    np.testing.assert_allclose(
        profile.confidence_weight[1], slow_bins(confidence, weight), rtol=1e-4
    )
    np.testing.assert_allclose(
        profile.plain_confidence_weight[1], slow_bins(confidence, np.ones(len(TRAIN)))
    )
    np.testing.assert_allclose(
        cascade.effective_sample_size_[1], effective_sample_size(weight), rtol=1e-4
    )


def test_without_alignment_training_rows_are_not_scored_for_it():
    profile = reference().training_profile_
    assert np.isnan(profile.confidence_weight).all()
    np.testing.assert_array_equal(profile.class_weight[1], profile.plain_class_weight)
