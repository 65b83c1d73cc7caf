"""A matrix of stored rows that are read when they are asked for."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["StoredRows"]


class KeyedRows(Protocol):
    """Rows that are read by key, as of a `Section`."""

    @property
    def width(self) -> int:
        """Number of values in a row."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""

    @property
    def fingerprint(self) -> str:
        """Digest of what determines the rows except the samples."""

    def read(
        self, keys: ArrayLike, out: NDArray[Any], columns: slice | None = None
    ) -> NDArray[np.bool_]:
        """Read the stored ones among some rows into an array."""


class StoredRows:
    """Rows of a section in a given order, without a copy of them.

    Selecting rows selects keys; `read` gets the values from the disk. As long as this
    or a selection of it exists, the section is not evicted. Pickles hold the keys.

    Parameters
    ----------
    section : Section
        Where the rows are.
    keys : ndarray of shape (n_samples, 16), dtype uint8
        Their keys.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sk_calex.store import FeatureStore, row_keys
    >>> folder = tempfile.TemporaryDirectory()
    >>> section = FeatureStore(folder.name).section("0123abcd", 3, "float32")
    >>> keys = row_keys(np.arange(2, dtype=np.uint8))
    >>> section.write(keys, np.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
    2
    >>> rows = section.on_demand(keys[::-1])
    >>> rows.shape, rows.nbytes
    ((2, 3), 24)
    >>> rows.read(slice(1, 3))
    array([[4., 5.],
           [1., 2.]], dtype=float32)
    >>> rows = section = None
    >>> folder.cleanup()
    """

    ndim = 2

    def __init__(self, section: KeyedRows, keys: NDArray[np.uint8]) -> None:
        self.section, self.keys = section, keys

    @property
    def shape(self) -> tuple[int, int]:
        """Number of rows and of columns."""
        return len(self.keys), self.section.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the stored values."""
        return self.section.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the rows as a matrix."""
        return len(self.keys) * self.section.width * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Any) -> StoredRows:
        return StoredRows(self.section, self.keys[rows])

    def read(self, columns: slice | None = None, rows: Any = None) -> NDArray[Any]:
        """Read values.

        Parameters
        ----------
        columns : slice, default=None
            Neighbouring columns; None: all.
        rows : ndarray of intp, shape (n,), default=None
            Which rows; None: all.

        Returns
        -------
        values : ndarray of shape (n, n_columns)
            The values.

        Raises
        ------
        OSError
            If rows are no longer there, or damaged.
        """
        keys = self.keys if rows is None else self.keys[rows]
        n_columns = len(range(*(columns or slice(None)).indices(self.shape[1])))
        out = np.empty((len(keys), n_columns), dtype=self.dtype)
        found = self.section.read(keys, out, columns)
        if not found.all():
            raise OSError(
                f"{len(keys) - int(found.sum())} of {len(keys)} rows of "
                f"{self.section!r} were there when they were extracted, and are not "
                "any more: they were removed or damaged. Call transform again, which "
                "computes them."
            )
        return out
