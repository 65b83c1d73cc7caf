"""A cascade whose answers are given row by row, so that its risks are known.

`X` holds the probabilities themselves: those of the branch, then those of the last
stage. Nothing is trained that could differ from machine to machine.
"""

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from sk_calex import CascadeClassifier, SurvivorThresholdCalibrator
from sk_calex.policies import SharedThreshold

CLASSES = np.array(["ant", "bee", "cat"])


class Columns(ClassifierMixin, BaseEstimator):
    """Read probabilities off the columns of X."""

    def __init__(self, first=0, macs=1):
        self.first = first
        self.macs = macs

    def fit(self, X, y, sample_weight=None):
        self.classes_ = np.unique(y)
        self.n_features_in_ = X.shape[1]
        self.macs_ = self.macs
        return self

    def predict_proba(self, X):
        return X[:, self.first : self.first + 3]


def probabilities(codes, confidence):
    """Rows with this confidence for these classes."""
    proba = np.repeat((1 - np.asarray(confidence))[:, None] / 2, 3, axis=1)
    proba[np.arange(len(codes)), codes] = confidence
    return proba


def rows(n, seed=0, *, lost=0.0, gained=0.0):
    """Rows of which 0.9 are easy: the branch answers them surely, and as the backbone.

    Of the rest, of confidence 0.6, shares `lost` and `gained` of all rows are answered
    otherwise by the branch: wrongly where the last stage is right, or the reverse. A
    tenth of the easy rows are wrong at both stages.
    """
    rng = np.random.default_rng(seed)
    truth = rng.integers(3, size=n)
    kind = rng.choice(4, size=n, p=[0.9, lost, gained, 0.1 - lost - gained])
    last, branch = truth.copy(), truth.copy()
    other = (truth + 1) % 3
    both = (kind == 0) & (rng.random(n) < 0.1)
    last[both], branch[both] = other[both], other[both]
    branch[kind == 1] = other[kind == 1]
    last[kind == 2] = other[kind == 2]
    # Distinct, but far from the thresholds: no two rows are one and the same.
    wiggle = rng.random(n) / 100
    sure = np.where(kind == 0, 0.95, 0.6) + wiggle
    X = np.hstack([probabilities(branch, sure), probabilities(last, 0.8 + wiggle)])
    return X, CLASSES[truth]


def fixed_cascade(calibrator=None, *, seed=100, lost=0.02, gained=0.0, **params):
    """A fitted cascade with one branch, at 1 % of the cost of the last stage."""
    if calibrator is None:
        calibrator = SharedThreshold(0.9)
    cascade = CascadeClassifier(
        branch=Columns(0, macs=1),
        final_estimator=Columns(3, macs=100),
        calibrator=calibrator,
        cv=0.5,
        random_state=0,
        **params,
    )
    return cascade.fit(*rows(400, seed, lost=lost, gained=gained))


def margin_cascade(**params):
    """The same, moved by its margin."""
    calibrator = SurvivorThresholdCalibrator(margin_mode="local", min_support=1)
    return fixed_cascade(calibrator, **params)
