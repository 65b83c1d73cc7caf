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

from . import _files
from . import _repair as _check
from . import _shard_file as _shard
from ._eviction import last_use, section_folders
from ._repair import StoreReport
from ._section import Section, traffic
from ._shards import Verify


class SectionInfo(TypedDict):
    """What :meth:`FeatureStore.info` says of one fingerprint."""

    rows: int
    bytes: int
    width: int
    dtype: str
    hits: int
    misses: int
    last_used: datetime


class StoreInfo(TypedDict):
    """What :meth:`FeatureStore.info` returns."""

    rows: int
    bytes: int
    sections: int
    hits: int
    misses: int
    by_section: dict[str, SectionInfo]


class FeatureStore:
    """Feature rows on disk, each under a fingerprint and the key of its sample.

    A row read is, bit for bit, the row written, or it is not found. Interruption at any
    moment, a full disk, damaged files and other processes writing at the same time
    leave the rows stored earlier readable. Nothing in a store can execute code.

    Parameters
    ----------
    folder : str or path-like
        ``~`` is expanded. Created by the first write.
    max_bytes : int, default=None
        What all shards together may take; no limit by default. When rows are written
        that do not fit, whole fingerprints are evicted, the least recently used first,
        but none that any process has open. If that is not enough, the rows are stored
        all the same, with a :class:`StoreWarning`. Matrices that are read back as
        memory maps take temporary space on top.
    verify : {"first", "always", "never"}, default="first"
        When to compare a shard with its digest: before a process first reads it (and
        again if the file has changed since), at every read, or never. Whatever the
        setting, the keys in a shard are compared with those by which its rows are
        found when it is opened, and again if the file has changed since.

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
    A section is a folder, named by the fingerprint. Its shards are safetensors files
    named by the SHA-256 digest of their bytes. The index (24 bytes a row) is built from
    the shards' keys when the section is opened, and brought up to date with the folder
    whenever a key is not found. Above 16,384 rows it lies in the system's temporary
    folder, in files that go with the process, or in memory where those have no room.

    A section is open as long as a :class:`Section` or a memory map of its rows lives.
    Up to 256 shards of all sections together are kept open between reads, but no more
    than a quarter of the files that the process may have open; on Windows none. A file
    that is removed meanwhile keeps its space until the section is next read.

    Stores are equal if their settings are; copies and pickles carry only these.

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
        limit: object = max_bytes  # from a caller: its type is a claim
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
        # Weakly: a section that nobody holds is not in use, and may be evicted.
        self._sections: WeakValueDictionary[str, Section] = WeakValueDictionary()

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
        self, fingerprint: str, width: int, dtype: Literal["float32", "float16"]
    ) -> Section:
        """Open the rows of one fingerprint.

        Parameters
        ----------
        fingerprint : str
            8 to 128 lower-case hexadecimal digits: a digest of all that decides the
            rows, apart from the samples.
        width : int
            The number of values in a row.
        dtype : {"float32", "float16"}
            How the rows are stored.

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
            If there is a link or a file in the place of the section's folder.
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
        """Count what lies on disk, without reading it, and what this process has read.

        Returns
        -------
        info : dict
            ``rows`` in all shards (a row that was stored twice counts twice), their
            ``bytes``, and the number of ``sections``. ``hits`` are the rows that this
            process has read, ``misses`` those that it has looked for in vain, by
            :meth:`Section.find` or :meth:`Section.read`; worker processes count their
            own. ``by_section`` has the same of each fingerprint, with its ``width``,
            its ``dtype`` and when it was ``last_used``, up to a minute. Folders without
            valid section metadata are not counted.
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
        """Check every file of the store by its content, and change none.

        Other processes may go on reading and writing meanwhile.

        Parameters
        ----------
        n_jobs : int, default=None
            Threads, as in :class:`joblib.Parallel`: digests are computed outside the
            interpreter's lock, so that two are nearly twice as fast. A few hundred
            kilobytes of memory are used for each.

        Returns
        -------
        report : StoreReport
            What is right, and what is damaged and why.

        Raises
        ------
        OSError
            If a file may not be read.
        """
        return _check.verify(self.folder, n_jobs)

    def repair(self, n_jobs: int | None = None) -> dict[Path, str]:
        """Remove what cannot be used, so that the next extraction computes it again.

        These are the files that :meth:`verify` finds damaged, and what processes that
        have ended left half done. Sound shards are not touched, nor are files that the
        store does not know. Other processes may go on reading and writing meanwhile.

        Parameters
        ----------
        n_jobs : int, default=None
            Threads that look for damage, as in :meth:`verify`.

        Returns
        -------
        removed : dict of Path to str
            What was removed, and why. A folder in the place of a file is not removed
            but renamed; the reason then says its new name.

        Raises
        ------
        OSError
            If a file may not be read or removed.
        """
        removed = _check.repair(self.folder, n_jobs)
        with self._lock:
            sections = list(self._sections.values())
        for section in sections:
            section._folder.shards.rescan(tell_gone=False)  # it has just been told
        return removed
