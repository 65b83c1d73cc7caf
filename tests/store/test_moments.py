"""Shards that change between a check and a read, or in the middle of either."""

from __future__ import annotations

import errno
import os

import numpy as np
import pytest

from sk_calex.store import StoreWarning, _files
from sk_calex.store import _shard_file as _shard
from sk_calex.store._shards import OpenShards

from ._helpers import (
    N_ROWS,
    assert_right,
    fill,
    flip,
    folder,
    held,
    make_rows,
    open_section,
    overwrite,
    shards,
)

__all__ = ["folder"]  # a fixture


def test_shard_that_changes_after_its_digest_was_compared_is_noticed(
    folder, monkeypatch
):
    section, keys, rows = fill(folder)
    monkeypatch.setattr(_shard, "_SPARSE_BYTES", 0)
    verify, seen = _shard.ShardReader.verify, []

    def change_the_first(shard):
        seen.append(shard._path)
        if len(seen) == 3:
            flip(seen[0], seen[0].stat().st_size - 1)
        verify(shard)

    monkeypatch.setattr(_shard.ShardReader, "verify", change_the_first)
    with pytest.warns(StoreWarning, match="do not give its digest") as record:
        found = assert_right(section, keys, rows)
    assert len(record) == 1
    assert found.sum() == len(keys) - N_ROWS


def test_single_shard_that_changes_while_it_is_read_is_noticed(folder, monkeypatch):
    section, keys, rows = fill(folder)
    read_rows, flips = _shard.ShardReader.rows, iter([True])

    def change(shard, wanted, columns):
        if next(flips, False):
            flip(shard._path, shard._path.stat().st_size - 1)
        return read_rows(shard, wanted, columns)

    monkeypatch.setattr(_shard.ShardReader, "rows", change)
    with pytest.warns(StoreWarning, match="do not give its digest"):
        found = assert_right(section, keys[:N_ROWS], rows[:N_ROWS])
    assert not found.any()


def test_stale_descriptor_is_opened_again(folder, monkeypatch):
    section, keys, rows = fill(folder)
    assert assert_right(section, keys, rows).all()
    stale = {reader._descriptor for reader in held(section).values()}
    pread = _shard._pread

    def fail(descriptor, size, offset):
        if descriptor in stale:
            stale.discard(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return pread(descriptor, size, offset)

    monkeypatch.setattr(_shard, "_pread", fail)
    for start in range(0, len(keys), N_ROWS):
        part = slice(start, start + N_ROWS)
        assert assert_right(section, keys[part], rows[part]).all()
    assert not stale


@pytest.mark.parametrize("where", ["before", "in", "after"])
def test_shard_is_usable_after_an_interruption(folder, monkeypatch, where):
    section, keys, rows = fill(folder)
    more, more_rows = make_rows(5, seed=1)
    index = section._folder.shards._index
    add = index.add

    def interrupt(*args):
        if where == "after":
            add(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "before":
            patch.setattr("sk_calex.store._shards._digest", interrupt)
        else:
            patch.setattr(index, "add", interrupt)
        with pytest.raises(KeyboardInterrupt):
            section.write(more, more_rows)
    every = np.concatenate([keys, more]), np.concatenate([rows, more_rows])
    assert assert_right(section, *every).all()
    last, last_rows = make_rows(7, seed=2)
    assert section.write(last, last_rows) == 7
    assert assert_right(section, last, last_rows).all()
    for path in shards(folder):
        path.unlink()
    with pytest.warns(StoreWarning, match="are gone"):
        assert not assert_right(section, *every).any()
    assert section.write(*every) == len(keys) + 5
    assert assert_right(section, *every).all()


def test_late_read_error_keeps_a_shard_written_again(folder):
    section, keys, rows = fill(folder)
    (number,), _ = section._folder.shards.locate(keys[:1])
    path = section._folder.shards.path(int(number))
    content = path.read_bytes()
    flip(path, 1300)
    with pytest.warns(StoreWarning, match=path.name):
        assert_right(section, keys, rows)
    assert section.write(keys, rows) == N_ROWS
    assert path.read_bytes() == content
    error = _files.DamagedFile("is damaged")
    section._folder.shards.give_up(int(number), error, None)
    assert assert_right(section, keys, rows).all()


@pytest.mark.parametrize("verify", ["first", "always", "never"])
def test_shard_repaired_after_indexing_is_indexed_again(folder, verify):
    section, keys, rows = fill(folder)
    path = section._folder.shards.path(0)
    content = path.read_bytes()
    flip(path, _shard._HEADER_BYTES + 3)  # a key
    section = None
    section = open_section(folder, verify=verify)
    (folder / "repaired").write_bytes(content)
    os.replace(folder / "repaired", path)
    if verify == "never":  # then a digest tells nothing
        with pytest.warns(StoreWarning, match="is not the file that was indexed"):
            assert assert_right(section, keys, rows).sum() == len(keys) - N_ROWS
    else:  # the row of the damaged key was looked for before
        assert assert_right(section, keys, rows).sum() == len(keys) - 1
        assert assert_right(section, keys, rows).all()
    assert section.write(keys, rows) == (N_ROWS if verify == "never" else 0)


def test_rows_of_a_shard_damaged_when_indexed_are_written_again(folder):
    section, keys, rows = fill(folder)
    path = section._folder.shards.path(0)
    section = None
    content = bytearray(path.read_bytes())
    content[_shard._HEADER_BYTES : _shard._HEADER_BYTES + 16 * N_ROWS] = bytes(
        16 * N_ROWS
    )
    path.write_bytes(content)  # no key of it is right
    section = open_section(folder)
    lost = ~assert_right(section, keys, rows)
    assert lost.sum() == N_ROWS
    assert section.write(keys[lost], rows[lost]) == N_ROWS
    assert assert_right(section, keys, rows).all()
    assert section.write(keys, rows) == 0


def test_silent_damage_of_keys_is_noticed_at_opening(folder, monkeypatch):
    monkeypatch.setattr(_shard, "signature", lambda status: (status.st_ino,))
    section, keys, rows = fill(folder)
    assert assert_right(section, keys, rows).all()
    flip(section._folder.shards.path(0), _shard._HEADER_BYTES + 3)
    OpenShards.drop_all()
    with pytest.warns(StoreWarning, match="do not give its digest"):
        found = assert_right(section, keys, rows)
    assert found.sum() == len(keys) - N_ROWS


def test_sound_file_that_replaces_a_damaged_one_is_used(folder, monkeypatch):
    section, keys, rows = fill(folder)
    path = section._folder.shards.path(0)
    content = path.read_bytes()
    overwrite(path, 0, b"no header")

    def replaced_meanwhile(opened):
        descriptor = _files.open_regular(opened)
        if opened == path:
            (folder / "sound").write_bytes(content)
            os.replace(folder / "sound", path)
        return descriptor

    monkeypatch.setattr(_shard, "open_regular", replaced_meanwhile)
    with pytest.warns(StoreWarning, match="has a header") as record:
        assert assert_right(section, keys, rows).all()
    assert len(record) == 1


def test_file_system_with_changing_times_warns(folder, monkeypatch):
    section, keys, rows = fill(folder)
    monkeypatch.setattr(_shard.ShardReader, "is_as_opened", lambda shard: False)
    with pytest.warns(StoreWarning, match="change while they are read"):
        assert not assert_right(section, keys, rows).any()
    # Told once; what counts as missing is stored again, which does no harm.
    assert section.write(keys, rows) == len(keys)
    assert not assert_right(section, keys, rows).any()


def test_rows_beyond_four_gibibytes_are_read(tmp_path):
    layout = _shard.Layout("0123abcd", 2**20, "float32")
    n, path = 1100, tmp_path / "large"
    with open(path, "wb") as file:
        file.write(layout.header(n))
        file.truncate(layout.shard_bytes(n))  # a hole: it takes no space
        file.seek(-layout.row_bytes, os.SEEK_END)
        file.write(np.full(2**20, 7, dtype=np.float32).data)
    shard = _shard.ShardReader(path, layout)
    wanted = np.array([3, n - 1], dtype=np.int32)
    rows = _shard.read_each([shard, shard], [1, 1], wanted, layout)
    path.unlink()
    assert (rows[0] == 0).all()
    assert (rows[1] == 7).all()


def test_file_that_reappears_at_once_is_read(folder, monkeypatch):
    section, keys, rows = fill(folder)
    absent = iter([True])

    def open_regular(path):
        if next(absent, False):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return _files.open_regular(path)

    monkeypatch.setattr(_shard, "open_regular", open_regular)
    assert assert_right(section, keys, rows).all()
