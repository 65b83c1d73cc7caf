import numpy as np
import pytest

from sk_calex.policies import ClassThresholds
from sk_calex.table import exits_at


@pytest.fixture
def proba():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, (200, 3)) + 0.25
    return counts / counts.sum(axis=1, keepdims=True)


def test_each_branch_and_class_has_its_own_threshold(proba):
    thresholds = np.array([[0.4, 0.6, np.inf], [0.8, -np.inf, 0.5]])
    policy = ClassThresholds(thresholds)
    for branch in (0, 1):
        slow = []
        for row in proba.tolist():
            predicted = row.index(max(row))
            slow.append(max(row) >= thresholds[branch][predicted])
        exits = policy.exits(branch, proba)
        assert exits.dtype == bool
        assert exits.tolist() == slow
        assert 0 < sum(slow) < 200
        np.testing.assert_array_equal(
            exits, exits_at(proba.max(axis=1), proba.argmax(axis=1), thresholds[branch])
        )


def test_infinite_thresholds_keep_everyone_or_no_one(proba):
    policy = ClassThresholds(np.array([[np.inf] * 3, [-np.inf] * 3]))
    assert not policy.exits(0, proba).any()
    assert policy.exits(1, proba).all()


def test_a_score_at_its_threshold_exits():
    proba = np.array([[0.75, 0.25]])
    for threshold, exits in ((0.75, True), (np.nextafter(0.75, 1), False)):
        policy = ClassThresholds(np.array([[threshold, 0.0]]))
        assert policy.exits(0, proba).tolist() == [exits]


def test_no_exit_comes_from_nan():
    policy = ClassThresholds(np.full((1, 2), -np.inf))
    proba = np.array([[np.nan, np.nan], [np.nan, 1.0], [0.5, 0.5]])
    assert policy.exits(0, proba).tolist() == [False, False, True]


def test_no_samples_no_exits():
    policy = ClassThresholds(np.zeros((1, 2)))
    assert policy.exits(0, np.empty((0, 2))).shape == (0,)
