"""Soft targets made as rows are read: no matrix of rows by classes is held.

With many classes that matrix would be larger than all else that a fit keeps in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sk_calex.branches._training import soften

__all__ = ["ProbabilityRows", "SoftTargets", "SoftenedRows", "row_blocks"]

_ROWS = 4096


class ProbabilityRows(Protocol):
    """Class probabilities of which some rows are read at a time; an array is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and of classes."""
        ...

    def __getitem__(self, rows: Any, /) -> NDArray[np.float64]: ...


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """Class probabilities to imitate, made of others as rows are read.

    Parameters
    ----------
    source : ProbabilityRows
        Probabilities that they are made of: an array, or rows that are computed too.
    labels : ndarray of intp, shape (n_samples,)
        Class codes.
    present : ndarray of bool, shape (n_classes,), default=None
        Classes that are kept, the others' probability being dealt to them; a row
        without any of them is its label. None: all.
    alpha : float, default=None
        Share of the probabilities, in [0, 1], the label having the rest. None: 1.
    columns : ndarray of intp, default=None
        Classes that have a column. None: all.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.branches._soft_targets import SoftTargets
    >>> proba = np.array([[0.6, 0.4], [0.5, 0.5]])
    >>> SoftTargets(proba, np.array([0, 1]), alpha=0.5)[[1]]
    array([[0.25, 0.75]])
    """

    source: ProbabilityRows
    labels: NDArray[np.intp]
    present: NDArray[np.bool_] | None = None
    alpha: float | None = None
    columns: NDArray[np.intp] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of classes."""
        n, n_classes = self.source.shape
        return n, n_classes if self.columns is None else len(self.columns)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> NDArray[np.float64]:
        soft = self.source[rows]
        if self.present is not None:
            soft = np.where(self.present, soft, 0.0)
            total = soft.sum(axis=1, keepdims=True)
            certain = np.eye(soft.shape[1])[self.labels[rows]]
            least = np.finfo(float).tiny
            soft = np.where(total > 0, soft / np.maximum(total, least), certain)
        if self.alpha is not None:
            soft = self.alpha * soft
            soft[np.arange(len(soft)), self.labels[rows]] += 1 - self.alpha
        return soft if self.columns is None else soft[:, self.columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype=dtype)


class SoftenedRows:
    """Softened targets of training rows, computed as mini-batches are drawn.

    Parameters
    ----------
    targets : ProbabilityRows
        Class probabilities.
    rows : ndarray of intp, shape (n_samples,)
        Which rows of them.
    temperature : float
        T > 0, as of `soften`.
    """

    def __init__(
        self, targets: ProbabilityRows, rows: NDArray[np.intp], temperature: float
    ) -> None:
        self._targets, self._rows, self._temperature = targets, rows, temperature

    def __getitem__(self, index: NDArray[np.intp]) -> NDArray[np.float32]:
        soft = soften(self._targets[self._rows[index]], self._temperature)
        return soft.astype(np.float32)

    def take(self, index: NDArray[np.intp]) -> SoftenedRows:
        """Select some of the rows, without computing them."""
        return SoftenedRows(self._targets, self._rows[index], self._temperature)


def row_blocks(rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    """Yield indices a few thousand at a time."""
    for start in range(0, len(rows), _ROWS):
        yield rows[start : start + _ROWS]
