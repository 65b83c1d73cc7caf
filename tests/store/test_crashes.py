"""The feature store interrupted, on a full disk, and with many writers."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import stat
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import sk_calex.store
from sk_calex.store import FeatureStore, _files

from ._helpers import (
    FINGERPRINT,
    N_KILLS,
    WIDTH,
    assert_right,
    assert_works_again,
    fork,
    in_light_process,
    make_rows,
    open_section,
    spare_the_disk,
    temporaries,
    wait,
)

PACKAGE = str(Path(sk_calex.store.__file__).parent)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "store"


# Interruption


def test_shard_is_flushed_before_it_is_renamed(folder, monkeypatch):
    keys, rows = make_rows(40)
    section = open_section(folder)
    section.write(keys[:1], rows[:1])
    fsync, replace, calls = os.fsync, os.replace, []

    def note_fsync(descriptor):
        status = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(status.st_mode)
        calls.append(("fsync", "folder" if is_folder else status.st_size))
        fsync(descriptor)

    def note_replace(source, target):
        calls.append(("replace", os.path.dirname(source) == os.path.dirname(target)))
        replace(source, target)

    monkeypatch.setattr(_files.os, "fsync", note_fsync)
    monkeypatch.setattr(_files.os, "replace", note_replace)
    section.write(keys, rows)
    size = 1024 + 39 * (16 + 4 * WIDTH)
    assert calls == [("fsync", size), ("replace", True), ("fsync", "folder")]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt]
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failed_write_leaves_the_earlier_rows(folder, monkeypatch, call, error):
    keys, rows = make_rows(40)
    section = open_section(folder)
    section.write(keys[:20], rows[:20])

    def fail(*args):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(_files.os, call, fail)
        with pytest.raises(
            type(error) if isinstance(error, OSError) else error
        ) as info:
            section.write(keys, rows)
    if isinstance(error, OSError):
        assert info.value.errno == errno.ENOSPC
        assert "Could not store 40 rows" in str(info.value)
        assert "No space. The rows stored earlier are intact" in str(info.value)
    assert temporaries(folder) == []
    np.testing.assert_array_equal(assert_right(section, keys, rows), np.arange(40) < 20)
    assert section.write(keys, rows) == 20
    assert_works_again(folder, keys, rows)


def test_write_beyond_the_file_size_limit_raises(folder):
    resource = pytest.importorskip("resource")
    keys, rows = make_rows(1000)
    section = open_section(folder)
    section.write(keys[:10], rows[:10])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="Could not store 1000 rows"):
            section.write(keys, rows)
        with pytest.raises(OSError, match="Could not gather 1000 rows"):
            section.gather(np.repeat(keys[:10], 100, axis=0), memory_limit=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert temporaries(folder) == []
    assert assert_right(section, keys, rows).sum() == 10
    assert_works_again(folder, keys, rows)


def test_gather_of_a_row_lost_meanwhile_raises(folder, monkeypatch):
    keys, rows = make_rows(10)
    section = open_section(folder)
    section.write(keys, rows)
    monkeypatch.setattr(section, "find", lambda keys: np.ones(len(keys), dtype=bool))
    lost, _ = make_rows(1, seed=1)
    for limit in (0, 2**20):
        with pytest.raises(KeyError, match="1 of"):
            section.gather(np.concatenate([keys, lost]), memory_limit=limit)
    assert temporaries(folder) == []


def stop_at_line(number, how):
    """Call `how` before the given line of the store's code is run in this process."""
    count = 0

    def trace(frame, event, argument):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            count += 1
            if count == number:
                sys.settrace(None)
                how()
        return trace

    sys.settrace(trace)


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def interrupt():
    raise KeyboardInterrupt


HOW = {"killed": kill_self, "interrupted": interrupt}


def write_until_stopped(folder, line, how, keys, rows):
    section = open_section(folder)
    stop_at_line(line, HOW[how])
    try:
        section.write(keys, rows)
    except KeyboardInterrupt:
        os._exit(3)


@pytest.mark.parametrize("how", ["killed", "interrupted"])
@pytest.mark.parametrize("first", [True, False])
@in_light_process
def test_write_stopped_before_any_line_leaves_a_sound_store(tmp_path, how, first):
    keys, rows = make_rows(40)
    start = tmp_path / "start"
    if not first:
        open_section(start).write(keys[:15], rows[:15])
    n_stopped, found = 0, set()
    # Every eighth line keeps this quick; each case takes others.
    for line in range(1 + 2 * first + 4 * (how == "killed"), 10_000, 8):
        folder = tmp_path / str(line)
        if not first:
            shutil.copytree(start, folder)
        with spare_the_disk():
            code = wait(fork(write_until_stopped, folder, line, how, keys, rows))
            if code == 0:
                break  # the write has fewer lines
            assert code == (-signal.SIGKILL if how == "killed" else 3)
            n_stopped += 1
            found.add(int(assert_right(open_section(folder), keys, rows).sum()))
            assert_works_again(folder, keys, rows)
    assert n_stopped > 25
    assert found == ({0, 40} if first else {15, 40})


def extract(folder, rows, max_bytes):
    """Fill two sections, which do not fit both if there is a limit, in turn."""
    store = FeatureStore(folder, max_bytes=max_bytes)
    for name in ("aaaaaaaa", "bbbbbbbb"):
        section = store.section(name, WIDTH, "float32")
        keys, right = rows[name]
        for part in np.array_split(np.arange(500), 6):
            missing = part[~assert_right(section, keys[part], right[part])]
            section.write(keys[missing], right[missing])
        section.gather(keys, memory_limit=4000)


def count_found(store, name, keys, rows):
    section = store.section(name, WIDTH, "float32")  # not kept open: see max_bytes
    return int(assert_right(section, keys, rows).sum())


@pytest.mark.parametrize("max_bytes", [None, 40_000])
@in_light_process
def test_process_killed_at_a_random_moment_leaves_a_sound_store(tmp_path, max_bytes):
    rows = {"aaaaaaaa": make_rows(500), "bbbbbbbb": make_rows(500, seed=1)}
    rng = random.Random(0)
    numbers = itertools.count()
    n_killed, n_amid = 0, 0
    with spare_the_disk():
        start = time.monotonic()
        assert wait(fork(extract, tmp_path / "whole", rows, max_bytes)) == 0
        seconds = time.monotonic() - start
        folder = tmp_path / "0"
        while n_killed < N_KILLS // 2:
            child = fork(extract, folder, rows, max_bytes)
            time.sleep(rng.uniform(0, seconds))
            os.kill(child, signal.SIGKILL)
            in_time = wait(child) == -signal.SIGKILL
            n_killed += in_time
            store = FeatureStore(folder)
            n_found = sum(count_found(store, name, *rows[name]) for name in rows)
            assert temporaries(folder) == []
            assert store.verify().ok
            n_amid += 0 < n_found < 1000
            # The machine gets slower or faster meanwhile: aim between start and end.
            seconds *= 1.1 if n_found == 0 else 1.0 if in_time else 0.9
            if n_found == 1000 or rng.random() < 0.1:
                folder = tmp_path / str(next(numbers))
        extract(folder, rows, max_bytes)
    assert n_amid > N_KILLS // 8


# Orphans


def test_sweep_keeps_files_in_use(folder):
    place = folder / FINGERPRINT
    place.mkdir(parents=True)
    live = _files.new_temporary(place)
    dead = _files.new_temporary(place)
    dead.close()
    (place / ".other.tmp").write_text("not ours")
    foreign = [place / f".{'0' * 8}-{digit * 32}.tmp" for digit in "01"]
    for path in foreign:
        path.write_text("")
    os.utime(foreign[1], (0, 0))
    assert set(_files.sweep(place, remove=False)) == {Path(dead.name), foreign[1]}
    assert len(_files.sweep(place)) == 2
    left = {Path(live.name), foreign[0], place / ".other.tmp"}
    assert set(place.iterdir()) == left
    live.close()
    assert _files.sweep(place) == [Path(live.name)]
    assert _files.sweep(place / "absent") == []


def test_sweep_without_locks_decides_by_age(folder, monkeypatch):
    folder.mkdir()

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_files.fcntl, "flock", refuse)
    young, old = (_files.new_temporary(folder) for _ in "ab")
    young.close()
    old.close()
    os.utime(old.name, (0, 0))
    assert _files.sweep(folder) == [Path(old.name)]
    assert Path(young.name).exists()


def test_temporary_file_swept_before_its_lock_is_made_anew(folder, monkeypatch):
    folder.mkdir()
    lock, swept = _files.lock_descriptor, []

    def late(descriptor, **settings):
        if not swept:
            swept.append(None)  # what the sweep does is not late
            swept[:] = _files.sweep(folder)
        return lock(descriptor, **settings)

    monkeypatch.setattr(_files, "lock_descriptor", late)
    with _files.new_temporary(folder) as file:
        assert len(swept) == 1
        assert Path(file.name).exists()
        assert _files.sweep(folder) == []


def test_fsync_of_a_folder_may_be_unsupported(folder, monkeypatch):
    folder.mkdir()

    def refuse(code):
        def fsync(descriptor):
            raise OSError(code, "refused")

        return fsync

    monkeypatch.setattr(_files.os, "fsync", refuse(errno.EINVAL))
    _files.fsync_folder(folder)
    monkeypatch.setattr(_files.os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="refused"):
        _files.fsync_folder(folder)
