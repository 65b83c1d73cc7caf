"""margin="auto": an accuracy that is kept, in every way into and out of a cascade."""

import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, PredefinedSplit

import sk_calex
from sk_calex import (
    CascadeClassifier,
    ExitRiskController,
    SurvivorAlignment,
    SurvivorThresholdCalibrator,
    margin_curve,
)
from sk_calex.baselines import (
    BoostNetClassifier,
    BTSEEClassifier,
    PABEEClassifier,
    SDNClassifier,
)
from sk_calex.calibration import CalibrationWarning
from sk_calex.policies import OptimalStopping, SharedThreshold
from tests._cascade_models import images, small_branch, tiny_backbone
from tests._fixed_cascade import Columns, margin_cascade
from tests._fixed_cascade import rows as fixed_rows
from tests._quick_cascade import FIXED, X, Y

DROP = 0.1  # of 60 calibration rows: six


def cascade(**params):
    params = {
        "branch": small_branch("gap"),
        "cv": FIXED,
        "random_state": 0,
        "max_accuracy_drop": DROP,
    } | params
    return CascadeClassifier(tiny_backbone(), **params)


@pytest.fixture(scope="module")
def fitted():
    return cascade().fit(X, Y)


def test_auto_is_the_default():
    defaults = CascadeClassifier().get_params()
    assert (defaults["margin"], defaults["max_accuracy_drop"]) == ("auto", 0.005)


def test_it_is_a_fit_at_the_margin_found(fitted):
    assert fitted.margin == "auto"
    assert fitted.margin_ in fitted.margin_path_["margin"]
    there = cascade(margin=fitted.margin_).fit(X, Y)
    assert there.margin_ == there.margin == fitted.margin_
    np.testing.assert_array_equal(fitted.thresholds_, there.thresholds_)
    np.testing.assert_array_equal(fitted.predict(X), there.predict(X))
    for name in ("enabled_", "precision_", "support_"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(there, name))


def test_the_path_says_what_was_judged(fitted):
    path = fitted.margin_path_
    lengths = {len(column) for column in path.values()}
    assert lengths == {len(path["margin"])}
    assert (np.diff(path["margin"]) > 0).all()
    within = path["accuracy_drop"] + path["standard_error"] <= DROP + 1e-9
    np.testing.assert_array_equal(path["within"], within)
    assert path["mean_cost"].max() <= fitted.depth_costs_[-1]
    assert set(path) == {
        *("margin", "n_lost", "n_gained", "accuracy_drop", "standard_error"),
        *("exit_share", "mean_cost", "within"),
    }


def test_a_number_has_no_path():
    there = cascade(margin=0.1).fit(X, Y)
    with pytest.raises(AttributeError, match="margin_path_"):
        there.margin_path_  # noqa: B018


def test_there_and_back_without_training(fitted):
    found, before = fitted.margin_, fitted.thresholds_.copy()
    moved = pickle.loads(pickle.dumps(fitted)).set_margin(0.3)
    assert (moved.margin, moved.margin_) == (0.3, 0.3)
    np.testing.assert_array_equal(moved.thresholds_at("auto"), before)
    assert moved.set_margin("auto").margin_ == found
    np.testing.assert_array_equal(moved.thresholds_, before)
    assert moved.set_operating_point("auto").margin == "auto"


def test_other_drops_need_no_other_training(fitted):
    strict = clone(cascade()).fit(X, Y)
    branches = strict.branches_
    strict.set_params(max_accuracy_drop=0.9).set_margin("auto")
    assert strict.branches_ is branches
    assert strict.margin_ == strict.margin_path_["margin"].max()


@pytest.mark.parametrize("margin", ["most", "Auto", None, [0.1, "auto"]])
def test_other_words_are_no_margins(fitted, margin):
    with pytest.raises((ValueError, TypeError)):
        cascade(margin=margin).fit(X, Y)
    before = fitted.thresholds_.copy()
    with pytest.raises((ValueError, TypeError)):
        fitted.set_margin(margin)
    assert fitted.margin == "auto"
    np.testing.assert_array_equal(fitted.thresholds_, before)


def test_drops_are_shares():
    with pytest.raises(ValueError, match="max_accuracy_drop"):
        cascade(max_accuracy_drop=1.5).fit(X, Y)


def test_training_weights_cannot_follow_what_is_found_later():
    following = cascade(alignment=SurvivorAlignment(margin="same"))
    with pytest.raises(ValueError, match="margin='auto' is found after the branches"):
        following.fit(X, Y)
    following.set_params(alignment__kind="none").fit(X, Y)


# -- too few rows ----------------------------------------------------------------------


def test_few_rows_are_said_once_with_numbers():
    few = cascade(max_accuracy_drop=0.005)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CalibrationWarning)
        few.fit(X, Y)
    said = [str(w.message) for w in caught if w.category is CalibrationWarning]
    about = [text for text in said if "lets no sample exit" in text]
    assert len(about) == 1
    assert "on 60 calibration rows" in about[0]
    assert "no fewer than 200 rows" in about[0]
    assert not any("no class can exit" in text for text in said)
    assert np.isnan(few.margin_)
    assert (few.exit_depth(X) == 2).all()
    assert "nothing exits" in few._repr_html_()
    np.testing.assert_array_equal(few.predict(X), few.backbone_.predict(X))


@pytest.mark.parametrize("n", [10, 30])
def test_a_dozen_rows_are_fitted(n):
    rng = np.random.default_rng(0)
    points, y = rng.standard_normal((n, 2)), np.arange(n) % 2
    few = CascadeClassifier(cv=2, random_state=0)
    with pytest.warns(CalibrationWarning, match="lets no sample exit"):
        few.fit(points, y)
    assert (few.exit_depth(points) == 1).all()


# -- what else a cascade has -----------------------------------------------------------


def test_an_ensemble_is_compared_with_the_backbone_alone():
    """The last stage by itself is the reference, not its ensemble."""
    joined = cascade(ensemble=True).fit(X, Y)
    given = joined.calibration_
    held = X[FIXED.test_fold == 0]
    plain = joined.backbone_.predict(held)
    np.testing.assert_array_equal(given.reference, plain)
    new, truth = images(90, seed=5)
    joined.recalibrate(new, truth)
    plain = joined.backbone_.predict(new)
    np.testing.assert_array_equal(joined.calibration_.reference, plain)


@pytest.mark.parametrize("params", [{}, {"ensemble": True}], ids=str)
def test_new_rows_choose_anew(params):
    moved = cascade(**params).fit(X, Y)
    new, truth = images(300, seed=5)
    moved.recalibrate(new, truth)
    given = moved.calibration_
    by_hand = SurvivorThresholdCalibrator(
        "auto", margin_mode="local", max_accuracy_drop=DROP
    ).fit_on(given.select_stages([0, 1, 2]))
    assert moved.margin_ == by_hand.margin_
    np.testing.assert_array_equal(moved.thresholds_, by_hand.thresholds_)


def test_out_of_fold_answers_calibrate_too():
    points = cascade(cv=3).fit(X, Y)
    assert points.margin_path_["within"].any()


def test_a_grid_may_hold_it_beside_numbers():
    search = GridSearchCV(cascade(cv=0.5), {"margin": ["auto", 0.3]}, cv=2)
    search.fit(X, Y)
    assert len(search.cv_results_["mean_test_score"]) == 2


def test_it_is_saved_with_its_path(fitted, tmp_path):
    fitted.save(tmp_path / "cascade")
    loaded = sk_calex.load(tmp_path / "cascade", fitted.backbone_.module)
    assert loaded.margin == "auto"
    assert loaded.margin_ == fitted.margin_
    for name, column in fitted.margin_path_.items():
        np.testing.assert_array_equal(loaded.margin_path_[name], column)
    np.testing.assert_array_equal(loaded.thresholds_, fitted.thresholds_)
    assert loaded.set_margin("auto").margin_ == fitted.margin_


def test_html_shows_what_was_found(fitted):
    assert f"margin=&#x27;auto&#x27; ({fitted.margin_:.3g})" in fitted._repr_html_()


def test_the_curve_is_drawn_over_numbers(fitted):
    curve = margin_curve(fitted, X, Y, margins=[0.0, 0.3])
    assert curve.margins.tolist() == [0.0, 0.3]


def test_a_controller_certifies_it():
    rule = SurvivorThresholdCalibrator(margin_mode="local", min_support=1)
    auto = CascadeClassifier(
        branch=Columns(0, macs=1),
        final_estimator=Columns(3, macs=100),
        calibrator=rule,
        max_accuracy_drop=0.05,
        cv=0.5,
        random_state=0,
    ).fit(*fixed_rows(400, 100, lost=0.02))
    assert auto.margin_ == auto.calibrator_.margin_
    safe = ExitRiskController(auto, max_risk=0.05).fit(*fixed_rows(2000, 7, lost=0.02))
    numbers = ExitRiskController(margin_cascade(margin=0.0), max_risk=0.05)
    numbers.fit(*fixed_rows(2000, 7, lost=0.02))
    assert safe.best_margin_ == numbers.best_margin_
    assert safe.best_estimator_.margin == safe.best_margin_


# -- other rules and methods -----------------------------------------------------------


def test_a_rule_takes_the_drop_of_its_cascade():
    priced = cascade(calibrator=OptimalStopping("auto")).fit(X, Y)
    assert priced.calibrator_.max_accuracy_drop == DROP
    assert priced.calibrator_.price_ in priced.calibrator_.price_path_["price"]
    assert priced.margin == "auto"
    own = cascade(
        calibrator=SharedThreshold("auto", max_accuracy_drop=0.2),
        max_accuracy_drop=0.005,
    ).fit(X, Y)
    assert own.calibrator_.max_accuracy_drop == 0.2
    both = cascade(calibrator=SharedThreshold("auto", max_accuracy_drop=0.2))
    with pytest.raises(ValueError, match=r"max_accuracy_drop=0\.2 and the cascade has"):
        both.fit(X, Y)


@pytest.mark.parametrize(
    "method",
    [
        SDNClassifier(threshold="auto", max_iter=2),
        PABEEClassifier(patience="auto", max_iter=2),
        BoostNetClassifier(quota_decay="auto", head="gap", max_iter=2),
        BTSEEClassifier(margin="auto", branch=small_branch("gap")),
    ],
    ids=lambda method: type(method).__name__,
)
def test_baselines_have_the_same_knob(method):
    method = clone(method).set_params(
        backbone=tiny_backbone(), cv=FIXED, random_state=0, max_accuracy_drop=0.5
    )
    method.fit(X, Y)
    rule = method.calibrator_
    value = getattr(rule, f"{rule.knob}_")
    value = int(value) if isinstance(method, PABEEClassifier) else value
    depth = method.exit_depth(X)
    assert (depth < 2).any()
    method.set_operating_point(value)
    np.testing.assert_array_equal(method.exit_depth(X), depth)


def test_classes_that_rows_lack_never_exit():
    labels = np.where(Y == 2, 1, Y)
    lacking = CascadeClassifier(
        tiny_backbone(classes=[0, 1, 2]),
        branch=small_branch("gap"),
        calibrator=SharedThreshold("auto"),
        max_accuracy_drop=0.5,
        cv=PredefinedSplit(FIXED.test_fold),
        random_state=0,
    ).fit(X, labels)
    assert (lacking.thresholds_[:, 2] == np.inf).all()
    assert (lacking.thresholds_[:, :2] < np.inf).all()
