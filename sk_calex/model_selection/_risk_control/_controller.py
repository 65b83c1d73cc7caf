"""A cascade whose risk on new data is certified."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._base import BaseCascade
from sk_calex.cascade._costs import cost_name, depth_prices
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.cascade._seen_rows import check_rows_are_new
from sk_calex.model_selection._estimators import (
    cascade_in,
    default_values,
    input_of,
    never_exit,
    with_cascade,
)
from sk_calex.model_selection._found import FoundCascade
from sk_calex.policies import Policy
from sk_calex.utils._codec import savable
from sk_calex.utils._fitted_state import all_or_nothing
from sk_calex.utils._saving import SavableMixin, model_card
from sk_calex.utils._validation import check_labels, note_features
from sk_calex.utils._warn import warn_caller

from ._certify import PathAnswers, certify
from ._operating_path import (
    OperatingPath,
    PathPlan,
    given_path,
)
from ._paired_test import fewest_rows
from ._path_results import PathResults
from ._wording import certificate_report

__all__ = ["ExitRiskController"]

_WHY_NEW = (
    "the promise holds only for rows that had no part in the training, the thresholds "
    "or the path."
)


@savable
class ExitRiskController(SavableMixin, FoundCascade):
    """Certify how much a fitted cascade loses on data that it has not seen.

    Fresh rows go in; the cheapest operating point comes out whose loss against the last
    stage is at most `max_risk` on the population of these rows, with the confidence
    that was set. Nothing is trained. Where `MarginSearchCV` estimates, this
    promises, and saves a few points of FLOPs less.

    Parameters
    ----------
    estimator : estimator
        A fitted cascade of any method, a fitted pipeline or search that ends in one, or
        one of these in a `FrozenEstimator`, which clones of the controller keep fitted.
    max_risk : float, default=0.01
        Risk that is allowed, in (0, 1): 0.01 is one point.
    risk : {"accuracy_drop", "disagreement"}, default="accuracy_drop"
        What is bounded:

        - "accuracy_drop": accuracy of the last stage minus that of the cascade. Use it
          where rows with labels can be had.
        - "disagreement": share of the rows that the two answer differently. It needs no
          labels, bounds the accuracy drop too, and saves less.
    confidence_level : float, default=0.9
        Probability, over draws of the certifying rows, that the promise holds.
    path : {"calibration", "agreement"} or array-like, default="calibration"
        Operating points that are tried, fixed before the certifying rows are seen:

        - "calibration": the cascade's own exit rule along its knob, such as the margin.
          Use it with "accuracy_drop".
        - "agreement": the same rule, calibrated as if the answers of the last stage
          were the labels. Use it with "disagreement".
        - array-like of shape (n_points,), (n_points, n_branches) or (n_points,
          n_branches, n_classes): thresholds of the confidence, from strict to lax, that
          were fixed without the certifying rows.
    margins : "auto" or array-like of shape (n_points,), default="auto"
        Values of the cascade's knob on the path. "auto": 10 to 20, in even steps of
        what they save on the calibration rows, as far as `max_risk` can be hoped for.

    Attributes
    ----------
    best_estimator_ : estimator
        A copy of the estimator at the certified point that saves most; it answers for
        the controller.
    best_margin_ : float or tuple of float
        Value of the knob there, or the position in a path that was given; NaN for the
        fallback.
    best_flops_reduction_ : float
        Share of the plain backbone's FLOPs saved there: an estimate on the certifying
        rows, not a promise. 0 for the fallback.
    best_index_ : int
        Its row in `path_results_`.
    certified_ : ndarray of shape (n_certified,)
        Values of the knob that are certified together, NaN for the last stage alone.
    path_results_ : PathResults
        What was measured at each point: margin, n_lost, n_gained, n_disagree,
        risk_estimate, p_value, certified, flops_reduction, depth_share. Prints as a
        table; `to_frame` makes a data frame of it.
    is_fallback_ : bool
        Whether the last stage alone was taken, since no point that saves anything could
        be certified. `best_estimator_` then lets no sample exit; better serve the
        backbone itself, which does not pay for heads.
    n_samples_ : int
        Number of certifying rows.
    classes_ : ndarray of shape (n_classes,)
        Sorted labels.
    n_features_in_ : int
        Columns of a 2-D `X`, or channels of the samples.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Column names, where `X` was a data frame.

    See Also
    --------
    MarginSearchCV : Choose an operating point by an estimate.
    accuracy_drop_bound : The same bound for any two classifiers.
    ExitMonitor : Notice when the data are no longer those of the certificate.

    Notes
    -----
    Our definition, after Learn-then-Test (Angelopoulos et al., arXiv 2110.01052), in
    the fixed-sequence form. Points are tested from strict to lax, each at level
    ``1 - confidence_level``, up to the first that cannot be certified; all before it
    hold together, so that the one that saves most may be taken. The test of the
    accuracy drop is that of `paired_drop_p_value`, that of the disagreement is
    binomial.

    The promise is about the population of which the certifying rows are independent
    draws, and about the cascade relative to its last stage. It says nothing about data
    of another kind, about the accuracy of the last stage, about single classes or
    branches, or about how much is saved. It holds for one fit: several controllers on
    the same rows, of which the best is kept, do not hold at this confidence. On a test
    set as small as the certifying one the drop may *look* larger than `max_risk`.

    References
    ----------
    Angelopoulos, A. N., Bates, S., Candes, E. J., Jordan, M. I. & Lei, L. (2021). Learn
    then Test: calibrating predictive algorithms to achieve risk control.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sk_calex import CascadeClassifier, ExitRiskController
    >>> X, y = make_classification(3000, n_informative=6, n_classes=3, random_state=0)
    >>> class CheapBranch(LogisticRegression):
    ...     macs_ = 1  # as if the last stage were a large network
    >>> cascade = CascadeClassifier(branch=CheapBranch(C=0.02), random_state=0)
    >>> cascade = cascade.fit(X[:1000], y[:1000])
    >>> safe = ExitRiskController(cascade, max_risk=0.05).fit(X[1000:], y[1000:])
    >>> safe.is_fallback_, bool(safe.best_flops_reduction_ > 0.2)
    (False, True)
    >>> labels, depth = safe.predict(X[:10], return_depth=True)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "estimator": [HasMethods(["fit", "predict"])],
        "max_risk": [Interval(Real, 0, 1, closed="neither")],
        "risk": [StrOptions({"accuracy_drop", "disagreement"})],
        "confidence_level": [Interval(Real, 0, 1, closed="neither")],
        "path": [StrOptions({"calibration", "agreement"}), "array-like"],
        "margins": [StrOptions({"auto"}), "array-like"],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        max_risk: float = 0.01,
        risk: str = "accuracy_drop",
        confidence_level: float = 0.9,
        path: Any = "calibration",
        margins: Any = "auto",
    ) -> None:
        self.estimator = estimator
        self.max_risk = max_risk
        self.risk = risk
        self.confidence_level = confidence_level
        self.path = path
        self.margins = margins

    def fit(
        self, X: Any, y: ArrayLike | None = None, sample_weight: None = None
    ) -> Self:
        """Certify the cascade on fresh rows and take the point that saves most.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            Rows as the estimator takes them: independent draws of what will be served,
            which had no part in training, calibration or the choice of the path.
        y : array-like of shape (n_samples,) or (n_rows_to_label,), default=None
            True labels, of all rows or of `rows_to_label` alone, in that order. Not
            needed for "disagreement".
        sample_weight : None
            Not accepted: the test counts independent draws, each once.

        Returns
        -------
        self : ExitRiskController
            The fitted controller.

        Raises
        ------
        ValueError
            If the certificate would be void: rows were part of the cascade's fit, they
            are too few whatever they show, weights are given, or labels are missing; or
            if the estimator's branches depend on the margin.
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it holds no cascade.

        Warns
        -----
        UserWarning
            If nothing that saves FLOPs can be certified, or it is not known whether
            the rows are new to the cascade.
        """
        with all_or_nothing(self):
            self._validate_params()
            self._certify(X, y, sample_weight)
        if self.is_fallback_:
            cost = cost_name(cascade_in(self.best_estimator_))
            warn_caller(
                f"nothing that saves {cost} could be certified"
                + self._explain_fallback()
                + " best_estimator_ lets no sample exit.",
                UserWarning,
            )
        return self

    def rows_to_label(self, X: Any) -> NDArray[np.intp]:
        """Find the rows that need a label; those of all others change no certificate.

        Where every point of the path answers as the last stage does, nothing can be
        lost, whatever the label.

        Parameters
        ----------
        X : array, tensor or Dataset of shape (n_samples, ...)
            The certifying rows, as in fit.

        Returns
        -------
        rows : ndarray of intp, shape (n_rows_to_label,)
            Positions in `X`, rising. `fit` takes their labels in this order as `y`.

        Raises
        ------
        ValueError
            If rows were part of the cascade's fit or are too few for any certificate.
        """
        self._validate_params()
        cascade, path = self._path()
        table = self._ask_stages(cascade, X)
        self._check_enough(table.n_samples)
        return PathAnswers.of(path.rules, table).to_label()

    def _archive_state(self) -> dict[str, Any]:
        """Return the certified cascade in place of the one that was given."""
        state = dict(vars(self))
        return {name: value for name, value in state.items() if name != "estimator"}

    def _restore_archive(self, state: dict[str, Any], backbone: Any) -> None:
        self.__setstate__(state)
        self.estimator = FrozenEstimator(self.best_estimator_)

    def _model_card(self) -> str:
        cost = cost_name(cascade_in(self.best_estimator_))
        facts = {
            "largest loss that is promised": f"{self.max_risk:.2%}",
            "confidence": f"{self.confidence_level:.0%}",
            "certifying rows": f"{self.n_samples_}",
            f"{cost} saved (an estimate)": f"{self.best_flops_reduction_:.1%}",
        }
        return model_card(type(self).__name__, facts, self.report())

    def report(self) -> str:
        """Say in words what is promised, how it was found, and what it does not say.

        Returns
        -------
        text : str
            Several lines, for people.
        """
        check_is_fitted(self)
        return certificate_report(self)

    def _certify(self, X: Any, y: ArrayLike | None, sample_weight: Any) -> None:
        """Test the path and set all that a fit leaves."""
        if sample_weight is not None:
            raise ValueError(
                "sample_weight is not accepted: the certificate counts independent "
                "draws, and a weighted row is not one of them. Give each row once, "
                "drawn as they will be served."
            )
        if y is None and self.risk == "accuracy_drop":
            raise ValueError(
                "y=None, but risk='accuracy_drop' needs labels, if only those of "
                "rows_to_label(X). Without labels use risk='disagreement' and "
                "path='agreement'."
            )
        cascade, path = self._path()
        table = self._ask_stages(cascade, X)
        self._check_enough(table.n_samples)
        answers = PathAnswers.of(path.rules, table)
        truth = None if y is None else _class_codes(y, cascade.classes_, answers)
        results = certify(
            answers,
            path.values,
            truth,
            [_relative_costs(cascade, rule) for rule in path.rules],
            risk=self.risk,
            max_risk=self.max_risk,
            error=1 - self.confidence_level,
        )
        saved = np.where(results.certified, results.flops_reduction, -np.inf)
        best = int(saved.argmax())  # of equal ones the strictest
        chosen = self._at(cascade, path, best)
        self.classes_, self.n_samples_ = cascade.classes_, table.n_samples
        self.certified_ = results.margin[results.certified]
        self.best_margin_ = path.values[best - 1] if best else np.nan
        self.best_flops_reduction_ = float(results.flops_reduction[best])
        self.best_index_, self.is_fallback_ = best, best == 0
        note_features(self, self.estimator)
        self.best_estimator_ = with_cascade(self.estimator, chosen)
        self.path_results_: PathResults = results

    def _path(self) -> tuple[BaseCascade, OperatingPath]:
        """Return the fitted cascade, and the points to try; no row is looked at."""
        cascade = cascade_in(self.estimator)
        try:
            check_is_fitted(self.estimator)
            check_is_fitted(cascade)
        except NotFittedError as error:
            raise NotFittedError(
                f"estimator {type(self.estimator).__name__} is not fitted. The "
                "controller trains nothing: what it trained on the certifying rows "
                "could not be certified by them. Fit it on other rows before; inside "
                "a search or cross-validation, which clone, give "
                "FrozenEstimator(estimator) of sklearn.frozen."
            ) from error
        n_branches, n_classes = len(cascade.branches_), len(cascade.classes_)
        if not isinstance(self.path, str):
            if not isinstance(self.margins, str):
                raise ValueError(
                    "margins and a path of thresholds are both given, and only one of "
                    "them can say what is tried. Leave margins='auto'."
                )
            return cascade, given_path(self.path, n_branches, n_classes)
        cascade._check_movable()
        given = cascade.calibration_
        twin = cascade
        if self.path == "agreement":
            twin = copy.copy(cascade)
            twin.calibration_ = replace(given, labels=given.answers.predicted[-1])
        costs_under = partial(_relative_costs, cascade)
        plan = PathPlan(twin._rule_at, given, costs_under, self.risk)
        if isinstance(self.margins, str):
            path = plan.span(default_values(cascade), self.max_risk)
        else:
            path = plan.try_values(_as_values(self.margins))
        return cascade, path

    def _ask_stages(self, cascade: BaseCascade, X: Any) -> StageTable:
        """Tabulate answers of all stages to the certifying rows, which must be new."""
        X = input_of(self.estimator, X)
        check_rows_are_new(cascade, X, "The certificate", _WHY_NEW)
        return stage_table(cascade, X)

    def _check_enough(self, n: int) -> None:
        needed = fewest_rows(self.risk, self.max_risk, 1 - self.confidence_level)
        if n < needed:
            raise ValueError(
                f"X has {n} rows, too few to certify max_risk={self.max_risk} with "
                f"confidence_level={self.confidence_level} even if not one of them is "
                f"lost: that takes {needed}, and several times as many to save much. "
                "Give more rows, or allow more risk or less confidence."
            )

    def _at(self, cascade: BaseCascade, path: OperatingPath, best: int) -> BaseCascade:
        """Return a copy of the cascade at a point; 0 is the last stage alone."""
        chosen = copy.copy(cascade)
        if best and self.path == "calibration":
            return chosen.set_operating_point(path.values[best - 1])
        never = never_exit(len(cascade.branches_), len(cascade.classes_))
        chosen.calibrator_ = path.rules[best - 1] if best else never
        return chosen

    def _explain_fallback(self) -> str:
        results = self.path_results_
        if len(results) == 1:
            return ": no point of the path saves any on the calibration rows."
        if results.certified[1:].any():
            return ": the certified points cost more for heads than their exits save."
        return (
            f": the strictest point has p={results.p_value[1]:.3g}, above "
            f"{1 - self.confidence_level:.3g}, on {self.n_samples_} rows. More rows, "
            "more risk or less confidence would help."
        )


def _relative_costs(cascade: BaseCascade, rule: Policy) -> NDArray[np.float64]:
    """Compute the cost at each depth under a rule, as a share of the backbone's."""
    costs: NDArray[np.float64] = np.divide(*depth_prices(cascade, rule))
    return costs


def _as_values(margins: ArrayLike) -> list[Any]:
    """Return values of the knob: numbers, or tuples with one for each branch."""
    values = np.asarray(margins).tolist()
    if not values:
        raise ValueError("margins is empty. Give at least one, or 'auto'.")
    return [tuple(v) if isinstance(v, list) else v for v in values]


def _class_codes(
    y: ArrayLike, classes: NDArray[Any], answers: PathAnswers
) -> NDArray[np.intp]:
    """Return codes of the labels, of shape (n_rows,); -1 where none is given."""
    labels, n = check_labels(y), len(answers.last)
    rows = np.arange(n)
    if len(labels) != n:
        rows = answers.to_label()
        if len(labels) != len(rows):
            raise ValueError(
                f"y has {len(labels)} labels for {n} rows. Give one for each row, or "
                f"those of the {len(rows)} rows that rows_to_label(X) names."
            )
    known = np.isin(labels, classes)
    if not known.all():
        raise ValueError(
            f"y holds labels that fit never saw: {np.unique(labels[~known])[:5]}. "
            f"The classes are {classes[:5]}{'...' if len(classes) > 5 else ''}."
        )
    codes = np.full(n, -1, dtype=np.intp)
    codes[rows] = np.searchsorted(classes, labels)
    return codes
