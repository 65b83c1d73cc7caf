"""The usable shards of a folder: the index of their keys, and those kept open."""

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
from ._warnings import Signature, is_news, signature_of, warn

resource: Any
try:
    import resource
except ImportError:  # pragma: no cover (Windows, where no reader is shared either)
    resource = None

Verify = Literal["first", "always", "never"]
_T = TypeVar("_T")

# How often a row is looked for. It may be in several shards, and a shard may change
# under the eyes of those who read it, which is found and tried again: any bound would
# do, for a file that is damaged anew each time it is looked at.
MAX_ATTEMPTS = 10

_MOST = 256  # open shards, in all sections together
_SHARE = 4  # and no more than this part of the files that the process may have open

# Shards whose digest this process has seen to be right, as the files were then.
_verified: dict[Path, Signature] = {}


class _Shard(NamedTuple):
    path: Path
    key_digest: bytes


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
        self._numbers: dict[str, int] = {}  # of the shards in use, by name
        self._shards: list[_Shard] = []  # by number; a number is never used again
        self._indexed: set[int] = set()  # numbers that the index may lead to
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
        for _ in range(MAX_ATTEMPTS):
            with self._lock:
                shard, _ = self._index.find(keys)
            numbers = np.unique(shard[shard >= 0])
            unsound = [n for n in numbers.tolist() if not self._is_sound(n)]
            if not unsound:
                break
            # They have left the index; there may be other copies.
        else:
            self.tell_unsettled()
        return (shard < 0) | np.isin(shard, unsound)

    def path(self, number: int) -> Path:
        """Return the path of a shard."""
        return self._shards[number].path

    def _is_sound(self, number: int) -> bool:
        shard = self.reader(number)
        return shard is not None and self.is_unchanged(number, shard)

    def reader(self, number: int) -> ShardReader | None:
        """Return a shard that was sound, or None: then look for its rows again.

        What was read from it counts if `is_unchanged` says so afterwards.

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
                # The index is older than the file.
                if self._verify == "never":
                    raise DamagedFile("is not the file that was indexed")
                shard.verify()
                self._index_anew(number, keys)
                return None
            with self._lock:
                if number in self._indexed:  # else it would be kept open for nobody
                    self._open.put(number, shard)
            return shard
        except (DamagedFile, OSError) as error:
            if _is_ours(error):
                raise
            if shard is None or self.is_unchanged(number, shard):
                self.give_up(number, error, state)
        return None

    def is_unchanged(self, number: int, shard: ShardReader) -> bool:
        """Say whether the shard is still the one that was found to be sound."""
        if shard.is_as_opened():  # size, times and place, and it still has a name
            return True
        self._open.drop(number)  # so that the file is opened and judged anew
        return False

    def give_up(self, number: int, error: Exception, state: Signature | None) -> None:
        """Take a shard that could not be read, in a state, out of the index.

        Whoever is the first to do so tells the user.
        """
        name = self.path(number).name
        with self._lock:
            if isinstance(error, OSError) and error.errno == errno.ESTALE:
                self._open.drop(number)
                return  # the descriptor is of the past: open the file again
            if isinstance(error, FileNotFoundError):
                self.rescan()
                if self._numbers.get(name) == number:
                    return  # it is back
            is_current = self._numbers.get(name) == number
            if is_current:
                del self._numbers[name]
                self._ignored[name] = state
            self._discard(number)
        if is_current:
            self._tell_ignored(name, error, state)

    def tell_unsettled(self) -> None:
        """Warn, once, of shards that change each time they are read."""
        if is_news(self._path, None):
            warn(
                f"Shards of {self._path} change while they are read, {MAX_ATTEMPTS} "
                f"times in a row, or the file system says so. Their rows count as "
                f"missing. Keep the store on a file system with steady times."
            )

    def add(self, name: str, keys: NDArray[np.uint8]) -> None:
        """Take a shard with these keys into the index, unless it is there."""
        with self._lock:
            digest, known = _digest(keys), self._numbers.get(name)
            if known in self._indexed and self._shards[known].key_digest == digest:
                return
            # In an order in which an interruption leaves nothing half known.
            self._shards.append(_Shard(self._path / name, digest))
            number = len(self._shards) - 1
            self._indexed.add(number)
            self._index.add(keys, number)
            self._numbers[name] = number
            self._ignored.pop(name, None)
            if known is not None:  # indexed when it was damaged
                self._discard(known)

    def rescan(self, *, tell_gone: bool = True) -> None:
        """Bring the index up to date with the names in the folder."""
        n_outdated = 0
        with self._lock:
            files = _with_room(lambda: _files.regular_files(self._path, SHARD_NAME))
            gone = [name for name in self._numbers if name not in files]
            self._discard(*(self._numbers[name] for name in gone))
            for name in gone:  # afterwards: interrupted, they are still known as gone
                del self._numbers[name]
            for name in sorted(files.keys() - self._numbers.keys()):
                path = self._path / name
                state = signature_of(path)
                if name in self._ignored and self._ignored[name] == state:
                    continue
                try:
                    self.add(name, self._opened(path).keys())
                except FileNotFoundError:
                    continue  # removed since it was listed
                except OutdatedFile:
                    self._ignored[name] = state
                    n_outdated += is_news(path, state)
                except (DamagedFile, OSError) as error:
                    if _is_ours(error):
                        raise
                    self._ignored[name] = state
                    self._tell_ignored(name, error, state)
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

    def _opened(self, path: Path) -> ShardReader:
        return _with_room(lambda: ShardReader(path, self._layout))

    def _check_digest(self, path: Path, shard: ShardReader) -> None:
        if self._verify == "always" or (
            self._verify == "first" and _verified.get(path) != shard.signature
        ):
            shard.verify()
            _verified[path] = shard.signature

    def _index_anew(self, number: int, keys: NDArray[np.uint8]) -> None:
        """Take a sound shard into the index that was damaged when it was indexed."""
        name = self.path(number).name
        with self._lock:
            if self._numbers.get(name) == number:
                self.add(name, keys)

    def _discard(self, *numbers: int) -> None:
        """Take shards out of the index."""
        self._open.drop(*numbers)
        there = self._indexed.intersection(numbers)
        if there:  # for this passes over the whole index
            self._index.discard(*there)
            self._indexed -= there

    def _tell_ignored(
        self, name: str, error: Exception, state: Signature | None
    ) -> None:
        if is_news(self._path / name, state):
            reason = (
                error if isinstance(error, DamagedFile) else f"is unusable: {error}"
            )
            warn(
                f"Shard {self._path / name} {reason}. It is ignored: its rows count as "
                f"missing and can be written again. FeatureStore.repair removes it."
            )


class OpenShards:
    """The open shards of one section, as far as they fit.

    To open a shard and to look at its keys costs as much as to read a hundred small
    rows of it. Where too many are open, one that is drawn by lot gives way: so passes
    over more shards than fit, in the same order again and again, still find most.
    """

    _all: ClassVar[WeakSet[OpenShards]] = WeakSet()
    _lots: ClassVar[random.Random] = random.Random(0)
    _lock: ClassVar[Any] = fork_safe_lock()

    def __init__(self) -> None:
        self._readers: dict[int, ShardReader] = {}
        with self._lock:
            self._all.add(self)

    def get(self, number: int) -> ShardReader | None:
        """Return a shard that is open."""
        return self._readers.get(number)

    def put(self, number: int, reader: ShardReader) -> None:
        """Keep a shard open, if there may be any."""
        most = _limit()
        if not most:
            return  # not for a moment: another thread might take it meanwhile
        with self._lock:
            self._readers[number] = reader
            # Lists, as other threads may take readers out meanwhile.
            every = [
                (shards, number)
                for shards in self._all
                for number in list(shards._readers)
            ]
            while len(every) > most:
                shards, number = every.pop(self._lots.randrange(len(every)))
                shards.drop(number)

    @classmethod
    def drop_all(cls) -> None:
        """Keep no shard open, of no section: the process may open no more files."""
        with cls._lock:
            for shards in cls._all:
                shards._readers.clear()

    def drop(self, *numbers: int) -> None:
        """Keep some shards open no longer."""
        for number in numbers:
            self._readers.pop(number, None)


def most_at_once() -> int:
    """How many shards one call may have open, those that stay open not counted."""
    return _limit() // 8


def _limit() -> int:
    """How many shards may be open between reads."""
    if resource is None or not CAN_SHARE_READERS:
        return 0
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else min(_MOST, soft // _SHARE)


def _digest(keys: NDArray[np.uint8]) -> bytes:
    return sha256(keys.data).digest()


def _with_room(action: Callable[[], _T]) -> _T:
    """Do what opens a file; if there are too many, those kept to save time go first."""
    try:
        return action()
    except OSError as error:
        if not _is_ours(error):
            raise
    OpenShards.drop_all()
    return action()


def _is_ours(error: Exception) -> bool:
    """Say whether the fault is the process's, which has too many files open."""
    return isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE)
