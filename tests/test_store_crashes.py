"""The feature store interrupted, on a full disk, and with many writers."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import sk_calex.store
from sk_calex.store import FeatureStore, _files

from .store_helpers import (
    FINGERPRINT,
    WIDTH,
    assert_right,
    assert_works_again,
    fork,
    make_rows,
    needs_fork,
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


def test_a_shard_is_on_disk_before_it_has_its_name(folder, monkeypatch):
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
def test_a_failed_write_leaves_the_earlier_rows(folder, monkeypatch, call, error):
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
        assert "Could not store 20 rows" in str(info.value)
        assert "No space. The rows stored earlier are intact" in str(info.value)
    assert temporaries(folder) == []
    np.testing.assert_array_equal(assert_right(section, keys, rows), np.arange(40) < 20)
    assert section.write(keys, rows) == 20
    assert_works_again(folder, keys, rows)


def test_a_file_cut_off_by_the_system(folder):
    resource = pytest.importorskip("resource")
    keys, rows = make_rows(1000)
    section = open_section(folder)
    section.write(keys[:10], rows[:10])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="Could not store 990 rows"):
            section.write(keys, rows)
        with pytest.raises(OSError, match="Could not gather 1000 rows"):
            section.gather(np.repeat(keys[:10], 100, axis=0), memory_limit=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert temporaries(folder) == []
    assert assert_right(section, keys, rows).sum() == 10
    assert_works_again(folder, keys, rows)


def test_a_row_lost_while_gathering(folder, monkeypatch):
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


@needs_fork
@pytest.mark.parametrize("how", [kill_self, interrupt])
@pytest.mark.parametrize("first", [True, False])
def test_stopped_before_any_line_of_a_write(tmp_path, monkeypatch, how, first):
    spare_the_disk(monkeypatch)
    keys, rows = make_rows(40)
    start = tmp_path / "start"
    if not first:
        open_section(start).write(keys[:15], rows[:15])

    def child(folder, line):
        section = open_section(folder)
        stop_at_line(line, how)
        try:
            section.write(keys, rows)
        except KeyboardInterrupt:
            os._exit(3)

    n_stopped = 0
    found = set()
    # Every eighth line keeps this quick; each case takes others.
    for line in range(1 + 2 * first + 4 * (how is interrupt), 10_000, 8):
        folder = tmp_path / str(line)
        if not first:
            shutil.copytree(start, folder)
        code = wait(fork(lambda folder=folder, line=line: child(folder, line)))
        if code == 0:
            break  # the write has fewer lines
        assert code == (3 if how is interrupt else -signal.SIGKILL)
        n_stopped += 1
        found.add(int(assert_right(open_section(folder), keys, rows).sum()))
        assert_works_again(folder, keys, rows)
    assert n_stopped > 15
    assert found == ({0, 40} if first else {15, 40})


@needs_fork
def test_killed_at_random_moments(folder):
    keys, rows = make_rows(2000)

    def extract():
        section = open_section(folder)
        for start in range(0, 2000, 20):
            section.write(keys[start : start + 20], rows[start : start + 20])

    rng = random.Random(0)
    counts = [0]
    for _ in range(12):
        child = fork(extract)
        time.sleep(rng.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        wait(child)
        section = open_section(folder)
        assert temporaries(folder) == []
        counts.append(int(assert_right(section, keys, rows).sum()))
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert wait(fork(extract)) == 0
    assert assert_right(open_section(folder), keys, rows).all()


# Orphans


def test_the_sweep_spares_what_lives(folder):
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
    assert _files.sweep(place) == 2
    left = {Path(live.name), foreign[0], place / ".other.tmp"}
    assert set(place.iterdir()) == left
    live.close()
    assert _files.sweep(place) == 1
    assert _files.sweep(place / "absent") == 0


def test_the_sweep_goes_by_age_without_locks(folder, monkeypatch):
    folder.mkdir()

    def refuse(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_files.fcntl, "flock", refuse)
    young, old = (_files.new_temporary(folder) for _ in "ab")
    young.close()
    old.close()
    os.utime(old.name, (0, 0))
    assert _files.sweep(folder) == 1
    assert Path(young.name).exists()


def test_a_sweep_between_creation_and_lock(folder, monkeypatch):
    folder.mkdir()
    lock, swept = _files._lock, []

    def late(file):
        if not swept:
            swept.append(_files.sweep(folder))
        lock(file)

    monkeypatch.setattr(_files, "_lock", late)
    with _files.new_temporary(folder) as file:
        assert swept == [1]
        assert Path(file.name).exists()
        assert _files.sweep(folder) == 0


def test_folders_that_cannot_be_synced(folder, monkeypatch):
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


# Crowds


def assert_like_one_writer(folder, keys, rows):
    section = open_section(folder)
    assert section.n_rows == len(keys)
    assert assert_right(section, keys, rows).all()
    np.testing.assert_array_equal(section.gather(keys), rows)
    assert temporaries(folder) == []


def write_all(section, keys, rows, seed):
    rng = np.random.default_rng(seed)
    for part in np.array_split(rng.permutation(len(keys)), 10):
        missing = part[~assert_right(section, keys[part], rows[part])]
        section.write(keys[missing], rows[missing])


@pytest.mark.parametrize("shared", [True, False])
def test_threads_write_at_once(folder, shared):
    keys, rows = make_rows(500)
    section = open_section(folder)
    errors = []

    def work(seed):
        try:
            mine = section if shared else open_section(folder)
            write_all(mine, keys, rows, seed)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert_like_one_writer(folder, keys, rows)
    if shared:  # a section's writers wait for each other: nothing is stored twice
        assert FeatureStore(folder).info()["rows"] == 500


@needs_fork
@pytest.mark.parametrize("seeds", [(0, 0), (1, 2)])
def test_processes_write_at_once(folder, seeds):
    keys, rows = make_rows(500)
    children = [
        fork(lambda seed=seed: write_all(open_section(folder), keys, rows, seed))
        for seed in seeds
    ]
    assert [wait(child) for child in children] == [0, 0]
    assert_like_one_writer(folder, keys, rows)


@needs_fork
def test_a_forked_child_does_not_remove_its_parents_map(folder):
    keys, rows = make_rows(50)
    section = open_section(folder)
    section.write(keys, rows)
    held = [section.gather(keys, memory_limit=0)]
    assert wait(fork(held.clear)) == 0
    assert len(temporaries(folder)) == 1
    held.clear()
    assert temporaries(folder) == []
