"""Detecting a change in a stream of scores, with a bound on false alarms.

Conformal p-values, bets against their uniformity, and the sum of all bets begun so far.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BETS", "ConformalRanks", "Curve", "ShiryaevRoberts", "confidence_bins"]

#: Cells of the fixed grid on which confidences are ranked.
N_BINS = 4096
_GRID_END = -np.log(1e-9)  # confidences nearer to 1 than this share the last cell

_SLOPES = (-1.8, -0.9, 0.9, 1.8)
_POWERS = (0.3, 0.6)
#: Number of bets: four straight lines, and two powers with their mirror images.
BETS = len(_SLOPES) + 2 * len(_POWERS)

_CHUNK = 64  # rows at once: few enough that a product of their bets stays a float
_SMALLEST_P = 1e-12
_LARGEST_SUM = 1e100


def confidence_bins(confidence: ArrayLike) -> NDArray[np.intp]:
    """Place confidences in cells of a grid that is the same for all data.

    Fine near 1, where most confidences lie. A grid that followed the data would favour
    the rows that made it.
    """
    gap = np.clip(1 - np.asarray(confidence, dtype=np.float64), 1e-9, 1)
    cells = (-np.log(gap) / _GRID_END * N_BINS).astype(np.intp)
    return np.minimum(cells, N_BINS - 1)


class ConformalRanks:
    """Smoothed conformal p-values: ranks of each row among all rows before it.

    Among exchangeable rows the p-values are independent and uniform, exactly, whatever
    the distribution of the scores: the reference must grow with the rows that were
    seen. A histogram holds them, so the memory does not grow.
    """

    def __init__(self, counts: NDArray[np.int64]) -> None:
        self.counts = counts

    def p_values(
        self, bins: NDArray[np.intp], uniform: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Rank rows, in their order, and add each to those that later ones meet."""
        found = np.empty(len(bins))
        for start in range(0, len(bins), _CHUNK):
            part = bins[start : start + _CHUNK]
            below = np.concatenate([[0], np.cumsum(self.counts)])
            earlier = np.tri(len(part), k=-1, dtype=bool)
            less = below[part] + (earlier & (part < part[:, None])).sum(axis=1)
            same = self.counts[part] + (earlier & (part == part[:, None])).sum(axis=1)
            before = below[-1] + np.arange(len(part))
            u = uniform[start : start + _CHUNK]
            found[start : start + _CHUNK] = (less + u * (same + 1)) / (before + 1)
            np.add.at(self.counts, part, 1)
        return found


class ShiryaevRoberts:
    """Sums of bets, one begun at each row, against the uniformity of p-values.

    A sum R becomes ``(R + 1) * bet`` with each row. Without a change a bet has mean 1,
    so ``R - rows`` is a martingale: a level A is reached within t rows with probability
    t / A at most, and after A rows or more in the mean. With J kinds of p-values, the
    largest of their sums is held against J times the level.
    """

    def __init__(self, sums: NDArray[np.float64]) -> None:
        self.sums = sums  # of shape (kinds, BETS)

    def update(self, p_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add rows, given as p-values of shape (kinds, rows); return the statistic."""
        kinds, n = p_values.shape
        statistic = np.empty(n)
        for start in range(0, n, _CHUNK):
            bets = place_bets(p_values[:, start : start + _CHUNK])
            # R_t = B_t (R_0 + sum over s <= t of 1 / B_(s-1)), B the product of bets.
            with np.errstate(over="ignore"):
                product = bets.cumprod(axis=2)
                ahead = np.ones_like(bets)
                ahead[..., 1:] = product[..., :-1]
                sums = product * (self.sums[..., None] + (1 / ahead).cumsum(axis=2))
            sums = np.minimum(sums, _LARGEST_SUM)
            self.sums = sums[..., -1]
            statistic[start : start + _CHUNK] = sums.mean(axis=1).max(axis=0) / kinds
        return statistic


def place_bets(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute bets (kinds, BETS, rows): densities on [0, 1], at the p-values."""
    p = np.clip(p_values, _SMALLEST_P, 1 - _SMALLEST_P)
    lines = [1 + slope * (p - 0.5) for slope in _SLOPES]
    powers = [k * side ** (k - 1) for k in _POWERS for side in (p, 1 - p)]
    return np.stack([*lines, *powers], axis=1)


class Curve:
    """Largest values of a long sequence in equal steps, in bounded memory."""

    MAX_POINTS = 4096

    def __init__(
        self, points: NDArray[np.float64] | None = None, step: int = 1, n: int = 0
    ) -> None:
        self.points = np.empty(0) if points is None else points
        self.step, self.n = step, n

    def extend(self, values: NDArray[np.float64]) -> None:
        """Add values; where there are too many points, the steps become larger."""
        self.n += len(values)
        missing = (self.n - len(values)) % self.step  # values in the last, open step
        if missing:
            fill = np.full(missing, self.points[-1])
            values, self.points = np.concatenate([fill, values]), self.points[:-1]
        self.points = np.concatenate([self.points, _largest(values, self.step)])
        while len(self.points) > self.MAX_POINTS:
            self.points = _largest(self.points, 2)
            self.step *= 2

    @property
    def rows(self) -> NDArray[np.int64]:
        """Number of values up to each point, itself included."""
        ends = self.step * np.arange(1, len(self.points) + 1, dtype=np.int64)
        return np.minimum(ends, self.n)


def _largest(values: NDArray[np.float64], step: int) -> NDArray[Any]:
    """Return the largest value of each step; the last one may be shorter."""
    return (
        np.maximum.reduceat(values, np.arange(0, len(values), step))
        if len(values)
        else values
    )
