"""Verification of a whole store, and removal of what cannot be used."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path

from filelock import lock_descriptor
from joblib import Parallel, delayed

from . import _files
from ._eviction import section_folders
from ._files import TEMPORARY_NAME, DamagedFile, Lock, lock_file, locked
from ._shard_file import (
    METADATA_NAME,
    SECTION_NAME,
    SHARD_NAME,
    ShardReader,
    claimed_layout,
    read_metadata,
)

_LOCK_NAME = re.compile(rf"\.{SECTION_NAME.pattern}\.lock")
_RENAMED = "was renamed by an earlier version"


@dataclass(frozen=True)
class StoreReport:
    """Result of :meth:`FeatureStore.verify`.

    Attributes
    ----------
    sections : int
        Number of folders, one per fingerprint.
    shards, rows, bytes : int
        Number of sound shards, of the rows in them, and of their bytes.
    damaged : dict of Path to str
        Files that cannot be used, with the reason.
    orphans : list of Path
        Temporary files that ended processes left, and folders that earlier versions
        of :meth:`FeatureStore.repair` renamed.
    """

    sections: int
    shards: int
    rows: int
    bytes: int
    damaged: dict[Path, str]
    orphans: list[Path]

    @property
    def ok(self) -> bool:
        """Whether no file is damaged. Orphans do no harm."""
        return not self.damaged


def verify(store: Path, n_jobs: int | None) -> StoreReport:
    """Check every file of a store by its content, without changing any."""
    folders = section_folders(store)
    places = [Path(entry.path) for entry in _files.entries(store, SECTION_NAME)]
    for folder in folders:
        places.append(folder / METADATA_NAME)
        places += [Path(entry.path) for entry in _files.entries(folder, SHARD_NAME)]
    # Threads: digests are computed outside the interpreter's lock.
    results = Parallel(n_jobs=n_jobs, require="sharedmem")(
        delayed(_check_place)(place) for place in places
    )
    sizes = [result for result in results if isinstance(result, tuple)]
    return StoreReport(
        sections=len(folders),
        shards=len(sizes),
        rows=sum(n_rows for n_rows, _ in sizes),
        bytes=sum(n_bytes for _, n_bytes in sizes),
        damaged={
            place: result
            for place, result in zip(places, results, strict=True)
            if isinstance(result, str)
        },
        orphans=[
            path
            for folder in [store, *folders]
            for path in (
                *_files.sweep(folder, remove=False),
                *_files.folders(folder, TEMPORARY_NAME),
            )
        ],
    )


def repair(store: Path, n_jobs: int | None) -> dict[Path, str]:
    """Remove what `verify` finds damaged or orphaned; return it with the reasons.

    Each damaged place is checked again and cleared under the lock of its section, which
    writers and other repairs take too. The folder of a section is never renamed.
    """
    removed = {}
    for place in verify(store, n_jobs).damaged:
        is_section = SECTION_NAME.fullmatch(place.name)
        with locked(lock_file(place if is_section else place.parent)):
            reason = _clear_section(place) if is_section else _clear_file(place, store)
        if reason is not None:
            removed[place] = reason
    for folder in [store, *section_folders(store)]:
        for path in _files.sweep(folder):
            removed[path] = "was left by a process that has ended"
        for path in _files.folders(folder, TEMPORARY_NAME):
            # Another repair may be first, or a file may take the place of a section.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                _bring_shards_back(path, store)
                removed[path] = _RENAMED + _set_aside(path, store)
    _remove_unused_locks(store)
    return removed


def _clear_section(place: Path) -> str | None:
    """Remove a file or link in the place of a section; return why, or None."""
    reason = _check_place(place)
    if not isinstance(reason, str):
        return None
    try:
        os.unlink(place)  # fails for a folder
    except FileNotFoundError:
        return None
    except (IsADirectoryError, PermissionError):
        if _files.is_real_folder(place):
            return None  # a writer has made the folder meanwhile
        raise
    return reason


def _clear_file(place: Path, store: Path) -> str | None:
    """Remove a damaged shard or damaged metadata; return why, or None."""
    reason = _check_place(place)
    if not isinstance(reason, str):
        return None
    try:
        if _files.is_real_folder(place):
            return reason + _set_aside(place, store)
        if os.name == "nt":  # pragma: no cover (open files cannot be renamed)
            os.unlink(place)
            return reason
        return reason if _remove_unless_sound(place) else None
    except (FileNotFoundError, NotADirectoryError):
        return None  # another process was first


def _remove_unless_sound(place: Path) -> bool:
    """Remove a file or link unless it is sound; return whether it was removed.

    Without locks, a writer may replace the file by a sound one at any moment. So it is
    renamed, checked once more, and renamed back if it is sound. It is locked meanwhile,
    so that no sweep takes it for an orphan.
    """
    damaged = None
    # A link or pipe cannot be locked; a sweep may remove it first.
    with contextlib.suppress(OSError, DamagedFile):
        damaged = Lock(_files.open_regular(place))
        lock_descriptor(damaged.descriptor, blocking=False)
    with _files.new_temporary(place.parent) as file:
        try:
            os.replace(place, file.name)  # fails for a folder: the target is a file
        except BaseException:
            os.unlink(file.name)
            raise
        try:
            is_sound = _is_sound(Path(file.name), place)
        except BaseException:
            os.replace(file.name, place)
            raise
        if is_sound:
            os.replace(file.name, place)
        else:
            Path(file.name).unlink(missing_ok=True)
    return not is_sound


def _set_aside(folder: Path, store: Path) -> str:
    target = _files.set_folder_aside(folder, store)
    return "" if target is None else f"; it is a folder, now {target.name} in the store"


def _bring_shards_back(renamed: Path, store: Path) -> None:
    """Move the sound shards of a renamed folder to the sections named in their headers.

    An interrupted repair of an earlier version could leave a section renamed.
    """
    for entry in _files.regular_files(renamed, SHARD_NAME).values():
        path = Path(entry.path)
        with contextlib.suppress(DamagedFile):
            layout = claimed_layout(path)
            ShardReader(path, layout).verify()
            section = store / layout.fingerprint
            with locked(lock_file(section)):
                _files.make_folder(section)
                os.replace(
                    path, section / path.name
                )  # sound shards of one name are equal
                if not os.path.lexists(section / METADATA_NAME):
                    _files.publish(section, METADATA_NAME, [layout.metadata()])
            continue
        path.unlink()
    _files.sweep(renamed)
    for entry in _files.regular_files(renamed, re.compile(METADATA_NAME)).values():
        os.unlink(entry.path)  # the section has new metadata


def _remove_unused_locks(store: Path) -> None:
    """Remove the lock files of sections that do not exist."""
    for name, entry in _files.regular_files(store, _LOCK_NAME).items():
        # A writer may be making the section, or there is no permission.
        with contextlib.suppress(OSError):
            held = _files.lock(Path(entry.path), patience=0)
            if not os.path.lexists(store / name[1:-5]):
                os.unlink(entry.path)
            held.release()


def _is_sound(path: Path, place: Path) -> bool:
    # A separate function, so that the file is closed when it returns.
    try:
        _check(path, place)
    except DamagedFile:
        return False
    return True


def _check_place(place: Path) -> tuple[int, int] | str | None:
    """Return the rows and bytes of a sound shard, the damage found, or None."""
    try:
        return _check(place, place)
    except (FileNotFoundError, NotADirectoryError):
        return None  # it or its folder was removed meanwhile
    except DamagedFile as error:
        return str(error)


def _check(path: Path, place: Path) -> tuple[int, int] | None:
    """Check the file or folder at a path as if it were in its place in the store.

    Raises
    ------
    DamagedFile
        If it cannot be used.
    OSError
        If that cannot be determined, such as without permission to read.
    """
    try:
        if SECTION_NAME.fullmatch(place.name):
            if not _files.is_real_folder(path):
                raise DamagedFile("is not a folder")
            return None
        if place.name == METADATA_NAME:
            read_metadata(path.parent, path.name)
            return None
        try:
            layout = read_metadata(path.parent)
        except (FileNotFoundError, DamagedFile):
            layout = claimed_layout(path, path.parent.name)
        shard = ShardReader(path, layout)
        shard.verify(place.name)
        return shard.n_rows, shard.n_bytes
    except OSError as error:
        if error.errno == errno.EIO:
            raise DamagedFile(f"cannot be read: {error}") from error
        raise
