"""Cross-fitting of a rule on copies of rows, one fold after the other, in loops."""

from math import sqrt

import numpy as np
from sklearn.base import clone

from sk_calex.calibration import StageTable
from tests._reference.policies import repeated


def slow_dealing(proba, y, n_folds=5):
    """Fold of each row: sorted by class and by what the stages say, dealt in turn."""
    table = StageTable.from_probabilities(proba)
    rows = sorted(
        range(len(y)),
        key=lambda i: (
            y[i],
            *table.confidence[:, i].tolist(),
            *table.predicted[::-1, i].tolist(),
        ),
    )
    folds = np.empty(len(y), dtype=int)
    folds[rows] = np.arange(len(y)) % n_folds
    return folds


def slow_drop(rule, value, proba, y, weight, costs=None):
    """Answers lost and gained, share of exits and mean cost, at a value of the knob."""
    proba, y = repeated(proba, y, weight)
    folds = slow_dealing(proba, y)
    n, n_stages = len(y), len(proba)
    costs = np.arange(1, n_stages + 1) if costs is None else costs
    lost = gained = exits = cost = 0
    for fold in range(5):
        held = np.flatnonzero(folds == fold)
        kept = np.flatnonzero(folds != fold)
        if len(held) == 0:
            continue
        more = np.full(len(kept), n / len(kept))
        fitted = clone(rule).set_params(**{rule.knob: value})
        fitted.fit(proba[:, kept], y[kept], more, costs=costs)
        for i, depth in zip(held, fitted.depth(proba[:, held]), strict=True):
            answer, last = proba[depth, i].argmax(), proba[-1, i].argmax()
            lost += last == y[i] and answer != y[i]
            gained += last != y[i] and answer == y[i]
            exits += depth < n_stages - 1
            cost += costs[depth]
    return lost, gained, exits / n, cost / n


def slow_standard_error(lost, gained, n):
    """Of the mean of +1 and -1, with one row more that differs."""
    return sqrt(lost + gained + 1 - (lost - gained) ** 2 / (n + 1)) / n
