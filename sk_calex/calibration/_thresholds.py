"""Thresholds of one branch: from the precision of what exits, or from its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression

__all__ = ["HAIR", "BranchThresholds", "find_local_thresholds", "find_thresholds"]

# A threshold lies a hair below the lowest score it admits, so that the last bits of a
# float32 head, which depend on the batch size, cannot flip a calibration sample.
HAIR = 1e-6
# Means of the same samples differ in their last bits when a weight stands for copies.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BranchThresholds:
    """Outcome of one branch's calibration; every array has shape (n_classes,).

    `bars` is the precision asked for. With local margins it is the reference's own on
    the samples that exit, less the margin; NaN where none do.
    """

    thresholds: NDArray[np.float64]
    enabled: NDArray[np.bool_]
    precision: NDArray[np.float64]
    support: NDArray[np.float64]
    bars: NDArray[np.float64]


class _Prefixes:
    """Samples sorted by class and falling score, with sums over each class so far.

    A prefix is the samples of a class at or above a score. It ends only between
    distinct scores: ties stay together. No loop over samples or classes.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        predicted: NDArray[np.intp],
        weight: NDArray[np.float64],
        n_classes: int,
    ) -> None:
        self.order = np.lexsort((-scores, predicted))
        self.scores, self.classes = scores[self.order], predicted[self.order]
        self.weight, self.n_classes = weight[self.order], n_classes
        first = np.searchsorted(self.classes, np.arange(n_classes))
        self.first = first[self.classes]  # of the same class, for each row
        self.last = np.append(self.classes[1:] != self.classes[:-1], True)
        self.ends = self.last | np.append(self.scores[1:] != self.scores[:-1], True)

    def weight_of(self, which: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Weight of some samples in the prefix that ends at each row."""
        sums = np.concatenate([[0.0], np.cumsum(self.weight * which[self.order])])
        of_class: NDArray[np.float64] = sums[1:] - sums[self.first]
        return of_class

    def total(self, correct: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Weight of each prefix."""
        # Two sums, so that an all-right prefix is at exactly 1 and an all-wrong one 0.
        return self.weight_of(correct) + self.weight_of(~correct)

    def longest(self, meets: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Last row of each class that meets a condition, -1 where none does."""
        chosen = np.flatnonzero(meets)
        rows = np.full(self.n_classes, -1)
        rows[self.classes[chosen]] = chosen  # the last assignment wins
        return rows

    def thresholds(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """A hair below the scores of these rows, and above the next lower ones."""
        following = self.scores[np.minimum(rows + 1, len(self.scores) - 1)]
        below = np.where(self.last[rows], -np.inf, following)
        gap = np.minimum((self.scores[rows] - below) / 2, HAIR)
        return np.maximum(self.scores[rows] - gap, np.nextafter(below, np.inf))


def _share(part: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[Any]:
    return np.divide(part, total, out=np.zeros(len(part)), where=total > 0)


def _outcome(
    prefixes: _Prefixes,
    rows: NDArray[np.intp],
    correct: NDArray[np.bool_],
    bars: NDArray[np.float64],
) -> BranchThresholds:
    """Thresholds at the chosen rows, -1 where a class has none, and their figures."""
    n_classes = prefixes.n_classes
    thresholds = np.full(n_classes, np.inf)
    precision = np.full(n_classes, np.nan)
    support = np.zeros(n_classes)
    enabled = rows >= 0
    if enabled.any():
        at, total = rows[enabled], prefixes.total(correct)
        thresholds[enabled] = prefixes.thresholds(at)
        precision[enabled] = _share(prefixes.weight_of(correct), total)[at]
        support[enabled] = total[at]
    return BranchThresholds(thresholds, enabled, precision, support, bars)


def find_thresholds(
    scores: NDArray[np.float64],
    predicted: NDArray[np.intp],
    correct: NDArray[np.bool_],
    weight: NDArray[np.float64],
    bars: NDArray[np.float64],
    *,
    min_support: float,
    rule: str,
) -> BranchThresholds:
    """Lowest threshold of each predicted class whose prefix meets the class's bar."""
    prefixes = _Prefixes(scores, predicted, weight, len(bars))
    total = prefixes.total(correct)
    precision = _share(prefixes.weight_of(correct), total)
    judged = prefixes.ends & (total >= max(min_support, np.finfo(float).tiny))
    meets = judged & (precision >= bars[prefixes.classes])
    if rule == "first_violation":
        broken = np.concatenate([[0], np.cumsum(judged & ~meets)])
        meets &= broken[1:] == broken[prefixes.first]
    return _outcome(prefixes, prefixes.longest(meets), correct, bars)


def find_local_thresholds(
    scores: NDArray[np.float64],
    predicted: NDArray[np.intp],
    correct: NDArray[np.bool_],
    reference_correct: NDArray[np.bool_],
    weight: NDArray[np.float64],
    n_classes: int,
    margin: float,
    *,
    min_support: float,
    shrinkage: float,
) -> BranchThresholds:
    """Lowest threshold of each class from which on no exit costs more than the margin.

    What an exit costs falls with the confidence, alike for all classes but for an
    offset: each class's mean deviation from that trend, as if `shrinkage` samples
    without any stood beside its own.
    """
    none = np.full(n_classes, np.nan)
    prefixes = _Prefixes(scores, predicted, weight, n_classes)
    if len(scores) == 0:
        return _outcome(prefixes, np.full(n_classes, -1), correct, none)
    cost = reference_correct.astype(np.float64) - correct
    # Clipped: scores that are all but equal become one, a hair within the others.
    trend = IsotonicRegression(increasing=False, out_of_bounds="clip")
    trend.fit(scores, cost, weight)
    expected = trend.predict(scores)
    own = np.bincount(predicted, weight, n_classes) + shrinkage
    deviation = np.bincount(predicted, weight * (cost - expected), n_classes)
    expected += np.divide(deviation, own, out=np.zeros(n_classes), where=own > 0)[
        predicted
    ]
    total = prefixes.total(correct)
    meets = prefixes.ends & (total >= max(min_support, np.finfo(float).tiny))
    meets &= expected[prefixes.order] <= margin + _ROUNDING
    rows = prefixes.longest(meets)
    bars = none
    if (rows >= 0).any():
        of_reference = _share(prefixes.weight_of(reference_correct), total)
        bars = np.where(rows >= 0, of_reference[rows] - margin, np.nan).clip(0, 1)
    return _outcome(prefixes, rows, correct, bars)
