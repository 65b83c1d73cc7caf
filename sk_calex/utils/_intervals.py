"""Confidence limits of a share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

__all__ = ["clopper_pearson", "share_limits", "upper_limit"]


def clopper_pearson(
    successes: ArrayLike, trials: ArrayLike, confidence_level: float = 0.95
) -> NDArray[np.float64]:
    """Compute two-sided limits of a share, of shape (2, ...); 0 and 1 without trials.

    Clopper and Pearson (Biometrika 1934): exact for counts. For weighted samples give
    the effective sample size and the share times it, which is an approximation.
    """
    k, n = np.broadcast_arrays(*map(_as_float, (successes, trials)))
    tail = (1 - confidence_level) / 2
    low, high = np.zeros(k.shape), np.ones(k.shape)
    some, rest = k > 0, n - k > 0
    low[some] = betaincinv(k[some], (n - k)[some] + 1, tail)
    high[rest] = betaincinv(k[rest] + 1, (n - k)[rest], 1 - tail)
    return np.stack([low, high])


def upper_limit(successes: int, trials: int, error: float) -> float:
    """Compute an upper limit of a share, too low with probability `error` at most."""
    if successes == trials:
        return 1.0
    return float(betaincinv(successes + 1, trials - successes, 1 - error))


def _as_float(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def share_limits(
    sums: NDArray[np.float64], confidence_level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute shares of weighted samples, of shape (...), and limits, of (2, ...).

    Parameters
    ----------
    sums : ndarray of float64, shape (3, ...)
        Weight of the samples that count, of all, and the sum of the squared weights of
        all, from which the effective sample size follows.
    confidence_level : float
        Of each interval.
    """
    part, whole, squares = sums
    some = whole > 0
    share, size = np.full(whole.shape, np.nan), np.zeros(whole.shape)
    np.divide(part, whole, out=share, where=some)
    np.divide(whole**2, squares, out=size, where=some)
    hits = np.where(some, share * size, 0)
    return share, clopper_pearson(hits, size, confidence_level)
