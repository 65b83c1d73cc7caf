"""FeatureStore: a folder of sections."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any, Literal

from . import _files, _shard
from ._folder import Verify
from ._section import Section


class FeatureStore:
    """Feature rows on disk, each under a fingerprint and the key of its sample.

    A row read is, bit for bit, the row written, or it is not found. Interruption at any
    moment, a full disk, damaged files and other processes writing at the same time
    leave the rows stored earlier readable. Nothing in a store can execute code.

    Parameters
    ----------
    folder : str or path-like
        ``~`` is expanded. Created by the first write.
    verify : {"first", "always", "never"}, default="first"
        When to compare a shard with its digest: before a process first reads it (and
        again if the file has changed since), at every read, or never. Whatever the
        setting, the key beside each row is compared with the key asked for.

    See Also
    --------
    row_keys : The keys of samples.

    Notes
    -----
    A section is a folder, named by the fingerprint. Its shards are safetensors files
    named by the SHA-256 digest of their bytes. The index (24 bytes a row) is built from
    the shards' keys when the section is opened, and brought up to date with the folder
    whenever a key is not found.

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
        self, folder: str | os.PathLike[str], *, verify: Verify = "first"
    ) -> None:
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
        self._verify = verify
        self._lock = threading.Lock()
        self._sections: dict[str, Section] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "verify": self._verify}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"FeatureStore({str(self.folder)!r}, verify={self._verify!r})"

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
        """
        layout = _shard.Layout(fingerprint, width, dtype)
        with self._lock:
            section = self._sections.get(fingerprint)
            if section is None or section._layout != layout:
                section = Section(self.folder / fingerprint, layout, self._verify)
                self._sections[fingerprint] = section
            return section

    def info(self) -> dict[str, int]:
        """Count what lies on disk, without reading it.

        Returns
        -------
        info : dict
            ``rows`` in all shards (a row that two writers stored at once counts
            twice), their ``bytes``, and the number of ``sections``. Folders without
            valid section metadata are not counted.
        """
        info = {"rows": 0, "bytes": 0, "sections": 0}
        for folder in sorted(self.folder.glob("*/")):
            try:
                layout = _shard.read_metadata(folder)
            except (OSError, _shard.DamagedFile):
                continue
            info["sections"] += 1
            for entry in _files.regular_files(folder, _shard.SHARD_NAME).values():
                try:
                    size = entry.stat().st_size
                    info["rows"] += layout.n_rows(size)
                    info["bytes"] += size
                except (FileNotFoundError, _shard.DamagedFile):
                    continue
        return info
