"""Shards that stay open, and rows of many of them read together."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import random
import threading
import time
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_calex.store import FeatureStore, StoreWarning, _files, _gather, _shards
from sk_calex.store import _shard_file as _shard
from sk_calex.store._shards import OpenShards

from ._helpers import (
    N_ROWS,
    N_SHARDS,
    assert_right,
    fill,
    flip,
    folder,
    held,
    make_rows,
    needs_fork,
    open_section,
    overwrite,
    read,
    shards,
    spare_the_disk,
)

__all__ = ["folder"]  # a fixture

pytestmark = pytest.mark.skipif(
    not _shard.CAN_SHARE_READERS, reason="no pread: no shard stays open"
)


@pytest.fixture
def opened(monkeypatch):
    """The paths that are opened, in order."""
    paths = []

    def open_regular(path):
        paths.append(path)
        return _files.open_regular(path)

    monkeypatch.setattr(_shard, "open_regular", open_regular)
    return paths


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


# Rows of many shards


@given(
    wanted=st.lists(st.integers(0, N_SHARDS * N_ROWS - 1), max_size=60),
    sparse=st.sampled_from([0, 30, 2**20]),
    block=st.sampled_from([1, 50, 200, 2**20]),
    together=st.integers(1, 5),
)
def test_rows_of_many_shards_are_right_for_any_selection(
    tmp_path_factory, wanted, sparse, block, together
):
    folder = tmp_path_factory.getbasetemp() / "rows_of_many_shards"
    with spare_the_disk():
        section, keys, rows = fill(folder)
    with (
        mock.patch.multiple(_shard, _SPARSE_BYTES=sparse, _BLOCK_BYTES=block),
        mock.patch.object(_gather, "_TOGETHER", together),
    ):
        assert assert_right(section, keys[wanted], rows[wanted]).all()


def test_size_of_joint_reads_is_bounded(folder, monkeypatch):
    section, keys, rows = fill(folder)
    sizes = []

    def read_each(shards, n_of_each, rows, layout, columns):
        sizes.append((len(shards), len(rows) * layout.row_bytes))
        return _shard.read_each(shards, n_of_each, rows, layout, columns)

    monkeypatch.setattr(_gather, "read_each", read_each)
    monkeypatch.setattr(_gather, "_TOGETHER", 3)
    monkeypatch.setattr(_shard, "_SPARSE_BYTES", 0)
    few = slice(None, None, 3)  # three or four of each
    assert assert_right(section, keys[few], rows[few]).all()
    assert [n for n, _ in sizes] == [3, 3, 2]
    sizes.clear()
    monkeypatch.setattr(_shard, "_BLOCK_BYTES", 8 * section._layout.row_bytes)
    assert assert_right(section, keys[few], rows[few]).all()
    assert [n for n, _ in sizes] == [2, 2, 2, 2]
    assert max(n_bytes for _, n_bytes in sizes) <= 8 * section._layout.row_bytes


def test_single_row_of_each_shard_is_read_with_the_others(folder, monkeypatch):
    section, keys, rows = fill(folder)
    with mock.patch.object(_gather, "read_each", wraps=_shard.read_each) as together:
        one = slice(None, None, N_ROWS)
        assert assert_right(section, keys[one], rows[one]).all()
    assert together.call_count == 1


@pytest.mark.parametrize("trouble", ["truncated", "damaged", "gone", "unreadable"])
@pytest.mark.parametrize("is_open", [True, False])
def test_damage_of_one_shard_loses_only_its_rows(folder, monkeypatch, trouble, is_open):
    section, keys, rows = fill(folder)
    monkeypatch.setattr(_shard, "_SPARSE_BYTES", 0)
    if is_open or trouble == "unreadable":
        assert assert_right(section, keys, rows).all()
    shard, _ = section._folder.shards.locate(keys[[33]])
    path = section._folder.shards.path(int(shard[0]))
    match = path.name
    if trouble == "truncated":
        os.truncate(path, path.stat().st_size - 1)
    elif trouble == "damaged":
        overwrite(path, path.stat().st_size - 4, b"\x12\x34\x56\x78")
    elif trouble == "gone":
        path.unlink()
        match = "1 shards of .* are gone"
    else:
        descriptor, pread = held(section)[int(shard[0])]._descriptor, os.pread

        def fail(which, size, offset):
            if which == descriptor:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return pread(which, size, offset)

        monkeypatch.setattr(_shard, "_pread", fail)
    with pytest.warns(StoreWarning, match=match) as record:
        found = assert_right(section, keys, rows)
    assert len(record) == 1
    np.testing.assert_array_equal(found, np.arange(len(keys)) // N_ROWS != 3)


# Shards that stay open


def test_shard_is_opened_once(folder, opened):
    section, keys, rows = fill(folder)
    opened.clear()
    for _ in range(3):
        assert assert_right(section, keys, rows).all()
    assert sorted(opened) == shards(folder)


@pytest.mark.parametrize("verify", ["first", "always", "never"])
@pytest.mark.parametrize("how", ["another copy", "moved and brought back"])
def test_file_that_replaces_an_open_shard_is_checked(folder, opened, verify, how):
    section, keys, rows = fill(folder, verify=verify)
    assert assert_right(section, keys, rows).all()
    path = shards(folder)[0]
    opened.clear()
    if how == "another copy":
        (folder / "copy").write_bytes(path.read_bytes())
        os.replace(folder / "copy", path)
    else:
        time.sleep(0.05)  # only the time of the change of name will tell
        os.rename(path, folder / "aside")
        os.rename(folder / "aside", path)
    with mock.patch.object(
        _shard.ShardReader,
        "verify",
        autospec=True,
        side_effect=_shard.ShardReader.verify,
    ) as verified:
        assert assert_right(section, keys, rows).all()
    assert opened == [path]
    if verify == "always":
        assert verified.call_count > N_SHARDS  # of the old file, then of the new one
    else:
        assert verified.call_count == (verify == "first")


def test_open_file_that_cannot_be_examined_is_opened_again(folder, opened, monkeypatch):
    section, keys, rows = fill(folder)
    assert assert_right(section, keys, rows).all()
    opened.clear()
    stale, fstat = {r._descriptor for r in held(section).values()}, os.fstat

    def fail(descriptor):  # as on a network file system, where others wrote meanwhile
        if descriptor in stale:
            stale.discard(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return fstat(descriptor)

    monkeypatch.setattr(_shard.os, "fstat", fail)
    assert assert_right(section, keys, rows).all()
    assert sorted(opened) == shards(folder)


@pytest.fixture
def alone(monkeypatch):
    """No section of another test counts."""
    monkeypatch.setattr(OpenShards, "_all", weakref.WeakSet())
    monkeypatch.setattr(OpenShards, "_random", random.Random(0))


def test_number_of_open_shards_is_bounded_over_all_sections(folder, alone, monkeypatch):
    sections = [fill(folder / name) for name in "ab"]
    monkeypatch.setattr(_shards, "_limit", lambda: 5)
    for _ in range(3):
        for section, keys, rows in sections:
            for one in np.random.default_rng(0).permutation(len(keys)):
                assert assert_right(section, keys[[one]], rows[[one]]).all()
                assert 0 < sum(len(held(each)) for each, _, _ in sections) <= 5


def test_random_replacement_keeps_some_shards_open(folder, alone, opened, monkeypatch):
    section, keys, rows = fill(folder)
    monkeypatch.setattr(_shards, "_limit", lambda: 6)
    opened.clear()
    for _ in range(10):  # the same order again and again: least favourable
        for one in range(0, len(keys), N_ROWS):
            assert assert_right(section, keys[[one]], rows[[one]]).all()
    assert N_SHARDS < len(opened) < 0.6 * 10 * N_SHARDS


@pytest.mark.parametrize(
    ("soft", "expected"), [(256, 64), (1024, 256), (10**6, 256), (3, 0), (None, 256)]
)
def test_limit_is_a_quarter_of_the_allowed_files(monkeypatch, soft, expected):
    resource = pytest.importorskip("resource")
    soft = resource.RLIM_INFINITY if soft is None else soft
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert _shards._limit() == expected


@pytest.mark.parametrize("missing", ["pread", "resource"])
def test_no_shard_stays_open_without_pread(folder, opened, monkeypatch, missing):
    if missing == "pread":
        monkeypatch.setattr(_shards, "CAN_SHARE_READERS", False)
    else:
        monkeypatch.setattr(_shards, "resource", None)
    section, keys, rows = fill(folder)
    opened.clear()
    for _ in range(2):
        assert assert_right(section, keys, rows).all()
    assert not held(section)
    assert len(opened) == 2 * N_SHARDS


def test_files_are_closed_with_the_section(folder):
    section, keys, rows = fill(folder)
    assert assert_right(section, keys, rows).all()
    descriptors = [reader._descriptor for reader in held(section).values()]
    assert len(descriptors) == N_SHARDS
    assert all(map(is_open, descriptors))
    del section
    gc.collect()
    assert not any(map(is_open, descriptors))


def test_file_of_a_removed_or_damaged_shard_is_closed(folder):
    section, keys, rows = fill(folder)
    assert assert_right(section, keys, rows).all()
    readers = {section._folder.shards.path(i): r for i, r in held(section).items()}
    gone, damaged, *others = shards(folder)
    descriptors = {path: readers[path]._descriptor for path in readers}
    readers = None
    gone.unlink()
    overwrite(damaged, 1300, b"damage")
    with pytest.warns(StoreWarning):
        assert_right(section, keys, rows)
    gc.collect()
    assert not is_open(descriptors[gone])
    assert not is_open(descriptors[damaged])
    assert all(is_open(descriptors[path]) for path in others)


def test_refused_file_is_closed(folder):
    section, _, _ = fill(folder)
    path = shards(folder)[0]
    overwrite(path, 0, b"no header")
    opened = []

    def open_regular(path):
        opened.append(_files.open_regular(path))
        return opened[-1]

    with (
        mock.patch.object(_shard, "open_regular", open_regular),
        pytest.raises(_shard.DamagedFile, match="header"),
    ):
        _shard.ShardReader(path, section._layout)
    gc.collect()
    assert not is_open(opened[0])


@pytest.mark.parametrize("limit", [2, 256])
def test_threads_share_open_shards(folder, alone, monkeypatch, limit):
    monkeypatch.setattr(_shard, "_DIGEST_BYTES", 100)
    monkeypatch.setattr(_shards, "_limit", lambda: limit)
    section, keys, rows = fill(folder, verify="always")
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(20):
            which = rng.integers(len(keys), size=30)
            out = np.empty((30, rows.shape[1]), dtype=np.float32)
            found = section.read(keys[which], out)
            if not found.all() or (out != rows[which]).any():
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_no_shard_is_kept_where_none_may_be(folder, monkeypatch):
    """Another thread might take it in that moment, and seek in it at the same time."""

    class Closed(dict):
        def __setitem__(self, number, reader):
            raise AssertionError("kept open")

    section, keys, rows = fill(folder)
    monkeypatch.setattr(_shards, "_limit", lambda: 0)
    monkeypatch.setattr(section._folder.shards._open, "_readers", Closed())
    assert assert_right(section, keys, rows).all()


def test_shard_that_leaves_the_index_while_it_is_opened_is_not_kept(
    folder, monkeypatch
):
    section, keys, _ = fill(folder)
    (number,), _ = section._folder.shards.locate(keys[:1])
    read_keys = _shard.ShardReader.keys

    def vanish(shard):
        monkeypatch.undo()
        shard._path.unlink()
        with pytest.warns(StoreWarning, match="1 shards of .* are gone"):
            section._folder.shards.rescan()
        return read_keys(shard)

    monkeypatch.setattr(_shard.ShardReader, "keys", vanish)
    assert section._folder.shards.reader(int(number)) is not None
    assert number not in held(section)


# Too many open files


@contextlib.contextmanager
def descriptors_left(n):
    """Let this process open so many more files at a time."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(n + 1)]
    for descriptor in free:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("n", [1, 5])
def test_reads_work_with_few_descriptors(folder, alone, n):
    keys, rows = make_rows(60)
    section = open_section(folder)
    for i in range(60):
        section.write(keys[i : i + 1], rows[i : i + 1])
    with descriptors_left(n):
        for _ in range(2):
            assert assert_right(section, keys, rows).all()


def test_kept_shards_are_closed_when_descriptors_run_out(folder, alone):
    section, keys, rows = fill(folder)
    assert assert_right(section, keys, rows).all()
    assert len(held(section)) == N_SHARDS
    with descriptors_left(0):
        assert not section.find(make_rows(1, seed=3)[0]).any()
    assert not held(section)


@pytest.mark.parametrize("when", ["reading", "looking at the folder"])
def test_read_without_descriptors_raises_and_drops_no_shard(folder, monkeypatch, when):
    section, keys, rows = fill(folder)

    def fail(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    more, more_rows = make_rows(5, seed=1)
    if when == "looking at the folder":
        open_section(folder).write(more, more_rows)
        keys, rows = np.concatenate([keys, more]), np.concatenate([rows, more_rows])
    with monkeypatch.context() as patch:
        patch.setattr(_shard, "open_regular", fail)
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            read(section, keys)
    assert assert_right(section, keys, rows).all()


@needs_fork
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_child_does_not_wait_for_a_thread_of_its_parent():
    holds = threading.Event()

    def hold():
        with OpenShards._lock:
            holds.set()
            time.sleep(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    holds.wait()
    child = os.fork()
    if not child:
        os._exit(not OpenShards._lock.acquire(timeout=10))
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
    with OpenShards._lock:  # and the parent has it back
        pass


def test_damaged_file_is_closed_before_it_is_removed(folder, monkeypatch):
    """Windows removes no file that is open."""
    fill(folder)
    flip(shards(folder)[0], 1300)
    alive, begin, unlink = weakref.WeakSet(), _shard.ShardReader.__init__, Path.unlink

    def start(shard, *args):
        alive.add(shard)
        begin(shard, *args)

    def remove(path, **settings):
        assert not alive
        unlink(path, **settings)

    monkeypatch.setattr(_shard.ShardReader, "__init__", start)
    monkeypatch.setattr(Path, "unlink", remove)
    assert len(FeatureStore(folder).repair()) == 1
