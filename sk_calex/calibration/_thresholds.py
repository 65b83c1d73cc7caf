"""Thresholds of one branch: from the precision of what exits, or from its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.isotonic import isotonic_regression
from sklearn.utils.validation import check_consistent_length

from sk_calex.utils._validation import check_margin, check_sample_weight

__all__ = [
    "HAIR",
    "BranchThresholds",
    "class_precision",
    "exits_at",
    "find_local_thresholds",
    "find_thresholds",
    "just_below",
    "precision_bars",
    "prefix_ends",
]

# A threshold lies a hair below the lowest score it admits, so that the last bits of a
# float32 head, which depend on the batch size, cannot flip a calibration sample.
HAIR = 1e-6
# Means of the same samples differ in their last bits when a weight stands for copies.
_ROUNDING = 1e-9


def class_precision(
    y: ArrayLike,
    predicted: ArrayLike,
    n_classes: int,
    sample_weight: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Compute the precision of a classifier for each class that it predicts.

    Parameters
    ----------
    y : array-like of int, shape (n_samples,)
        True classes, in ``0 .. n_classes - 1``.
    predicted : array-like of int, shape (n_samples,)
        Predicted classes.
    n_classes : int
        Number of classes C.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights; an integer weight means repetition.

    Returns
    -------
    precision : ndarray of float64, shape (n_classes,)
        Share of right answers among the samples predicted as each class; NaN for a
        class that is never predicted.

    Raises
    ------
    ValueError
        If a class lies outside ``0 .. n_classes - 1``, lengths differ or a weight is
        negative.

    Examples
    --------
    >>> from sk_calex import class_precision
    >>> class_precision([0, 0, 1], [0, 1, 1], n_classes=2)
    array([1. , 0.5])
    """
    truth = _check_codes(y, n_classes, "y")
    guess = _check_codes(predicted, n_classes, "predicted")
    check_consistent_length(truth, guess)
    weight = check_sample_weight(sample_weight, truth)
    total = np.bincount(guess, weights=weight, minlength=n_classes)
    right = np.bincount(guess, weights=weight * (truth == guess), minlength=n_classes)
    out = np.full(n_classes, np.nan)
    np.divide(right, total, out=out, where=total > 0)
    return out


def precision_bars(
    reference_precision: ArrayLike, margin: float, margin_mode: str = "relative"
) -> NDArray[np.float64]:
    """Compute the precision that each class must reach to exit.

    Parameters
    ----------
    reference_precision : array-like of shape (n_classes,)
        Precision of the backbone for each predicted class; NaN where unknown.
    margin : float
        Finite and below 1. Positive margins accept less precision than the backbone's,
        negative ones demand more.
    margin_mode : {"relative", "absolute"}, default="relative"
        ``(1 - margin) * precision`` or ``precision - margin``.

    Returns
    -------
    bars : ndarray of float64, shape (n_classes,)
        The bars, clipped to [0, 1]. A class of unknown precision gets 1.

    Raises
    ------
    ValueError
        If the margin is not finite or not below 1, or `margin_mode` is unknown.

    Notes
    -----
    CalexNet's class-precision margin (Aperstein & Apartsin 2026, Eq. 8). The relative
    form was seen in a third party's work only; the absolute one is our definition.

    Examples
    --------
    >>> from sk_calex import precision_bars
    >>> precision_bars([0.8, 0.5], margin=0.1)
    array([0.72, 0.45])
    >>> precision_bars([0.8, 0.5], margin=-0.3, margin_mode="absolute")
    array([1. , 0.8])
    """
    reference = np.asarray(reference_precision, dtype=np.float64)
    margin = check_margin(margin)
    if margin_mode == "relative":
        bars = (1 - margin) * reference
    elif margin_mode == "absolute":
        bars = reference - margin
    else:
        raise ValueError(
            f"margin_mode={margin_mode!r} is unknown. Use 'relative' or 'absolute'."
        )
    return np.clip(np.where(np.isnan(bars), 1.0, bars), 0.0, 1.0)


@dataclass(frozen=True)
class BranchThresholds:
    """Outcome of one branch's calibration; every array has shape (n_classes,).

    `bars` is the required precision. With local margins it is the reference's own on
    the samples that exit, less the margin; NaN where none do.
    """

    thresholds: NDArray[np.float64]
    enabled: NDArray[np.bool_]
    precision: NDArray[np.float64]
    support: NDArray[np.float64]
    bars: NDArray[np.float64]

    def disable(self, classes: NDArray[np.bool_]) -> BranchThresholds:
        """Let some classes never exit."""
        return BranchThresholds(
            np.where(classes, np.inf, self.thresholds),
            self.enabled & ~classes,
            np.where(classes, np.nan, self.precision),
            np.where(classes, 0.0, self.support),
            self.bars,
        )

    def fill(
        self, classes: NDArray[np.bool_], shared: BranchThresholds
    ) -> BranchThresholds:
        """Let some classes exit as all together do; `shared` is of one class."""
        return BranchThresholds(
            np.where(classes, shared.thresholds, self.thresholds),
            np.where(classes, shared.enabled, self.enabled),
            np.where(classes, shared.precision, self.precision),
            np.where(classes, shared.support, self.support),
            np.where(classes, shared.bars, self.bars),
        )


class _Prefixes:
    """Samples sorted by class and falling score, with sums over each class so far.

    A prefix is the samples of a class at or above a score. It ends only between
    distinct scores: ties stay together. No loop over samples or classes. `by_score`
    sorts the scores from high to low.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        predicted: NDArray[np.intp],
        weight: NDArray[np.float64],
        n_classes: int,
        by_score: NDArray[np.intp],
    ) -> None:
        # In the fewest bits: integers of up to 16 are sorted in linear time.
        classes = predicted.astype(np.min_scalar_type(n_classes))
        self.order = by_score[np.argsort(classes[by_score], kind="stable")]
        self.scores, self.classes = scores[self.order], classes[self.order]
        self.weight, self.n_classes = weight[self.order], n_classes
        self.sizes = np.bincount(predicted, minlength=n_classes)
        self.starts = np.cumsum(self.sizes) - self.sizes
        self.last = np.append(self.classes[1:] != self.classes[:-1], True)
        self.ends = self.last | np.append(self.scores[1:] != self.scores[:-1], True)

    def weight_of(self, which: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Sum the weight of some samples in the prefix that ends at each row."""
        return self.sum_in_class(self.weight * which[self.order])

    def sum_in_class(self, values: NDArray[Any]) -> NDArray[Any]:
        """Sum of sorted values over each class so far."""
        sums = np.cumsum(values)
        before = np.append(sums, 0)[self.starts - 1]  # 0 before the first class
        sums -= np.repeat(before, self.sizes)
        return sums

    def total(self, correct: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the weight of each prefix."""
        # Two sums, so that an all-right prefix is at exactly 1 and an all-wrong one 0.
        return self.weight_of(correct) + self.weight_of(~correct)

    def longest(self, meets: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Find each class's last row that meets a condition, -1 where none does."""
        chosen = np.flatnonzero(meets)
        rows = np.full(self.n_classes, -1)
        rows[self.classes[chosen]] = chosen  # the last assignment wins
        return rows

    def thresholds(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Find thresholds just below the scores of these rows, above the next lower."""
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
    """Return thresholds at the chosen rows, -1 where a class has none, and figures."""
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
    """Find the lowest threshold of each predicted class whose prefix meets its bar."""
    by_score = np.argsort(-scores, kind="stable")
    prefixes = _Prefixes(scores, predicted, weight, len(bars), by_score)
    total = prefixes.total(correct)
    precision = _share(prefixes.weight_of(correct), total)
    judged = prefixes.ends & (total >= max(min_support, np.finfo(float).tiny))
    meets = judged & (precision >= bars[prefixes.classes])
    if rule == "first_violation":
        meets &= prefixes.sum_in_class(judged & ~meets) == 0
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
    """Find the lowest threshold of each class above which no exit costs too much.

    What an exit costs falls with the confidence, alike for all classes but for an
    offset: each class's mean deviation from that trend, as if `shrinkage` samples
    without any stood beside its own.
    """
    none = np.full(n_classes, np.nan)
    if len(scores) == 0:
        never = np.full(n_classes, np.inf)
        nothing = np.zeros(n_classes)
        return BranchThresholds(never, nothing > 0, none, nothing, none)
    by_score = np.argsort(-scores, kind="stable")
    cost = reference_correct.astype(np.int8) - correct.astype(np.int8)
    expected = _falling_trend(by_score, scores, cost, weight)
    own = np.bincount(predicted, weight, n_classes) + shrinkage
    deviation = np.bincount(predicted, weight * (cost - expected), n_classes)
    expected += np.divide(deviation, own, out=np.zeros(n_classes), where=own > 0)[
        predicted
    ]
    prefixes = _Prefixes(scores, predicted, weight, n_classes, by_score)
    total = prefixes.total(correct)
    meets = prefixes.ends & (total >= max(min_support, np.finfo(float).tiny))
    meets &= expected[prefixes.order] <= margin + _ROUNDING
    rows = prefixes.longest(meets)
    bars = none
    if (rows >= 0).any():
        of_reference = _share(prefixes.weight_of(reference_correct), total)
        bars = np.where(rows >= 0, of_reference[rows] - margin, np.nan).clip(0, 1)
    return _outcome(prefixes, rows, correct, bars)


def _falling_trend(
    by_score: NDArray[np.intp],
    scores: NDArray[np.float64],
    cost: NDArray[np.int8],
    weight: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Fit an isotonic regression of the cost, falling with the score, at each score.

    `by_score` sorts the scores from high to low: the sort is the dear part.
    """
    falling, weights = scores[by_score], weight[by_score]
    starts = np.append(0, np.flatnonzero(falling[1:] != falling[:-1]) + 1)
    del falling
    total = np.add.reduceat(weights, starts)
    mean = _share(np.add.reduceat(cost[by_score] * weights, starts), total)
    there = total > 0  # others have the trend of the next higher score
    trend = isotonic_regression(mean[there], sample_weight=total[there])
    group = np.maximum(np.cumsum(there) - 1, 0)
    expected = np.empty(len(scores))
    expected[by_score] = np.repeat(trend[group], np.diff(starts, append=len(scores)))
    return expected


def exits_at(
    scores: NDArray[np.float64],
    predicted: NDArray[np.intp],
    thresholds: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """Tell which samples reach the threshold of their predicted class at one branch."""
    mask: NDArray[np.bool_] = scores >= thresholds[predicted]
    return mask


def just_below(falling: NDArray[np.float64], last: int) -> float:
    """Find a threshold that admits scores up to `last` of a falling sequence, no more.

    A hair below the last one, as with CalexNet's thresholds: the last bits of a score,
    which depend on the size of the batch, cannot flip a calibration sample.
    """
    lower = falling[last + 1] if last + 1 < len(falling) else -np.inf
    gap = min((falling[last] - lower) / 2, HAIR)
    return float(max(falling[last] - gap, np.nextafter(lower, np.inf)))


def prefix_ends(falling: NDArray[np.float64]) -> NDArray[np.intp]:
    """Find where a prefix of falling scores may end: ties stay together."""
    return np.flatnonzero(np.diff(falling, append=-np.inf) < 0)


def _check_codes(codes: ArrayLike, n_classes: int, name: str) -> NDArray[np.intp]:
    array = np.asarray(codes)
    integers = array.ndim == 1 and array.dtype.kind in "iu"
    if not integers or np.any((array < 0) | (array >= n_classes)):
        raise ValueError(
            f"{name} must hold one class a sample, as integers from 0 to "
            f"{n_classes - 1} (n_classes={n_classes}); got {array!r}. "
            "np.unique(labels, return_inverse=True) makes such codes."
        )
    return array.astype(np.intp)
