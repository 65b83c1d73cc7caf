"""Shards that stay open between reads."""

from __future__ import annotations

import random
from typing import Any, ClassVar
from weakref import WeakSet

from sk_calex.utils._fork import fork_safe_lock

from ._shard_file import CAN_SHARE_READERS, ShardReader

resource: Any
try:
    import resource
except ImportError:  # pragma: no cover (Windows, where no reader is shared either)
    resource = None

_MOST = 256  # open shards, in all sections together
_SHARE = 4  # and no more than this part of the files that the process may have open


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
