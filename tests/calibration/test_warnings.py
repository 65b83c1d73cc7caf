"""What a fit says where calibration rows are few, with the numbers."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import PredefinedSplit
from sklearn.naive_bayes import GaussianNB

from sk_calex import CascadeClassifier, SurvivorThresholdCalibrator
from sk_calex.calibration import CalibrationWarning, StageTable
from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.calibration._warnings import warn_of_few_rows
from sk_calex.policies import Patience, SharedThreshold

NAMES = np.array(["ant", "bee", "cat"])


def rows(counts, confidence=0.9, right=True):
    """Two branches and a last stage that give one class after the other."""
    labels = np.repeat(np.arange(3), counts)
    answered = labels if right else (labels + 1) % 3
    proba = np.full((len(labels), 3), (1 - confidence) / 2)
    proba[np.arange(len(labels)), answered] = confidence
    last = np.eye(3)[labels]
    answers = StageTable.from_probabilities([proba, proba, last])
    return CalibrationSet(answers, labels, np.ones(len(labels)))


def said(rule, given):
    """Messages of the warnings, at most one."""
    rule.fit(given.answers, given.labels, given.weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_few_rows(rule, given, NAMES)
    assert all(w.category is CalibrationWarning for w in caught)
    assert len(caught) <= 1
    return "".join(str(w.message) for w in caught)


def test_enough_rows_are_not_worth_a_word():
    rule = SurvivorThresholdCalibrator(min_support=10)
    assert said(rule, rows([30, 30, 30])) == ""


def test_classes_with_few_rows_are_named_with_their_counts():
    rule = SurvivorThresholdCalibrator(min_support=10)
    message = said(rule, rows([30, 29, 12]))
    assert "2 of 3 classes have fewer calibration rows than 3 times min" in message
    assert "min_support=10 ('cat': 12, 'bee': 29)" in message
    assert "Hold out more rows (cv)" in message


def test_a_weight_counts_as_that_many_rows():
    given = rows([30, 30, 30])
    light = CalibrationSet(given.answers, given.labels, given.weight * 0.5)
    rule = SurvivorThresholdCalibrator(min_support=10)
    assert "('ant': 15, 'bee': 15, 'cat': 15)" in said(rule, light)
    assert said(rule.set_params(min_support=5), light) == ""


def test_less_weight_than_the_least_support():
    rule = SurvivorThresholdCalibrator(min_support=10)
    message = said(rule, rows([3, 3, 3]))
    assert "total weight of 9, less than min_support=10" in message
    assert "no class can exit" in message


@pytest.mark.parametrize("n", [40, 20])
def test_no_class_can_exit(n):
    rule = SurvivorThresholdCalibrator(min_support=10)
    message = said(rule, rows([n, n, n], right=False))
    assert "no class can exit at any branch" in message
    assert f"on {3 * n} calibration rows" in message
    assert ("3 of 3 classes have fewer" in message) == (n == 20)
    assert "no class can exit" in said(SharedThreshold(np.inf), rows([5, 5, 5]))


def test_rules_without_a_least_support_say_nothing_of_rows():
    for rule in (Patience(), SharedThreshold(0.99)):
        assert said(rule, rows([1, 1, 1])) == ""


def test_a_fit_warns_once_of_few_rows_and_a_move_does_not():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = np.eye(3)[y] * 4 + rng.standard_normal((60, 3))
    cv = PredefinedSplit(np.where(np.arange(60) < 30, 0, -1))
    cascade = CascadeClassifier(branch=GaussianNB(), margin=0.05, cv=cv)
    with pytest.warns(CalibrationWarning, match=r"3 of 3 .* \(0: 10, 1: 10, 2: 10\)"):
        cascade.fit(X, y)
    # Nor do clones of a search, whose rows are the same.
    siblings = [clone(cascade) for _ in range(2)]
    with pytest.warns(CalibrationWarning):
        siblings[0].fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        siblings[1].set_params(margin=0.2).fit(X, y)
        cascade.set_margin(0.3)
        cascade.set_calibrator(SharedThreshold(0.9))


def test_a_move_after_which_no_class_can_exit_warns():
    y = np.arange(90) % 3
    X = np.random.default_rng(0).standard_normal((90, 3)) + 4 * np.eye(3)[y]
    cv = PredefinedSplit(np.where(np.arange(90) < 45, 0, -1))
    cascade = CascadeClassifier(branch=GaussianNB(), margin=0.1, cv=cv).fit(X, y)
    with pytest.warns(CalibrationWarning, match="no class can exit at any branch"):
        cascade.set_margin(-2.0)  # no branch is so much better than the last stage
    assert np.isinf(cascade.thresholds_).all()
    with pytest.warns(CalibrationWarning, match="no class can exit at any branch"):
        cascade.set_calibrator(SharedThreshold(np.inf))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cascade.set_operating_point(0.4)
