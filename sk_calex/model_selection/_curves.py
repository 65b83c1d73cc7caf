"""The operating point: accuracy and cost over a method's knob."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_calex.policies import first_exits

if TYPE_CHECKING:
    from sk_calex.base import BaseCascade
    from sk_calex.cascade import CascadeClassifier

__all__ = ["margin_curve", "operating_curve"]

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
    if cascade.policy is not None:
        raise ValueError(
            f"cascade has policy={cascade.policy!r}, which has no margin. Use "
            f"operating_curve, over values of {cascade.policy.knob!r}."
        )
    margins = [float(margin) for margin in margins]
    curve = operating_curve(cascade, X, y, margins)
    return Bunch(margins=curve.pop("knob_values"), **curve)


def operating_curve(
    cascade: BaseCascade, X: Any, y: ArrayLike, values: Iterable[float]
) -> Bunch:
    """Accuracy and cost of any fitted cascade over its method's knob.

    The knob is the parameter that moves a method along the curve: the margin of
    `CascadeClassifier`, or that of its `policy`; the threshold, quota or patience of a
    baseline. Every stage answers every sample once; nothing is trained.

    Parameters
    ----------
    cascade : BaseCascade
        A fitted cascade; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        Samples, as in its fit.
    y : array-like of shape (n_samples,)
        True labels.
    values : iterable of float
        Values of the knob.

    Returns
    -------
    curve : Bunch
        knob_values : ndarray of shape (n_values,)
            The values.
        accuracy, flops_reduction : ndarray of float64, shape (n_values,)
            Accuracy in [0, 1]; share of the plain backbone's FLOPs saved, heads
            included.
        depth_share : ndarray of float64, shape (n_values, n_branches + 1)
            Share of the samples answered at each depth.
        backbone_accuracy : float
            Accuracy of the last stage on all samples.

    Raises
    ------
    ValueError
        If a value is not accepted by the method, or the MACs are unknown.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, operating_curve
    >>> from sk_calex.policies import SharedThreshold
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(policy=SharedThreshold(), random_state=0).fit(X, y)
    >>> curve = operating_curve(cascade, X, y, [0.5, 0.99])
    >>> bool(curve.flops_reduction[0] > curve.flops_reduction[1])
    True
    """
    truth = column_or_1d(y)
    table = cascade._tabulate(X)
    check_consistent_length(truth, table.predicted[0])
    right = cascade.classes_[table.predicted] == truth
    costs = cascade.depth_costs_
    plain = sum(cascade._macs()[0])
    values = np.array(list(values))
    accuracy, reduction, shares = [], [], []
    for value in values.tolist():
        depth = first_exits(cascade._policy_at(value), table)
        accuracy.append(right[depth, np.arange(len(depth))].mean())
        share = np.bincount(depth, minlength=len(costs)) / len(depth)
        shares.append(share)
        reduction.append(1 - share @ costs / plain)
    return Bunch(
        knob_values=values,
        accuracy=np.array(accuracy),
        flops_reduction=np.array(reduction),
        depth_share=np.array(shares),
        backbone_accuracy=float(right[-1].mean()),
    )
