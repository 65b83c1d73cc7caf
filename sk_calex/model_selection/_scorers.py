"""Scorers for searches: what a cascade saves, and how right it is at a saving."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils.metadata_routing import UNUSED

from sk_calex.cascade._costs import depth_prices
from sk_calex.utils._validation import check_sample_weight

from ._curves import Outcomes
from ._estimators import cascade_in, default_values, input_of
from ._operating_points import Constraint

__all__ = [
    "AccuracyAtFlopsScorer",
    "FlopsReductionScorer",
    "accuracy_at_flops_scorer",
    "flops_reduction_scorer",
]


class _CascadeScorer(BaseEstimator):
    """A callable of estimator, X and y, with scikit-learn's parameters and routing."""

    __metadata_request__score = {"estimator": UNUSED}

    def score(
        self,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Score a fitted estimator; larger is better."""
        raise NotImplementedError

    def __call__(
        self,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        return self.score(estimator, X, y, sample_weight)

    def _accept_sample_weight(self) -> bool:
        # Asked by searches where metadata routing is off.
        return True


class FlopsReductionScorer(_CascadeScorer):
    """Score a fitted cascade by the share of the plain backbone's FLOPs that it saves.

    A scorer for ``scoring=`` of scikit-learn's searches, next to others:
    ``scoring={"accuracy": "accuracy", "flops": flops_reduction_scorer}``.

    Parameters
    ----------
    estimator : estimator
        A fitted cascade, a pipeline that ends in one, or a search for one.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in its fit.
    y : array-like of shape (n_samples,), default=None
        Ignored.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in the mean cost. With metadata routing, request them by
        ``set_score_request(sample_weight=True)`` on a clone.

    Returns
    -------
    reduction : float
        ``1 - mean cost / cost of the plain backbone``, which has no heads; larger is
        better, negative where the heads cost more than the exits save. Where the
        cascade has `costs`, the share of that cost.

    Raises
    ------
    TypeError
        If `estimator` holds no cascade.
    ValueError
        If the MACs of a stage or head are unknown.

    See Also
    --------
    cheapest_within : A refit rule for such a search.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, flops_reduction_scorer
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X, y)
    >>> flops_reduction_scorer(cascade, X) == cascade.flops_reduction(X)
    True
    """

    def score(
        self,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Share of FLOPs saved; see the class."""
        cascade, given = cascade_in(estimator), input_of(estimator, X)
        if sample_weight is None:
            return float(cascade.cost_reduction(given))
        cost = cascade.cost(given)
        weight = check_sample_weight(sample_weight, cost)
        mean = np.average(cost, weights=weight)
        return float(1 - mean / depth_prices(cascade, None)[1])


class AccuracyAtFlopsScorer(_CascadeScorer):
    """Class of what `accuracy_at_flops_scorer` makes."""

    def __init__(self, flops_budget: float, values: Any = None) -> None:
        self.flops_budget = flops_budget
        self.values = values

    def score(
        self,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> float:
        """Find the best accuracy within the budget; see `accuracy_at_flops_scorer`."""
        budget = Constraint.of(None, self.flops_budget)
        if y is None:
            raise ValueError("y is None: an accuracy needs labels.")
        cascade = cascade_in(estimator)
        outcomes = Outcomes.of(cascade, input_of(estimator, X), y, sample_weight)
        values = default_values(cascade) if self.values is None else self.values
        points = [outcomes.at(value) for value in values]
        # Also what no value of a knob may reach: everybody exits at the first branch.
        first = np.zeros(outcomes.table.n_samples, dtype=np.intp)
        points.append(outcomes.exiting(first))
        return max(
            (
                point.accuracy
                for point in points
                if not budget.violation(point.accuracy, point.flops_reduction, 0.0)
            ),
            default=0.0,
        )


flops_reduction_scorer = FlopsReductionScorer()


def accuracy_at_flops_scorer(
    *, flops_budget: float, values: Iterable[Any] | None = None
) -> AccuracyAtFlopsScorer:
    """Make a scorer: how right a cascade is where it saves a given share of FLOPs.

    It compares cascades, not operating points: the fitted cascade is moved along its
    knob, without training anything, and its present operating point does not matter.

    Parameters
    ----------
    flops_budget : float
        Least share of the plain backbone's FLOPs to be saved, in [0, 1].
    values : iterable of float, default=None
        Values of the knob to try. None: about 20 that span the curve of the method.

    Returns
    -------
    scorer : callable
        ``scorer(estimator, X, y, sample_weight=None)``, for ``scoring=`` of
        scikit-learn: estimators as of `flops_reduction_scorer`.

    Raises
    ------
    ValueError
        If `flops_budget` is not in [0, 1].

    See Also
    --------
    flops_reduction_scorer : What a cascade saves as it is set.

    Notes
    -----
    Our definition: the largest accuracy on `X` among the operating points that save at
    least the budget on `X`. The points are those of `values`, and everybody exiting at
    the first branch; the score is 0 where even that saves too little. The best of
    several points is taken on the samples that are scored, so the score is slightly
    optimistic, alike for all that are compared.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, accuracy_at_flops_scorer
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X, y)
    >>> scorer = accuracy_at_flops_scorer(flops_budget=0.0)
    >>> scorer
    AccuracyAtFlopsScorer(flops_budget=0.0)
    >>> 0 <= scorer(cascade, X, y) <= 1
    True
    """
    Constraint.of(None, flops_budget)
    # A list, as it may be used again and sent to other processes.
    return AccuracyAtFlopsScorer(flops_budget, None if values is None else list(values))
