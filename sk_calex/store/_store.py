"""FeatureStore: a folder of sections."""

from __future__ import annotations

import contextlib
import os
import threading
from datetime import UTC, datetime
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypedDict
from weakref import WeakValueDictionary

from . import _files, _repair
from . import _shard_file as _shard
from ._eviction import last_use, section_folders
from ._repair import StoreReport
from ._section import Section, traffic
from ._shards import Verify


class SectionInfo(TypedDict):
    """Entry of :meth:`FeatureStore.info` for one fingerprint."""

    rows: int
    bytes: int
    width: int
    dtype: str
    hits: int
    misses: int
    last_used: datetime


class StoreInfo(TypedDict):
    """Result of :meth:`FeatureStore.info`."""

    rows: int
    bytes: int
    sections: int
    hits: int
    misses: int
    by_section: dict[str, SectionInfo]


class FeatureStore:
    """Keep feature rows on disk, by fingerprint and by the key of their sample.

    A row that is read equals the row that was written, bit for bit, or it is not found.
    Interruptions, full disks, damaged files and other processes that write at the same
    time leave the rows stored earlier readable. Nothing in a store is executed.

    Parameters
    ----------
    folder : str or path-like
        Folder of the store, created by the first write. ``~`` is expanded.
    max_bytes : int, default=None
        Largest size of all shards together, in bytes; no limit by default. To make
        room, whole fingerprints are evicted, the least recently used first, but none
        that a process has open. If that is not enough, rows are stored all the same,
        with a :class:`StoreWarning`. Memory maps of gathered rows are not counted.
    verify : {"first", "always", "never"}, default="first"
        When to compare shards with their digests. The keys in a shard are compared
        with the index whatever the setting.

        - "first": before a process first reads a shard, and again if the file has
          changed since. Finds damage at a small cost.
        - "always": at every read. For disks that change bits silently.
        - "never": not at all. For a store that was verified by :meth:`verify`.

    Raises
    ------
    ValueError
        If `folder` is empty, `max_bytes` is not a positive integer, or `verify` is
        unknown.
    NotADirectoryError
        If `folder` is a file.

    See Also
    --------
    row_keys : The keys of samples.

    Notes
    -----
    A section is a folder with the fingerprint as its name. Its shards are safetensors
    files named by the SHA-256 digest of their bytes. The index (24 bytes per row) is
    built from the keys in the shards when the section is opened, and updated from the
    folder whenever a key is not found. Above 16,384 rows it lies in files in the
    system's temporary folder, or in memory if that folder is full.

    A section is open as long as a :class:`Section` or a memory map of its rows exists.
    Up to 256 shards of all sections together are kept open between reads, but at most a
    quarter of the files that the process may open; on Windows none. A file that is
    removed meanwhile keeps its space until the section is next read.

    Stores are equal if their settings are. Copies and pickles hold the settings only.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from sk_calex.store import FeatureStore, row_keys
    >>> folder = tempfile.TemporaryDirectory()
    >>> section = FeatureStore(folder.name).section("0123abcd", 2, "float32")
    >>> images = np.arange(12, dtype=np.uint8).reshape(3, 4)
    >>> section.write(row_keys(images[:2]), np.array([[0.0, 1.0], [2.0, 3.0]]))
    2
    >>> out = np.zeros((3, 2), dtype=np.float32)
    >>> section.read(row_keys(images[::-1]), out)
    array([False,  True,  True])
    >>> out[1:]
    array([[2., 3.],
           [0., 1.]], dtype=float32)
    >>> folder.cleanup()
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        max_bytes: int | None = None,
        verify: Verify = "first",
    ) -> None:
        limit: object = max_bytes  # callers may pass another type
        if limit is not None and not (isinstance(limit, Integral) and int(limit) > 0):
            raise ValueError(
                f"max_bytes must be a positive int, or None for no limit, got "
                f"{max_bytes!r}."
            )
        if verify not in ("first", "always", "never"):
            raise ValueError(
                f"verify must be 'first', 'always' or 'never', got {verify!r}."
            )
        path = os.fspath(folder)
        if not path:
            raise ValueError("folder must not be empty; pass the path of a folder.")
        # Absolute: a worker process may have another working directory.
        self.folder = Path(os.path.abspath(os.path.expanduser(path)))
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(
                f"folder must be a folder or not exist yet, got the file {self.folder}."
            )
        self._max_bytes = None if max_bytes is None else int(max_bytes)
        self._verify = verify
        self._lock = threading.Lock()
        # Weak references: a section without other references may be evicted.
        self._sections: WeakValueDictionary[str, Section] = WeakValueDictionary()

    @property
    def max_bytes(self) -> int | None:
        """Largest size of all shards together, in bytes; None: no limit."""
        return self._max_bytes

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "max_bytes": self._max_bytes,
            "verify": self._verify,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return (
            f"FeatureStore({str(self.folder)!r}, max_bytes={self._max_bytes}, "
            f"verify={self._verify!r})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FeatureStore):
            return NotImplemented
        return self.__getstate__() == other.__getstate__()

    def __hash__(self) -> int:
        return hash((self.folder, self._max_bytes, self._verify))

    def section(
        self,
        fingerprint: str,
        width: int,
        dtype: Literal["float32", "float16", "uint8"],
    ) -> Section:
        """Open the rows of one fingerprint.

        Parameters
        ----------
        fingerprint : str
            Digest of everything that determines the rows except the samples, as 8 to
            128 lower-case hexadecimal digits.
        width : int
            Number of values in a row.
        dtype : {"float32", "float16", "uint8"}
            Type of the stored values.

            - "float32": as most networks compute them.
            - "float16": half the space, rounded to about 3 decimal digits.
            - "uint8": bytes, such as rows in a format of the caller's.

        Returns
        -------
        section : Section
            Rows of that fingerprint, to read and write.

        Raises
        ------
        ValueError
            If a parameter is invalid, or the section exists with another width or
            dtype.
        NotADirectoryError
            If a link or a file is in the place of the section's folder.
        """
        layout = _shard.Layout(fingerprint, width, dtype)
        with self._lock:
            section = self._sections.get(fingerprint)
            if section is None or section._layout != layout:
                section = Section(
                    self.folder / fingerprint, layout, self._verify, self._max_bytes
                )
                self._sections[fingerprint] = section
            return section

    def info(self) -> StoreInfo:
        """Count rows, bytes and sections on disk, and hits and misses of this process.

        Returns
        -------
        info : dict
            ``rows`` is the number of rows in all shards (a row that was stored twice
            counts twice), ``bytes`` their size, and ``sections`` the number of folders.
            ``hits`` is the number of rows that this process has read, ``misses`` that
            of rows not found by :meth:`Section.find` or :meth:`Section.read`; worker
            processes have their own counts. ``by_section`` has the same per
            fingerprint, with ``width``, ``dtype`` and ``last_used``, which is up to a
            minute old. Folders without valid section metadata are not counted.
        """
        by_section: dict[str, SectionInfo] = {}
        for folder in section_folders(self.folder):
            try:
                layout = _shard.read_metadata(folder)
            except (OSError, _files.DamagedFile):
                continue
            rows = n_bytes = 0
            for entry in _files.regular_files(folder, _shard.SHARD_NAME).values():
                with contextlib.suppress(FileNotFoundError, _files.DamagedFile):
                    size = entry.stat().st_size
                    n_bytes += size
                    rows += layout.n_rows(size)
            hits, misses = traffic(folder)
            by_section[folder.name] = {
                "rows": rows,
                "bytes": n_bytes,
                "width": layout.width,
                "dtype": layout.dtype_name,
                "hits": hits,
                "misses": misses,
                "last_used": datetime.fromtimestamp(last_use(folder), UTC),
            }
        sections = by_section.values()
        return {
            "rows": sum(section["rows"] for section in sections),
            "bytes": sum(section["bytes"] for section in sections),
            "sections": len(sections),
            "hits": sum(section["hits"] for section in sections),
            "misses": sum(section["misses"] for section in sections),
            "by_section": by_section,
        }

    def verify(self, n_jobs: int | None = None) -> StoreReport:
        """Check every file of the store by its content, without changing any.

        Other processes may read and write meanwhile.

        Parameters
        ----------
        n_jobs : int, default=None
            Number of threads, as in :class:`joblib.Parallel`. Digests release the
            interpreter's lock, so that two threads are nearly twice as fast. Each
            thread takes a few hundred kilobytes of memory.

        Returns
        -------
        report : StoreReport
            Numbers of sound files, and the damaged files with the reason.

        Raises
        ------
        OSError
            If there is no permission to read a file.
        """
        return _repair.verify(self.folder, n_jobs)

    def repair(self, n_jobs: int | None = None) -> dict[Path, str]:
        """Remove what cannot be used, so that the next extraction computes it again.

        This removes the files that :meth:`verify` finds damaged, and what interrupted
        processes left. Sound shards stay, and so do files that are not the store's.
        Other processes may read, write and repair meanwhile.

        Parameters
        ----------
        n_jobs : int, default=None
            Number of threads that look for damage, as in :meth:`verify`.

        Returns
        -------
        removed : dict of Path to str
            Paths that were removed, with the reason. A folder in the place of a file
            is moved into the store's folder unless it is empty; the reason then has
            its new name.

        Raises
        ------
        OSError
            If there is no permission to read or remove a file.
        """
        removed = _repair.repair(self.folder, n_jobs)
        with self._lock:
            sections = list(self._sections.values())
        for section in sections:
            section._folder.shards.rescan(warn_gone=False)  # the caller gets the list
        return removed
