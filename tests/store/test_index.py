"""The index of a section in files, and the pieces in which rows are read."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sk_calex.store import StoreWarning, _index
from sk_calex.store import _shard_file as _shard
from sk_calex.store._index import KeyIndex

from ._helpers import assert_right, make_rows, open_section, shards, spare_the_disk

# Keys that differ in their first half, in their second, at an end only; some are zero.
ALL_KEYS = np.zeros((60, 16), dtype=np.uint8)
ALL_KEYS[:20, 0], ALL_KEYS[20:40, 15] = np.arange(20) * 13, np.arange(1, 21)
ALL_KEYS[40:, 7], ALL_KEYS[40:, 8] = np.arange(20) // 4 + 1, np.arange(20) % 4 * 85


def in_small_pieces():
    """Runs of over 5 entries go to files, by pieces of 3; look-ups take 7 keys."""
    return mock.patch.multiple(
        _index, _MEMORY_ENTRIES=5, _PIECE_ENTRIES=3, _FIND_KEYS=7
    )


def digests(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 16), dtype=np.uint8)


def in_file(run):
    return isinstance(getattr(run.base, "base", None), mmap.mmap)


def assert_same(index, model):
    """The index finds, of each key, the copy that was added first."""
    shard, row = index.find(ALL_KEYS)
    assert shard.dtype == row.dtype == np.int32
    for key in range(len(ALL_KEYS)):
        copies = model.get(key, [])
        assert shard[key] == (copies[0][0] if copies else -1)
        if copies:
            assert row[key] == copies[0][1]


@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 59), min_size=1, max_size=14),
            st.sets(st.integers(0, 9), max_size=4),
            st.just("count"),
        ),
        max_size=16,
    )
)
def test_index_in_files_agrees_with_a_dict(operations):
    model: dict[int, list[tuple[int, int]]] = {}
    n_shards = 0
    with in_small_pieces():
        index = KeyIndex()
        for operation in operations:
            if operation == "count":
                assert index.n_distinct() == len(model)
            elif isinstance(operation, set):
                index.discard(*operation)
                for key, copies in list(model.items()):
                    model[key] = [c for c in copies if c[0] not in operation]
                    if not model[key]:
                        del model[key]
            else:
                index.add(ALL_KEYS[operation], n_shards)
                for row, key in enumerate(operation):
                    model.setdefault(key, []).append((n_shards, row))
                n_shards += 1
            assert_same(index, model)
            for run in index._runs:
                # Sorted, never empty, and in a file if long.
                keys = [tuple(column) for column in run[:2].T.tolist()]
                assert keys == sorted(keys) != []
                assert in_file(run) == (len(keys) > 5)
        assert index.n_distinct() == len(model)
        assert sum(run.shape[1] for run in index._runs) == sum(map(len, model.values()))
        index.discard(*range(n_shards))
        assert index._runs == []
        assert_same(index, {})
        assert index.n_distinct() == 0


def test_long_index_is_merged_and_searched_in_pieces():
    keys = digests(6000)
    lengths, merged = [], _index._merge_pieces

    def noting(*args):
        for piece in merged(*args):
            lengths.append(piece.shape[1])
            yield piece

    with (
        mock.patch.multiple(_index, _MEMORY_ENTRIES=500, _PIECE_ENTRIES=64),
        mock.patch.object(_index, "_merge_pieces", noting),
    ):
        index = KeyIndex()
        for number, part in enumerate(np.split(keys, 60)):
            index.add(part, number)
        assert 1 < len(index._runs) < 8
        order = np.random.default_rng(1).permutation(6000)
        shard, row = index.find(keys[order])
        np.testing.assert_array_equal(shard * 100 + row, order)
        assert (index.find(digests(600, seed=2))[0] == -1).all()
        index.discard(*range(1, 60, 2))
        shard, _ = index.find(keys)
        np.testing.assert_array_equal(shard >= 0, np.arange(6000) // 100 % 2 == 0)
        assert index.n_distinct() == 3000
        assert len(index._runs) == 1
    assert 64 < max(lengths) <= 128


new_file = tempfile.TemporaryFile


def no_folder(*args, **settings):
    raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")


class FullDisk:
    """A temporary file that takes some bytes, and no more."""

    def __init__(self):
        self._file, self._left = new_file(), 100

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._file.close()

    def seek(self, offset):
        self._file.seek(offset)

    def write(self, content):
        self._left -= content.nbytes
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self._file.write(content)


@pytest.mark.parametrize("broken", [no_folder, FullDisk])
def test_index_without_room_for_files_is_in_memory(broken):
    keys = digests(60)
    with (
        in_small_pieces(),
        mock.patch("sk_calex.store._index.tempfile.TemporaryFile", broken),
    ):
        index = KeyIndex()
        for number, part in enumerate(np.split(keys, 6)):
            index.add(part, number)
        index.discard(3)
        assert index.n_distinct() == 50
        assert not any(map(in_file, index._runs))
    shard, row = index.find(keys)
    stored = np.arange(60) // 10 != 3
    np.testing.assert_array_equal((shard * 10 + row)[stored], np.flatnonzero(stored))
    assert (shard[~stored] == -1).all()


def test_interrupted_merge_leaves_the_index_as_it_was():
    keys = digests(40)

    def interrupt(*args):
        raise KeyboardInterrupt

    with in_small_pieces():
        index = KeyIndex()
        index.add(keys[:20], 0)
        with (
            mock.patch.object(_index, "_in_file", interrupt),
            pytest.raises(KeyboardInterrupt),
        ):
            index.add(keys[20:], 1)
        shard, row = index.find(keys)
        np.testing.assert_array_equal(shard * 20 + row, np.arange(40))


def test_section_with_its_index_in_files_reads_right_rows(tmp_path, monkeypatch):
    spare_the_disk(monkeypatch)
    keys, rows = make_rows(200)
    with in_small_pieces():
        writer = open_section(tmp_path / "store")
        for part in np.array_split(np.arange(200), 9):
            writer.write(keys[part], rows[part])
        section = open_section(tmp_path / "store")
        for each in (writer, section):
            assert assert_right(each, keys, rows).all()
            assert each.n_rows == 200
        for path in shards(tmp_path / "store")[:4]:
            path.unlink()
        with pytest.warns(StoreWarning, match="4 shards of .* are gone"):
            found = assert_right(section, keys, rows)
        assert section.write(keys, rows) == 200 - found.sum()
        assert assert_right(section, keys, rows).all()


# The pieces in which rows are read


@given(
    st.lists(st.integers(0, 199), max_size=60).map(sorted),
    st.integers(1, 40),
    st.integers(0, 60),
    st.integers(0, 200),
    st.integers(1, 300),
)
def test_pieces_hold_the_wanted_rows(wanted, row_bytes, gap, sparse, block):
    wanted = np.array(wanted, dtype=np.int32)
    end = 0
    with mock.patch.multiple(
        _shard, _GAP_BYTES=gap, _SPARSE_BYTES=sparse, _BLOCK_BYTES=block
    ):
        for part in _shard.blocks(wanted, row_bytes):
            pieces = [
                np.arange(first, first + count)
                for first, count in zip(part.first, part.length, strict=True)
            ]
            read = np.concatenate(pieces)
            rows = read if part.inside is None else read[part.inside]
            np.testing.assert_array_equal(rows, wanted[part.rows])
            # What is read and what is returned are bounded, and so is what is wasted.
            assert max(len(read), len(rows)) <= max(1, block // row_bytes)
            assert len(read) - len(rows) <= len(rows) * (gap // row_bytes)
            assert part.rows.start == end
            end = part.rows.stop
    assert end == len(wanted)


@given(
    st.sets(st.integers(0, 10**5), min_size=1, max_size=200).map(sorted),
    st.integers(1, 10**5),
)
def test_random_rows_read_at_most_eight_kibibytes_each_beside_themselves(
    wanted, row_bytes
):
    wanted = np.array(wanted, dtype=np.int32)
    n_read = sum(part.length.sum() for part in _shard.blocks(wanted, row_bytes))
    assert n_read * row_bytes <= len(wanted) * (row_bytes + 8 * 2**10)


@pytest.mark.parametrize(
    ("step", "n_pieces", "n_read"),
    [(1, 1, 100), (5, 1, 496), (50, 100, 100)],
    ids=["neighbours", "near", "far"],
)
def test_near_rows_are_read_at_once_and_far_ones_one_by_one(step, n_pieces, n_read):
    (block,) = _shard.blocks(np.arange(0, 100 * step, step), 256)
    assert len(block.first) == n_pieces
    assert block.length.sum() == n_read
    assert (block.inside is None) == (step != 5)


def test_near_rows_with_a_wide_gap_are_read_in_two_pieces():
    wanted = np.r_[0:50, 400:450]
    (block,) = _shard.blocks(wanted, 256)
    np.testing.assert_array_equal(block.first, [0, 400])
    np.testing.assert_array_equal(block.length, [50, 50])
    assert block.inside is None


@pytest.fixture
def one_shard(tmp_path, monkeypatch):
    spare_the_disk(monkeypatch)
    keys, rows = make_rows(100)
    section = open_section(tmp_path / "store")
    section.write(keys, rows)
    return section, keys, rows


@given(st.lists(st.integers(0, 99), max_size=30).map(sorted), st.booleans())
def test_rows_of_a_shard_are_right_for_any_selection(tmp_path_factory, wanted, sparse):
    folder = tmp_path_factory.getbasetemp() / "rows_of_a_shard"
    keys, rows = make_rows(100)
    with spare_the_disk():
        section = open_section(folder)
        section.write(keys, rows)
    (path,) = shards(folder)
    wanted = np.array(wanted, dtype=np.int32)
    shard = _shard.ShardReader(path, section._layout)
    with mock.patch.multiple(
        _shard,
        _GAP_BYTES=60,
        _SPARSE_BYTES=0 if sparse else 2**20,
        _BLOCK_BYTES=240,
    ):
        for part, block in shard.rows(wanted):
            np.testing.assert_array_equal(block, rows[wanted[part]])


def a_byte_less(descriptor, size, offset):
    """The system may return less than was asked for."""
    return os.pread(descriptor, max(1, size - 1), offset)


@pytest.mark.skipif(not hasattr(os, "pread"), reason="no pread")
@pytest.mark.parametrize("pread", [a_byte_less, _shard._seek_and_read])
def test_rows_are_right_without_pread_and_with_short_reads(
    one_shard, monkeypatch, pread
):
    section, keys, rows = one_shard
    monkeypatch.setattr(_shard, "_pread", pread)
    monkeypatch.setattr(_shard, "_SPARSE_BYTES", 0)
    (path,) = shards(section._folder.path.parent)
    assert assert_right(section, keys[::-1], rows[::-1]).all()
    os.truncate(path, path.stat().st_size - 1)
    with pytest.warns(StoreWarning, match="has a size"):
        assert not assert_right(section, keys, rows).any()


@pytest.mark.parametrize("sparse", [0, 2**20])
def test_shard_that_shrinks_ends_too_early(one_shard, monkeypatch, sparse):
    section, _, rows = one_shard
    monkeypatch.setattr(_shard, "_SPARSE_BYTES", sparse)
    (path,) = shards(section._folder.path.parent)
    shard = _shard.ShardReader(path, section._layout)
    os.truncate(path, path.stat().st_size - 1)
    ((_, first),) = shard.rows(np.arange(99))
    np.testing.assert_array_equal(first, rows[:99])
    with pytest.raises(_shard.DamagedFile, match="ends too early"):
        list(shard.rows(np.array([3, 50, 99])))
