"""Send what all pieces of a parallel call share to each worker process once.

A file of its own beside `_extraction`, which knows pieces and the store: this is about
pickling alone.
"""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

__all__ = ["Shipment", "fits_into"]

# A worker keeps the last content so long: pieces follow each other quicker. What it
# holds afterwards would be memory, and a store's section that cannot be evicted.
IDLE_SECONDS = 30.0


class Shipment:
    """A constant argument of parallel calls: pickled once, unpickled once a process.

    It is pickled into one large array. joblib keeps such an array in memory that local
    workers share, and its Dask backend sends a large argument to the cluster once,
    so no piece carries it again. Threads share the content itself.
    """

    def __init__(self, content: Any) -> None:
        self.lock = threading.RLock()
        self._call = uuid.uuid4().hex
        self._content = content
        self._pickled: NDArray[np.uint8] | None = None
        self._n_users = 0
        self._timer: threading.Timer | None = None

    @classmethod
    def _received(cls, call: str, pickled: NDArray[np.uint8]) -> Shipment:
        """Return the copy that this process has and has worked with, or a new one."""
        global _last
        with _last_lock:
            if _last is None or _last._call != call:
                _last = cls(None)
                _last._call, _last._pickled = call, pickled
            return _last

    @contextmanager
    def opened(self) -> Iterator[Any]:
        """Give the content; a worker unpickles it on the first call."""
        with self.lock:
            self._n_users += 1
            if self._timer is not None:
                self._timer.cancel()
            if self._content is None:
                # From the parent process, whose code this is, and not from a file.
                self._content = cloudpickle.loads(self._pickled)
            content = self._content
        try:
            yield content
        finally:
            with self.lock:
                self._n_users -= 1
                if self is _last and self._n_users == 0:
                    self._timer = threading.Timer(IDLE_SECONDS, _forget, [self])
                    self._timer.daemon = True
                    self._timer.start()

    def pickle(self) -> NDArray[np.uint8]:
        """Pickle the content at its first use."""
        with self.lock:
            if self._pickled is None:
                buffer = io.BytesIO()
                cloudpickle.dump(self._content, buffer)
                self._pickled = np.frombuffer(buffer.getbuffer(), dtype=np.uint8)
            return self._pickled

    def __reduce__(self) -> tuple[Any, ...]:
        return Shipment._received, (self._call, self.pickle())

    def __sizeof__(self) -> int:
        # How Dask, and joblib's backend for it, learn that an argument is large.
        return self.pickle().nbytes


_last_lock = threading.Lock()
_last: Shipment | None = None


def _forget(shipment: Shipment) -> None:
    global _last
    with _last_lock:
        if _last is shipment:
            _last = None


class _TooLarge(Exception):
    pass


class _Measure(io.RawIOBase):
    """A file that counts what is written and keeps nothing."""

    def __init__(self, limit: float) -> None:
        self._left = limit

    def write(self, content: Any, /) -> int:
        size = memoryview(content).nbytes
        self._left -= size
        if self._left < 0:
            raise _TooLarge
        return size


def fits_into(value: Any, limit: float) -> bool:
    """Tell whether a value can be pickled into at most so many bytes."""
    try:
        cloudpickle.dump(value, _Measure(limit))
    except Exception:  # too large, or its own way of not being pickled
        return False
    return True
