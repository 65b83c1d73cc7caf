"""Files that appear whole or not at all, locks, and the sweep of what a crash left."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import time
import uuid
import weakref
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # pragma: no cover (no file locks: the sweep goes by age alone)
    fcntl = None  # type: ignore[assignment]

_HOST = sha256(socket.gethostname().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\.([0-9a-f]{8})-[0-9a-f]{32}\.tmp")
_PATIENCE = 10.0  # seconds to wait for a lock: its holder may have been stopped
_FOREIGN_AGE = 24 * 3600.0  # seconds after which another machine's file is an orphan
# Neither follow a link nor wait for the other end of a pipe; take bytes as they are.
_CAREFULLY = sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
)


class DamagedFile(Exception):
    """A file of the store cannot be used; the message says why."""


def open_regular(path: Path) -> int:
    """Open a regular file for reading; raise DamagedFile for anything else.

    Returns
    -------
    descriptor : int
        The caller's to close.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _CAREFULLY)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise DamagedFile("is not a regular file") from error
        raise
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DamagedFile("is not a regular file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, n_bytes: int) -> bytes:
    """Return the first bytes of a regular file; raise DamagedFile for anything else."""
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read(n_bytes)


def temporary_path(folder: Path) -> Path:
    """Return a new name, by which the sweep knows a temporary file."""
    return folder / f".{_HOST}-{uuid.uuid4().hex}.tmp"


def new_temporary(folder: Path) -> IO[bytes]:
    """Open a new temporary file; its remover is the caller.

    An exclusive lock on the file marks it as in use for as long as any descriptor or
    mapping of it lives; the system drops the lock with the process, however that ends.
    """
    while True:
        file = open(temporary_path(folder), "x+b")  # noqa: SIM115
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


def sweep(folder: Path, *, remove: bool = True) -> list[Path]:
    """Remove the temporary files that no living process holds; return their paths.

    A file of this machine is an orphan when its lock is free. Where locks do not tell
    (another machine's file, a file system without them), it is one after a day.
    """
    found = []
    for name, entry in regular_files(folder, _TEMPORARY).items():
        # Another sweep, or its writer, may remove it meanwhile; and a folder that may
        # only be read is not ours to clean.
        with contextlib.suppress(OSError):
            if _is_orphan(entry, remove=remove, of_this_host=name[1:9] == _HOST):
                found.append(Path(entry.path))
    return found


def regular_files(
    folder: Path, pattern: re.Pattern[str]
) -> dict[str, os.DirEntry[str]]:
    """Return the regular files (no links) whose whole name matches the pattern."""
    return {
        entry.name: entry
        for entry in entries(folder, pattern)
        if entry.is_file(follow_symlinks=False)
    }


def entries(folder: Path, pattern: re.Pattern[str]) -> list[os.DirEntry[str]]:
    """Return what lies in a folder, if it exists, under names that match."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if pattern.fullmatch(entry.name)]
    except FileNotFoundError:
        return []


def _lock(file: IO[bytes]) -> None:
    if fcntl is not None:  # pragma: no branch
        # A file system without locks refuses the sweep's lock too: it goes by age.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)


def _is_orphan(entry: os.DirEntry[str], *, remove: bool, of_this_host: bool) -> bool:
    """Say whether a temporary file is an orphan, and if so remove it if told to."""
    if of_this_host and fcntl is not None:
        with open(entry.path, "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            except OSError:
                pass  # no locks here: go by age
            else:
                if remove:  # under the lock: see new_temporary
                    os.unlink(entry.path)
                return True
    if time.time() - entry.stat().st_mtime <= _FOREIGN_AGE:
        return False
    if remove:
        os.unlink(entry.path)
    return True


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
