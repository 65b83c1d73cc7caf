"""One margin for all branches, or a sequence with one for each."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sk_calex import CascadeClassifier, operating_curve
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.policies import ClassThresholds, first_exits
from sk_calex.utils._validation import check_margins
from tests._cascade_models import composed, images, small_branch, tiny_backbone


@pytest.fixture(scope="module")
def data():
    X, y = images(150)
    return tiny_backbone().fit(X).transform(X), y


def cascade(**params):
    settings = {"branch": small_branch(), "min_support": 3, "random_state": 0}
    settings["margin_mode"] = "relative"
    return CascadeClassifier(input="features", **composed(**(settings | params)))


@pytest.fixture(scope="module")
def fitted(data):
    return cascade().fit(*data)


@pytest.mark.parametrize("form", [list, tuple, np.array])
def test_equal_margins_are_one_margin(data, form):
    X, y = data
    one = cascade(margin=0.1).fit(X, y)
    each = cascade(margin=form([0.1, 0.1])).fit(X, y)
    np.testing.assert_array_equal(one.thresholds_, each.thresholds_)
    np.testing.assert_array_equal(one.predict_proba(X), each.predict_proba(X))


def test_each_branch_is_held_to_its_own_bar(fitted):
    """By hand: the second branch sees those that the first lets go on at its margin."""
    given, rule = fitted.calibration_, SurvivorThresholdCalibrator(min_support=3)
    everyone = np.ones(len(given.labels), dtype=bool)
    first = rule.branch_thresholds(given, 0, everyone, -0.3)
    said = given.answers.stage(0)
    go_on = said.confidence < first.thresholds[said.predicted]
    second = rule.branch_thresholds(given, 1, go_on, 0.4)
    both = fitted.thresholds_at([-0.3, 0.4])
    np.testing.assert_array_equal(both, [first.thresholds, second.thresholds])
    assert not np.array_equal(both, fitted.thresholds_at(-0.3))
    assert not np.array_equal(both, fitted.thresholds_at(0.4))


def test_moving_is_fitting(data, fitted):
    X, y = data
    moved = cascade().fit(X, y).set_margin((0.3, -0.1))
    assert moved.margin == (0.3, -0.1)
    again = cascade(margin=(0.3, -0.1)).fit(X, y)
    np.testing.assert_array_equal(moved.thresholds_, again.thresholds_)
    np.testing.assert_array_equal(moved.thresholds_, fitted.thresholds_at([0.3, -0.1]))


def test_the_branches_are_aligned_to_their_margins(data):
    X, y = data
    margins = [0.4, -0.2]
    same = cascade(margin=margins, alignment_margin="same", alignment="hard").fit(X, y)
    # What the last branch lets out trains nobody: only the first margin matters.
    first = cascade(margin=margins, alignment_margin=0.4, alignment="hard").fit(X, y)
    other = cascade(margin=margins, alignment_margin=-0.2, alignment="hard").fit(X, y)
    np.testing.assert_array_equal(
        same.effective_sample_size_, first.effective_sample_size_
    )
    assert same.effective_sample_size_[1] != other.effective_sample_size_[1]


def test_the_rule_for_any_method_takes_them_too(data, fitted):
    X, _ = data
    margins = [-0.3, 0.4]
    policy = SurvivorThresholdCalibrator(margins, min_support=3)
    policy.fit(fitted.calibration_.answers, fitted.calibration_.labels)
    np.testing.assert_array_equal(policy.thresholds_, fitted.thresholds_at(margins))
    table = stage_table(fitted, X)
    np.testing.assert_array_equal(
        policy.depth(table),
        first_exits(ClassThresholds(fitted.thresholds_at(margins)), table),
    )


def test_a_curve_over_pairs_of_margins(data, fitted):
    X, y = data
    pairs = [[-0.3, 0.4], [0.4, -0.3]]
    curve = operating_curve(fitted, X, y, pairs)
    np.testing.assert_array_equal(curve.knob_values, pairs)
    for i, pair in enumerate(pairs):
        moved = cascade().fit(X, y).set_margin(pair)
        assert curve.accuracy[i] == pytest.approx(moved.score(X, y))
        assert curve.flops_reduction[i] == pytest.approx(moved.flops_reduction(X))


def test_a_grid_over_pairs_of_margins(data):
    X, y = data
    grid = {"margin": [[0.0, 0.2], (-0.3, 0.1), 0.1]}
    search = GridSearchCV(clone(cascade()), grid, cv=2).fit(X, y)
    assert search.best_estimator_.margin == search.best_params_["margin"]


@pytest.mark.parametrize("margin", [[0.1], [0.1, 0.2, 0.3], []])
def test_as_many_as_branches(data, fitted, margin):
    message = rf"margin is a sequence of {len(margin)} numbers, but there are 2 branch"
    with pytest.raises(ValueError, match=message):
        cascade(margin=margin).fit(*data)
    before = fitted.thresholds_.copy()
    with pytest.raises(ValueError, match=message):
        fitted.set_margin(margin)
    np.testing.assert_array_equal(fitted.thresholds_, before)
    assert fitted.margin == "auto"
    with pytest.raises(ValueError, match=message):
        SurvivorThresholdCalibrator(margin).fit(
            fitted.calibration_.answers, fitted.calibration_.labels
        )


@pytest.mark.parametrize(
    ("margin", "message"),
    [
        ([0.1, 1.0], r"margin\[1\]=1\.0"),
        ([np.nan, 0.1], r"margin\[0\]=nan"),
        ([[0.1, 0.2]], "one number for all branches, or a"),
        ("0.1", "one number for all branches, or a"),
        ([0.1, "a"], "could not convert"),
    ],
)
def test_what_is_no_margin(data, margin, message):
    with pytest.raises(ValueError, match=message):
        check_margins(margin, 2)
    with pytest.raises(ValueError, match=r"margin|could not convert"):
        cascade(margin=margin).fit(*data)
