"""Files that appear whole or not at all, and the sweep of what a crash left behind."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import time
import uuid
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # pragma: no cover (no file locks: the sweep goes by age alone)
    fcntl = None  # type: ignore[assignment]

_HOST = blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-[0-9a-f]{32}\.tmp")
_FOREIGN_AGE = 24 * 3600.0  # seconds after which another machine's file is an orphan


def new_temporary(folder: Path) -> IO[bytes]:
    """Open a new temporary file; its remover is the caller.

    An exclusive lock on the file marks it as in use for as long as any descriptor or
    mapping of it lives; the system drops the lock with the process, however that ends.
    """
    while True:
        file = open(folder / f".{_HOST}-{uuid.uuid4().hex}.tmp", "x+b")  # noqa: SIM115
        _lock(file)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # a sweep came between the creation and the lock


def publish(folder: Path, name: str, parts: Iterable[Any]) -> None:
    """Write a file so that, at any moment, it is complete under its name or absent.

    Parameters
    ----------
    folder : Path
        An existing folder.
    name : str
        The file's name in it. An older file of that name is replaced.
    parts : iterable of bytes-like
        The content.
    """
    with new_temporary(folder) as file:
        try:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, folder / name)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file.name)
            raise
    fsync_folder(folder)


def make_folder(folder: Path) -> None:
    """Create a folder with its parents, durably."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if os.name == "nt":  # pragma: no cover (folders cannot be opened there)
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems refuse it
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path) -> int:
    """Remove the temporary files that no living writer holds; return their number.

    A file of this machine is an orphan when its lock is free. Where locks do not tell
    (another machine's file, a file system without them), it is one after a day.
    """
    removed = 0
    for entry in _entries(folder):
        match = _TEMPORARY.fullmatch(entry.name)
        # Another sweep, or its writer, may remove it meanwhile; and a folder that may
        # only be read is not ours to clean.
        with contextlib.suppress(OSError):
            if match is not None and _unlink_orphan(
                entry, of_this_host=match[1] == _HOST
            ):
                removed += 1
    return removed


def regular_files(
    folder: Path, pattern: re.Pattern[str]
) -> dict[str, os.DirEntry[str]]:
    """Return the regular files (no links) whose whole name matches the pattern."""
    return {
        entry.name: entry
        for entry in _entries(folder)
        if pattern.fullmatch(entry.name) and entry.is_file(follow_symlinks=False)
    }


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except FileNotFoundError:
        return []


def _lock(file: IO[bytes]) -> None:
    if fcntl is not None:
        # A file system without locks refuses the sweep's lock too: it goes by age.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def _unlink_orphan(entry: os.DirEntry[str], *, of_this_host: bool) -> bool:
    if of_this_host and fcntl is not None:
        with open(entry.path, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                pass  # no locks here: go by age
            else:
                os.unlink(entry.path)  # under the lock: see new_temporary
                return True
    if time.time() - entry.stat().st_mtime <= _FOREIGN_AGE:
        return False
    os.unlink(entry.path)
    return True
