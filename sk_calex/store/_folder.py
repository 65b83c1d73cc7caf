"""The folder of a section: its metadata, the lock that marks its use, and writing."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _files
from ._eviction import make_room
from ._files import DamagedFile, Lock, lock_file, lock_folder, locked
from ._shard_file import METADATA_NAME, Layout, OutdatedFile, read_metadata, write_shard
from ._shards import UsableShards, Verify
from ._warnings import Signature, is_first_report, signature_of, warn

_TOUCH_SECONDS = 60.0  # shortest time between two records of the last use
# Errors of file systems that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
ATTEMPTS = 3  # to write to a folder that others remove meanwhile


class SectionFolder:
    """A folder of shards that is not evicted as long as the instance exists.

    Several processes may write to a folder. With locks, a row that several of them have
    is stored once; on a file system without locks it may be stored several times.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        verify: Verify,
        max_bytes: int | None,
        ignored: Mapping[str, Signature | None],
    ) -> None:
        self.path = path
        self.pin: Lock | None = None  # shows evicting processes that this is in use
        self._layout = layout
        self._max_bytes = max_bytes
        self._touched = -math.inf
        self._write_lock = threading.Lock()
        with contextlib.suppress(FileNotFoundError):
            if not _files.is_real_folder(path):
                raise NotADirectoryError(
                    f"{path} must be a folder of the feature store, but is a link or a "
                    f"file. Remove it, or use another store."
                )
        self._pin_folder()
        _files.sweep(path)
        self._has_metadata(warn_damaged=True)
        self.shards = UsableShards(path, layout, verify, ignored)
        self.mark_used()

    def mark_used(self) -> None:
        """Lock the folder as in use, if it exists, and record the time of use."""
        self._pin_folder(patience=0)
        now = time.monotonic()
        if now - self._touched >= _TOUCH_SECONDS:
            self._touched = now
            with contextlib.suppress(OSError):  # the folder may be read-only
                if self._has_metadata():
                    os.utime(self.path / METADATA_NAME)

    def write(self, keys: NDArray[np.uint8], rows: NDArray[Any]) -> int:
        """Store the rows (of distinct keys) that are missing; return their number."""
        with self._write_lock:
            for _ in range(ATTEMPTS - 1):
                # Others may remove the folder meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    return self._write(keys, rows)
            return self._write(keys, rows)

    def _write(self, keys: NDArray[np.uint8], rows: NDArray[Any]) -> int:
        if not self.shards.missing(keys).any():
            return 0
        _files.make_folder(self.path.parent)
        with locked(lock_file(self.path), on_error=self._warn_without_locks):
            _files.make_folder(self.path)
            self._pin_folder()
            if not self._has_metadata():
                _files.publish(self.path, METADATA_NAME, [self._layout.metadata()])
            new = self.shards.missing(keys)
            if new.any():
                if not new.all():
                    keys, rows = keys[new], rows[new]
                self._make_room(len(keys))
                name = write_shard(self.path, self._layout, keys, rows)
                self.shards.add(name, keys)
        return int(new.sum())

    def _make_room(self, n_rows: int) -> None:
        if self._max_bytes is None:
            return
        size = self._layout.shard_bytes(n_rows)
        excess = make_room(self.path, size, self._max_bytes)
        if excess and is_first_report(self.path, (self._max_bytes,)):
            warn(
                f"The store {self.path.parent} grows beyond max_bytes="
                f"{self._max_bytes}, by {excess} bytes so far: it holds only the "
                f"fingerprint {self.path.name}, which is being written, and others "
                f"that are in use. The rows are stored all the same. Set a larger "
                f"max_bytes, or tap fewer or smaller features."
            )

    def _warn_without_locks(self, error: OSError) -> None:
        store = self.path.parent
        if error.errno in _NO_LOCKS and is_first_report(store, ()):
            warn(
                f"Files in the store {store} cannot be locked: {error.strerror}. Rows "
                f"stay correct, but processes that write at the same time may store a "
                f"row several times, and with max_bytes a fingerprint that was not "
                f"used for an hour may be evicted while it is open. Put the store on "
                f"a file system with locks."
            )

    def _pin_folder(self, patience: float | None = None) -> None:
        """Lock the folder at the path as in use, unless this instance has it locked."""
        while self.pin is None or not self.pin.is_on(self.path):
            try:
                self.pin = lock_folder(self.path, shared=True, patience=patience)
            except BlockingIOError:
                self.pin = None  # it is being evicted, by a process that may be stopped
            if self.pin is None:
                break

    def _has_metadata(self, *, warn_damaged: bool = False) -> bool:
        """Return whether the JSON file exists and is valid."""
        path = self.path / METADATA_NAME
        try:
            stored = read_metadata(self.path)
        except (FileNotFoundError, OutdatedFile):
            return False
        except DamagedFile as error:
            if warn_damaged and is_first_report(path, signature_of(path)):
                warn(f"{path} {error}. It is ignored, and replaced by the next write.")
            return False
        if stored != self._layout:
            raise ValueError(
                f"{self.path} holds rows of width {stored.width} and dtype "
                f"{stored.dtype_name!r}, but width={self._layout.width} and "
                f"dtype={self._layout.dtype_name!r} were asked for. A fingerprint must "
                f"cover all that decides them: use another one, or another store."
            )
        return True
