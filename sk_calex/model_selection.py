"""The operating point: accuracy and cost over margins."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_calex.table import first_exits

if TYPE_CHECKING:
    from sk_calex.cascade import CascadeClassifier

__all__ = ["margin_curve"]

DEFAULT_MARGINS = (-0.4, -0.3, -0.2, -0.15, -0.1, -0.05, 0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


def margin_curve(
    cascade: CascadeClassifier,
    X: Any,
    y: ArrayLike,
    *,
    margins: Iterable[float] = DEFAULT_MARGINS,
) -> Bunch:
    """Accuracy and cost of a fitted cascade at many margins.

    Every stage answers every sample once; the margins then cost a sort each. Nothing is
    trained.

    Parameters
    ----------
    cascade : CascadeClassifier
        A fitted cascade; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in its fit.
    y : array-like of shape (n_samples,)
        True labels.
    margins : iterable of float, default=(-0.4, ..., 0.3)
        Margins, finite and below 1.

    Returns
    -------
    curve : Bunch
        margins, accuracy, flops_reduction : ndarray of float64, shape (n_margins,)
            Accuracy in [0, 1]; share of the plain backbone's FLOPs saved, heads
            included.
        depth_share : ndarray of float64, shape (n_margins, n_branches + 1)
            Share of the samples answered at each depth.
        backbone_accuracy : float
            Accuracy of the last stage on all samples.

    Raises
    ------
    ValueError
        If a margin is not finite or not below 1, or the MACs are unknown.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, margin_curve
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(random_state=0).fit(X, y)
    >>> curve = margin_curve(cascade, X, y, margins=[-0.1, 0.1])
    >>> curve.depth_share.sum(axis=1)
    array([1., 1.])
    """
    truth = column_or_1d(y)
    scores, predicted = cascade._tabulate(X)
    check_consistent_length(truth, predicted[0])
    right = cascade.classes_[predicted] == truth
    costs = cascade.depth_costs_
    plain = sum(cascade._macs()[0])
    margins = [float(margin) for margin in margins]
    accuracy, reduction, shares = [], [], []
    for margin in margins:
        thresholds = cascade.thresholds_at(margin)
        depth = first_exits(scores[:-1], predicted[:-1], thresholds)
        accuracy.append(right[depth, np.arange(len(depth))].mean())
        share = np.bincount(depth, minlength=len(costs)) / len(depth)
        shares.append(share)
        reduction.append(1 - share @ costs / plain)
    return Bunch(
        margins=np.array(margins),
        accuracy=np.array(accuracy),
        flops_reduction=np.array(reduction),
        depth_share=np.array(shares),
        backbone_accuracy=float(right[-1].mean()),
    )
