"""The operating point: accuracy and cost over a method's knob."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch

from sk_calex.cascade._base import BaseCascade

from ._estimators import knob_of
from ._outcomes import Outcomes

if TYPE_CHECKING:
    from sk_calex.cascade._cascade import CascadeClassifier

__all__ = ["margin_curve", "operating_curve"]

DEFAULT_MARGINS = (
    *(-0.3, -0.2, -0.1, -0.05, -0.02, 0.0, 0.02),
    *(0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.4),
)


def margin_curve(
    cascade: CascadeClassifier,
    X: Any,
    y: ArrayLike,
    *,
    margins: Iterable[float] = DEFAULT_MARGINS,
    sample_weight: ArrayLike | None = None,
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
    margins : iterable of float, default=(-0.3, ..., 0.4)
        Margins, finite and below 1.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all figures.

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
        n_samples : float
            Number of samples; with weights, their effective number (Kish).

    Raises
    ------
    ValueError
        If a margin is not finite or not below 1, the MACs are unknown, or the cascade
        has no margin that can be moved.
    TypeError
        If it is no cascade.

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
    if not isinstance(cascade, BaseCascade):
        raise TypeError(
            f"cascade must be a fitted cascade, got {type(cascade).__name__}. Of a "
            "pipeline give the last step, and X as that gets it."
        )
    knob = knob_of(cascade)
    if knob != "margin":
        rule = "" if cascade.policy is None else f" of policy={cascade.policy!r}"
        raise ValueError(
            f"this {type(cascade).__name__} moves by {knob!r}{rule}, not by a margin. "
            f"Use operating_curve, over values of {knob.split('__')[-1]!r}."
        )
    cascade._check_movable()
    margins = [float(margin) for margin in margins]
    curve = operating_curve(cascade, X, y, margins, sample_weight=sample_weight)
    return Bunch(margins=curve.pop("knob_values"), **curve)


def operating_curve(
    cascade: BaseCascade,
    X: Any,
    y: ArrayLike,
    values: Iterable[Any],
    *,
    sample_weight: ArrayLike | None = None,
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
        Values of the knob; margins may be sequences, one margin a branch.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of the samples in all figures.

    Returns
    -------
    curve : Bunch
        knob_values : ndarray of shape (n_values,) or (n_values, n_branches)
            The values.
        accuracy, flops_reduction : ndarray of float64, shape (n_values,)
            Accuracy in [0, 1]; share of the plain backbone's FLOPs saved, heads
            included.
        depth_share : ndarray of float64, shape (n_values, n_branches + 1)
            Share of the samples answered at each depth.
        backbone_accuracy : float
            Accuracy of the last stage on all samples.
        n_samples : float
            Number of samples; with weights, their effective number (Kish).

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
    outcomes = Outcomes.of(cascade, X, y, sample_weight)
    values = np.array(list(values))
    points = [outcomes.at(value) for value in values.tolist()]
    return Bunch(
        knob_values=values,
        accuracy=np.array([point.accuracy for point in points]),
        flops_reduction=np.array([point.flops_reduction for point in points]),
        depth_share=np.array([point.depth_share for point in points]),
        backbone_accuracy=outcomes.backbone_accuracy,
        n_samples=outcomes.effective_size,
    )
