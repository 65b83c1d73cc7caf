"""The rows of one fingerprint: find, read, write and gather them by key."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sk_calex.utils._fork import fork_safe_lock
from sk_calex.utils._space import free_disk_space

from ._files import Lock, new_temporary
from ._folder import ATTEMPTS, SectionFolder
from ._gather import copy_rows
from ._keys import KEY_BYTES, as_strings, check_keys
from ._shard_file import MAX_SHARD_ROWS, Layout
from ._shards import MAX_ATTEMPTS, Verify
from ._stored_rows import StoredRows
from ._warnings import Signature, warn

_ROW_OVERHEAD = 64  # bytes of memory per row read, in addition to the row

# Numbers of rows found and not found in this process, by the folder of the section.
_traffic: dict[Path, tuple[int, int]] = {}
_traffic_lock = fork_safe_lock()


class Section:
    """Rows of one fingerprint, as returned by :meth:`FeatureStore.section`.

    Threads may share a section, and several processes may open the same one: a shard
    never changes once it has its name, and two writers never write the same file. A
    pickled section holds its settings only, and a worker process opens it anew.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        verify: Verify,
        max_bytes: int | None = None,
        ignored: Mapping[str, Signature | None] | None = None,
    ) -> None:
        self._settings = (path, layout, verify, max_bytes)
        self._layout = layout
        self._folder = SectionFolder(path, layout, verify, max_bytes, ignored or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (*self._settings, self._folder.shards.ignored)

    def __repr__(self) -> str:
        path, layout = self._folder.path, self._layout
        return f"<Section {path}: width={layout.width}, dtype={layout.dtype_name!r}>"

    @property
    def n_rows(self) -> int:
        """Number of distinct rows when this section last listed its folder."""
        return self._folder.shards.n_distinct()

    @property
    def width(self) -> int:
        """Number of values in a row."""
        return self._layout.width

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._layout.dtype

    @property
    def fingerprint(self) -> str:
        """Digest of what determines the rows except the samples."""
        return self._layout.fingerprint

    def find(self, keys: ArrayLike) -> NDArray[np.bool_]:
        """Look up which rows are stored, in the index alone.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Keys of the rows, from :func:`row_keys`.

        Returns
        -------
        found : ndarray of shape (n,), dtype bool
            Whether each row is stored. A row may still turn out to be damaged when it
            is read; the result of :meth:`read` is final.
        """
        found = self._find(check_keys(keys))
        self._count(missed=len(found) - int(found.sum()))
        return found

    def has_all(self, keys: ArrayLike) -> bool:
        """Tell whether all rows are stored, by the index; this counts no miss.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Keys of the rows.

        Returns
        -------
        has_all : bool
            Whether all are. One may still turn out to be damaged when it is read.
        """
        return bool(self._find(check_keys(keys)).all())

    def read(
        self, keys: ArrayLike, out: NDArray[Any], columns: slice | None = None
    ) -> NDArray[np.bool_]:
        """Read the stored ones among some rows into an array.

        A damaged or missing shard causes one :class:`StoreWarning`, and its rows are
        not found. A wrong row is never returned.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Keys of the rows, in any order and with any repetitions.
        out : ndarray of shape (n, n_columns), dtype float16, float32 or float64
            Array or memory map; ``out[i]`` becomes the row of ``keys[i]``, if found.
            Of dtype uint8 where the section is.
        columns : slice, default=None
            Neighbouring columns to read, with a step of 1; None: all.

        Returns
        -------
        found : ndarray of shape (n,), dtype bool
            Whether each row was found. If not, ``out[i]`` is undefined.

        Raises
        ------
        ValueError
            If an argument has the wrong shape or dtype, or if a float32 row is too
            large for a float16 `out`.
        """
        keys = check_keys(keys)
        n_columns = self._layout.width
        if columns is not None:
            first, stop, step = columns.indices(n_columns)
            if step != 1 or first >= stop:
                raise ValueError(
                    f"columns must be a slice of neighbouring columns of {n_columns}, "
                    f"at least one, with a step of 1; got {columns}."
                )
            n_columns = stop - first
        self._check_out(out, (len(keys), n_columns))
        try:
            with np.errstate(over="raise"):
                found = self._read(keys, out, columns)
        except FloatingPointError:
            raise ValueError(
                f"out of dtype {out.dtype} cannot hold the stored rows: some are too "
                f"large for it; use dtype {self._layout.dtype_name}."
            ) from None
        n_found = int(found.sum())
        self._count(read=n_found, missed=len(found) - n_found)
        return found

    def write(self, keys: ArrayLike, rows: ArrayLike) -> int:
        """Store the rows that are not stored yet, as one shard.

        When this returns, the rows are on the disk; shards that hold some of them
        already are verified first. If it raises or the process is killed, the rows
        stored earlier are unchanged. Write a few thousand rows in one call.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Keys of the rows. Of rows with the same key the first is stored.
        rows : array-like of shape (n, width), floating dtype
            Finite values, which are rounded to the dtype of the section. Of dtype uint8
            where the section is.

        Returns
        -------
        n_new : int
            Number of rows stored by this call.

        Raises
        ------
        ValueError
            If an argument has the wrong shape or dtype, or a row is not finite.
        OSError
            If the shard cannot be written, as on a full disk.
        """
        keys = check_keys(keys)
        rows = self._check_rows(rows, len(keys))
        _, first = np.unique(as_strings(keys), return_index=True)
        if len(first) < len(keys):
            first.sort()
            keys, rows = keys[first], rows[first]
        self._folder.mark_used()
        with self._explain_failure(f"store {len(keys)} rows"):
            return self._folder.write(keys, rows)

    def gather(
        self, keys: ArrayLike, *, memory_limit: int = 64 * 2**20
    ) -> NDArray[Any]:
        """Return rows as one matrix, in memory or on disk.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Keys of stored rows, in any order and with any repetitions.
        memory_limit : int, default=67108864
            Largest size of a matrix in memory, in bytes; a larger one is returned as
            a memory map. About as many bytes are used while it is filled.

        Returns
        -------
        rows : ndarray or memmap of shape (n, width), of the section's dtype
            Rows in the order of `keys`. A memory map is read-only; its temporary file
            lies in the section's folder and is removed with the array.

        Raises
        ------
        KeyError
            If a row is not stored or is damaged. All rows are read first, so that
            :meth:`find` knows all missing rows after one such error.
        OSError
            If the temporary file cannot be written, as on a full disk.
        """
        keys = check_keys(keys)
        if len(keys) * self._layout.row_bytes > memory_limit:
            for _ in range(ATTEMPTS - 1):
                try:
                    return self._gather_to_disk(keys, memory_limit)
                except FileNotFoundError:  # the folder was removed after the look-up
                    self._folder.shards.rescan()
            return self._gather_to_disk(keys, memory_limit)
        self._require_all(self._find(keys))
        out = np.empty((len(keys), self._layout.width), dtype=self._layout.dtype)
        self._require_all(self.read(keys, out))
        return out

    def on_demand(self, keys: ArrayLike) -> StoredRows:
        """Return rows as a matrix that reads them when they are asked for.

        Unlike :meth:`gather` this takes no further space, but 16 bytes a row of memory.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Keys of stored rows, in any order and with any repetitions.

        Returns
        -------
        rows : StoredRows of shape (n, width)
            Rows in the order of `keys`.

        Raises
        ------
        KeyError
            If a row is not stored or is damaged. All shards are verified first, as
            `verify` of the store says, so that :meth:`find` knows all missing rows
            after one such error.
        """
        keys = check_keys(keys)
        self._folder.mark_used()
        self._require_all(~self._folder.shards.missing(keys))
        return StoredRows(self, keys)

    def check_space(
        self,
        n_rows: int,
        *,
        memory_limit: int = 64 * 2**20,
        on_demand: bool = False,
    ) -> int:
        """Warn if rows will not fit on the disk when they are stored and gathered.

        Parameters
        ----------
        n_rows : int
            Number of rows to be stored, if they are not, and then gathered at once.
        memory_limit : int, default=67108864
            Largest size of a matrix that is gathered in memory, as in :meth:`gather`.
        on_demand : bool, default=False
            Whether they are read on demand instead, as by :meth:`on_demand`.

        Returns
        -------
        n_bytes : int
            Bytes that are needed, on the assumption that all stored rows are wanted.

        Warns
        -----
        StoreWarning
            If the disk has less free space than that.
        """
        layout, path = self._layout, self._folder.path
        to_store = max(0, n_rows - self.n_rows) * (layout.row_bytes + KEY_BYTES)
        matrix = n_rows * layout.row_bytes
        to_gather = matrix if matrix > memory_limit and not on_demand else 0
        needed, free = to_store + to_gather, free_disk_space(path)
        if needed > free:
            again = "set on_demand=True for no second copy, " if to_gather else ""
            warn(
                f"{n_rows} rows of {layout.width} values take {needed:,} bytes on the "
                f"disk of {path.parent}: {to_store:,} to store them and {to_gather:,} "
                f"for the matrix that is read back. Only {free:,} bytes are free. Tap "
                f"fewer layers, set a smaller pool, {again}or set dtype='int8' for a "
                f"quarter of float32; or put the store on a larger disk."
            )
        return needed

    def _gather_to_disk(self, keys: NDArray[np.uint8], limit: int) -> NDArray[Any]:
        self._require_all(self._find(keys))
        with self._explain_failure(f"gather {len(keys)} rows"):
            return self._write_map(keys, limit)

    def _write_map(self, keys: NDArray[np.uint8], limit: int) -> NDArray[Any]:
        width, dtype = self._layout.width, self._layout.dtype
        a_row = self._layout.row_bytes + _ROW_OVERHEAD
        chunk = min(len(keys), max(1, limit // a_row))
        buffer = np.empty((chunk, width), dtype=dtype)
        found = np.ones(len(keys), dtype=bool)
        with new_temporary(self._folder.path) as file:
            try:
                # Written to the file and not through the map, to keep no memory.
                for start in range(0, len(keys), chunk):
                    part = keys[start : start + chunk]
                    found[start : start + chunk] = self.read(part, buffer[: len(part)])
                    if found.all():  # else only read on, to find all damaged rows
                        file.write(buffer[: len(part)].data)
                self._require_all(found)
                file.flush()
                rows = np.memmap(file, dtype, mode="r", shape=(len(keys), width))
            except BaseException:
                _unlink(file.name, os.getpid(), None)
                raise
        # The file keeps its name as long as the map exists, because joblib passes maps
        # to its workers by name. A slice keeps the map alive, and the map the section.
        weakref.finalize(rows, _unlink, file.name, os.getpid(), self._folder.pin)
        return rows

    def _find(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        self._folder.mark_used()
        shard, _ = self._folder.shards.locate(keys)
        return shard >= 0

    def _count(self, read: int = 0, missed: int = 0) -> None:
        with _traffic_lock:
            n_read, n_missed = _traffic.get(self._folder.path, (0, 0))
            _traffic[self._folder.path] = (n_read + read, n_missed + missed)

    def _read(
        self, keys: NDArray[np.uint8], out: NDArray[Any], columns: slice | None
    ) -> NDArray[np.bool_]:
        shards = self._folder.shards
        found = np.zeros(len(keys), dtype=bool)
        pending = np.arange(len(keys))
        for _ in range(MAX_ATTEMPTS):
            self._folder.mark_used()
            shard, row = shards.locate(keys[pending])
            order = np.argsort(shard.astype(np.int64) << 32 | row)
            order = order[np.count_nonzero(shard < 0) :]  # without those not stored
            shard, row, pending = shard[order], row[order], pending[order]
            layout = self._layout
            copied = copy_rows(shards, layout, shard, row, out, pending, columns)
            found[pending[copied]] = True
            # Damaged shards are out of the index now; look for other copies.
            pending = pending[~copied]
            if len(pending) == 0:
                break
        else:
            shards.warn_unsettled()
        return found

    @contextmanager
    def _explain_failure(self, action: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"Could not {action} in the feature store: {error.strerror}. The rows "
                f"stored earlier are intact and the next run goes on from them",
                str(self._folder.path),
            ) from error

    def _check_out(self, out: object, shape: tuple[int, int]) -> None:
        if not isinstance(out, np.ndarray) or out.shape != shape:
            given = getattr(out, "shape", type(out))
            raise ValueError(f"out must be an ndarray of shape {shape}, got {given}.")
        if not self._holds(out.dtype) or not out.flags.writeable:
            raise ValueError(
                f"out must be a writeable array of {self._what}, got dtype "
                f"{out.dtype}, writeable={out.flags.writeable}."
            )

    @property
    def _what(self) -> str:
        return "uint8" if self._layout.dtype == np.uint8 else "floats"

    def _holds(self, dtype: np.dtype[Any]) -> bool:
        """Tell whether values of a dtype can be rows: bytes are not converted."""
        if self._layout.dtype == np.uint8:
            return dtype == np.uint8
        return dtype.kind == "f"

    def _check_rows(self, rows: ArrayLike, n: int) -> NDArray[Any]:
        """Return the rows as a C-contiguous array of the section's dtype."""
        rows = np.asarray(rows)
        shape = (n, self._layout.width)
        if rows.shape != shape or not self._holds(rows.dtype):
            raise ValueError(
                f"rows must be {self._what} of shape {shape}, a row for each key, got "
                f"dtype {rows.dtype} and shape {rows.shape}."
            )
        if n > MAX_SHARD_ROWS:
            raise ValueError(
                f"rows must be at most {MAX_SHARD_ROWS} in one call, got {n}; write "
                f"them in several calls of a few thousand."
            )
        with np.errstate(over="ignore"):
            converted = np.ascontiguousarray(rows, dtype=self._layout.dtype)
        if not np.isfinite(converted).all():
            bad = ~np.isfinite(converted).all(axis=1)
            reason = (
                f"values too large for {self._layout.dtype_name}; use a section of "
                f"dtype 'float32'"
                if np.isfinite(rows).all()
                else "NaN or infinite values; only finite rows are stored"
            )
            raise ValueError(
                f"rows: {bad.sum()} of {n} (the first is {bad.argmax()}) hold {reason}."
            )
        return converted

    def _require_all(self, found: NDArray[np.bool_]) -> None:
        if not found.all():
            missing = len(found) - int(found.sum())
            raise KeyError(f"{missing} of {len(found)} rows are not in {self!r}")


def traffic(path: Path) -> tuple[int, int]:
    """Return how many rows of a section this process has found, and has not found."""
    return _traffic.get(path, (0, 0))


def _unlink(name: str, process: int, pin: Lock | None) -> None:
    # A forked child inherits the finalizer, but only the parent may remove the file.
    if os.getpid() == process:  # pragma: no branch (seen by children only)
        with contextlib.suppress(OSError):
            os.unlink(name)
