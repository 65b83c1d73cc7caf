"""The rows of one fingerprint: found, read, written and gathered by key."""

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

from ._files import Lock, make_folder, new_temporary
from ._folder import SectionFolder
from ._gather import copy_rows
from ._keys import as_strings, check_keys
from ._shard_file import MAX_SHARD_ROWS, Layout
from ._shards import MAX_ATTEMPTS, Verify
from ._warnings import Signature

_ROW_OVERHEAD = 64  # bytes of memory that reading a row takes, apart from the row

# Rows read and rows missed in this process, by the section's folder: see traffic.
_traffic: dict[Path, tuple[int, int]] = {}
_traffic_lock = fork_safe_lock()


class Section:
    """The rows of one fingerprint; made by :meth:`FeatureStore.section`.

    Threads may share a section, and processes may open the same one: a shard never
    changes once it has its name, and two writers never write the same file. A section
    is pickled as its settings, so that a worker process opens it anew.
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
        """The number of distinct rows, as of this section's last look at the folder."""
        return self._folder.shards.n_distinct()

    def find(self, keys: ArrayLike) -> NDArray[np.bool_]:
        """Say which rows are stored, going by the index alone.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Made by :func:`row_keys`.

        Returns
        -------
        found : ndarray of shape (n,), dtype bool
            A row found here may still turn out to be damaged when it is read: what
            :meth:`read` returns is final.
        """
        found = self._find(check_keys(keys))
        self._count(missed=len(found) - int(found.sum()))
        return found

    def read(self, keys: ArrayLike, out: NDArray[Any]) -> NDArray[np.bool_]:
        """Read those of some rows that are stored into an array.

        A shard that is damaged or gone causes one :class:`StoreWarning`, and its rows
        are not found. A wrong row is never returned.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            In any order, with any repetitions.
        out : ndarray of shape (n, width), dtype float16, float32 or float64
            ``out[i]`` becomes the row of ``keys[i]``, if found. May be a memory map.

        Returns
        -------
        found : ndarray of shape (n,), dtype bool
            Where False, ``out[i]`` means nothing and is the caller's to fill.

        Raises
        ------
        ValueError
            If an argument has the wrong shape or dtype, or if a float32 row is too
            large for a float16 `out`.
        """
        keys = check_keys(keys)
        self._check_out(out, len(keys))
        try:
            with np.errstate(over="raise"):
                found = self._read(keys, out)
        except FloatingPointError:
            raise ValueError(
                f"out of dtype {out.dtype} cannot hold the stored rows: some are too "
                f"large for it; use dtype {self._layout.dtype_name}."
            ) from None
        n_found = int(found.sum())
        self._count(read=n_found, missed=len(found) - n_found)
        return found

    def write(self, keys: ArrayLike, rows: ArrayLike) -> int:
        """Store those of some rows that are not stored yet, as one shard.

        When this returns, the rows are on disk for good: a shard that has some of them
        already is verified first. When it raises, or the process is killed, the earlier
        rows are as they were. A shard is meant to hold a few thousand rows.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            Where a key is repeated, its first row is stored.
        rows : array-like of shape (n, width), floating dtype
            Finite; rounded to the section's dtype.

        Returns
        -------
        n_new : int
            The number of rows stored by this call.

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
        self._folder.use()
        with self._explain_failure(f"store {len(keys)} rows"):
            return self._folder.write(keys, rows)

    def gather(
        self, keys: ArrayLike, *, memory_limit: int = 64 * 2**20
    ) -> NDArray[Any]:
        """Return rows as one matrix, in memory or on disk.

        Parameters
        ----------
        keys : array-like of shape (n, 16), dtype uint8
            All stored; in any order, with any repetitions.
        memory_limit : int, default=67108864
            A matrix of more bytes than this is returned as a memory map; about as many
            are used while it is filled.

        Returns
        -------
        rows : ndarray or memmap of shape (n, width), of the section's dtype
            A map is read-only. Its file is temporary, lies in the section's folder and
            goes with the array.

        Raises
        ------
        KeyError
            If a row is not stored, or turns out to be damaged. All rows are tried
            first: what is missing after one such error is known to :meth:`find`.
        OSError
            If the temporary file cannot be written, as on a full disk.
        """
        keys = check_keys(keys)
        self._require_all(self._find(keys))
        if len(keys) * self._layout.row_bytes > memory_limit:
            with self._explain_failure(f"gather {len(keys)} rows"):
                return self._gather_to_disk(keys, memory_limit)
        out = np.empty((len(keys), self._layout.width), dtype=self._layout.dtype)
        self._require_all(self.read(keys, out))
        return out

    def _gather_to_disk(self, keys: NDArray[np.uint8], limit: int) -> NDArray[Any]:
        width, dtype = self._layout.width, self._layout.dtype
        a_row = self._layout.row_bytes + _ROW_OVERHEAD
        chunk = min(len(keys), max(1, limit // a_row))
        buffer = np.empty((chunk, width), dtype=dtype)
        found = np.ones(len(keys), dtype=bool)
        make_folder(self._folder.path)  # it may be gone: then so are the rows
        with new_temporary(self._folder.path) as file:
            try:
                # Written, not assigned through the map: then nothing stays resident.
                for start in range(0, len(keys), chunk):
                    part = keys[start : start + chunk]
                    found[start : start + chunk] = self.read(part, buffer[: len(part)])
                    if found.all():  # else read on, to find all that is damaged
                        file.write(buffer[: len(part)].data)
                self._require_all(found)
                file.flush()
                rows = np.memmap(file, dtype, mode="r", shape=(len(keys), width))
            except BaseException:
                _unlink(file.name, os.getpid(), None)
                raise
        # The file keeps its name as long as the map lives, because joblib hands a map
        # to its workers by name. A slice of the map keeps the map alive, and the map
        # its section.
        weakref.finalize(rows, _unlink, file.name, os.getpid(), self._folder.pin)
        return rows

    def _find(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        self._folder.use()
        shard, _ = self._folder.shards.locate(keys)
        return shard >= 0

    def _count(self, read: int = 0, missed: int = 0) -> None:
        with _traffic_lock:
            n_read, n_missed = _traffic.get(self._folder.path, (0, 0))
            _traffic[self._folder.path] = (n_read + read, n_missed + missed)

    def _read(self, keys: NDArray[np.uint8], out: NDArray[Any]) -> NDArray[np.bool_]:
        shards = self._folder.shards
        found = np.zeros(len(keys), dtype=bool)
        pending = np.arange(len(keys))
        for _ in range(MAX_ATTEMPTS):
            self._folder.use()
            shard, row = shards.locate(keys[pending])
            order = np.argsort(shard.astype(np.int64) << 32 | row)
            order = order[np.count_nonzero(shard < 0) :]  # without those not stored
            shard, row, pending = shard[order], row[order], pending[order]
            copied = copy_rows(shards, self._layout, shard, row, out, pending)
            found[pending[copied]] = True
            # A damaged shard has left the index; there may be other copies.
            pending = pending[~copied]
            if len(pending) == 0:
                break
        else:
            shards.tell_unsettled()
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

    def _check_out(self, out: object, n: int) -> None:
        shape = (n, self._layout.width)
        if not isinstance(out, np.ndarray) or out.shape != shape:
            given = getattr(out, "shape", type(out))
            raise ValueError(f"out must be an ndarray of shape {shape}, got {given}.")
        if out.dtype.kind != "f" or not out.flags.writeable:
            raise ValueError(
                f"out must be a writeable array of floats, got dtype {out.dtype}, "
                f"writeable={out.flags.writeable}."
            )

    def _check_rows(self, rows: ArrayLike, n: int) -> NDArray[Any]:
        """Return the rows as a C-contiguous array of the section's dtype."""
        rows = np.asarray(rows)
        shape = (n, self._layout.width)
        if rows.shape != shape or rows.dtype.kind != "f":
            raise ValueError(
                f"rows must be floats of shape {shape}, a row for each key, got dtype "
                f"{rows.dtype} and shape {rows.shape}."
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
    """Return the rows of a section that this process has read, and has missed."""
    return _traffic.get(path, (0, 0))


def _unlink(name: str, process: int, pin: Lock | None) -> None:
    # A forked child inherits the finalizer, but the file is its parent's.
    if os.getpid() == process:  # pragma: no branch (seen by children only)
        with contextlib.suppress(OSError):
            os.unlink(name)
