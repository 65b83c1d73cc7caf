"""Free memory and disk space, as far as the system reports them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["free_disk_space", "free_memory"]

_MEMORY = Path("/proc/meminfo")


def free_memory() -> int | None:
    """Return the bytes of memory that new arrays can take; None if unknown."""
    try:
        for line in _MEMORY.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    except OSError:
        pass  # another system than Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # as on Windows
        return None


def free_disk_space(folder: Path) -> int:
    """Return the free bytes of the disk on which a folder is or will be made."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free
