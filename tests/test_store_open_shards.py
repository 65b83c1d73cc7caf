"""Shards that stay open, and rows of many of them read together."""

from __future__ import annotations

import errno
import gc
import os
import threading
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_calex.store import StoreWarning, _copy, _files, _open_shards, _pieces, _shard
from sk_calex.store._open_shards import OpenShards

from .store_helpers import (
    assert_right,
    make_rows,
    open_section,
    overwrite,
    shards,
    spare_the_disk,
)

N_SHARDS, N_ROWS = 8, 10  # and rows of each

pytestmark = pytest.mark.skipif(
    not _shard.CAN_SHARE_READERS, reason="no pread: no shard stays open"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    spare_the_disk(monkeypatch)
    return tmp_path / "store"


def fill(folder, **settings):
    """A section of several shards, opened anew."""
    keys, rows = make_rows(N_SHARDS * N_ROWS)
    section = open_section(folder, **settings)
    for start in range(0, len(keys), N_ROWS):
        section.write(keys[start : start + N_ROWS], rows[start : start + N_ROWS])
    section = None
    return open_section(folder, **settings), keys, rows


@pytest.fixture
def opened(monkeypatch):
    """The paths that are opened, in order."""
    paths = []

    def open_regular(path):
        paths.append(path)
        return _files.open_regular(path)

    monkeypatch.setattr(_shard, "open_regular", open_regular)
    return paths


def held(section):
    return section._folder.shards._open._readers


def held_in_all():
    return sum(len(shards._readers) for shards in OpenShards._all)


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
def test_any_rows_of_many_shards(tmp_path_factory, wanted, sparse, block, together):
    folder = tmp_path_factory.getbasetemp() / "rows_of_many_shards"
    with spare_the_disk():
        section, keys, rows = fill(folder)
    with (
        mock.patch.multiple(_pieces, _SPARSE_BYTES=sparse, _BLOCK_BYTES=block),
        mock.patch.object(_copy, "_TOGETHER", together),
    ):
        assert assert_right(section, keys[wanted], rows[wanted]).all()


def test_what_is_read_together_is_bounded(folder, monkeypatch):
    section, keys, rows = fill(folder)
    sizes = []

    def read_each(shards, n_of_each, rows, layout):
        sizes.append((len(shards), len(rows) * layout.row_bytes))
        return _shard.read_each(shards, n_of_each, rows, layout)

    monkeypatch.setattr(_copy, "read_each", read_each)
    monkeypatch.setattr(_copy, "_TOGETHER", 3)
    monkeypatch.setattr(_pieces, "_SPARSE_BYTES", 0)
    few = slice(None, None, 3)  # three or four of each
    assert assert_right(section, keys[few], rows[few]).all()
    assert [n for n, _ in sizes] == [3, 3, 2]
    sizes.clear()
    monkeypatch.setattr(_pieces, "_BLOCK_BYTES", 8 * section._layout.row_bytes)
    assert assert_right(section, keys[few], rows[few]).all()
    assert [n for n, _ in sizes] == [2, 2, 2, 2]
    assert max(n_bytes for _, n_bytes in sizes) <= 8 * section._layout.row_bytes


def test_a_single_row_of_each_shard_is_read_with_the_others(folder, monkeypatch):
    section, keys, rows = fill(folder)
    with mock.patch.object(_copy, "read_each", wraps=_shard.read_each) as together:
        one = slice(None, None, N_ROWS)
        assert assert_right(section, keys[one], rows[one]).all()
    assert together.call_count == 1


@pytest.mark.parametrize("trouble", ["truncated", "damaged", "gone", "unreadable"])
def test_trouble_with_one_of_many_costs_its_rows_only(folder, monkeypatch, trouble):
    section, keys, rows = fill(folder)
    monkeypatch.setattr(_pieces, "_SPARSE_BYTES", 0)
    assert assert_right(section, keys, rows).all()
    shard, _ = section._folder.shards.locate(keys[[33]])
    path = section._folder.shards._paths[shard[0]]
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


def test_a_shard_is_opened_once(folder, opened):
    section, keys, rows = fill(folder)
    opened.clear()
    for _ in range(3):
        assert assert_right(section, keys, rows).all()
    assert sorted(opened) == shards(folder)


@pytest.mark.parametrize("verify", ["first", "always", "never"])
@pytest.mark.parametrize("how", ["another copy", "moved and brought back"])
def test_a_file_that_takes_its_place_is_opened_and_looked_at(
    folder, opened, verify, how
):
    section, keys, rows = fill(folder, verify=verify)
    assert assert_right(section, keys, rows).all()
    path = shards(folder)[0]
    opened.clear()
    if how == "another copy":
        (folder / "copy").write_bytes(path.read_bytes())
        os.replace(folder / "copy", path)
    else:
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
    assert verified.call_count == {"first": 1, "always": N_SHARDS, "never": 0}[verify]


def test_a_file_that_the_system_has_lost_sight_of_is_opened_anew(
    folder, opened, monkeypatch
):
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


def test_only_so_many_stay_open_in_all_sections(folder, monkeypatch):
    sections = [fill(folder / name) for name in "ab"]
    gc.collect()
    before = held_in_all()
    monkeypatch.setattr(_open_shards, "_limit", lambda: before + 5)
    for _ in range(3):
        for section, keys, rows in sections:
            for one in np.random.default_rng(0).permutation(len(keys)):
                assert assert_right(section, keys[[one]], rows[[one]]).all()
                assert held_in_all() <= before + 5
    assert sum(len(held(section)) for section, _, _ in sections) > 0


def test_more_shards_than_stay_open_are_still_found_open_at_times(
    folder, opened, monkeypatch
):
    section, keys, rows = fill(folder)
    gc.collect()
    monkeypatch.setattr(_open_shards, "_limit", lambda: held_in_others + 6)
    held_in_others = held_in_all()
    opened.clear()
    for _ in range(10):  # the same order again and again: least favourable
        for one in range(0, len(keys), N_ROWS):
            assert assert_right(section, keys[[one]], rows[[one]]).all()
    assert N_SHARDS < len(opened) < 0.6 * 10 * N_SHARDS


@pytest.mark.parametrize(
    ("soft", "expected"), [(256, 64), (1024, 256), (10**6, 256), (3, 0), (None, 256)]
)
def test_the_limit_is_a_share_of_what_the_process_may_open(monkeypatch, soft, expected):
    resource = pytest.importorskip("resource")
    soft = resource.RLIM_INFINITY if soft is None else soft
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, soft))
    assert _open_shards._limit() == expected


@pytest.mark.parametrize("missing", ["pread", "resource"])
def test_none_stays_open_where_the_system_cannot_share_them(
    folder, opened, monkeypatch, missing
):
    if missing == "pread":
        monkeypatch.setattr(_open_shards, "CAN_SHARE_READERS", False)
    else:
        monkeypatch.setattr(_open_shards, "resource", None)
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


def test_a_file_is_closed_when_its_shard_is_gone_or_damaged(folder):
    section, keys, rows = fill(folder)
    assert assert_right(section, keys, rows).all()
    readers = {section._folder.shards._paths[i]: r for i, r in held(section).items()}
    gone, damaged, *others = shards(folder)
    descriptors = {path: readers[path]._descriptor for path in readers}
    readers = None
    gone.unlink()
    overwrite(damaged, 2000, b"damage")
    with pytest.warns(StoreWarning):
        assert_right(section, keys, rows)
    gc.collect()
    assert not is_open(descriptors[gone])
    assert not is_open(descriptors[damaged])
    assert all(is_open(descriptors[path]) for path in others)


def test_a_file_that_is_refused_is_closed(folder):
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


def test_threads_share_open_shards(folder, monkeypatch):
    monkeypatch.setattr(_shard, "_DIGEST_BYTES", 100)
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
