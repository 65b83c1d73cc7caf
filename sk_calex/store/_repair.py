"""A store looked through from end to end, and cleared of what cannot be used."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from joblib import Parallel, delayed

from . import _files
from ._eviction import section_folders
from ._files import DamagedFile
from ._shard_file import (
    METADATA_NAME,
    SECTION_NAME,
    SHARD_NAME,
    ShardReader,
    claimed_layout,
    read_metadata,
)


@dataclass(frozen=True)
class StoreReport:
    """What :meth:`FeatureStore.verify` found.

    Attributes
    ----------
    sections : int
        The number of folders, one for each fingerprint.
    shards, rows, bytes : int
        What is right: shards, the rows in them, and their size.
    damaged : dict of Path to str
        Files that cannot be used, and why.
    orphans : list of Path
        Temporary files that ended processes left.
    """

    sections: int
    shards: int
    rows: int
    bytes: int
    damaged: dict[Path, str]
    orphans: list[Path]

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged. Orphans do no harm."""
        return not self.damaged


def verify(store: Path, n_jobs: int | None) -> StoreReport:
    """Check every file of a store by its content; change none."""
    folders = section_folders(store)
    places = [Path(entry.path) for entry in _files.entries(store, SECTION_NAME)]
    for folder in folders:
        places.append(folder / METADATA_NAME)
        places += [Path(entry.path) for entry in _files.entries(folder, SHARD_NAME)]
    # Threads: digests are computed outside the interpreter's lock.
    results = Parallel(n_jobs=n_jobs, require="sharedmem")(
        delayed(_outcome)(place) for place in places
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
        orphans=[path for f in folders for path in _files.sweep(f, remove=False)],
    )


def repair(store: Path, n_jobs: int | None) -> dict[Path, str]:
    """Remove what `verify` finds damaged or orphaned; return it, with the reasons."""
    removed = {}
    for place, reason in verify(store, n_jobs).damaged.items():
        note = _take_away(place)
        if note is not None:
            removed[place] = reason + note
    for folder in section_folders(store):
        for path in _files.sweep(folder):
            removed[path] = "was left by a process that has ended"
    return removed


def _take_away(place: Path) -> str | None:
    """Remove what is damaged; return what else there is to say, or None if it is not.

    Somebody may put a sound file in its place at any moment. So whatever is there is
    taken aside in one step, looked at once more, and brought back if it is sound.
    """
    aside = _files.temporary_path(place.parent)
    try:
        os.rename(place, aside)
        if _is_sound(aside, place):
            os.replace(aside, place)
            return None
    except FileNotFoundError:
        return None
    if aside.is_dir() and not aside.is_symlink():
        return f"; it is a folder, set aside as {aside.name}"
    aside.unlink(missing_ok=True)
    return ""


def _is_sound(path: Path, place: Path) -> bool:
    # A function of its own: when it returns the file is closed, and Windows lets go.
    try:
        _check(path, place)
    except DamagedFile:
        return False
    return True


def _outcome(place: Path) -> tuple[int, int] | str | None:
    """Return the rows and bytes of a sound shard, what is wrong, or None."""
    try:
        return _check(place, place)
    except FileNotFoundError:
        return None  # removed since it was listed
    except DamagedFile as error:
        return str(error)


def _check(path: Path, place: Path) -> tuple[int, int] | None:
    """Check what lies at a path as what it has to be in its place.

    Raises
    ------
    DamagedFile
        If it cannot be used.
    OSError
        If that cannot be told, as of a file that may not be read.
    """
    try:
        if SECTION_NAME.fullmatch(place.name):
            if path.is_symlink() or not path.is_dir():
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
