"""Atomic writes, locks between processes, and the removal of what a crash left."""

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
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from filelock import lock_descriptor, unlock_descriptor

try:
    import fcntl
except ImportError:  # pragma: no cover (Windows: no shared locks)
    fcntl = None  # type: ignore[assignment]

TEMPORARY_NAME = re.compile(r"\.([0-9a-f]{8})-[0-9a-f]{32}\.tmp")
_PATIENCE = 10.0  # seconds to wait for a lock: its holder may have been stopped
_FOREIGN_AGE = 24 * 3600.0  # seconds after which another machine's file is an orphan
# Do not follow links, do not wait at pipes, do not translate line ends.
_CAREFULLY = sum(
    getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
)


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _host_digest() -> str:
    """Return 8 hexadecimal digits that identify this machine since its last start.

    Host names repeat among containers and copies of virtual machines. So the random
    number that Linux draws at each start counts too; elsewhere the address of the
    network card. Files from before a restart count as those of another machine.
    """
    try:
        machine = _BOOT_ID.read_text()
    except OSError:
        address = uuid.getnode()
        is_random = address >> 40 & 1  # no card was found: each process has another
        machine = "" if is_random else str(address)
    return sha256(f"{socket.gethostname()}\n{machine}".encode()).hexdigest()[:8]


_HOST = _host_digest()


class DamagedFile(Exception):
    """A file of the store cannot be used, for the reason in the message."""


def open_regular(path: Path) -> int:
    """Open a regular file for reading; raise DamagedFile for anything else.

    Returns
    -------
    descriptor : int
        To be closed by the caller.
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


def is_real_folder(path: Path) -> bool:
    """Return whether a path is a folder, and not a link to one.

    Raises
    ------
    OSError
        If it cannot be determined, such as FileNotFoundError.
    """
    # A single system call: the path may change between two.
    return stat.S_ISDIR(os.lstat(path).st_mode)


def new_temporary(folder: Path) -> IO[bytes]:
    """Open a new temporary file, which the caller has to remove.

    An exclusive lock marks the file as in use as long as a descriptor or memory map of
    it exists. The system releases the lock when the process ends in any way.
    """
    while True:
        name = f".{_HOST}-{uuid.uuid4().hex}.tmp"
        file = open(folder / name, "x+b")  # noqa: SIM115
        # Where files cannot be locked, the sweep decides by age.
        with contextlib.suppress(OSError):
            lock_descriptor(file.fileno())
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # a sweep removed it between creation and lock


def publish(folder: Path, name: str, parts: Iterable[Any]) -> None:
    """Write a file so that, at any moment, it is complete under its name or absent.

    Parameters
    ----------
    folder : Path
        An existing folder.
    name : str
        Name of the file. An existing file of that name is replaced.
    parts : iterable of bytes-like
        Content, in pieces.
    """
    with new_temporary(folder) as file:
        try:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            if os.name == "nt":  # pragma: no cover (open files cannot be renamed)
                file.close()
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
    """Flush the names in a folder to the disk, where the system supports it."""
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
    """Remove the temporary files that no running process uses; return their paths.

    A file of this machine is an orphan if its lock is free. Without information from
    locks (files of other machines, file systems without locks) it is one after a day.
    A link or pipe is always one: a killed repair had renamed it.
    """
    found = []
    for entry in entries(folder, TEMPORARY_NAME):
        # Another process may remove the file first, or the folder may be read-only.
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                continue
            if not entry.is_file(follow_symlinks=False):
                if remove:
                    os.unlink(entry.path)
            elif not _is_orphan(entry, remove):
                continue
            found.append(Path(entry.path))
    return found


def regular_files(
    folder: Path, pattern: re.Pattern[str]
) -> dict[str, os.DirEntry[str]]:
    """Return the regular files (not links) whose whole name matches the pattern."""
    return {
        entry.name: entry
        for entry in entries(folder, pattern)
        if entry.is_file(follow_symlinks=False)
    }


def entries(folder: Path, pattern: re.Pattern[str]) -> list[os.DirEntry[str]]:
    """Return the entries of a folder whose names match; none if there is no folder."""
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if pattern.fullmatch(entry.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def folders(folder: Path, pattern: re.Pattern[str]) -> list[Path]:
    """Return the folders (not links) whose whole name matches the pattern, in order."""
    return sorted(
        Path(entry.path)
        for entry in entries(folder, pattern)
        if entry.is_dir(follow_symlinks=False)
    )


def set_folder_aside(folder: Path, store: Path) -> Path | None:
    """Remove a folder that is not the store's if it is empty, or move it.

    Parameters
    ----------
    folder : Path
        Folder in the place of a file of the store.
    store : Path
        Folder of the store, into which it is moved under a visible name.

    Returns
    -------
    target : Path or None
        New path of the folder; None if it was empty and removed.

    Raises
    ------
    OSError
        If `folder` is not a folder or cannot be moved.
    """
    with contextlib.suppress(OSError):
        os.rmdir(folder)
        return None
    target = store / f"set-aside-{uuid.uuid4().hex[:12]}"
    os.mkdir(target)
    try:
        if os.name == "nt":  # pragma: no cover (a rename replaces nothing)
            os.rmdir(target)
        os.rename(folder, target)  # only a folder can replace a folder
    except OSError:
        with contextlib.suppress(OSError):
            os.rmdir(target)
        raise
    return target


def _is_orphan(entry: os.DirEntry[str], remove: bool) -> bool:
    """Return whether a temporary file is an orphan; remove it if asked to."""
    of_this_host = entry.name[1:9] == _HOST
    with open(entry.path, "r+b") as file:
        try:
            if not lock_descriptor(file.fileno(), blocking=False):
                return False
        except OSError:
            of_this_host = False  # no locks: decide by age
        if (
            not of_this_host
            and time.time() - os.fstat(file.fileno()).st_mtime <= _FOREIGN_AGE
        ):
            return False
        if remove and os.name != "nt":  # while it is locked: see new_temporary
            os.unlink(entry.path)
    if remove and os.name == "nt":  # pragma: no cover (open files cannot be removed)
        os.unlink(entry.path)
    return True


class Lock:
    """A lock on a file or folder, until the object or the process goes.

    A forked child inherits the lock and holds it too.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._close = weakref.finalize(self, os.close, descriptor)

    def is_on(self, path: Path) -> bool:
        """Return whether a path leads to the locked file or folder."""
        try:
            return os.path.samestat(os.fstat(self.descriptor), os.stat(path))
        except OSError:
            return False

    def release(self) -> None:
        """Release the lock, also in children forked meanwhile."""
        unlock_descriptor(self.descriptor)
        self._close()


def lock_file(section: Path) -> Path:
    """Return the path of the file that is locked to change a section.

    It lies beside the section's folder, so that it can be locked before the folder is
    made and while it is removed.
    """
    return section.with_name(f".{section.name}.lock")


def lock(path: Path, *, patience: float | None = None) -> Lock:
    """Lock a file for this process alone; create it if there is none.

    Raises
    ------
    BlockingIOError
        If another process holds the lock for longer than `patience` seconds.
    OSError
        If the file cannot be made or locked.
    """

    def try_once() -> Lock | None:
        # Network file systems need a file open for writing to lock it.
        held = Lock(os.open(path, os.O_RDWR | os.O_CREAT | _CAREFULLY, 0o666))
        is_free = lock_descriptor(held.descriptor, blocking=False)
        # The last holder may have removed the file together with the section.
        return held if is_free and held.is_on(path) else None

    return _wait_for(try_once, patience)


def lock_folder(
    folder: Path, *, shared: bool, patience: float | None = None
) -> Lock | None:
    """Lock an existing folder while it is used (shared) or removed (not shared).

    Returns None where folders cannot be locked, as on Windows.

    Raises
    ------
    BlockingIOError
        If other processes hold the lock for longer than `patience` seconds.
    """
    if fcntl is None:
        return None
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    try:
        held = Lock(os.open(folder, os.O_RDONLY | os.O_NONBLOCK))

        def try_once() -> Lock | None:
            try:
                fcntl.flock(held.descriptor, how)
            except BlockingIOError:
                return None
            return held

        return _wait_for(try_once, patience)
    except BlockingIOError:
        raise
    except OSError:  # there is no folder, or the file system has no locks
        return None


def _wait_for(try_once: Callable[[], Lock | None], patience: float | None) -> Lock:
    deadline = time.monotonic() + (_PATIENCE if patience is None else patience)
    while True:
        held = try_once()
        if held is not None:
            return held
        if time.monotonic() >= deadline:
            raise BlockingIOError
        time.sleep(0.005)


@contextlib.contextmanager
def locked(
    path: Path, *, on_error: Callable[[OSError], object] | None = None
) -> Iterator[None]:
    """Hold the lock on a file, or go on without it if it cannot be had.

    Parameters
    ----------
    path : Path
        File to lock; created if there is none.
    on_error : callable, default=None
        Called with the error if the file cannot be created or locked.
    """
    held = None
    try:
        held = lock(path)
    except BlockingIOError:
        pass  # the holder may be a stopped process: do not wait for ever
    except OSError as error:
        if on_error is not None:
            on_error(error)
    try:
        yield
    finally:
        if held is not None:
            held.release()
