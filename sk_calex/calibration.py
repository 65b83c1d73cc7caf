"""Per-class precision thresholds on the samples that really reach a branch."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from sk_calex._validation import (
    check_margin,
    check_probabilities,
    check_sample_weight,
)

__all__ = ["SurvivorThresholdCalibrator", "class_precision", "precision_bars"]

# A threshold lies a hair below the lowest score it admits, so that the last bits of a
# float32 head, which depend on the batch size, cannot flip a calibration sample.
HAIR = 1e-6


def class_precision(
    y: ArrayLike,
    predicted: ArrayLike,
    n_classes: int,
    sample_weight: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """Precision of a classifier for each class that it predicts.

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
    """Precision that each class must reach to exit.

    Parameters
    ----------
    reference_precision : array-like of shape (n_classes,)
        Precision of the backbone for each predicted class; NaN where unknown.
    margin : float
        Finite and below 1. Positive margins accept less precision than the backbone's,
        negative ones ask for more.
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
    """Outcome of one branch's calibration; every array has shape (n_classes,)."""

    thresholds: NDArray[np.float64]
    enabled: NDArray[np.bool_]
    precision: NDArray[np.float64]
    support: NDArray[np.float64]


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
    """Lowest threshold of each predicted class whose prefix meets the class's bar.

    One sort by (class, falling score), then cumulative sums within each class: a
    "prefix" is the samples of a class at or above a score, and ends only between
    distinct scores. No loop over samples or classes.
    """
    n_classes = len(bars)
    order = np.lexsort((-scores, predicted))
    s, c, w = scores[order], predicted[order], weight[order]
    n = len(s)
    thresholds = np.full(n_classes, np.inf)
    enabled = np.zeros(n_classes, dtype=bool)
    precision = np.full(n_classes, np.nan)
    support = np.zeros(n_classes)
    if n == 0:
        return BranchThresholds(thresholds, enabled, precision, support)

    first = np.searchsorted(c, np.arange(n_classes))  # first row of each class
    right = np.concatenate([[0.0], np.cumsum(w * correct[order])])
    wrong = np.concatenate([[0.0], np.cumsum(w * ~correct[order])])
    # Two sums, so that an all-right prefix is at exactly 1 and an all-wrong one at 0.
    in_right = right[1:] - right[first[c]]
    in_total = in_right + (wrong[1:] - wrong[first[c]])
    prefix_precision = np.divide(
        in_right, in_total, out=np.zeros(n), where=in_total > 0
    )

    last_of_class = np.append(c[1:] != c[:-1], True)
    ends = last_of_class | np.append(s[1:] != s[:-1], True)
    judged = ends & (in_total >= max(min_support, np.finfo(float).tiny))
    meets = judged & (prefix_precision >= bars[c])
    if rule == "first_violation":
        broken = np.concatenate([[0], np.cumsum(judged & ~meets)])
        meets &= broken[1:] == broken[first[c]]

    chosen = np.flatnonzero(meets)
    # The last assignment wins: the longest prefix, since rows are in falling score.
    rows = np.full(n_classes, -1)
    rows[c[chosen]] = chosen
    enabled = rows >= 0
    row = rows[enabled]
    below = np.where(last_of_class[row], -np.inf, s[np.minimum(row + 1, n - 1)])
    gap = np.minimum((s[row] - below) / 2, HAIR)
    thresholds[enabled] = np.maximum(s[row] - gap, np.nextafter(below, np.inf))
    precision[enabled] = prefix_precision[row]
    support[enabled] = in_total[row]
    return BranchThresholds(thresholds, enabled, precision, support)


class SurvivorThresholdCalibrator(BaseEstimator):
    """Confidence threshold of each class at which a branch is precise enough to exit.

    For each class the calibrator takes the lowest threshold at which the samples that
    the branch predicts as that class, with at least that confidence, are right often
    enough. Only survivors count: the samples that no earlier branch has answered.

    Parameters
    ----------
    margin : float, default=0.0
        How much precision may be given up against `reference_precision`: finite and
        below 1. Negative margins ask for more than the reference; a bar is never above
        1.
    margin_mode : {"relative", "absolute"}, default="relative"
        Bar of class c is ``(1 - margin) * reference_precision[c]`` or
        ``reference_precision[c] - margin``.
    min_support : float, default=10
        A threshold counts only if at least this many samples (total sample weight)
        lie at or above it. A class without such a threshold never exits.
    rule : {"smallest", "first_violation"}, default="smallest"
        Precision is not monotone in the threshold. "smallest" takes the lowest
        threshold that meets the bar; "first_violation" lowers the threshold only
        until the bar is first missed.

    Attributes
    ----------
    thresholds_ : ndarray of float64, shape (n_classes,)
        Confidence at or above which a sample predicted as the class exits; ``inf``
        where disabled.
    enabled_ : ndarray of bool, shape (n_classes,)
        Whether the class exits at all.
    precision_ : ndarray of float64, shape (n_classes,)
        Precision on the calibration survivors at or above the threshold; NaN where
        disabled. It is an estimate on the samples that chose the threshold, hence
        optimistic.
    support_ : ndarray of float64, shape (n_classes,)
        Sample weight at or above the threshold.
    bars_ : ndarray of float64, shape (n_classes,)
        Precision that was asked for.
    classes_ : ndarray of shape (n_classes,)
        Class of each column.
    n_features_in_ : int
        Number of columns seen in fit, one a class.

    See Also
    --------
    CascadeClassifier : Calibrates one branch after the other with this rule.

    Notes
    -----
    CalexNet's class-precision margin on the survivor subset of validation data
    (Aperstein & Apartsin 2026, Eq. 8); `min_support`, the rules and the place of the
    threshold between two scores are our definitions. Thresholds are empirical: on new
    data the precision of a class can fall below its bar.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex import SurvivorThresholdCalibrator
    >>> proba = np.array([[.9, .1], [.8, .2], [.7, .3], [.6, .4], [.2, .8], [.4, .6]])
    >>> y = np.array([0, 0, 1, 0, 1, 1])
    >>> calibrator = SurvivorThresholdCalibrator(margin=0.2, min_support=1)
    >>> calibrator.fit(proba, y).thresholds_.round(3)
    array([0.8, 0.6])
    >>> calibrator.exits(proba)
    array([ True,  True, False, False,  True,  True])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "margin": [Real],
        "margin_mode": [StrOptions({"relative", "absolute"})],
        "min_support": [Interval(Real, 0, None, closed="left")],
        "rule": [StrOptions({"smallest", "first_violation"})],
    }

    def __init__(
        self,
        margin: float = 0.0,
        *,
        margin_mode: str = "relative",
        min_support: float = 10,
        rule: str = "smallest",
    ) -> None:
        self.margin = margin
        self.margin_mode = margin_mode
        self.min_support = min_support
        self.rule = rule

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        reference_precision: ArrayLike | None = None,
        survivors: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> SurvivorThresholdCalibrator:
        """Find the threshold of each class.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_classes)
            Probabilities of one branch.
        y : array-like of shape (n_samples,)
            True labels. Either their sorted unique values are the classes of the
            columns, or they are integers in ``0 .. n_classes - 1``.
        reference_precision : array-like of shape (n_classes,), default=None
            Precision of the backbone for each predicted class, in [0, 1]; NaN where
            unknown, which asks for 1. None means all ones.
        survivors : array-like of bool, shape (n_samples,), default=None
            The samples that reach the branch. None means all.
        sample_weight : array-like of shape (n_samples,), default=None
            Integer weights mean repetition, zero means absence.

        Returns
        -------
        self : SurvivorThresholdCalibrator
            The fitted calibrator.

        Raises
        ------
        ValueError
            If `X` does not hold probabilities, `y` does not fit its columns, lengths
            differ, a precision lies outside [0, 1] or the margin is not below 1.
        """
        self._validate_params()
        margin = check_margin(self.margin)
        proba = check_probabilities(X)
        labels = column_or_1d(y)
        check_consistent_length(proba, labels)
        check_classification_targets(labels)
        n, n_classes = proba.shape
        self.classes_, codes = _column_classes(labels, n_classes)
        weight = check_sample_weight(sample_weight, proba)
        reached = _check_survivors(survivors, n) & (weight > 0)
        reference = _check_reference(reference_precision, n_classes)

        self.bars_ = precision_bars(reference, margin, self.margin_mode)
        predicted = proba.argmax(axis=1)
        found = find_thresholds(
            proba.max(axis=1)[reached],
            predicted[reached],
            (predicted == codes)[reached],
            weight[reached],
            self.bars_,
            min_support=self.min_support,
            rule=self.rule,
        )
        self.thresholds_, self.enabled_ = found.thresholds, found.enabled
        self.precision_, self.support_ = found.precision, found.support
        self.n_features_in_ = n_classes
        return self

    def exits(self, X: ArrayLike) -> NDArray[np.bool_]:
        """Tell which samples may exit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_classes)
            Probabilities of the branch.

        Returns
        -------
        exits : ndarray of bool, shape (n_samples,)
            True where the confidence reaches the threshold of the predicted class.

        Raises
        ------
        ValueError
            If `X` does not hold probabilities over the classes seen in fit.
        """
        check_is_fitted(self)
        proba = check_probabilities(X)
        if proba.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {proba.shape[1]} features, but {type(self).__name__} is "
                f"expecting {self.n_features_in_} features as input: one column for "
                "each class seen in fit."
            )
        return proba.max(axis=1) >= self.thresholds_[proba.argmax(axis=1)]


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


def _column_classes(
    labels: NDArray[Any], n_classes: int
) -> tuple[NDArray[Any], NDArray[np.intp]]:
    classes, codes = np.unique(labels, return_inverse=True)
    if len(classes) == n_classes:
        return classes, codes
    if labels.dtype.kind in "iu" and 0 <= classes[0] and classes[-1] < n_classes:
        return np.arange(n_classes), labels.astype(np.intp)
    raise ValueError(
        f"y has {len(classes)} classes but X has {n_classes} columns. Give labels of "
        f"all {n_classes} classes, or integers from 0 to {n_classes - 1}."
    )


def _check_survivors(survivors: ArrayLike | None, n: int) -> NDArray[np.bool_]:
    if survivors is None:
        return np.ones(n, dtype=bool)
    mask = np.asarray(survivors)
    if mask.shape != (n,) or mask.dtype != bool:
        raise ValueError(
            f"survivors must be a boolean mask of shape ({n},), one entry a sample; "
            f"got dtype {mask.dtype} and shape {mask.shape}."
        )
    return mask


def _check_reference(
    reference: ArrayLike | None, n_classes: int
) -> NDArray[np.float64]:
    if reference is None:
        return np.ones(n_classes)
    precision = np.asarray(reference, dtype=np.float64)
    known = precision[~np.isnan(precision)]
    if precision.shape != (n_classes,) or np.any((known < 0) | (known > 1)):
        raise ValueError(
            f"reference_precision must hold {n_classes} precisions in [0, 1] (NaN "
            f"where unknown), one a class; got {reference!r}. See class_precision."
        )
    return precision
