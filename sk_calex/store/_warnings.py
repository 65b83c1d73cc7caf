"""Warnings about a store, each of which a process raises once."""

from __future__ import annotations

import os
from pathlib import Path

from sk_calex.utils._warn import warn_caller

Signature = tuple[int, ...]

_reported: set[tuple[Path, Signature | None]] = set()


class StoreWarning(UserWarning):
    """A feature store has a problem; rows that it cannot return count as missing."""


def signature(status: os.stat_result) -> Signature:
    """Return what changes whenever a file is written to by ordinary means."""
    return (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )


def signature_of(path: Path) -> Signature | None:
    """Return the signature of a file, or None if the file cannot be found."""
    try:
        return signature(os.stat(path))
    except OSError:
        return None


def is_first_report(path: Path, state: Signature | None) -> bool:
    """Return whether this is the first call in this process for a path and state."""
    news = (path, state) not in _reported
    _reported.add((path, state))
    return news


def warn(message: str) -> None:
    """Raise a StoreWarning."""
    warn_caller(message, StoreWarning)
