"""Measure precision over thresholds, for the classes that are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import column_or_1d

__all__ = ["choose_classes", "curve_window", "has_support", "precision_curve"]

_MOST_CLASSES = 12


def choose_classes(
    labels: NDArray[Any], classes: ArrayLike | None, predicted: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Return the codes of the classes given, or of the most frequent answers."""
    if classes is None:
        often = np.bincount(predicted, minlength=len(labels))
        return np.sort(np.argsort(-often, kind="stable")[:_MOST_CLASSES])
    given = column_or_1d(classes)
    if not len(given) or not np.isin(given, labels).all():
        raise ValueError(
            f"classes={given.tolist()} must be labels that fit saw, at least one: "
            f"{labels.tolist()[:8]}{'...' if len(labels) > 8 else ''}"
        )
    return np.searchsorted(labels, given)


def precision_curve(
    answered: NDArray[np.bool_],
    scores: NDArray[np.float64],
    right: NDArray[np.bool_],
    weight: NDArray[np.float64],
    last_right: NDArray[np.bool_] | None,
) -> Bunch:
    """Measure the samples at or above each distinct score: precision and weight.

    Parameters
    ----------
    answered : ndarray of bool, shape (n_samples,)
        The samples that the branch predicts to be of the class; the others are left
        out.
    scores, weight : ndarray of float64, shape (n_samples,)
        Scores that are compared with the threshold; sample weights.
    right, last_right : ndarray of bool, shape (n_samples,)
        Whether the branch and the last stage are right; the latter may be None.

    Returns
    -------
    curve : Bunch
        `threshold`, rising; and of the samples at or above it `precision`, `support`
        (their weight) and `last_precision` (that of the last stage; NaN: unknown).
    """
    mine = answered & (weight > 0)
    levels, level = np.unique(scores[mine], return_inverse=True)
    w, n = weight[mine], len(levels)

    def at_or_above(amount: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(level, amount, n)[::-1].cumsum()[::-1]

    total, good = at_or_above(w), at_or_above(w * right[mine])
    last = np.full(n, np.nan)
    if last_right is not None:
        last = at_or_above(w * last_right[mine]) / total
    return Bunch(
        threshold=levels, precision=good / total, support=total, last_precision=last
    )


def has_support(curve: Bunch, min_support: float) -> NDArray[np.bool_]:
    """Tell which points of a curve have at least `min_support`, and any samples."""
    enough: NDArray[np.bool_] = curve.support >= max(min_support, np.finfo(float).tiny)
    return enough


def curve_window(
    curves: Sequence[Bunch],
    bars: NDArray[Any],
    thresholds: NDArray[Any],
    min_support: float,
) -> tuple[float, float, float]:
    """Find the part of the axes with enough samples: left, right, lowest in percent."""
    known = [thresholds[np.isfinite(thresholds)]]
    heights = [bars[np.isfinite(bars)]]
    for curve in curves:
        enough = has_support(curve, min_support)
        known.append(curve.threshold[enough])
        for part in (curve.precision, curve.last_precision):
            heights.append(part[enough & np.isfinite(part)])
    scores, every = np.concatenate(known), np.concatenate(heights)
    low, high = (scores.min(), scores.max()) if len(scores) else (0.0, 1.0)
    pad = 0.04 * (high - low) or 0.05
    floor = 100 * every.min(initial=1.0)
    return low - pad, high + pad, max(floor - 0.08 * (100 - floor) - 1, -4)
