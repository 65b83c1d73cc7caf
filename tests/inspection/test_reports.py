"""Reports: realised precision against its bar, survivors against weights."""

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline

from sk_calex import alignment_report, class_precision, exit_report, precision_bars
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.inspection._reports import distribution_report, precision_bars_of
from sk_calex.policies import SharedThreshold, first_exits
from sk_calex.utils._intervals import clopper_pearson
from tests.inspection._inspected import (
    NAMES,
    TRAIN,
    calexnet,
    data,
    fit,
    reference,
    sdn,
)


def codes_of(labels):
    return np.searchsorted(NAMES, labels)


# -- exits -------------------------------------------------------------------------


def slow_exits(cascade, X, y, weight):
    """Share, weight and precision by depth and class, cell by cell."""
    labels, depth = cascade.predict(X, return_depth=True)
    support, precision = np.zeros((3, 3)), np.full((3, 3), np.nan)
    for k in range(3):
        for c, name in enumerate(NAMES):
            cell = (depth == k) & (labels == name)
            support[k, c] = weight[cell].sum()
            if weight[cell].any():
                precision[k, c] = np.average((y == name)[cell], weights=weight[cell])
    return support, precision


@pytest.mark.parametrize("cascade", [calexnet, reference, sdn])
def test_exits_by_depth_and_class_are_those_of_predict(cascade):
    fitted, given = cascade(), data()
    weight = np.random.default_rng(0).integers(0, 3, 240)
    for w in (np.ones(240), weight):
        report = exit_report(fitted, given.test, given.test_y, sample_weight=w)
        support, precision = slow_exits(fitted, given.test, given.test_y, w)
        np.testing.assert_allclose(report.support, support)
        np.testing.assert_allclose(report.share, support / w.sum())
        np.testing.assert_allclose(report.precision, precision)
        np.testing.assert_allclose(report.depth_share, support.sum(axis=1) / w.sum())
        accuracy = np.average(fitted.predict(given.test) == given.test_y, weights=w)
        by_depth = np.nan_to_num(report.depth_precision) @ report.depth_share
        assert by_depth == pytest.approx(accuracy)
    assert report.depth_names == ["stem", "block1", "last stage"]
    assert report.classes.tolist() == NAMES.tolist()


def test_integer_weights_are_repetition():
    given, rng = data(), np.random.default_rng(0)
    repeat = rng.integers(0, 3, 240)
    rows = np.repeat(np.arange(240), repeat)
    weighted = exit_report(calexnet(), given.test, given.test_y, sample_weight=repeat)
    repeated = exit_report(calexnet(), given.test[rows], given.test_y[rows])
    for key in ("share", "support", "precision", "depth_precision"):
        np.testing.assert_allclose(weighted[key], repeated[key])


def test_calibration_precision_is_what_the_thresholds_were_chosen_by():
    given = data()
    report = exit_report(calexnet(), given.test, given.test_y)
    np.testing.assert_allclose(report.calibration_precision[:2], calexnet().precision_)
    enabled = calexnet().enabled_
    assert enabled.any()
    assert (report.calibration_precision[:2] >= report.bar[:2])[enabled].all()


def test_bars_are_those_of_the_margin_and_absent_elsewhere():
    cascade = fit(margin=[0.1, -0.2], margin_mode="absolute", alignment="none")
    bars = precision_bars_of(cascade)
    for k, margin in enumerate(cascade.margin):
        want = precision_bars(cascade.reference_precision_, margin, "absolute")
        np.testing.assert_array_equal(bars[k], want)
    assert np.isnan(bars[2]).all()
    assert np.isnan(precision_bars_of(sdn())).all()
    cascade.set_margin(0.3).set_calibrator(SurvivorThresholdCalibrator())
    np.testing.assert_array_equal(
        precision_bars_of(cascade)[1],
        precision_bars(cascade.reference_precision_, 0.3),
    )
    cascade.set_calibrator(SharedThreshold(0.5))
    assert np.isnan(precision_bars_of(cascade)).all()


def test_local_margins_ask_for_the_precision_of_the_last_stage_on_the_exits():
    given = data()
    cascade = fit(margin=[0.05, 0.2], margin_mode="local", min_support=3)
    bars, answers = precision_bars_of(cascade), cascade.calibration_.answers
    codes, weight = cascade.calibration_.labels, cascade.calibration_.weight
    depth = first_exits(cascade.calibrator_, answers)
    assert np.isnan(bars[2]).all()
    for k, margin in enumerate(cascade.margin):
        for c in range(3):
            cell = (depth == k) & (answers.predicted[k] == c) & (weight > 0)
            assert cell.any() == cascade.enabled_[k, c] == np.isfinite(bars[k, c])
            if cell.any():
                last = (answers.predicted[-1] == codes)[cell].mean()
                assert bars[k, c] == pytest.approx(np.clip(last - margin, 0, 1))
    assert np.isfinite(bars[:2]).any()
    report = exit_report(cascade, given.test, given.test_y)
    np.testing.assert_array_equal(report.bar, bars)
    policy = SurvivorThresholdCalibrator(
        [0.05, 0.2], margin_mode="local", min_support=3
    )
    cascade.set_calibrator(policy)
    np.testing.assert_allclose(precision_bars_of(cascade), bars)


def test_bars_are_those_of_a_policy_on_a_baseline():
    cascade = fit(type(sdn()), calibrator=SurvivorThresholdCalibrator(0.1))
    answers = cascade.calibration_.answers
    reference_precision = class_precision(
        cascade.calibration_.labels, answers.predicted[-1], 3
    )
    np.testing.assert_allclose(
        precision_bars_of(cascade)[0], precision_bars(reference_precision, 0.1)
    )


def test_cascades_inside_of_other_estimators_are_found():
    given = data()
    inside = make_pipeline(FrozenEstimator(calexnet()))
    for report, *more in ((exit_report,), (alignment_report,)):
        assert not more
        direct = report(calexnet(), given.test, given.test_y)
        found = report(inside, given.test, given.test_y)
        assert direct.keys() == found.keys()
    np.testing.assert_array_equal(direct.tv_class, found.tv_class)


@pytest.mark.parametrize("report", [exit_report, alignment_report])
def test_unknown_labels_and_estimators_are_refused(report):
    given = data()
    with pytest.raises(ValueError, match=r"never saw.*'dog'"):
        report(calexnet(), given.test, np.where(given.test_y == "ant", "dog", "bee"))
    with pytest.raises(TypeError, match="must be a cascade"):
        report("cascade", given.test, given.test_y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        report(calexnet(), given.test, given.test_y[:-1])


# -- alignment -----------------------------------------------------------------------


def slow_distance(p, q):
    p, q = np.asarray(p) / np.sum(p), np.asarray(q) / np.sum(q)
    return sum(abs(a - b) for a, b in zip(p, q, strict=True)) / 2


def test_alignment_is_training_weight_against_survivors():
    cascade, given = calexnet(), data()
    report = alignment_report(cascade, given.test, given.test_y, n_bins=20)
    depth, profile = cascade.exit_depth(given.test), cascade.training_profile_
    codes = codes_of(given.test_y)
    assert report.n_survivors.tolist() == [240, np.sum(depth >= 1)]
    assert 0 < report.n_survivors[1] < 240
    for k in range(2):
        real = np.bincount(codes[depth >= k], minlength=3)
        assert report.tv_class[k] == pytest.approx(
            slow_distance(profile.class_weight[k], real)
        )
        assert report.tv_class_unweighted[k] == pytest.approx(
            slow_distance(np.bincount(codes_of(given.y[TRAIN])), real)
        )
        np.testing.assert_allclose(report.class_share.survivors[k], real / real.sum())
    confidence = cascade.stage_probabilities(given.test)[0].max(axis=1)[depth >= 1]
    real = np.histogram(confidence, report.confidence_edges)[0]
    assert report.tv_confidence[1] == pytest.approx(
        slow_distance(profile.confidence_weight[1], real)
    )
    assert report.tv_confidence_unweighted[1] == pytest.approx(
        slow_distance(profile.plain_confidence_weight[1], real)
    )
    assert np.isnan(report.tv_confidence[0])
    np.testing.assert_array_equal(
        report.effective_sample_size, cascade.effective_sample_size_
    )
    assert report.n_train == len(TRAIN)
    assert report.branch_names == ["stem", "block1"]


@pytest.mark.parametrize("n_bins", [1, 2, 4, 5, 10])
def test_bins_are_merged(n_bins):
    given = data()
    fine = alignment_report(calexnet(), given.test, given.test_y, n_bins=20)
    report = alignment_report(calexnet(), given.test, given.test_y, n_bins=n_bins)
    for key in ("training", "unweighted", "survivors"):
        merged = fine.confidence_share[key].reshape(2, n_bins, -1).sum(axis=2)
        np.testing.assert_allclose(report.confidence_share[key], merged)
    assert len(report.confidence_edges) == n_bins + 1
    assert report.tv_confidence[1] <= fine.tv_confidence[1] + 1e-12


def test_survivors_may_be_those_that_the_weights_were_made_for():
    given = data()
    cascade = fit(margin=0.0, margin_mode="relative", alignment_margin=0.2)
    at = alignment_report(cascade, given.test, given.test_y, at="alignment")
    now = alignment_report(cascade, given.test, given.test_y)
    cascade.set_margin(0.2)
    moved = alignment_report(cascade, given.test, given.test_y)
    assert at.n_survivors.tolist() == moved.n_survivors.tolist()
    assert at.n_survivors[1] < now.n_survivors[1]
    np.testing.assert_array_equal(at.tv_class, moved.tv_class)


def test_survivor_weights_bring_training_closer_to_the_survivors():
    given = data()
    cascade = fit(margin=0.1, margin_mode="relative", alignment_margin="same")
    report = alignment_report(cascade, given.test, given.test_y)
    assert report.tv_confidence[1] < 0.75 * report.tv_confidence_unweighted[1]
    np.testing.assert_array_equal(
        alignment_report(cascade, given.test, given.test_y, at="alignment").tv_class,
        report.tv_class,
    )


def test_weights_of_the_samples_count():
    given = data()
    repeat = np.random.default_rng(0).integers(0, 3, 240)
    rows = np.repeat(np.arange(240), repeat)
    weighted = alignment_report(
        calexnet(), given.test, given.test_y, sample_weight=repeat
    )
    repeated = alignment_report(calexnet(), given.test[rows], given.test_y[rows])
    for key in ("tv_class", "tv_confidence", "tv_class_unweighted"):
        np.testing.assert_allclose(weighted[key], repeated[key])
    # Weighted samples say as much as their effective number.
    assert (weighted.tv_class_noise > repeated.tv_class_noise).all()


@pytest.mark.parametrize("cascade", [sdn, reference])
def test_methods_without_weights_are_measured_on_the_rows_given(cascade):
    given, fitted = data(), cascade()
    train = {"X_train": given.X[TRAIN], "y_train": given.y[TRAIN]}
    report = alignment_report(fitted, given.test, given.test_y, **train)
    np.testing.assert_array_equal(report.tv_class, report.tv_class_unweighted)
    np.testing.assert_array_equal(report.effective_sample_size, [240, 240])
    depth = fitted.exit_depth(given.test) >= 1
    trained, tested = (
        fitted.stage_probabilities(X)[0].max(axis=1)
        for X in (given.X[TRAIN], given.test)
    )
    edges = report.confidence_edges
    assert report.tv_confidence[1] == pytest.approx(
        slow_distance(
            np.histogram(trained, edges)[0], np.histogram(tested[depth], edges)[0]
        )
    )


def test_the_reference_knows_its_classes_without_the_rows():
    given = data()
    report = alignment_report(reference(), given.test, given.test_y)
    assert np.isfinite(report.tv_class).all()
    assert np.isnan(report.tv_confidence).all()


def test_rows_are_not_looked_at_where_the_fit_kept_the_weights():
    given = data()
    report = alignment_report(
        calexnet(), given.test, given.test_y, X_train="ignored", y_train="ignored"
    )
    assert report.n_train == len(TRAIN)


def test_distances_to_no_survivors_are_undefined():
    given = data()
    cascade = fit(type(sdn()), threshold=-np.inf)
    report = alignment_report(
        cascade, given.test, given.test_y, X_train=given.X, y_train=given.y
    )
    assert report.n_survivors.tolist() == [240, 0]
    for key in ("tv_class", "tv_class_noise", "tv_confidence", "tv_confidence_noise"):
        assert np.isnan(report[key][1])


def test_noise_is_the_distance_of_samples_from_one_distribution():
    rng = np.random.default_rng(0)
    share = np.array([0.5, 0.3, 0.15, 0.05])
    distances, noises = [], []
    for _ in range(300):
        trained, real = (rng.choice(4, n, p=share) for n in (400, 150))
        report = distribution_report(trained, np.ones(400), real, None, None, 10)
        distances.append(report.tv_class[0])
        noises.append(report.tv_class_noise[0])
    assert np.mean(noises) == pytest.approx(np.mean(distances), rel=0.05)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"n_bins": 3}, "n_bins=3 must be 1, 2, 4, 5, 10 or 20"),
        ({"at": "fit"}, "at='fit' must be"),
    ],
)
def test_bad_options_are_refused(params, message):
    given = data()
    with pytest.raises(ValueError, match=message):
        alignment_report(calexnet(), given.test, given.test_y, **params)


def test_methods_without_weights_say_what_they_need():
    given = data()
    with pytest.raises(ValueError, match="Give X_train and y_train"):
        alignment_report(sdn(), given.test, given.test_y)
    with pytest.raises(ValueError, match="trains on all rows alike"):
        alignment_report(reference(), given.test, given.test_y, at="alignment")


@st.composite
def training_rows(draw):
    """Labels, integer weights and confidences of rows, and of survivors."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    cells = st.tuples(st.integers(0, 3), st.floats(0, 1), st.integers(0, 3))
    rows = draw(st.lists(cells, min_size=n, max_size=n))
    real = draw(st.lists(cells, min_size=m, max_size=m))
    y, confidence, weight = (np.array(part) for part in zip(*rows, strict=True))
    weight[0] += 1  # not all zero
    there, score, _ = (np.array(part) for part in zip(*real, strict=True))
    return y, weight, there, confidence, score


@settings(max_examples=60)
@drawn(training_rows(), st.randoms(use_true_random=False))
def test_distances_are_shares_and_rows_have_no_order(rows, random):
    y, weight, there, confidence, score = rows
    report = distribution_report(y, weight, there, confidence, score, 10)
    repeat = np.repeat(np.arange(len(y)), weight)
    random.shuffle(repeat)
    again = distribution_report(
        y[repeat],
        np.ones(len(repeat)),
        there[::-1],
        confidence[repeat],
        score[::-1],
        10,
    )
    for what in ("tv_class", "tv_confidence"):
        assert 0 <= report[what][0] <= 1 + 1e-12
        # A weight is a repetition.
        assert again[what][0] == pytest.approx(report[what][0])
    same = distribution_report(there, np.ones(len(there)), there, score, score, 10)
    assert same.tv_class[0] == same.tv_confidence[0] == 0


def test_limits_of_the_exits_are_those_of_their_counts():
    given = data()
    report = exit_report(calexnet(), given.test, given.test_y, confidence_level=0.8)
    labels, depth = calexnet().predict(given.test, return_depth=True)
    right = labels == given.test_y
    for k in range(3):
        here = depth == k
        expected = clopper_pearson(here.sum(), 240, 0.8)
        np.testing.assert_allclose(report.depth_share_limits[:, k], expected)
        expected = clopper_pearson(right[here].sum(), here.sum(), 0.8)
        np.testing.assert_allclose(report.depth_precision_limits[:, k], expected)
        for c, name in enumerate(NAMES):
            cell = here & (labels == name)
            expected = clopper_pearson(right[cell].sum(), cell.sum(), 0.8)
            np.testing.assert_allclose(report.precision_limits[:, k, c], expected)


def test_unequal_weights_make_the_limits_wider():
    given = data()
    alike = exit_report(calexnet(), given.test, given.test_y)
    weight = np.random.default_rng(0).exponential(size=240)
    unequal = exit_report(calexnet(), given.test, given.test_y, sample_weight=weight)
    scaled = exit_report(
        calexnet(), given.test, given.test_y, sample_weight=np.full(240, 0.5)
    )
    width = [np.diff(r.depth_share_limits, axis=0).sum() for r in (alike, unequal)]
    assert width[1] > width[0]
    np.testing.assert_allclose(scaled.precision_limits, alike.precision_limits)
