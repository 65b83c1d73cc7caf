"""Feature matrices that are no arrays: they make floats of the rows that are read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sk_calex.utils._validation import as_tensor

__all__ = ["DecodedFeatures", "RowSource", "read_columns"]

_ROWS = 1024

_Self = TypeVar("_Self", bound="DecodedFeatures")


class RowSource(Protocol):
    """Rows that lie elsewhere, as `StoredRows` of the feature store."""

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: Any) -> RowSource:
        """Select rows."""

    def read(self, columns: slice | None = None, rows: Any = None) -> NDArray[Any]:
        """Read neighbouring columns of some rows."""


def read_columns(
    source: NDArray[Any] | RowSource, columns: slice, rows: Tensor | None
) -> Tensor:
    """Take neighbouring columns of some rows, or of all.

    Of an array all rows are a view. Some are copied whole: no pass over the others.
    """
    if not isinstance(source, np.ndarray):
        index = None if rows is None else rows.cpu().numpy()
        return torch.from_numpy(source.read(columns, index))
    tensor = as_tensor(source[:, columns])
    return tensor if rows is None else tensor.index_select(0, rows)


class DecodedFeatures(ABC):
    """A feature matrix that makes floats of the rows that are read.

    ``np.asarray`` makes the whole matrix of it. Selecting rows keeps it as it is, with
    its layout; selecting columns makes an array.

    Parameters
    ----------
    rows : ndarray or RowSource of shape (n_samples, n_values)
        Rows as they are held.
    layout : TapLayout, default=None
        Which columns are which tap.
    n_taps : int
        Number of taps.
    stages : sequence of int, default=None
        Stages whose columns these are, `n_taps` standing for the outputs; None: all.

    Attributes
    ----------
    shape : tuple of int
        Number of rows and of columns.
    dtype : dtype
        Of what is decoded.
    """

    dtype: np.dtype[Any]
    ndim = 2

    def __init__(
        self, rows: Any, layout: Any, n_taps: int, stages: Sequence[int] | None
    ) -> None:
        self.rows, self.layout = rows, layout
        self.stages = tuple(range(n_taps + 1) if stages is None else stages)

    @abstractmethod
    def part_of(self: _Self, rows: Any, layout: Any, stages: Sequence[int]) -> _Self:
        """Make the matrix of other rows or stages."""

    @abstractmethod
    def size_of(self, stage: int) -> int:
        """Return the number of columns of a stage."""

    @property
    @abstractmethod
    def outputs(self) -> Any:
        """The columns of the backbone's outputs."""

    @abstractmethod
    def decode(
        self, stages: Sequence[int], rows: Tensor | None, device: torch.device | None
    ) -> Tensor:
        """Compute the columns of some stages, as `tensor`."""

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.rows), sum(map(self.size_of, self.stages))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows as they are held."""
        return int(self.rows.nbytes)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for start in range(0, len(self), _ROWS):
            yield from np.asarray(self[start : start + _ROWS])

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.shape} in {self.nbytes:,} bytes>"

    def select(self: _Self, blocks: Sequence[int], layout: Any = None) -> _Self:
        """Return some of the blocks of columns, of the same rows, with their layout."""
        return self.part_of(self.rows, layout, [self.stages[k] for k in blocks])

    def tensor(
        self, rows: Tensor | None = None, device: torch.device | None = None
    ) -> Tensor:
        """Decode rows.

        Parameters
        ----------
        rows : Tensor of int64, shape (n,), default=None
            Which; None: all.
        device : torch.device, default=None
            Where to: what is sent there is what is held. None: the CPU.

        Returns
        -------
        values : Tensor of shape (n, n_columns)
            The values.
        """
        return self.decode(self.stages, rows, device)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(
                f"{type(self).__name__} cannot be seen as an array without a copy."
            )
        out = np.empty(self.shape, self.dtype if dtype is None else dtype)
        for start in range(0, len(self), _ROWS):
            rows = self.rows[start : start + _ROWS]
            chunk = self.part_of(rows, None, self.stages).tensor()
            out[start : start + _ROWS] = chunk.numpy()
        return out

    def __getitem__(self, index: Any) -> Any:
        given = index if isinstance(index, tuple) else (index,)
        if len(given) == 2 and given[0] is Ellipsis:
            given = (slice(None), given[1])
        given = tuple(i for i in given if i is not Ellipsis)
        if given and isinstance(given[0], int | np.integer):
            first = range(len(self))[given[0]]  # raises IndexError, as it must
            return np.asarray(self[first : first + 1])[(0, *given[1:])]
        rows = given[0] if given else slice(None)
        columns = given[1] if len(given) > 1 else slice(None)
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            rows = rows if rows.size else rows.astype(np.intp)
            if rows.ndim != 1 or not isinstance(columns, slice):
                return np.asarray(self)[given]  # pairs of rows and columns
        part = self.part_of(self.rows[rows], self.layout, self.stages)
        if isinstance(columns, slice) and columns == slice(None):
            return part
        return np.asarray(part)[:, columns]
