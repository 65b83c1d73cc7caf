"""What a process tells its user of a store: each thing once."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

Signature = tuple[int, ...]

_told: set[tuple[Path, Signature | None]] = set()


class StoreWarning(UserWarning):
    """A feature store is not as it should be; rows that it lacks count as missing."""


def signature(status: os.stat_result) -> Signature:
    """What changes when a file's bytes are changed by ordinary means."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def signature_of(path: Path) -> Signature | None:
    """Return the signature of a file, or None if there is none."""
    try:
        return signature(os.stat(path))
    except OSError:
        return None


def is_news(path: Path, state: Signature | None) -> bool:
    """Say whether this is the first call in this process with that path and state."""
    news = (path, state) not in _told
    _told.add((path, state))
    return news


def warn(message: str) -> None:
    """Raise a StoreWarning."""
    warnings.warn(message, StoreWarning, stacklevel=5)
