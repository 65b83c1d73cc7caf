"""The usable shards of a folder: the index of their keys, and the open files."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from sk_calex.utils._fork import fork_safe_lock

from . import _files
from ._files import DamagedFile
from ._index import KeyIndex
from ._shard_file import (
    CAN_SHARE_READERS,
    SHARD_NAME,
    Layout,
    OutdatedFile,
    ShardReader,
)
from ._warnings import Signature, is_first_report, signature_of, warn

resource: Any
try:
    import resource
except ImportError:  # pragma: no cover (Windows, where no reader is shared either)
    resource = None

Verify = Literal["first", "always", "never"]
_T = TypeVar("_T")

# How often a row is looked for. It may be in several shards, and a shard may change
# while it is read, which is detected and tried again. Any bound would do against a file
# that changes at each attempt.
MAX_ATTEMPTS = 10

_MOST = 256  # most shards kept open, in all sections together
_SHARE = 4  # and at most one in this many of the files that the process may open

# Shards that this process has verified, with the signature of the file at that time.
_verified: dict[Path, Signature] = {}


class _Shard(NamedTuple):
    path: Path
    key_digest: bytes


class UsableShards:
    """The usable shards of one folder and the index of their keys.

    The names in the folder are the only record that processes share: if a key is not
    found, the folder is listed again. Threads may share an instance.
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
        self._numbers: dict[str, int] = {}  # of the shards in use, by name
        self._shards: list[_Shard] = []  # by number; numbers are not reused
        self._indexed: set[int] = set()  # numbers of the shards in the index
        self._open = OpenShards()
        self._ignored = dict(ignored)
        for name, state in ignored.items():
            is_first_report(path / name, state)  # the sending process has warned
        self.rescan()

    @property
    def ignored(self) -> dict[str, Signature | None]:
        """Unusable shards, with the signature of the file when that was found."""
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
        """Return which keys no sound shard holds; verify the shards that hold them."""
        self.rescan()
        for _ in range(MAX_ATTEMPTS):
            with self._lock:
                shard, _ = self._index.find(keys)
            numbers = np.unique(shard[shard >= 0])
            unsound = [n for n in numbers.tolist() if not self._is_sound(n)]
            if not unsound:
                break
            # They are out of the index now; look for other copies.
        else:
            self.warn_unsettled()
        return (shard < 0) | np.isin(shard, unsound)

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self._shards[number].path

    def _is_sound(self, number: int) -> bool:
        shard = self.reader(number)
        return shard is not None and self.is_unchanged(number, shard)

    def reader(self, number: int) -> ShardReader | None:
        """Return a shard that was sound; if None, look up its rows again.

        What is read from it is valid if `is_unchanged` returns True afterwards.

        Raises
        ------
        OSError
            If the process may not open another file.
        """
        if number not in self._indexed:
            return None
        path, shard = self.path(number), self._open.get(number)
        state = signature_of(path) if shard is None else shard.signature
        try:
            if shard is not None:
                self._check_digest(path, shard)
                return shard
            shard = self._opened(path)
            self._check_digest(path, shard)
            keys = shard.keys()
            if _digest(keys) != self._shards[number].key_digest:
                # The file has been replaced since it was indexed.
                if self._verify == "never":
                    raise DamagedFile("is not the file that was indexed")
                shard.verify()
                self._index_anew(number, keys)
                return None
            with self._lock:
                if number in self._indexed:  # else it would never be used
                    self._open.put(number, shard)
            return shard
        except (DamagedFile, OSError) as error:
            if _has_too_many_files_open(error):
                raise
            if shard is None or self.is_unchanged(number, shard):
                self.give_up(number, error, state)
        return None

    def is_unchanged(self, number: int, shard: ShardReader) -> bool:
        """Return whether the shard is still the one that was found to be sound."""
        if shard.is_as_opened():
            return True
        self._open.drop(number)  # so that the file is opened and checked again
        return False

    def give_up(self, number: int, error: Exception, state: Signature | None) -> None:
        """Take a shard that could not be read out of the index, and warn once.

        Parameters
        ----------
        number : int
            Number of the shard.
        error : Exception
            What reading it raised.
        state : tuple or None
            Signature of the file when it could not be read.
        """
        name = self.path(number).name
        with self._lock:
            if isinstance(error, OSError) and error.errno == errno.ESTALE:
                self._open.drop(number)
                return  # the file was replaced on a server: open it again
            if isinstance(error, FileNotFoundError):
                self.rescan()
                if self._numbers.get(name) == number:
                    return  # it exists again
            is_current = self._numbers.get(name) == number
            if is_current:
                del self._numbers[name]
                self._ignored[name] = state
            self._discard(number)
        if is_current:
            self._warn_ignored(name, error, state)

    def warn_unsettled(self) -> None:
        """Warn, once, of shards that change each time they are read."""
        if is_first_report(self._path, None):
            warn(
                f"Shards of {self._path} change while they are read, {MAX_ATTEMPTS} "
                f"times in a row, or the file system reports so. Their rows count as "
                f"missing. Put the store on a file system that keeps the times of "
                f"files that are not written to."
            )

    def add(self, name: str, keys: NDArray[np.uint8]) -> None:
        """Add a shard with these keys to the index, unless it is there."""
        with self._lock:
            digest, known = _digest(keys), self._numbers.get(name)
            if known in self._indexed and self._shards[known].key_digest == digest:
                return
            # In this order, an interruption leaves the index consistent.
            self._shards.append(_Shard(self._path / name, digest))
            number = len(self._shards) - 1
            self._indexed.add(number)
            self._index.add(keys, number)
            self._numbers[name] = number
            self._ignored.pop(name, None)
            if known is not None:  # it was indexed while it was damaged
                self._discard(known)

    def rescan(self, *, warn_gone: bool = True) -> None:
        """Bring the index up to date with the names in the folder."""
        n_outdated = 0
        with self._lock:
            files = _open_with_retry(
                lambda: _files.regular_files(self._path, SHARD_NAME)
            )
            gone = [name for name in self._numbers if name not in files]
            self._discard(*(self._numbers[name] for name in gone))
            for name in gone:  # last, so that an interrupted rescan finds them again
                del self._numbers[name]
            for name in sorted(files.keys() - self._numbers.keys()):
                path = self._path / name
                state = signature_of(path)
                if name in self._ignored and self._ignored[name] == state:
                    continue
                try:
                    self.add(name, self._opened(path).keys())
                except FileNotFoundError:
                    continue  # it was removed meanwhile
                except OutdatedFile:
                    self._ignored[name] = state
                    n_outdated += is_first_report(path, state)
                except (DamagedFile, OSError) as error:
                    if _has_too_many_files_open(error):
                        raise
                    self._ignored[name] = state
                    self._warn_ignored(name, error, state)
        if gone and warn_gone:
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

    def _opened(self, path: Path) -> ShardReader:
        return _open_with_retry(lambda: ShardReader(path, self._layout))

    def _check_digest(self, path: Path, shard: ShardReader) -> None:
        if self._verify == "always" or (
            self._verify == "first" and _verified.get(path) != shard.signature
        ):
            shard.verify()
            _verified[path] = shard.signature

    def _index_anew(self, number: int, keys: NDArray[np.uint8]) -> None:
        """Index again a sound shard that was damaged when it was indexed."""
        name = self.path(number).name
        with self._lock:
            if self._numbers.get(name) == number:
                self.add(name, keys)

    def _discard(self, *numbers: int) -> None:
        """Remove shards from the index."""
        self._open.drop(*numbers)
        there = self._indexed.intersection(numbers)
        if there:  # removal passes over the whole index
            self._index.discard(*there)
            self._indexed -= there

    def _warn_ignored(
        self, name: str, error: Exception, state: Signature | None
    ) -> None:
        if is_first_report(self._path / name, state):
            reason = (
                error if isinstance(error, DamagedFile) else f"is unusable: {error}"
            )
            warn(
                f"Shard {self._path / name} {reason}. It is ignored: its rows count as "
                f"missing and can be written again. FeatureStore.repair removes it."
            )


class OpenShards:
    """The shards of one section that are kept open between reads.

    Opening a shard and comparing its keys costs as much as reading a hundred small rows
    of it. If too many are open, one is closed at random: then repeated passes in the
    same order, over more shards than may be open, still find most of them open.
    """

    _all: ClassVar[WeakSet[OpenShards]] = WeakSet()
    _random: ClassVar[random.Random] = random.Random(0)
    _lock: ClassVar[Any] = fork_safe_lock()

    def __init__(self) -> None:
        self._readers: dict[int, ShardReader] = {}
        with self._lock:
            self._all.add(self)

    def get(self, number: int) -> ShardReader | None:
        """Return a shard if it is open."""
        return self._readers.get(number)

    def put(self, number: int, reader: ShardReader) -> None:
        """Keep a shard open, if any may be kept."""
        most = _limit()
        if not most:
            return  # before it is added: another thread might use it at once
        with self._lock:
            self._readers[number] = reader
            # Lists, because other threads may remove readers meanwhile.
            every = [
                (shards, number)
                for shards in self._all
                for number in list(shards._readers)
            ]
            while len(every) > most:
                shards, number = every.pop(self._random.randrange(len(every)))
                shards.drop(number)

    @classmethod
    def drop_all(cls) -> None:
        """Close the shards of all sections, to free file descriptors."""
        with cls._lock:
            for shards in cls._all:
                shards._readers.clear()

    def drop(self, *numbers: int) -> None:
        """Close some shards, once no thread uses them."""
        for number in numbers:
            self._readers.pop(number, None)


def most_at_once() -> int:
    """Return how many shards one call may open in addition to those kept open."""
    return _limit() // 8


def _limit() -> int:
    """Return how many shards may be kept open between reads."""
    if resource is None or not CAN_SHARE_READERS:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, soft // _SHARE)


def _digest(keys: NDArray[np.uint8]) -> bytes:
    return sha256(keys.data).digest()


def _open_with_retry(action: Callable[[], _T]) -> _T:
    """Call what opens a file; if too many are open, close the kept shards and retry."""
    try:
        return action()
    except OSError as error:
        if not _has_too_many_files_open(error):
            raise
    OpenShards.drop_all()
    return action()


def _has_too_many_files_open(error: Exception) -> bool:
    """Return whether an error means that too many files are open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
