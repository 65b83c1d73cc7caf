"""Which operating points are worth having."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_calex.utils._validation import check_finite

__all__ = ["pareto_front"]


def pareto_front(flops_reduction: ArrayLike, accuracy: ArrayLike) -> NDArray[np.bool_]:
    """Tell which operating points no other point beats.

    Parameters
    ----------
    flops_reduction : array-like of shape (n_points,)
        Share of the plain backbone's FLOPs saved at each point; larger is better.
    accuracy : array-like of shape (n_points,)
        Accuracy at each point; larger is better.

    Returns
    -------
    front : ndarray of bool, shape (n_points,)
        Which points are on the Pareto front. Equal points are on it together.

    Raises
    ------
    ValueError
        If the lengths differ or a value is not finite.

    Notes
    -----
    A point is on the front unless another one is at least as good in both and better in
    one (the usual definition of Pareto efficiency).

    Examples
    --------
    >>> from sk_calex import pareto_front
    >>> pareto_front([0.0, 0.3, 0.2, 0.5], [0.9, 0.88, 0.85, 0.7])
    array([ True,  True, False,  True])
    """
    reduction = column_or_1d(flops_reduction).astype(np.float64)
    right = column_or_1d(accuracy).astype(np.float64)
    check_consistent_length(reduction, right)
    check_finite(reduction, "flops_reduction", "Leave such points out.")
    check_finite(right, "accuracy", "Leave such points out.")
    levels, level = np.unique(-reduction, return_inverse=True)  # the cheapest first
    best = np.full(len(levels), -np.inf)
    np.maximum.at(best, level, right)
    cheaper = np.maximum.accumulate(np.append(-np.inf, best))[:-1]
    front: NDArray[np.bool_] = (right == best[level]) & (right > cheaper[level])
    return front
