"""What lies in a section's folder, and which of it can be used."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import _files
from ._index import KeyIndex
from ._shard import (
    METADATA_NAME,
    SHARD_NAME,
    DamagedFile,
    Layout,
    ShardReader,
    read_metadata,
    write_shard,
)

Verify = Literal["first", "always", "never"]
_Signature = tuple[int, ...]

# Shards whose digest this process has seen to be right, as the files were then.
_verified: dict[str, _Signature] = {}


class StoreWarning(UserWarning):
    """A file of a feature store could not be used; its rows count as missing."""


class SectionFolder:
    """The usable shards of one folder and the index of their keys.

    The names in the folder are the only record that writers share, so nobody has to
    tell anybody anything: whoever misses a key looks at the folder again. Threads may
    share an instance.
    """

    def __init__(self, path: Path, layout: Layout, verify: Verify) -> None:
        self.path = path
        self._layout = layout
        self._verify = verify
        self._lock = threading.RLock()
        self._index = KeyIndex()
        self._numbers: dict[str, int] = {}  # of the shards in the index, by name
        self._names: list[str] = []  # by number; a number is never used again
        self._ignored: dict[str, _Signature | None] = {}
        _files.sweep(path)
        self._metadata_is_right = self._check_metadata()
        self.rescan()

    def n_distinct(self) -> int:
        """Count the distinct keys in the index."""
        with self._lock:
            return self._index.n_distinct()

    def locate(
        self, keys: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the shard's number (-1: not stored) and the row of each key."""
        with self._lock:
            shard, row = self._index.find(keys)
            if (shard < 0).any():
                self.rescan()
                shard, row = self._index.find(keys)
        return shard, row

    def copy_rows(
        self,
        number: int,
        rows: NDArray[np.int32],
        keys: NDArray[np.uint8],
        out: NDArray[Any],
        to: NDArray[np.intp],
    ) -> bool:
        """Copy rows (ascending) of a shard, which have these keys, to out[to].

        Returns whether it could be done; if not, the shard is no longer in the index.
        """
        name = self._names[number]
        path = self.path / name
        try:
            with ShardReader(path, self._layout) as shard:
                signature = _signature(shard.status)
                if self._verify == "always" or (
                    self._verify == "first" and _verified.get(str(path)) != signature
                ):
                    shard.verify()
                    _verified[str(path)] = signature
                # The index may be older than the file: go by what was verified.
                if rows[-1] >= shard.n_rows or (shard.keys()[rows] != keys).any():
                    raise DamagedFile("is not the file that was indexed")
                for part, block in shard.rows(rows):
                    out[to[part]] = block
            return True
        except FileNotFoundError:
            self.rescan()
        except (DamagedFile, OSError) as error:
            self._ignore(name, error)
        return False

    def write(self, keys: NDArray[np.uint8], rows: NDArray[Any]) -> None:
        """Store rows of the layout's dtype as one shard."""
        if not (self._metadata_is_right and self.path.is_dir()):
            _files.make_folder(self.path)
            _files.publish(self.path, METADATA_NAME, [self._layout.metadata()])
            self._metadata_is_right = True
        name = write_shard(self.path, self._layout, keys, rows)
        with self._lock:
            if name not in self._numbers:  # another thread's rescan may have seen it
                self._add(name, keys)

    def rescan(self) -> None:
        """Bring the index up to date with the names in the folder."""
        with self._lock:
            files = _files.regular_files(self.path, SHARD_NAME)
            gone = [name for name in self._numbers if name not in files]
            for name in gone:
                self._index.discard(self._numbers.pop(name))
            for name in sorted(files.keys() - self._numbers.keys()):
                path = self.path / name
                if name in self._ignored and (
                    self._ignored[name] == _signature_of(path)
                ):
                    continue
                try:
                    with ShardReader(path, self._layout) as shard:
                        self._add(name, shard.keys())
                except FileNotFoundError:
                    continue  # removed since it was listed
                except (DamagedFile, OSError) as error:
                    self._ignore(name, error)
        if gone:
            _warn(
                f"{len(gone)} shards of {self.path} are gone. Their rows count as "
                f"missing and can be written again."
            )

    def _add(self, name: str, keys: NDArray[np.uint8]) -> None:
        self._index.add(keys, len(self._names))
        self._numbers[name] = len(self._names)
        self._names.append(name)
        self._ignored.pop(name, None)

    def _ignore(self, name: str, error: Exception) -> None:
        """Take a shard out of use, until its file changes."""
        with self._lock:
            if name in self._numbers:
                self._index.discard(self._numbers.pop(name))
            signature = _signature_of(self.path / name)
            warned = name in self._ignored and self._ignored[name] == signature
            self._ignored[name] = signature
        if not warned:
            reason = (
                error if isinstance(error, DamagedFile) else f"is unusable: {error}"
            )
            _warn(
                f"Shard {self.path / name} {reason}. It is ignored: its rows count as "
                f"missing and can be written again. Remove the file to be rid of this "
                f"warning."
            )

    def _check_metadata(self) -> bool:
        """Say whether the JSON file is there and right."""
        try:
            stored = read_metadata(self.path)
        except FileNotFoundError:
            return False
        except DamagedFile as error:
            _warn(
                f"{self.path / METADATA_NAME} {error}. It is ignored, and replaced by "
                f"the next write."
            )
            return False
        if stored != self._layout:
            raise ValueError(
                f"{self.path} holds rows of width {stored.width} and dtype "
                f"{stored.dtype_name!r}, but width={self._layout.width} and "
                f"dtype={self._layout.dtype_name!r} were asked for. A fingerprint must "
                f"cover all that decides them: use another one, or another store."
            )
        return True


def _signature(status: os.stat_result) -> _Signature:
    """What changes when a file's bytes are changed by ordinary means."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def _signature_of(path: Path) -> _Signature | None:
    try:
        return _signature(os.stat(path))
    except OSError:
        return None


def _warn(message: str) -> None:
    warnings.warn(message, StoreWarning, stacklevel=4)
