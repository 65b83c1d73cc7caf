"""Refit rules: which candidate of a search with two metrics is the best one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._operating_points import Constraint

__all__ = ["best_within", "cheapest_within"]


def cheapest_within(
    *,
    max_accuracy_drop: float,
    baseline: float | None = None,
    accuracy: str = "accuracy",
    flops: str = "flops",
) -> _Rule:
    """Make a refit rule: the cheapest candidate that loses little accuracy.

    Parameters
    ----------
    max_accuracy_drop : float
        Accuracy that may be lost against the baseline, in [0, 1]: 0.01 is one point.
    baseline : float, default=None
        Accuracy from which the drop is counted, such as the plain backbone's. None: the
        best mean accuracy among the candidates.
    accuracy, flops : str, default="accuracy", "flops"
        Names of the two metrics in `scoring`.

    Returns
    -------
    rule : callable
        ``rule(cv_results_) -> index``, for ``GridSearchCV(refit=...)``. Among equally
        cheap candidates the most accurate, among those the first; candidates whose
        scores are NaN do not count.

    Raises
    ------
    ValueError
        If a number is out of range. By the rule: if a metric is not among the results,
        or no candidate qualifies.

    See Also
    --------
    best_within : The other way round.
    MarginSearchCV : Searches operating points without a grid.

    Notes
    -----
    Our definition, on means over the folds of the test scores.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sklearn.model_selection import GridSearchCV
    >>> from sk_calex import CascadeClassifier, cheapest_within, flops_reduction_scorer
    >>> X, y = make_classification(300, n_informative=6, n_classes=3, random_state=0)
    >>> search = GridSearchCV(
    ...     CascadeClassifier(random_state=0),
    ...     {"margin": [-0.3, 0.0, 0.3]},
    ...     scoring={"accuracy": "accuracy", "flops": flops_reduction_scorer},
    ...     refit=cheapest_within(max_accuracy_drop=0.02),
    ...     cv=3,
    ... ).fit(X, y)
    >>> sorted(search.best_params_)
    ['margin']
    """
    if baseline is not None and not 0 <= baseline <= 1:
        raise ValueError(
            f"baseline={baseline!r} must be an accuracy in [0, 1], or None for the "
            "best of the candidates."
        )
    constraint = Constraint.of(max_accuracy_drop, None)
    return _Rule(constraint, baseline, accuracy, flops)


def best_within(
    *, flops_budget: float, accuracy: str = "accuracy", flops: str = "flops"
) -> _Rule:
    """Make a refit rule: the most accurate candidate that saves enough FLOPs.

    Parameters
    ----------
    flops_budget : float
        Least share of the plain backbone's FLOPs to be saved, in [0, 1].
    accuracy, flops : str, default="accuracy", "flops"
        Names of the two metrics in `scoring`.

    Returns
    -------
    rule : callable
        ``rule(cv_results_) -> index``, for ``GridSearchCV(refit=...)``. Among equally
        accurate candidates the cheapest, among those the first; candidates whose scores
        are NaN do not count.

    Raises
    ------
    ValueError
        If `flops_budget` is out of range. By the rule: if a metric is not among the
        results, or no candidate qualifies.

    See Also
    --------
    cheapest_within : The other way round.

    Notes
    -----
    Our definition, on means over the folds of the test scores.

    Examples
    --------
    >>> from sk_calex import best_within
    >>> rule = best_within(flops_budget=0.3)
    >>> accuracy, flops = [0.9, 0.8, 0.7], [0.1, 0.3, 0.5]
    >>> rule({"mean_test_accuracy": accuracy, "mean_test_flops": flops})
    1
    """
    return _Rule(Constraint.of(None, flops_budget), None, accuracy, flops)


@dataclass(frozen=True)
class _Rule:
    """A choice among the candidates of a search."""

    constraint: Constraint
    baseline: float | None
    accuracy: str
    flops: str

    def __call__(self, cv_results: Mapping[str, Any]) -> int:
        right = self._means(cv_results, self.accuracy, "accuracy")
        saved = self._means(cv_results, self.flops, "flops")
        known = np.flatnonzero(np.isfinite(right) & np.isfinite(saved))
        if len(known) == 0:
            raise ValueError(
                "every candidate has a score of NaN. Search with error_score='raise'."
            )
        baseline = self.baseline
        if baseline is None:
            baseline = float(right[known].max())
        points = {i: (float(right[i]), float(saved[i]), baseline) for i in known}
        best = max(known, key=lambda i: self.constraint.key(*points[i]))
        if self.constraint.violation(*points[best]):
            where = f"candidate {best}"
            if "params" in cv_results:
                where += f" with {cv_results['params'][best]}"
            raise ValueError(self.constraint.missed_by(*points[best], where))
        return int(best)

    def _means(
        self, cv_results: Mapping[str, Any], metric: str, role: str
    ) -> NDArray[np.float64]:
        name = f"mean_test_{metric}"
        if name not in cv_results:
            start = "mean_test_"
            found = [k.removeprefix(start) for k in cv_results if k.startswith(start)]
            raise ValueError(
                f"the results have no metric {metric!r}; they have {found}. Give the "
                'search scoring={"accuracy": "accuracy", "flops": '
                f"flops_reduction_scorer}}, or this rule the name of yours, {role}=..."
            )
        return np.asarray(cv_results[name], dtype=np.float64)
