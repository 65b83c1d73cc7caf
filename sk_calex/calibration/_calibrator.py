"""Confidence thresholds per class, from the calibration samples that reach a branch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_consistent_length

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.calibration._thresholds import (
    BranchThresholds,
    exits_at,
    find_local_thresholds,
    find_thresholds,
    precision_bars,
)
from sk_calex.utils._codec import savable
from sk_calex.utils._fitted_state import all_or_nothing
from sk_calex.utils._validation import (
    check_labels,
    check_margins,
    check_probabilities,
    check_sample_weight,
    is_auto,
)

__all__ = ["SurvivorThresholdCalibrator"]


@savable
class SurvivorThresholdCalibrator(ExitPolicy):
    """Exit where the confidence reaches the threshold of the predicted class.

    For each class the calibrator takes the lowest threshold at which the samples that
    the branch predicts as that class, with at least that confidence, are right often
    enough. Only survivors count: the samples that no earlier branch has answered.

    It is fitted on the answers of all stages of a cascade, as any exit rule
    (`CascadeClassifier` does so in its own fit), or on those of a single branch.

    Parameters
    ----------
    margin : float, sequence of float or "auto", default=0.0
        How much precision may be given up against the reference, the last stage:

        - float: finite and below 1. Negative margins demand more than the reference
          has; a bar is never above 1.
        - sequence: one margin for each branch.
        - "auto": the largest that keeps `max_accuracy_drop`, cross-fitted on the rows
          that calibrate; for the answers of all stages.

        Inside a `CascadeClassifier` leave it at 0: there the cascade's own counts.
    margin_mode : {"relative", "absolute", "local"}, default="relative"
        Where the margin holds:

        - "relative": the samples that exit as class c reach a bar of
          ``(1 - margin) * reference precision`` on average: the paper's gate;
        - "absolute": the same with ``reference precision - margin``, when a margin
          should mean points of precision;
        - "local": at each confidence down to the threshold an exit costs at most
          `margin` of accuracy against the reference. Use it when a margin of 0 should
          lose nothing that the calibration samples show.
    min_support : float, default=10
        Calibration samples (total weight) that must lie at or above a threshold. A
        class without such a threshold never exits.
    rule : {"smallest", "first_violation"}, default="smallest"
        Which threshold to take, as precision is not monotone in it:

        - "smallest": the lowest threshold that meets the bar;
        - "first_violation": lower the threshold only until the bar is first missed,
          which is more cautious.

        Not used by "local", whose cost is monotone.
    shrinkage : float, default=200
        Samples (total weight) at which half of a class's own deviation from the trend
        of all classes is believed: 0 believes all of it, ``inf`` none. Used by "local".
    calibrate_on : {"survivors", "all"}, default="survivors"
        Calibration samples of a branch:

        - "survivors": those that no earlier branch answers, as at prediction;
        - "all": all of them, which is what the paper compares with.
    rare_classes : {"never", "shared"}, default="never"
        What a class does that has fewer than `min_support` calibration samples at any
        threshold, or none at all:

        - "never": it does not exit at that branch.
        - "shared": it exits at the threshold of all classes together. For many classes
          with a few rows each, where else hardly any would exit.
    max_accuracy_drop : float, default=0.005
        With ``margin="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

    Attributes
    ----------
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Confidence at or above which a sample predicted as the class exits; ``inf``
        where disabled. Fitted on a single branch, this and the next four have shape
        (n_classes,).
    enabled_ : ndarray of bool, shape (n_branches, n_classes)
        Whether the class exits at all.
    precision_ : ndarray of float64, shape (n_branches, n_classes)
        Precision on the calibration samples at or above the threshold; NaN where
        disabled. The same samples chose the threshold, so it is optimistic.
    support_ : ndarray of float64, shape (n_branches, n_classes)
        Sample weight at or above the threshold.
    bars_ : ndarray of float64, shape (n_branches, n_classes)
        Precision that was required. With "local", that of the reference on the samples
        that exit as the class, less the margin: NaN where the class is disabled, and
        `precision_` may lie a little below it, as classes share a trend.
    reference_precision_ : ndarray of float64, shape (n_classes,)
        Precision of the reference for each class that it predicts; NaN where unknown.
    margin_ : float or sequence of float
        The margin that is used; NaN where "auto" lets nothing exit.
    margin_path_ : dict of ndarray
        What "auto" looked at, see `sk_calex.policies.ExitPolicy`; only with "auto".
    classes_ : ndarray of shape (n_classes,)
        Class of each column.
    n_features_in_ : int
        Number of columns, one for each class.

    See Also
    --------
    CascadeClassifier : Trains branches and calibrates them with this rule.

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

    References
    ----------
    Aperstein, Y. & Apartsin, A. (2026). CalexNet. Electronics 15(10), 2149.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex import SurvivorThresholdCalibrator
    >>> branch = np.array([[.9, .1], [.8, .2], [.7, .3], [.6, .4], [.2, .8], [.4, .6]])
    >>> y = np.array([0, 0, 1, 0, 1, 1])
    >>> calibrator = SurvivorThresholdCalibrator(margin=0.2, min_support=1)
    >>> calibrator.fit(branch, y).thresholds_.round(3)
    array([0.8, 0.6])
    >>> calibrator.exits(0, branch)
    array([ True,  True, False, False,  True,  True])

    Of a whole cascade, here of one branch and the last stage:

    >>> last = np.eye(2)[y]
    >>> calibrator.fit([branch, last], y).thresholds_.round(3)
    array([[0.8, 0.6]])
    >>> calibrator.depth([branch, last])
    array([0, 0, 1, 1, 0, 0])
    """

    knob: ClassVar[str] = "margin"
    _per_branch: ClassVar[dict[str, Any]] = {
        **ExitPolicy._per_branch,
        "enabled_": False,
        "precision_": np.nan,
        "support_": 0.0,
        "bars_": np.nan,
    }
    _parameter_constraints: dict[str, list[Any]] = {
        **ExitPolicy._parameter_constraints,
        "margin": [Real, "array-like", StrOptions({"auto"})],
        "margin_mode": [StrOptions({"relative", "absolute", "local"})],
        "min_support": [Interval(Real, 0, None, closed="left")],
        "rule": [StrOptions({"smallest", "first_violation"})],
        "shrinkage": [Interval(Real, 0, None, closed="both")],
        "calibrate_on": [StrOptions({"survivors", "all"})],
        "rare_classes": [StrOptions({"never", "shared"})],
    }

    def __init__(
        self,
        margin: float | Sequence[float] | str = 0.0,
        *,
        margin_mode: str = "relative",
        min_support: float = 10,
        rule: str = "smallest",
        shrinkage: float = 200,
        calibrate_on: str = "survivors",
        rare_classes: str = "never",
        max_accuracy_drop: float = 0.005,
    ) -> None:
        self.margin = margin
        self.margin_mode = margin_mode
        self.min_support = min_support
        self.rule = rule
        self.shrinkage = shrinkage
        self.calibrate_on = calibrate_on
        self.rare_classes = rare_classes
        self.max_accuracy_drop = max_accuracy_drop

    def fit(
        self,
        answers: StageTable | ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        costs: ArrayLike | None = None,
        reference_precision: ArrayLike | None = None,
        reference_correct: ArrayLike | None = None,
        survivors: ArrayLike | None = None,
    ) -> Self:
        """Find the threshold of each class at each branch.

        Parameters
        ----------
        answers : array-like of shape (n_samples, n_classes) or \
                (n_stages, n_samples, n_classes), or StageTable
            Probabilities of one branch, or of the branches in cascade order and the
            last stage, for samples that trained none of them.
        y : array-like of shape (n_samples,)
            True labels. For one branch their sorted unique values are the classes of
            the columns, or they are integers in ``0 .. n_classes - 1``; for all stages
            they are such integers.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights: an integer means repetition, zero means absence.
        costs : array-like of shape (n_stages,), default=None
            Not used; for the interface of the exit rules.
        reference_precision : array-like of shape (n_classes,), default=None
            For one branch: precision of the backbone for each predicted class, in
            [0, 1]; NaN where unknown, which counts as 1. None means all ones. Not used
            by "local".
        reference_correct : array-like of bool, shape (n_samples,), default=None
            For one branch: whether the backbone is right on each sample, which "local"
            compares with.
        survivors : array-like of bool, shape (n_samples,), default=None
            For one branch: the samples that reach it. None means all.

        Returns
        -------
        self : SurvivorThresholdCalibrator
            The fitted calibrator.

        Raises
        ------
        ValueError
            If `answers` does not hold probabilities, `y` does not fit its columns,
            lengths differ, a precision lies outside [0, 1], the margin is not below 1,
            ``margin_mode="local"`` comes without `reference_correct`, or what describes
            one branch is given for all stages.
        """
        about_one = {
            "reference_precision": reference_precision,
            "reference_correct": reference_correct,
            "survivors": survivors,
        }
        if isinstance(answers, StageTable) or np.ndim(answers) == 3:
            given = [name for name, value in about_one.items() if value is not None]
            if given:
                raise ValueError(
                    f"{given[0]} describes one branch, but answers holds all stages, "
                    "which tell it by themselves. Leave it out, or give the "
                    "probabilities of one branch, of shape (n_samples, n_classes)."
                )
            return super().fit(answers, y, sample_weight, costs=costs)
        with all_or_nothing(self):
            self._validate_params()
            self._fit_one_branch(answers, y, sample_weight, **about_one)
        return self

    def _fit_one_branch(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None,
        reference_precision: ArrayLike | None,
        reference_correct: ArrayLike | None,
        survivors: ArrayLike | None,
    ) -> None:
        if is_auto(self.margin):
            raise ValueError(
                "margin='auto' judges what the whole cascade loses, but X holds the "
                "answers of one branch. Give those of all stages, of shape (n_stages, "
                "n_samples, n_classes), or a number."
            )
        margin = check_margins(self.margin, 1)[0]
        proba = check_probabilities(X)
        labels = check_labels(y)
        check_consistent_length(proba, labels)
        n, n_classes = proba.shape
        classes, codes = _column_classes(labels, n_classes)
        weight = check_sample_weight(sample_weight, proba)
        reached = _check_survivors(survivors, n)
        reference = _check_reference(reference_precision, n_classes)
        right = np.zeros(n, dtype=bool)
        if self.margin_mode == "local":
            right = _check_mask(reference_correct, n, "reference_correct")
        predicted = proba.argmax(axis=1)
        found = self._find_thresholds(
            proba.max(axis=1),
            predicted,
            predicted == codes,
            right,
            weight,
            reached,
            reference,
            margin,
        )
        self._set_found([found], reference, classes)
        for name in _FOUND:
            setattr(self, f"{name}_", getattr(self, f"{name}_")[0])
        self.margin_ = self.margin

    def _fit(self, given: CalibrationSet) -> None:
        answers = given.answers
        n_branches = answers.n_stages - 1
        margins = check_margins(self.margin, n_branches)
        reaching = np.ones(answers.n_samples, dtype=bool)
        found = []
        for k in range(n_branches):
            found.append(self.branch_thresholds(given, k, reaching, margins[k]))
            reaching &= ~exits_at(
                answers.confidence[k], answers.predicted[k], found[-1].thresholds
            )
        classes = np.arange(answers.n_classes)
        self._set_found(found, given.reference_precision, classes)

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return _MARGINS

    def _let_none_exit(self) -> None:
        super()._let_none_exit()
        shape = self.thresholds_.shape
        self.enabled_ = np.zeros(shape, dtype=bool)
        self.precision_, self.support_ = np.full(shape, np.nan), np.zeros(shape)

    def _set_found(
        self,
        found: Sequence[BranchThresholds],
        reference: NDArray[np.float64],
        classes: NDArray[Any],
    ) -> None:
        for name in _FOUND:
            setattr(self, f"{name}_", np.stack([getattr(f, name) for f in found]))
        self.reference_precision_ = reference
        self.classes_, self.n_features_in_ = classes, len(classes)

    def branch_thresholds(
        self,
        given: CalibrationSet,
        branch: int,
        survivors: NDArray[np.bool_],
        margin: float,
    ) -> BranchThresholds:
        """Find the thresholds of one branch of a cascade; the calibrator is not fitted.

        Parameters
        ----------
        given : CalibrationSet
            Answers of this branch and of the last stage, at least.
        branch : int
            Index of the branch.
        survivors : ndarray of bool, shape (n_samples,)
            The samples that no earlier branch answers.
        margin : float
            In place of the parameter `margin`.

        Returns
        -------
        found : BranchThresholds
            Thresholds, and the precision and support of what exits. A class without
            calibration samples never exits.
        """
        found = self._find_thresholds(
            given.answers.confidence[branch],
            given.answers.predicted[branch],
            given.right[branch],
            given.right[-1],
            given.weight,
            survivors,
            given.reference_precision,
            margin,
        )
        if self.rare_classes == "shared" or given.seen.all():
            return found
        return found.disable(~given.seen)

    def _find_thresholds(
        self,
        scores: NDArray[np.float64],
        predicted: NDArray[np.intp],
        right: NDArray[np.bool_],
        reference_right: NDArray[np.bool_],
        weight: NDArray[np.float64],
        survivors: NDArray[np.bool_],
        reference: NDArray[np.float64],
        margin: float,
    ) -> BranchThresholds:
        rows: Any = weight > 0
        if self.calibrate_on == "survivors":
            rows = rows & survivors
        if rows.all():
            rows = slice(None)  # no copies
        score, guess, ok = scores[rows], predicted[rows], right[rows]
        reference_ok, w = reference_right[rows], weight[rows]
        found = self._of_classes(score, guess, ok, reference_ok, w, reference, margin)
        if self.rare_classes == "never":
            return found
        present = weight > 0
        accuracy = np.average(reference_right[present], weights=weight[present])
        one = np.zeros(len(guess), dtype=np.intp)  # as if all were of one class
        overall = np.array([accuracy])
        shared = self._of_classes(score, one, ok, reference_ok, w, overall, margin)
        count = np.bincount(guess, w, len(reference))
        return found.fill(count < max(self.min_support, _SOME), shared)

    def _of_classes(
        self,
        scores: NDArray[np.float64],
        predicted: NDArray[np.intp],
        right: NDArray[np.bool_],
        reference_right: NDArray[np.bool_],
        weight: NDArray[np.float64],
        reference: NDArray[np.float64],
        margin: float,
    ) -> BranchThresholds:
        """Find the threshold of each class from samples that all count."""
        if self.margin_mode == "local":
            return find_local_thresholds(
                scores,
                predicted,
                right,
                reference_right,
                weight,
                len(reference),
                margin,
                min_support=self.min_support,
                shrinkage=self.shrinkage,
            )
        return find_thresholds(
            scores,
            predicted,
            right,
            weight,
            precision_bars(reference, margin, self.margin_mode),
            min_support=self.min_support,
            rule=self.rule,
        )


# Weight of a class that has any samples.
_SOME = np.finfo(float).tiny
# What "auto" tries, from strict to lax: finest where little is given up.
_MARGINS = (
    *(-np.geomspace(1, 0.002, 24)).round(4).tolist(),
    *(0.0, *np.geomspace(0.001, 0.7, 47).round(4).tolist()),
)
# Fields of BranchThresholds, which become attributes of the calibrator.
_FOUND = ("thresholds", "enabled", "precision", "support", "bars")


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
