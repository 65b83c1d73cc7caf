"""Locks between processes. They save work and eviction; no row depends on them."""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover (another system: there are no locks)
    fcntl = None  # type: ignore[assignment]

_PATIENCE = 10.0  # seconds to wait for a lock: its holder may have been stopped


class Lock:
    """A lock on a file or folder, held until it is collected or the process ends.

    A forked child inherits it and holds it, too.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    def is_on(self, path: Path) -> bool:
        """Say whether the path still leads to what is locked."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the lock up, also for children that were forked meanwhile."""
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        self._close()


def lock(
    path: Path, *, shared: bool = False, patience: float | None = None
) -> Lock | None:
    """Lock an existing file or folder; return None where that cannot be done.

    Raises
    ------
    BlockingIOError
        If others hold it for longer than the patience, in seconds.
    """
    if fcntl is None:  # pragma: no cover
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    held = Lock(descriptor)
    deadline = time.monotonic() + (_PATIENCE if patience is None else patience)
    while True:
        try:
            fcntl.flock(
                descriptor,
                (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB,
            )
            return held
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.005)
        except OSError:  # a file system without locks
            return None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep others out, if it can be done; what is done inside is right without it."""
    try:
        held = lock(path)
    except BlockingIOError:
        held = None
    try:
        yield
    finally:
        if held is not None:
            held.release()
