"""Many classes with few rows: those without rows never exit, or share a threshold."""

import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit

from sk_calex import CascadeClassifier, FrozenBackbone, SurvivorThresholdCalibrator
from sk_calex.calibration import CalibrationWarning, StageTable
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.cascade._training_data import make_folds
from tests._cascade_models import TAPS, images, small_branch, tiny_net
from tests._reference.policies import dirichlet

MODES = pytest.mark.parametrize("mode", ["local", "relative", "absolute"])


def thin(n_classes, per_class, seed=0):
    """Answers of a branch and of a last stage to rows of many classes."""
    n = int(n_classes * per_class)
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    confidence = np.empty((2, n))
    predicted = np.tile(y, (2, 1))
    for stage, wrong in enumerate((0.3, 0.1)):
        lost = rng.random(n) < wrong
        predicted[stage, lost] = rng.integers(n_classes, size=lost.sum())
        right = predicted[stage] == y
        confidence[stage] = np.where(right, rng.beta(6, 2, n), rng.beta(2, 4, n))
    table = StageTable.empty(2, n, n_classes)
    table.predicted[:], table.confidence[:] = predicted, confidence
    table.entropy[:], table.gap[:] = 0.0, confidence
    return CalibrationSet(table, y, np.ones(n))


@MODES
def test_a_rare_class_takes_the_threshold_of_all(mode):
    given = thin(200, 3)
    settings = {"margin": 0.05, "margin_mode": mode, "min_support": 10}
    alone = SurvivorThresholdCalibrator(**settings).fit_on(given)
    shared = SurvivorThresholdCalibrator(**settings, rare_classes="shared")
    shared.fit_on(given)
    count = np.bincount(given.answers.predicted[0], minlength=200)
    rare = count < 10
    assert rare.sum() > 190
    assert (alone.thresholds_[0, rare] == np.inf).all()
    one = np.unique(shared.thresholds_[0, rare])
    assert len(one) == 1
    assert np.isfinite(one[0])
    np.testing.assert_array_equal(
        shared.thresholds_[0, ~rare], alone.thresholds_[0, ~rare]
    )
    # It is the threshold of the same rows as if they were of one class.
    pooled = CalibrationSet(given.answers, given.labels, given.weight)
    as_one = shared._of_classes(
        given.answers.confidence[0],
        np.zeros(len(given.labels), dtype=np.intp),
        given.right[0],
        given.right[-1],
        given.weight,
        np.array([pooled.right[-1].mean()]),
        0.05,
    )
    assert one[0] == as_one.thresholds[0]
    assert shared.enabled_[0, rare].all()
    assert (shared.support_[0, rare] == as_one.support[0]).all()


@MODES
def test_frequent_classes_are_not_touched(mode):
    proba, y = dirichlet(n=400)
    settings = {"margin": 0.05, "margin_mode": mode, "min_support": 3}
    one = SurvivorThresholdCalibrator(**settings).fit(proba, y)
    two = SurvivorThresholdCalibrator(**settings, rare_classes="shared").fit(proba, y)
    np.testing.assert_array_equal(one.thresholds_[0], two.thresholds_[0])


def test_a_class_without_a_row_shares_too():
    proba, y = dirichlet(n=400)
    given = CalibrationSet(
        StageTable.from_probabilities(proba),
        np.minimum(y, 1),  # class 2 is predicted, but is no row's label
        np.ones(400),
        skips_unseen=True,
    )
    settings = {"margin": 0.1, "margin_mode": "local"}
    never = SurvivorThresholdCalibrator(**settings).fit_on(given)
    assert (never.thresholds_[:, 2] == np.inf).all()
    rule = SurvivorThresholdCalibrator(**settings, rare_classes="shared").fit_on(given)
    assert (rule.thresholds_[:, 2] < np.inf).any()


@pytest.mark.parametrize("per_class", [1.5, 5, 50])
def test_a_thousand_classes_take_little_memory(per_class):
    given = thin(1000, per_class)
    rule = SurvivorThresholdCalibrator(0.05, margin_mode="local", rare_classes="shared")
    tracemalloc.start()
    rule.fit_on(given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rule.thresholds_.shape == (1, 1000)
    assert peak < 20e6  # a matrix of rows and classes would take 400 MB
    depth = rule.depth(given.answers)
    assert 0 < (depth == 0).mean() < 1


def test_a_warning_counts_the_classes_that_exit():
    rng = np.random.default_rng(0)
    y = np.where(np.arange(180) % 20 == 0, 3, np.arange(180) % 3)  # nine of the fourth
    y = rng.permutation(y)
    X = 4 * np.eye(4)[y] + rng.standard_normal((180, 4))
    cascade = CascadeClassifier(
        branch=LogisticRegression(),
        margin=0.1,
        cv=PredefinedSplit(np.where(np.arange(180) % 3 == 0, 0, -1)),
        random_state=0,
    )
    with pytest.warns(CalibrationWarning, match=r"\d of 4 classes may exit .*rare_cl"):
        cascade.fit(X, y)


# -- splits ----------------------------------------------------------------------------


def share(codes, cv=0.2, seed=0):
    codes = np.asarray(codes)
    classes = np.arange(codes.max() + 1)
    seeds = np.random.RandomState(seed)
    return make_folds(cv, codes, np.ones(len(codes)), classes, seeds, {})


@pytest.mark.parametrize("per_class", [1.5, 3, 4])
def test_a_share_is_held_out_evenly_where_classes_have_few_rows(per_class):
    codes = np.arange(int(100 * per_class)) % 100
    folds = share(codes)
    assert set(codes[folds.train]) == set(range(100))
    assert len(folds.train) + len(folds.calibration) == len(codes)
    n_held = min(int(np.ceil(0.2 * len(codes))), len(codes) - 100)
    assert len(folds.calibration) == n_held
    assert not set(folds.train) & set(folds.calibration)
    held = np.bincount(codes[folds.calibration], minlength=100)
    assert held.max() <= 1
    np.testing.assert_array_equal(folds.calibration, share(codes).calibration)
    assert not np.array_equal(folds.calibration, share(codes, seed=1).calibration)


def test_a_single_row_of_a_class_trains():
    codes = np.append(np.arange(40) % 2, 2)
    folds = share(codes)
    assert 40 in folds.train
    assert len(folds.calibration) == 9


def test_a_class_without_a_calibration_row_does_not_end_a_fit():
    X, y = images(90)
    y = np.where(np.arange(90) == 4, 3, y)
    backbone = FrozenBackbone(
        tiny_net(4), TAPS, pool=4, device="cpu", classes=[0, 1, 2, 3]
    )
    cascade = CascadeClassifier(
        backbone,
        branch=small_branch("gap"),
        calibrator=SurvivorThresholdCalibrator(margin_mode="local", min_support=1),
        margin=0.9,
        random_state=0,
    ).fit(X, y)
    assert 3 not in cascade.calibration_.labels
    assert (cascade.thresholds_[:, 3] == np.inf).all()
    assert (cascade.thresholds_[:, :3] < np.inf).any()
