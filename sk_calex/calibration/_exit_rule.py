"""What an exit rule is, and how it is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, Self, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from sk_calex.calibration._answers import Signals, StageAnswer, StageTable
from sk_calex.calibration._cross_fit import find_laxest
from sk_calex.calibration._exits import (
    CalibrationSet,
    Policy,
    can_exit,
    first_exits,
    up_to_last,
)
from sk_calex.calibration._warnings import CalibrationWarning
from sk_calex.utils._fitted_state import all_or_nothing, fitted_state
from sk_calex.utils._validation import (
    check_finite,
    check_probabilities,
    check_sample_weight,
    is_auto,
)
from sk_calex.utils._warn import warn_caller

__all__ = [
    "CalibrationSet",
    "ExitPolicy",
    "Policy",
    "as_table",
    "check_class_codes",
    "check_costs",
    "first_exits",
]


class ExitPolicy(BaseEstimator):
    """Base of the exit rules that are fitted on calibration samples.

    A sample exits at the first branch where its score is at least the threshold of the
    branch and of its predicted class, and at the last stage otherwise.

    Every rule has one parameter, its knob, that moves it between strict and lax. Its
    value is a number, or ``"auto"``: the laxest one whose answers, cross-fitted on the
    calibration rows, lose at most `max_accuracy_drop` against the last stage alone, one
    standard error included, and cost no more than that does. Where there is none,
    nothing exits and a `CalibrationWarning` says why.

    Attributes
    ----------
    thresholds_ : ndarray of float64, shape (n_branches, n_classes)
        Thresholds of the scores.

    Notes
    -----
    A rule of your own sets `thresholds_` in `_fit`, gives its scores in `_scores` (the
    confidence by default), names in `knob` the parameter that moves along the
    accuracy-cost curve, and says in `needs_costs` whether its fit needs `costs`, in
    `needs_calibration` whether it learns anything from samples. For ``"auto"`` it
    returns in `_knob_values` what to try, from strict to lax. Where its scores depend
    on nothing but the answer of the same branch, `_highest_score` may say so; then
    heads before the first exit can rest, see `evaluated_branches`. Fitted attributes
    beside `thresholds_` that have an entry for each branch belong into `_per_branch`.

    After a fit the attribute named as the knob and an underscore, such as
    ``threshold_``, holds the value that is used; NaN where ``"auto"`` lets nothing
    exit. With ``"auto"``, ``threshold_path_`` is a dict of arrays with a row for each
    value that was tried, from strict to lax: the value, n_lost and n_gained (answers
    lost and gained against the last stage), accuracy_drop, standard_error, exit_share
    (of the samples that a branch answers), mean_cost, and within (whether
    ``accuracy_drop + standard_error <= max_accuracy_drop``).

    Examples
    --------
    >>> from sk_calex.policies import ExitPolicy
    >>> class SumOfSignals(ExitPolicy):
    ...     knob = "threshold"
    ...     def __init__(self, threshold=1.0):
    ...         self.threshold = threshold
    ...     def _fit(self, given):  # its answers, labels, weight and costs
    ...         self._set_all(given, self.threshold)
    ...     def _scores(self, branch, said):
    ...         return said.confidence + said.gap
    >>> proba = [[[0.7, 0.3], [0.4, 0.6]], [[0.9, 0.1], [0.9, 0.1]]]
    >>> SumOfSignals(1.05).fit(proba, [0, 0]).depth(proba)
    array([0, 1])
    """

    knob: ClassVar[str]
    needs_costs: ClassVar[bool] = False
    needs_calibration: ClassVar[bool] = True
    # Fitted arrays and lists with an entry for each branch; of an array also what it
    # holds where a branch rests.
    _per_branch: ClassVar[dict[str, Any]] = {"thresholds_": np.inf}
    #: Of rules that have no such parameter.
    max_accuracy_drop: float = 0.005
    thresholds_: NDArray[np.float64]
    _parameter_constraints: dict[str, list[Any]] = {
        "max_accuracy_drop": [Interval(Real, 0, 1, closed="left")],
    }

    def fit(
        self,
        answers: StageTable | ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        *,
        costs: ArrayLike | None = None,
    ) -> Self:
        """Find the thresholds.

        Parameters
        ----------
        answers : StageTable or array-like of shape (n_stages, n_samples, n_classes)
            Probabilities of the branches, in cascade order, and of the last stage, for
            samples that trained none of them.
        y : array-like of int, shape (n_samples,)
            True class codes, 0 to n_classes - 1.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights: an integer means repetition, zero means absence.
        costs : array-like of shape (n_stages,), default=None
            Cost of an answer at each depth, in any unit. Needed by the rules that
            weigh cost against accuracy.

        Returns
        -------
        self : ExitPolicy
            The fitted rule.

        Raises
        ------
        ValueError
            If a shape does not fit, a value is out of range, or `costs` is needed.

        Warns
        -----
        CalibrationWarning
            If the knob is ``"auto"`` and no value keeps the accuracy.
        """
        with all_or_nothing(self):
            self._validate_params()
            table = as_table(answers)
            check_finite(table.confidence, "answers", "Fill in every stage.")
            labels = check_class_codes(y, table)
            weight = check_sample_weight(sample_weight, labels)
            prices = None if costs is None else check_costs(costs, table.n_stages)
            self._fit_set(CalibrationSet(table, labels, weight, prices))
        return self

    def fit_on(self, given: CalibrationSet) -> Self:
        """Find the thresholds, as `fit` does, for a cascade's calibration samples.

        Parameters
        ----------
        given : CalibrationSet
            Answers, labels, weights and costs, as a fitted cascade's `calibration_`.

        Returns
        -------
        self : ExitPolicy
            The fitted rule.
        """
        with all_or_nothing(self):
            self._validate_params()
            if given.costs is not None:
                check_costs(given.costs, given.answers.n_stages)
            self._fit_set(given)
        return self

    def _fit_set(self, given: CalibrationSet) -> None:
        """Fit at the value of the knob, or at the one that "auto" finds."""
        knob = getattr(self, "knob", None)  # a rule may have none
        value = None if knob is None else getattr(self, knob)
        if is_auto(value):
            self._fit_laxest(given)
            return
        self._fit(given)
        if given.skips_unseen and getattr(self, "rare_classes", "never") == "never":
            # Nothing is known of how right such answers are.
            self.thresholds_[:, ~given.seen] = np.inf
        if knob is not None:
            setattr(self, f"{knob}_", value)

    def _fit_laxest(self, given: CalibrationSet) -> None:
        """Fit at the laxest value of the knob that loses little, or let none exit."""
        values = self._knob_values(given)
        path = find_laxest(self._fitted_at, values, given, self.max_accuracy_drop)
        fits = ((p.value, self._fitted_at(p.value, given)) for p in path.candidates)
        # Fitted on all rows, fewer of them may exit than of the folds.
        paying = (fit for fit in fits if given.mean_cost(fit[1]) <= given.most_to_pay)
        value, rule = next(paying, (np.nan, None))
        if rule is None:
            rule = self._fitted_at(values[0], given)
            rule._let_none_exit()
            warn_caller(path.explain(self.knob), CalibrationWarning)
        self.__dict__.update(fitted_state(rule))
        setattr(self, f"{self.knob}_", value)
        setattr(self, f"{self.knob}_path_", path.as_table(self.knob))

    def _fitted_at(self, value: Any, given: CalibrationSet) -> ExitPolicy:
        """Return a copy fitted at another value of the knob."""
        rule: ExitPolicy = clone(self).set_params(**{self.knob: value})
        rule._fit_set(given)
        return rule

    def _knob_values(self, given: CalibrationSet) -> Sequence[Any]:
        """Values of the knob that "auto" tries, from strict to lax."""
        raise ValueError(
            f"{self.knob}='auto' of {type(self).__name__} needs values to try: return "
            "them in its method _knob_values(given), from strict to lax, or give a "
            "number."
        )

    def _let_none_exit(self) -> None:
        self.thresholds_ = np.full_like(self.thresholds_, np.inf)

    def _fit(self, given: CalibrationSet) -> None:
        """Set `thresholds_`."""
        raise NotImplementedError

    def _set_all(self, given: CalibrationSet, threshold: Any) -> None:
        """Use one threshold for all branches and classes."""
        shape = (given.answers.n_stages - 1, given.answers.n_classes)
        self.thresholds_ = np.full(shape, float(threshold))

    def _scores(self, branch: int, said: Signals) -> NDArray[np.float64]:
        return said.confidence

    def _scores_as_data(self) -> dict[str, Any] | None:
        """Describe the scores by a name and numbers, to be computed without this class.

        Returns
        -------
        data : dict or None
            "score" is "confidence", "gap", "negative_entropy", "streak" or "gate"; or,
            of a regression on confidence, entropy and gap, "linear", or "logistic" for
            its sigmoid. Then "branches" gives one for each branch: "mean" and "scale"
            of the signals, "coef", "intercept"; or None, for a score of -1. None where
            there is no such description.
        """
        same = type(self)._scores is ExitPolicy._scores
        return {"score": "confidence"} if same else None

    def scores(self, branch: int, said: Signals | ArrayLike) -> NDArray[np.float64]:
        """Compute what is compared with the thresholds.

        Parameters
        ----------
        branch : int
            Index of the branch.
        said : Signals or array-like of shape (n_samples, n_classes)
            What that branch said of the samples, or its probabilities.

        Returns
        -------
        scores : ndarray of float64, shape (n_samples,)
            Larger: rather exit.

        Raises
        ------
        ValueError
            If probabilities were given and they are not, or not of the classes of fit.
        """
        check_is_fitted(self)
        return self._scores(branch, self._as_answer(said))

    def exits(self, branch: int, said: Signals | ArrayLike) -> NDArray[np.bool_]:
        """Tell which samples exit at a branch.

        Parameters
        ----------
        branch : int
            Index of the branch, 0 for the first.
        said : Signals or array-like of shape (n_samples, n_classes)
            What that branch said of the samples, or its probabilities.

        Returns
        -------
        exits : ndarray of bool, shape (n_samples,)
            True for the samples that exit. False where the score is NaN.

        Raises
        ------
        ValueError
            If probabilities were given and they are not, or not of the classes of fit.
        """
        check_is_fitted(self)
        answer = self._as_answer(said)
        thresholds = np.atleast_2d(self.thresholds_)[branch][answer.predicted]
        mask: NDArray[np.bool_] = self._scores(branch, answer) >= thresholds
        return mask

    def evaluated_branches(self) -> NDArray[np.bool_]:
        """Tell which branches have to answer for this rule to decide.

        The heads of the others are neither run nor counted.

        Returns
        -------
        mask : ndarray of bool, shape (n_branches,)
            True where the threshold of some class can be reached. Where scores may
            depend on what earlier branches said, as those on `streak` do, also at all
            branches before.
        """
        check_is_fitted(self)
        thresholds, highest = np.atleast_2d(self.thresholds_), self._highest_score()
        if type(self).exits is not ExitPolicy.exits:
            return np.ones(len(thresholds), dtype=bool)  # who knows what it looks at
        if highest is None:
            return up_to_last(can_exit(thresholds))
        return can_exit(thresholds, highest)

    def _highest_score(self) -> float | None:
        """Upper bound of scores that depend on the answer of their branch alone.

        ``inf`` where there is no bound; None where scores may depend on more.
        """
        return 1.0 if type(self)._scores is ExitPolicy._scores else None

    def _as_answer(self, said: Signals | ArrayLike) -> Signals:
        if hasattr(said, "predicted"):
            return cast(Signals, said)
        proba = check_probabilities(said)
        n_classes = self.thresholds_.shape[-1]
        if proba.shape[1] != n_classes:
            raise ValueError(
                f"X has {proba.shape[1]} features, but {type(self).__name__} is "
                f"expecting {n_classes} features as input: one column for each class "
                "seen in fit."
            )
        return StageAnswer(proba)

    def depth(self, answers: StageTable | ArrayLike) -> NDArray[np.intp]:
        """Compute where each sample is answered.

        Parameters
        ----------
        answers : StageTable or array-like of shape (n_stages, n_samples, n_classes)
            As in fit, for any samples.

        Returns
        -------
        depth : ndarray of intp, shape (n_samples,)
            Index of the branch; the number of branches for the last stage.

        Raises
        ------
        ValueError
            If the stages or classes are not those of fit.
        """
        check_is_fitted(self)
        table = as_table(answers)
        n_branches, n_classes = np.atleast_2d(self.thresholds_).shape
        if (table.n_stages - 1, table.n_classes) != (n_branches, n_classes):
            raise ValueError(
                f"answers has {table.n_stages} stages and {table.n_classes} classes; "
                f"this rule was fitted on {n_branches + 1} stages and {n_classes} "
                "classes. Give the answers of the same cascade."
            )
        return first_exits(self, table)


def as_table(answers: StageTable | ArrayLike) -> StageTable:
    if isinstance(answers, StageTable):
        return answers
    return StageTable.from_probabilities(answers)


def check_class_codes(y: ArrayLike, table: StageTable) -> NDArray[np.intp]:
    if table.n_samples == 0:
        raise ValueError("answers holds 0 samples. Give at least one.")
    codes: NDArray[Any] = np.asarray(y)
    if codes.shape != (table.n_samples,) or codes.dtype.kind not in "iu":
        raise ValueError(
            f"y must be {table.n_samples} class codes (int), one for each sample of "
            f"answers, got dtype {codes.dtype} and shape {codes.shape}. Encode labels "
            "with np.searchsorted(classes, labels)."
        )
    if codes.min() < 0 or codes.max() >= table.n_classes:
        raise ValueError(
            f"y must hold codes from 0 to {table.n_classes - 1}, the columns of "
            f"answers; it goes from {codes.min()} to {codes.max()}."
        )
    return codes.astype(np.intp)


def check_costs(costs: ArrayLike, n_stages: int) -> NDArray[np.float64]:
    prices = np.asarray(costs, dtype=np.float64)
    if (
        prices.shape != (n_stages,)
        or not np.isfinite(prices).all()
        or prices.min() < 0
        or prices[-1] == 0
    ):
        raise ValueError(
            f"costs must be {n_stages} finite numbers, one for each depth, none "
            f"negative and the last one positive, got shape {prices.shape}: {prices}. "
            "A cascade's are its depth_costs_."
        )
    return prices
