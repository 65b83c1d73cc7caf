"""The folder of a section: its metadata, whether it is in use, and writing to it."""

from __future__ import annotations

import contextlib
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
from ._files import DamagedFile, Lock, lock, locked
from ._shard_file import METADATA_NAME, Layout, OutdatedFile, read_metadata, write_shard
from ._shards import UsableShards, Verify
from ._warnings import Signature, is_news, signature_of, warn

_TOUCH_SECONDS = 60.0  # how often the last use is noted
_ATTEMPTS = 3  # to write into a folder that is removed meanwhile


class SectionFolder:
    """A folder of shards. While an instance lives, the folder is not evicted.

    Processes may write to one folder at a time: a row that several have is stored once
    where the file system has locks, and may be stored several times where not.
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
        self.pin: Lock | None = None  # tells those who evict that this is in use
        self._layout = layout
        self._max_bytes = max_bytes
        self._touched = -math.inf
        self._write_lock = threading.Lock()
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise NotADirectoryError(
                f"{path} must be a folder of the feature store, but is a link or a "
                f"file. Remove it, or use another store."
            )
        self._hold()
        _files.sweep(path)
        self._has_metadata(tell=True)
        self.shards = UsableShards(path, layout, verify, ignored)
        self.use()

    def use(self) -> None:
        """Keep the folder, if there is one by now, and note its last use."""
        self._hold(patience=0)
        now = time.monotonic()
        if now - self._touched >= _TOUCH_SECONDS:
            self._touched = now
            with contextlib.suppress(OSError):  # it may not be ours to touch
                if self._has_metadata():
                    os.utime(self.path / METADATA_NAME)

    def write(self, keys: NDArray[np.uint8], rows: NDArray[Any]) -> int:
        """Store those rows, of distinct keys, that are not stored; return how many."""
        with self._write_lock:
            for _ in range(_ATTEMPTS - 1):
                # The folder may be removed under our hands.
                with contextlib.suppress(FileNotFoundError):
                    return self._write(keys, rows)
            return self._write(keys, rows)

    def _write(self, keys: NDArray[np.uint8], rows: NDArray[Any]) -> int:
        if not self.shards.missing(keys).any():
            return 0
        if not self._has_metadata():
            _files.make_folder(self.path.parent)
            with locked(self.path.parent):  # out of the way of those who evict
                _files.make_folder(self.path)
                self._hold()
                # Replaced only if need be: others may hold the lock below on it.
                if not self._has_metadata():
                    _files.publish(self.path, METADATA_NAME, [self._layout.metadata()])
        self._hold()
        with locked(self.path / METADATA_NAME):
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
        if excess and is_news(self.path, (self._max_bytes,)):
            warn(
                f"The store {self.path.parent} grows beyond max_bytes="
                f"{self._max_bytes}, by {excess} bytes so far: nothing but "
                f"{self.path.name}, which is being written, and what else is in use is "
                f"left in it. The rows are stored all the same. Give a larger "
                f"max_bytes, or tap fewer or smaller features."
            )

    def _hold(self, patience: float | None = None) -> None:
        """Pin the folder that the path leads to now, if there is one and it can be."""
        while self.pin is None or not self.pin.is_on(self.path):
            try:
                self.pin = lock(self.path, shared=True, patience=patience)
            except BlockingIOError:
                self.pin = None  # it is being evicted, by one who may be stopped
            if self.pin is None:
                break

    def _has_metadata(self, *, tell: bool = False) -> bool:
        """Say whether the JSON file is there and right."""
        path = self.path / METADATA_NAME
        try:
            stored = read_metadata(self.path)
        except (FileNotFoundError, OutdatedFile):
            return False
        except DamagedFile as error:
            if tell and is_news(path, signature_of(path)):
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
