"""Per-class precision thresholds on the samples that really reach a branch."""

from __future__ import annotations

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

from sk_calex.calibration._thresholds import find_local_thresholds, find_thresholds
from sk_calex.utils._validation import (
    check_margin,
    check_probabilities,
    check_sample_weight,
)

__all__ = ["SurvivorThresholdCalibrator", "class_precision", "precision_bars"]


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
    margin_mode : {"relative", "absolute", "local"}, default="relative"
        "relative" and "absolute": the samples that exit as class c must reach a bar of
        ``(1 - margin) * reference_precision[c]`` or ``reference_precision[c] - margin``
        on average. "local": exiting may cost at most `margin` of accuracy against the
        reference at each confidence down to the threshold, the lowest included.
    min_support : float, default=10
        A threshold counts only if at least this many samples (total sample weight)
        lie at or above it. A class without such a threshold never exits.
    rule : {"smallest", "first_violation"}, default="smallest"
        Precision is not monotone in the threshold. "smallest" takes the lowest
        threshold that meets the bar; "first_violation" lowers the threshold only
        until the bar is first missed. The cost of "local" is monotone: both are one.
    shrinkage : float, default=200
        "local": samples (total weight) at which half of a class's own deviation from
        the trend of all classes is believed. 0 believes all of it, ``inf`` nothing.

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
        Precision that was asked for. With "local", that of the reference on the samples
        that exit as the class, less the margin: NaN where the class is disabled, and
        `precision_` may lie a little below it, as classes share a trend.
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

    "local" is our definition. With r and R whether branch and reference are right, the
    cost of an exit at confidence s as class c is estimated as

        g(s) + sum_c w (R - r - g(s)) / (sum_c w + shrinkage)

    where g is the falling isotonic regression of R - r on s over all survivors, and the
    sums go over those predicted as c. A bar on the mean of all that exit lets easy
    samples pay for hard ones; a bar on the cost at the threshold does not, so that a
    margin of 0 gives up nothing that the calibration samples show.

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
        "margin_mode": [StrOptions({"relative", "absolute", "local"})],
        "min_support": [Interval(Real, 0, None, closed="left")],
        "rule": [StrOptions({"smallest", "first_violation"})],
        "shrinkage": [Interval(Real, 0, None, closed="both")],
    }

    def __init__(
        self,
        margin: float = 0.0,
        *,
        margin_mode: str = "relative",
        min_support: float = 10,
        rule: str = "smallest",
        shrinkage: float = 200,
    ) -> None:
        self.margin = margin
        self.margin_mode = margin_mode
        self.min_support = min_support
        self.rule = rule
        self.shrinkage = shrinkage

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        reference_precision: ArrayLike | None = None,
        reference_correct: ArrayLike | None = None,
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
            unknown, which asks for 1. None means all ones. Not used by "local".
        reference_correct : array-like of bool, shape (n_samples,), default=None
            Whether the backbone is right on each sample: what "local" compares with,
            and needs.
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
            differ, a precision lies outside [0, 1], the margin is not below 1, or
            ``margin_mode="local"`` comes without `reference_correct`.
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
        predicted = proba.argmax(axis=1)
        said = (
            proba.max(axis=1)[reached],
            predicted[reached],
            (predicted == codes)[reached],
        )
        if self.margin_mode == "local":
            found = find_local_thresholds(
                *said,
                _check_mask(reference_correct, n, "reference_correct")[reached],
                weight[reached],
                n_classes,
                margin,
                min_support=self.min_support,
                shrinkage=self.shrinkage,
            )
        else:
            found = find_thresholds(
                *said,
                weight[reached],
                precision_bars(reference, margin, self.margin_mode),
                min_support=self.min_support,
                rule=self.rule,
            )
        self.bars_ = found.bars
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
    return _check_mask(survivors, n, "survivors")


def _check_mask(mask: ArrayLike | None, n: int, name: str) -> NDArray[np.bool_]:
    if mask is None:
        raise ValueError(
            f"{name}=None, but margin_mode='local' compares with the backbone on each "
            "sample. Give a boolean mask that says where the backbone is right."
        )
    array = np.asarray(mask)
    if array.shape != (n,) or array.dtype != bool:
        raise ValueError(
            f"{name} must be a boolean mask of shape ({n},), one entry a sample; "
            f"got dtype {array.dtype} and shape {array.shape}."
        )
    return array


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
