"""Room for new rows: whole sections go, the least recently used first."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from . import _files
from ._files import lock, locked
from ._shard_file import METADATA_NAME, SECTION_NAME, SHARD_NAME

# Where locks do not tell, a section counts as in use for so many seconds.
_IDLE_SECONDS = 3600.0


def make_room(section: Path, size: int, max_bytes: int) -> int:
    """Evict sections until `size` more bytes fit into the store.

    Parameters
    ----------
    section : Path
        The folder that is to grow; it stays.
    size : int
        What is to be written, in bytes.
    max_bytes : int
        What all shards may take, in bytes.

    Returns
    -------
    excess : int
        The bytes by which the store will be too large, as far as one can see.
    """
    with locked(section.parent):  # or two would evict more than enough
        used = {
            folder: shard_bytes(folder) for folder in section_folders(section.parent)
        }
        excess = sum(used.values()) + size - max_bytes
        for folder in sorted(used.keys() - {section}, key=last_use):
            if excess <= 0:
                break
            excess -= evict(folder)
    return max(0, excess)


def evict(folder: Path) -> int:
    """Remove a section unless it is in use; return the bytes freed.

    Whatever interrupts this, what is left is a sound section with fewer rows.
    """
    try:
        held = lock(folder, patience=0)
    except BlockingIOError:
        return 0
    freed = 0
    if held is not None or time.time() - last_use(folder) > _IDLE_SECONDS:
        with contextlib.suppress(OSError):  # not ours to remove, or in new use
            for entry in _files.regular_files(folder, SHARD_NAME).values():
                size = entry.stat().st_size
                os.unlink(entry.path)
                freed += size
            _files.sweep(folder)
            # Last, because its time says which section is evicted next.
            (folder / METADATA_NAME).unlink(missing_ok=True)
            folder.rmdir()
    if held is not None:
        held.release()
    return freed


def section_folders(store: Path) -> list[Path]:
    """Return the folders, no links, that have a section's name, in order."""
    return sorted(
        Path(entry.path)
        for entry in _files.entries(store, SECTION_NAME)
        if entry.is_dir(follow_symlinks=False)
    )


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
