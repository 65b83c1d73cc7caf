"""Which of many candidate taps pay for their heads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from ._curves import Outcomes
from ._estimators import default_values, knob_of
from ._operating_points import Constraint, Landscape, Measured

if TYPE_CHECKING:
    from sk_calex.cascade._cascade import CascadeClassifier

__all__ = ["best_taps", "check_values", "select_taps"]

#: Operating points that are measured before the search turns greedy.
MAX_POINTS = 2048


def select_taps(
    cascade: CascadeClassifier,
    X: Any,
    y: ArrayLike,
    *,
    max_accuracy_drop: float | None = None,
    flops_budget: float | None = None,
    margins: Any = "auto",
    sample_weight: ArrayLike | None = None,
) -> Bunch:
    """Choose the taps whose branches pay for their heads.

    A head costs FLOPs for every sample that passes it. Every stage answers every sample
    once; then each choice of taps is calibrated anew on the calibration samples that
    survive its own branches, and its cost counts its own heads only. Nothing is
    trained.

    Parameters
    ----------
    cascade : CascadeClassifier
        A cascade fitted on all the candidate taps; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in its fit, that trained and calibrated nothing.
    y : array-like of shape (n_samples,)
        True labels.
    max_accuracy_drop : float, default=None
        Accuracy on `X` that may be lost against the last stage, in [0, 1]: the cheapest
        choice within it is taken. Give this or `flops_budget`.
    flops_budget : float, default=None
        Least share of the plain backbone's FLOPs to be saved on `X`, in [0, 1]: the
        most accurate choice within it is taken.
    margins : "auto" or array-like of shape (n_margins,), default="auto"
        Margins to try for each choice of taps, or values of the knob of the cascade's
        `calibrator`. "auto": about 20 that span the curve.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all figures.

    Returns
    -------
    selection : Bunch
        taps : list of str
            Names of the taps to keep, in depth order.
        margin : float
            The margin (or value of the knob) that goes with them.
        accuracy, flops_reduction : float
            What they reach on `X`.
        backbone_accuracy : float
            Accuracy of the last stage on `X`.
        candidates : dict of lists and arrays
            All choices that were looked at, each at its best margin: taps, margin,
            accuracy, flops_reduction, feasible.
        search : {"exhaustive", "greedy"}
            Whether all choices were looked at.

    Raises
    ------
    ValueError
        If not exactly one constraint is given, or nothing satisfies it; the message
        says what comes nearest.
    TypeError
        If the branches of the method are trained together, as a baseline's are.

    See Also
    --------
    MarginSearchCV : With ``taps="select"`` the same by cross-validation, and a cascade
        trained on the taps chosen.

    Notes
    -----
    Our definition. All choices are tried up to about 2,000 operating points (six taps
    with 20 margins); beyond that taps are eliminated backwards, the least useful first,
    as long as that improves. The branches are those trained with all taps in place:
    trained again without some, later ones see other survivor weights, so measure the
    new cascade on new samples. The best of many choices looks better on `X` than it is.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, select_taps
    >>> X, y = make_classification(600, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X[:400], y[:400])
    >>> select_taps(cascade, X[400:], y[400:], max_accuracy_drop=0.5).taps
    ['x']
    """
    constraint = Constraint.of(max_accuracy_drop, flops_budget)
    check_is_fitted(cascade)
    outcomes = Outcomes.of(cascade, X, y, sample_weight)
    values = check_values(margins, cascade)
    return best_taps(Landscape([outcomes], constraint), values)


def check_values(margins: Any, cascade: Any) -> list[Any]:
    """Check the knob's values, or choose those that span a fitted cascade's curve."""
    if isinstance(margins, str):
        if margins != "auto":
            raise ValueError(
                f"margins={margins!r} must be 'auto' or a list of numbers."
            )
        return default_values(cascade)
    values = np.asarray(margins).tolist()
    if not isinstance(values, list) or not values:
        raise ValueError(f"margins={margins!r} must hold at least one number.")
    return [tuple(value) if isinstance(value, list) else value for value in values]


def best_taps(landscape: Landscape, values: Sequence[Any]) -> Bunch:
    """Look for the best choice of taps; see `select_taps`."""
    cascade = landscape.folds[0].cascade
    n = landscape.n_branches
    seen: dict[tuple[int, ...], Measured] = {}

    def best_of(choices: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
        choices = list(choices)
        for taps in choices:
            seen[taps] = landscape.of_taps(taps).best_of(values)
        # Of equal choices the one with the fewest heads.
        return max(choices, key=lambda taps: (seen[taps].key, -len(taps)))

    everything = tuple(range(n))
    if (2**n - 1) * len(values) <= MAX_POINTS:
        search = "exhaustive"
        sizes = range(1, n + 1)
        best = best_of(taps for m in sizes for taps in combinations(range(n), m))
    else:
        search = "greedy"
        best = best_of([everything])
        while len(best) > 1:
            smaller = best_of(combinations(best, len(best) - 1))
            if seen[smaller].key < seen[best].key:
                break
            best = smaller
    names = cascade.layout_.names
    landscape.check(
        seen[best], f"taps={[names[k] for k in best]} with {knob_of(cascade)}"
    )
    points = list(seen.values())
    return Bunch(
        taps=[names[k] for k in best],
        margin=seen[best].value,
        accuracy=seen[best].accuracy,
        flops_reduction=seen[best].flops_reduction,
        backbone_accuracy=landscape.backbone_accuracy,
        candidates={
            "taps": [[names[k] for k in taps] for taps in seen],
            "margin": np.array([point.value for point in points]),
            "accuracy": np.array([point.accuracy for point in points]),
            "flops_reduction": np.array([point.flops_reduction for point in points]),
            "feasible": np.array([point.feasible for point in points]),
        },
        search=search,
    )
