"""The shards of a folder that can be used, and the index of their keys."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import _files
from ._files import DamagedFile
from ._index import KeyIndex
from ._news import Signature, is_news, signature_of, warn
from ._open_shards import OpenShards
from ._shard import SHARD_NAME, Layout, OutdatedFile, ShardReader

Verify = Literal["first", "always", "never"]

# Shards whose digest this process has seen to be right, as the files were then.
_verified: dict[Path, Signature] = {}


class UsableShards:
    """The usable shards of one folder and the index of their keys.

    The names in the folder are the only record that writers share, so nobody has to
    tell anybody anything: whoever misses a key looks at the folder again. Threads may
    share an instance.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        verify: Verify,
        ignored: Mapping[str, Signature | None],
    ) -> None:
        self._path = path
        self._layout = layout
        self._verify = verify
        self._lock = threading.RLock()
        self._index = KeyIndex()
        self._numbers: dict[str, int] = {}  # of the shards in the index, by name
        self._paths: list[Path] = []  # by number; a number is never used again
        self._key_digests: list[bytes] = []  # by number
        self._open = OpenShards()
        self._ignored = dict(ignored)
        for name, state in ignored.items():
            is_news(path / name, state)  # told where this comes from
        self.rescan()

    @property
    def ignored(self) -> dict[str, Signature | None]:
        """The shards that cannot be used, as they were when that was found."""
        with self._lock:
            return dict(self._ignored)

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

    def missing(self, keys: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Say which keys no sound shard has; those that have them are verified."""
        self.rescan()
        while True:
            with self._lock:
                shard, _ = self._index.find(keys)
            if all(self.reader(int(number)) for number in np.unique(shard[shard >= 0])):
                return shard < 0
            # One that is not sound has left the index; there may be other copies.

    def reader(self, number: int) -> ShardReader | None:
        """Return a sound shard; or None, and it is no longer in the index."""
        path = self._paths[number]
        try:
            shard = self._open.get(number)
            is_new = shard is None or not shard.is_as_opened()
            if is_new:
                shard = ShardReader(path, self._layout)
            assert shard is not None
            if self._verify == "always" or (
                self._verify == "first" and _verified.get(path) != shard.signature
            ):
                shard.verify()
                _verified[path] = shard.signature
            if is_new:
                # The index may be older than the file.
                if _digest(shard.keys()) != self._key_digests[number]:
                    raise DamagedFile("is not the file that was indexed")
                self._open.put(number, shard)
            return shard
        except (DamagedFile, OSError) as error:
            self.give_up(number, error)
        return None

    def give_up(self, number: int, error: Exception) -> None:
        """Take a shard that could not be read out of the index."""
        if isinstance(error, FileNotFoundError):
            self.rescan()
        else:
            self._ignore(self._paths[number].name, error)

    def add(self, name: str, keys: NDArray[np.uint8]) -> None:
        """Take a shard with these keys into the index, unless it is there."""
        with self._lock:
            if name in self._numbers:
                return
            number = len(self._paths)
            self._paths.append(self._path / name)  # before what may be interrupted
            self._key_digests.append(_digest(keys))
            self._numbers[name] = number
            self._index.add(keys, number)
            self._ignored.pop(name, None)

    def rescan(self, *, tell_gone: bool = True) -> None:
        """Bring the index up to date with the names in the folder."""
        n_outdated = 0
        with self._lock:
            files = _files.regular_files(self._path, SHARD_NAME)
            gone = [name for name in self._numbers if name not in files]
            if gone:
                numbers = [self._numbers[name] for name in gone]
                self._index.discard(*numbers)
                self._open.drop(*numbers)
            for name in gone:  # afterwards: interrupted, they are still known as gone
                del self._numbers[name]
            for name in sorted(files.keys() - self._numbers.keys()):
                path = self._path / name
                if name in self._ignored and self._ignored[name] == signature_of(path):
                    continue
                try:
                    self.add(name, ShardReader(path, self._layout).keys())
                except FileNotFoundError:
                    continue  # removed since it was listed
                except OutdatedFile:
                    n_outdated += self._drop(name)
                except (DamagedFile, OSError) as error:
                    self._ignore(name, error)
        if gone and tell_gone:
            warn(
                f"{len(gone)} shards of {self._path} are gone. Their rows count as "
                f"missing and can be written again."
            )
        if n_outdated:
            warn(
                f"{n_outdated} shards of {self._path} are of an earlier version of the "
                f"format. They are ignored: their rows count as missing and can be "
                f"written again. FeatureStore.repair removes them."
            )

    def _ignore(self, name: str, error: Exception) -> None:
        if self._drop(name):
            reason = (
                error if isinstance(error, DamagedFile) else f"is unusable: {error}"
            )
            warn(
                f"Shard {self._path / name} {reason}. It is ignored: its rows count as "
                f"missing and can be written again. FeatureStore.repair removes it."
            )

    def _drop(self, name: str) -> bool:
        """Take a shard out of use until its file changes; say whether that is news."""
        with self._lock:
            if name in self._numbers:
                self._index.discard(self._numbers[name])
                self._open.drop(self._numbers[name])
                del self._numbers[name]
            self._ignored[name] = signature_of(self._path / name)
            return is_news(self._path / name, self._ignored[name])


def _digest(keys: NDArray[np.uint8]) -> bytes:
    return sha256(keys.data).digest()
