"""The size cap: whole sections are evicted, the least recently used first."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from . import _files
from ._shard_file import METADATA_NAME, SECTION_NAME, SHARD_NAME

_STORE_LOCK = ".lock"  # held during an eviction
# Without locks, a section counts as in use for this many seconds after its last use.
_IDLE_SECONDS = 3600.0


def make_room(section: Path, size: int, max_bytes: int) -> int:
    """Evict sections until `size` more bytes fit into the store.

    Parameters
    ----------
    section : Path
        The folder that is to grow; it is not evicted.
    size : int
        Number of bytes to be written.
    max_bytes : int
        Largest number of bytes for all shards together.

    Returns
    -------
    excess : int
        Number of bytes by which the store will be too large all the same.
    """
    store = section.parent
    with _files.locked(
        store / _STORE_LOCK
    ):  # two processes would evict more than enough
        used = {folder: shard_bytes(folder) for folder in section_folders(store)}
        excess = sum(used.values()) + size - max_bytes
        for folder in sorted(used.keys() - {section}, key=last_use):
            if excess <= 0:
                break
            excess -= evict(folder)
    return max(0, excess)


def evict(folder: Path) -> int:
    """Remove a section unless it is in use; return the bytes freed.

    If this is interrupted at any point, a sound section with fewer rows is left.
    """
    freed = 0
    with contextlib.suppress(BlockingIOError), _not_in_use(folder) as is_sure:
        if is_sure or time.time() - last_use(folder) > _IDLE_SECONDS:
            with contextlib.suppress(OSError):  # no permission, or in use again
                for size in _remove_section(folder):
                    freed += size
    return freed


@contextlib.contextmanager
def _not_in_use(folder: Path) -> Iterator[bool]:
    """Lock a section against writers and users; return whether locks show its use.

    Raises
    ------
    BlockingIOError
        If it is in use.
    """
    writing = None
    try:
        writing = _files.lock(_files.lock_file(folder), patience=0)
    except BlockingIOError:
        raise
    except OSError:
        pass  # there are no locks, or no permission to make the file
    try:
        opening = _files.lock_folder(folder, shared=False, patience=0)
        try:
            yield opening is not None
        finally:
            if opening is not None:
                opening.release()
    finally:
        if writing is not None:
            writing.release()


def _remove_section(folder: Path) -> Iterator[int]:
    """Remove a section; yield the size of each shard after its removal."""
    for entry in _files.regular_files(folder, SHARD_NAME).values():
        size = entry.stat().st_size
        os.unlink(entry.path)
        yield size
    _files.sweep(folder)
    for path in _files.folders(folder, _files.TEMPORARY_NAME):
        _files.set_folder_aside(path, folder.parent)
    # Last, because its time decides which section is evicted next.
    (folder / METADATA_NAME).unlink(missing_ok=True)
    folder.rmdir()
    _files.lock_file(folder).unlink(missing_ok=True)


def section_folders(store: Path) -> list[Path]:
    """Return the folders (not links) with a section's name, in order."""
    return _files.folders(store, SECTION_NAME)


def shard_bytes(folder: Path) -> int:
    """Add up the sizes of all shards in a section."""
    total = 0
    for entry in _files.regular_files(folder, SHARD_NAME).values():
        with contextlib.suppress(FileNotFoundError):
            total += entry.stat().st_size
    return total


def last_use(folder: Path) -> float:
    """Return when a section was last used, in seconds since the epoch."""
    for path in (folder / METADATA_NAME, folder):
        with contextlib.suppress(OSError):
            return os.lstat(path).st_mtime
    return 0.0
