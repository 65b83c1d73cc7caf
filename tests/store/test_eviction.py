"""The size cap of the feature store and what goes to keep it."""

from __future__ import annotations

import errno
import gc
import os
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from sk_calex.store import FeatureStore, StoreWarning, _eviction, _files, _folder
from sk_calex.store import _shard_file as _shard

from ._helpers import (
    WIDTH,
    assert_right,
    fork,
    in_light_process,
    make_rows,
    open_section,
    shards,
    spare_the_disk,
    temporaries,
    wait,
)

A, B, C = "aaaaaaaa", "bbbbbbbb", "cccccccc"
KEYS, ROWS = make_rows(40)
LAYOUT = _shard.Layout(A, WIDTH, "float32")
SIZE = LAYOUT.shard_bytes(40)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    spare_the_disk(monkeypatch)
    return tmp_path / "store"


def fill(folder, *names, max_bytes=None):
    """Write the same shard to sections, each used a minute after the one before."""
    for minute, name in enumerate(names):
        open_section(folder, name=name, max_bytes=max_bytes).write(KEYS, ROWS)
        used(folder, name, 1e9 + 60 * minute)


def used(folder, name, when):
    os.utime(folder / name / "section.json", (when, when))


def sections(folder):
    return {path.name for path in folder.iterdir() if path.is_dir()}


def test_least_recently_used_section_is_evicted_first(folder):
    fill(folder, A, B, C)
    used(folder, A, 2e9)
    section = open_section(folder, name="dddddddd", max_bytes=3 * SIZE)
    section.write(KEYS, ROWS)
    assert sections(folder) == {A, C, "dddddddd"}
    assert FeatureStore(folder).info()["bytes"] == 3 * SIZE
    section.write(*make_rows(40, seed=1))
    assert sections(folder) == {A, "dddddddd"}


def test_eviction_stops_when_there_is_room(folder):
    fill(folder, A, B)
    open_section(folder, name=C, max_bytes=3 * SIZE).write(KEYS, ROWS)
    assert sections(folder) == {A, B, C}
    assert open_section(folder, name=C, max_bytes=1).write(KEYS, ROWS) == 0
    assert sections(folder) == {A, B, C}  # nothing new was to be written


@pytest.mark.parametrize("use", ["open", "find", "read", "gather", "write"])
def test_each_operation_counts_as_use(folder, monkeypatch, use):
    fill(folder, A, B)
    monkeypatch.setattr(_folder, "_TOUCH_SECONDS", 0)
    section = open_section(folder, name=A)
    if use != "open":
        used(folder, A, 1e9)
        arguments = {"read": (np.empty_like(ROWS),), "write": (ROWS,)}
        getattr(section, use)(KEYS, *arguments.get(use, ()))
    assert _eviction.last_use(folder / A) > time.time() - 60
    del section
    open_section(folder, name=C, max_bytes=2 * SIZE).write(KEYS, ROWS)
    assert sections(folder) == {A, C}


def test_use_is_recorded_once_a_minute(folder):
    fill(folder, A)
    section = open_section(folder, name=A)
    used(folder, A, 1e9)
    section.find(KEYS)
    assert _eviction.last_use(folder / A) == 1e9
    section._folder._touched -= 61
    section.find(KEYS)
    assert _eviction.last_use(folder / A) > 1e9


def test_read_only_folder_can_be_used(folder, monkeypatch):
    fill(folder, A)

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(_folder.os, "utime", refuse)
    assert open_section(folder, name=A).find(KEYS).all()
    monkeypatch.setattr(_eviction.os, "unlink", refuse)
    with pytest.warns(StoreWarning, match="grows beyond max_bytes"):
        open_section(folder, name=B, max_bytes=1).write(KEYS, ROWS)
    assert len(shards(folder, A)) == 1


def test_section_larger_than_the_cap_warns_once(folder):
    fill(folder, A)
    with pytest.warns(StoreWarning, match=f"by {SIZE - 1000} bytes so far") as record:
        open_section(folder, name=B, max_bytes=1000).write(KEYS, ROWS)
    assert len(record) == 1
    assert "only the fingerprint bbbbbbbb, which is being written" in str(
        record[0].message
    )
    section = open_section(folder, name=B, max_bytes=1000)
    section.write(*make_rows(40, seed=1))  # without a second warning
    assert assert_right(section, KEYS, ROWS).all()
    assert sections(folder) == {B}


@pytest.mark.parametrize("how", ["a section", "a map", "a slice of a map", "a child"])
@in_light_process
def test_section_in_use_is_not_evicted(tmp_path, how):
    fill(tmp_path, A, B)
    held = open_section(tmp_path, name=A)
    if "map" in how:
        held = held.gather(KEYS, memory_limit=0)
    if "slice" in how:
        held = held[3:]
    if how == "a child":

        def write():
            open_section(tmp_path, name=C, max_bytes=2 * SIZE).write(KEYS, ROWS)

        assert wait(fork(write)) == 0
    else:
        open_section(tmp_path, name=C, max_bytes=2 * SIZE).write(KEYS, ROWS)
    assert sections(tmp_path) == {A, C}
    del held
    gc.collect()
    limit = SIZE + LAYOUT.shard_bytes(1)
    open_section(tmp_path, name=C, max_bytes=limit).write(*make_rows(1, seed=1))
    assert sections(tmp_path) == {C}


@pytest.fixture
def no_locks(monkeypatch):
    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_files.fcntl, "flock", refuse)


without_locks = pytest.mark.filterwarnings("ignore:Files in the store .* cannot be")


@without_locks
def test_without_locks_sections_used_within_the_hour_stay(folder, no_locks):
    fill(folder, A, B)
    used(folder, A, time.time() - 3500)
    with pytest.warns(StoreWarning, match="grows beyond max_bytes"):
        open_section(folder, name=C, max_bytes=SIZE).write(KEYS, ROWS)
    assert sections(folder) == {A, C}


@without_locks
def test_reader_of_an_evicted_section_gets_misses(folder, no_locks, monkeypatch):
    fill(folder, A)
    section = open_section(folder, name=A)
    mapped = section.gather(KEYS, memory_limit=0)
    monkeypatch.setattr(_eviction, "_IDLE_SECONDS", -1)
    assert _eviction.evict(folder / A) == SIZE
    assert shards(folder, A) == []
    np.testing.assert_array_equal(mapped, ROWS)
    # The map's file keeps its name, for worker processes.
    assert temporaries(folder) == [Path(mapped.filename)]
    with pytest.warns(StoreWarning, match=r"1 shards of .* are gone") as record:
        assert not assert_right(section, KEYS, ROWS).any()
    assert len(record) == 1
    with pytest.raises(KeyError, match="40 of 40 rows"):
        section.gather(KEYS, memory_limit=0)
    assert section.write(KEYS, ROWS) == 40
    np.testing.assert_array_equal(section.gather(KEYS, memory_limit=0), ROWS)
    assert FeatureStore(folder).verify().ok


@without_locks
def test_section_evicted_during_gather_raises(folder, no_locks, monkeypatch):
    fill(folder, A)
    monkeypatch.setattr(_eviction, "_IDLE_SECONDS", -1)
    section = open_section(folder, name=A)
    look_up = section._find

    def evict_after(keys):
        found = look_up(keys)
        assert _eviction.evict(folder / A) == (SIZE if found.all() else 0)
        return found

    monkeypatch.setattr(section, "_find", evict_after)
    with (
        pytest.warns(StoreWarning, match=r"1 shards of .* are gone"),
        pytest.raises(KeyError, match="40 of 40 rows"),
    ):
        section.gather(KEYS, memory_limit=0)


@without_locks
@pytest.mark.parametrize("n_times", [1, 2, 3])
def test_write_to_a_folder_removed_meanwhile_is_repeated(
    folder, no_locks, monkeypatch, n_times
):
    section = open_section(folder, name=A)
    write_shard, calls = _folder.write_shard, []

    def evicted(*args):
        calls.append(1)
        if len(calls) <= n_times:
            (folder / A / "section.json").unlink()
            (folder / A).rmdir()
        return write_shard(*args)

    monkeypatch.setattr(_folder, "write_shard", evicted)
    if n_times < 3:
        assert section.write(KEYS, ROWS) == 40
        assert assert_right(open_section(folder, name=A), KEYS, ROWS).all()
    else:  # somebody is after it
        with pytest.raises(OSError, match="Could not store 40 rows"):
            section.write(KEYS, ROWS)


@pytest.mark.parametrize("call", ["unlink", "rmdir"])
def test_eviction_that_is_interrupted_leaves_a_sound_store(folder, monkeypatch, call):
    fill(folder, A)
    section = open_section(folder, name=A)
    for seed in (1, 2):
        section.write(*make_rows(40, seed))
    used(folder, A, 1e9)
    del section
    fill(folder, B)
    used(folder, B, 2e9)
    original, calls = getattr(os, call), []

    def interrupt(*args):
        calls.append(1)
        if len(calls) == (2 if call == "unlink" else 1):
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_eviction.os, call, interrupt)
        with pytest.raises(KeyboardInterrupt):
            open_section(folder, name=C, max_bytes=2 * SIZE).write(KEYS, ROWS)
    assert FeatureStore(folder).verify().ok
    assert assert_right(open_section(folder, name=B), KEYS, ROWS).all()
    # The rest of what was being evicted is still the first to go.
    open_section(folder, name=C, max_bytes=2 * SIZE).write(KEYS, ROWS)
    assert len(shards(folder, A)) == 0
    assert assert_right(open_section(folder, name=B), KEYS, ROWS).all()


def test_eviction_removes_orphans_and_keeps_unknown_files(folder):
    fill(folder, A, B)
    (folder / A / f".{'0' * 8}-{'0' * 32}.tmp").write_text("another machine's")
    (folder / B / "notes.txt").write_text("mine")
    open_section(folder, name=C, max_bytes=SIZE).write(KEYS, ROWS)
    assert sections(folder) == {A, B, C}
    assert {path.name for path in (folder / B).iterdir()} == {"notes.txt"}
    assert shards(folder, A) == []
    store = FeatureStore(folder)
    assert store.info()["sections"] == 1
    assert store.verify().ok
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(folder, A, B)


def test_sections_without_metadata_go_by_the_time_of_their_folder(folder):
    fill(folder, A, B)
    (folder / A / "section.json").unlink()
    os.utime(folder / A, (1e8, 1e8))
    open_section(folder, name=C, max_bytes=2 * SIZE).write(KEYS, ROWS)
    assert sections(folder) == {B, C}
    assert _eviction.last_use(folder / "absent") == 0


# Locks


def test_lock_that_is_never_free_does_not_block(folder, monkeypatch):
    """One who was stopped while writing or evicting does not stop the others."""
    monkeypatch.setattr(_files, "_PATIENCE", 0.02)
    fill(folder, A)
    stopped = [
        _files.lock(folder / ".lock"),
        _files.lock(_files.lock_file(folder / A)),
        _files.lock_folder(folder / A, shared=False),
    ]
    section = open_section(folder, name=A, max_bytes=10**6)
    assert section._folder.pin is None
    keys, rows = make_rows(40, seed=1)
    assert section.write(keys, rows) == 40
    assert assert_right(section, keys, rows).all()
    for held in stopped:
        held.release()
    section.find(keys)
    assert section._folder.pin is not None


def test_folder_made_anew_is_locked_again(folder):
    fill(folder, A)
    section = open_section(folder, name=A)
    first = section._folder.pin
    os.rename(folder / A, folder / "moved")
    with pytest.warns(StoreWarning, match="are gone"):
        assert not assert_right(section, KEYS, ROWS).any()
    fill(folder, A)
    assert assert_right(section, KEYS, ROWS).all()
    assert section._folder.pin is not first
    assert section._folder.pin.is_on(folder / A)


def test_sections_on_windows_are_in_use_for_an_hour(folder, monkeypatch):
    """Files can be locked there, folders cannot."""
    monkeypatch.setattr(_files, "fcntl", None)
    fill(folder, A)
    used(folder, A, time.time() - 3500)
    assert _eviction.evict(folder / A) == 0
    used(folder, A, time.time() - 3700)
    held = _files.lock(_files.lock_file(folder / A))
    assert _eviction.evict(folder / A) == 0
    held.release()
    assert _eviction.evict(folder / A) == SIZE


def test_lock_in_a_missing_store_raises(folder):
    errors = []
    with pytest.raises(FileNotFoundError):
        _files.lock(folder / ".lock")
    with _files.locked(folder / ".lock", on_error=errors.append):
        assert isinstance(errors[0], FileNotFoundError)
    assert _files.lock_folder(folder, shared=True) is None


def test_lock_is_not_taken_on_a_file_that_was_removed(folder, monkeypatch):
    folder.mkdir()
    path, lock = folder / ".lock", _files.lock_descriptor

    def removed_meanwhile(descriptor, **settings):
        monkeypatch.setattr(_files, "lock_descriptor", lock)
        path.unlink()
        return lock(descriptor, **settings)

    monkeypatch.setattr(_files, "lock_descriptor", removed_meanwhile)
    held = _files.lock(path)
    assert held.is_on(path)
    with pytest.raises(BlockingIOError):
        _files.lock(path, patience=0)


def test_file_system_without_locks_is_reported_once(folder, no_locks):
    with pytest.warns(StoreWarning, match="cannot be locked: No locks") as record:
        open_section(folder, name=A).write(*make_rows(5))
    assert len(record) == 1
    open_section(folder, name=A).write(*make_rows(5, seed=1))  # without a second one


def test_lock_file_without_permission_is_ignored(folder, monkeypatch):
    """Rows are written and sections evicted, without a warning of missing locks."""
    fill(folder, A)
    open_ = os.open

    def refuse_locks(path, *args):
        if str(path).endswith(".lock"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_(path, *args)

    monkeypatch.setattr(_files.os, "open", refuse_locks)
    assert open_section(folder, name=B).write(KEYS, ROWS) == 40
    assert _eviction.evict(folder / A) == SIZE


def test_link_in_the_place_of_a_lock_is_not_followed(folder, tmp_path):
    fill(folder, A)
    (tmp_path / "outside").write_text("mine")
    _files.lock_file(folder / A).unlink()
    _files.lock_file(folder / A).symlink_to(tmp_path / "outside")
    assert open_section(folder, name=A).write(*make_rows(5, seed=1)) == 5
    assert (tmp_path / "outside").read_text() == "mine"


def test_section_that_is_written_to_is_not_evicted(folder):
    fill(folder, A)
    held = _files.lock(_files.lock_file(folder / A))
    assert _eviction.evict(folder / A) == 0
    held.release()
    assert _eviction.evict(folder / A) == SIZE
    assert os.listdir(folder) == []


def test_folder_that_was_set_aside_does_not_block_eviction(folder):
    fill(folder, A)
    hidden = folder / A / f".{'0' * 8}-{'0' * 32}.tmp"
    hidden.mkdir()
    (hidden / "notes.txt").write_text("mine")
    (folder / A / f".{'0' * 8}-{'1' * 32}.tmp").mkdir()  # empty: it just goes
    assert _eviction.evict(folder / A) == SIZE
    (left,) = folder.iterdir()
    assert left.name.startswith("set-aside-")
    assert (left / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("max_bytes", [0, -1, 1.5, "1 GB", np.inf])
def test_max_bytes_must_be_a_positive_int(folder, max_bytes):
    with pytest.raises(ValueError, match="max_bytes must be a positive int"):
        FeatureStore(folder, max_bytes=max_bytes)
