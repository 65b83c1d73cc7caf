"""The feature store with damaged, missing and crafted files."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import warnings

import numpy as np
import pytest

from sk_calex.store import FeatureStore, StoreWarning
from sk_calex.store import _shard_file as _shard

from ._helpers import (
    N_FLIPS,
    WIDTH,
    assert_right,
    assert_works_again,
    flip,
    folder,
    make_rows,
    open_section,
    overwrite,
    read,
    shards,
)

__all__ = ["folder"]  # a fixture


def open_and_read(folder, keys, rows, verify="first", section=None):
    section = section or open_section(folder, verify=verify)
    return section, assert_right(section, keys, rows)


# Damage


@pytest.mark.parametrize("verify", ["first", "always"])
def test_every_flipped_byte_is_found(folder, verify):
    keys, rows = make_rows(40)
    open_section(folder).write(keys, rows)
    (path,) = shards(folder)
    size = path.stat().st_size
    rng = random.Random(0)
    offsets = [rng.randrange(size) for _ in range(N_FLIPS)]
    for offset in [*offsets, 0, 8, 1023, 1024, 1024 + 40 * 16, size - 1]:
        mask = 1 << rng.randrange(8)
        flip(path, offset, mask)
        with pytest.warns(StoreWarning, match=path.name) as record:
            section, found = open_and_read(folder, keys, rows, verify)
        assert len(record) == 1
        assert not found.any()
        assert not section.find(keys).any()  # and no second warning
        flip(path, offset, mask)
    # A new copy of the shard takes the place of the damaged one.
    flip(path, 2000, 1)
    with pytest.warns(StoreWarning, match=path.name):
        section, _ = open_and_read(folder, keys, rows, verify)
    assert section.write(keys, rows) == 40
    assert shards(folder) == [path]
    assert assert_right(section, keys, rows).all()


def test_damage_after_the_first_read_is_found(folder):
    keys, rows = make_rows(40)
    for verify in ("first", "always"):
        section = open_section(folder, verify=verify)
        section.write(keys, rows)
        assert assert_right(section, keys, rows).all()
        (path,) = shards(folder)
        flip(path, path.stat().st_size - 1, 1)
        os.utime(path, ns=(1, 1))  # whatever the clock's resolution
        with pytest.warns(StoreWarning, match="do not give its digest"):
            assert not assert_right(section, keys, rows).any()
        section.write(keys, rows)


def test_never_verifying_still_compares_keys(folder):
    keys, rows = make_rows(40)
    section = open_section(folder, verify="never")
    section.write(keys, rows)
    (path,) = shards(folder)
    flip(path, path.stat().st_size - 1, 1)
    found, out = read(section, keys)
    assert found.all()
    assert (out != rows).sum() == 1  # what was asked for
    overwrite(path, _shard._HEADER_BYTES, keys[::-1].tobytes())
    with pytest.warns(StoreWarning, match="is not the file that was indexed"):
        assert not read(section, keys)[0].any()


@pytest.mark.parametrize("size", [0, 7, 1023, 1024, 1500, -1, "+1", "x2"])
@pytest.mark.parametrize("when", ["before open", "after open"])
def test_shard_of_another_size_is_a_miss(folder, size, when):
    keys, rows = make_rows(40)
    section = open_section(folder)
    section.write(keys, rows)
    more, more_rows = make_rows(5, seed=1)
    section.write(more, more_rows)
    path = max(shards(folder), key=lambda path: path.stat().st_size)
    whole = path.stat().st_size
    if size == "x2":
        path.write_bytes(path.read_bytes() * 2)
    else:
        os.truncate(path, whole + 1 if size == "+1" else size % whole)
    if when == "before open":
        section = None
    with pytest.warns(StoreWarning, match=path.name) as record:
        section, found = open_and_read(folder, keys, rows, section=section)
    assert len(record) == 1
    assert not found.any()
    assert assert_right(section, more, more_rows).all()
    with pytest.raises(KeyError, match="40 of 45"):
        section.gather(np.concatenate([keys, more]))


def test_shard_that_shrinks_while_it_is_read_is_a_miss(folder, monkeypatch):
    keys, rows = make_rows(40)
    section = open_section(folder, verify="never")
    section.write(keys, rows)
    (path,) = shards(folder)

    def shrink(shard):
        os.truncate(path, 1100)
        return keys

    monkeypatch.setattr(_shard.ShardReader, "keys", shrink)
    with pytest.warns(StoreWarning, match="has a size"):
        assert not assert_right(section, keys, rows).any()


def test_removed_shard_is_a_miss(folder):
    keys, rows = make_rows(40)
    section = open_section(folder)
    for start in range(0, 40, 10):
        section.write(keys[start : start + 10], rows[start : start + 10])
    for path in shards(folder)[:3]:
        path.unlink()
    with pytest.warns(StoreWarning, match=r"3 shards of .* are gone") as record:
        found = assert_right(section, keys, rows)
    assert len(record) == 1
    assert found.sum() == 10
    shutil.rmtree(folder)
    with pytest.warns(StoreWarning, match=r"1 shards of .* are gone"):
        assert not assert_right(section, keys, rows).any()
    assert section.write(keys, rows) == 40
    assert_works_again(folder, keys, rows)


def test_rows_of_a_removed_shard_are_written_again(folder):
    keys, rows = make_rows(40)
    section = open_section(folder)
    section.write(keys, rows)
    (path,) = shards(folder)
    path.unlink()
    with pytest.warns(StoreWarning, match=r"1 shards of .* are gone"):
        assert section.write(keys, rows) == 40
    assert assert_right(section, keys, rows).all()


@pytest.mark.parametrize("damaged", ["large", "small"])
def test_rows_of_a_damaged_shard_are_read_from_another_copy(folder, damaged):
    keys, rows = make_rows(40)
    # As two writers at once do it: neither has seen the other's shard.
    first, second = open_section(folder), open_section(folder)
    second._folder.shards.rescan = lambda: None
    first.write(keys, rows)
    second.write(keys[:30], rows[:30])
    section = open_section(folder)
    assert section.n_rows == 40
    small, large = sorted(shards(folder), key=lambda path: path.stat().st_size)
    path = large if damaged == "large" else small
    flip(path, 1700, 4)
    # One order of the two in the index needs the second copy, the other does not.
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        found = assert_right(section, keys, rows)
    assert all(path.name in str(warning.message) for warning in record)
    np.testing.assert_array_equal(found, np.arange(40) < (30 if path is large else 40))


def test_shard_that_another_process_repairs_is_used_again(folder):
    keys, rows = make_rows(40)
    section = open_section(folder)
    section.write(keys, rows)
    (path,) = shards(folder)
    content = path.read_bytes()
    flip(path, 2000, 1)
    with pytest.warns(StoreWarning, match=path.name):
        section, found = open_and_read(folder, keys, rows)
    assert not found.any()
    (folder / "repaired").write_bytes(content)
    os.replace(folder / "repaired", path)
    assert assert_right(section, keys, rows).all()


def test_shard_that_changes_at_each_read_is_a_miss(folder, monkeypatch):
    keys, rows = make_rows(40)
    section = open_section(folder)
    section.write(keys, rows)
    flip(shards(folder)[0], 2000, 1)
    monkeypatch.setattr("sk_calex.store._shards.signature_of", lambda path: object())
    with pytest.warns(StoreWarning) as record:
        assert not assert_right(section, keys, rows).any()
    *each, last = [str(warning.message) for warning in record]
    assert all("do not give its digest" in message for message in each)
    assert "change while they are read" in last


def test_shard_removed_between_listing_and_opening_is_a_miss(folder, monkeypatch):
    keys, _ = make_rows(40)
    section = open_section(folder)
    ghost = {f"{'0' * 64}.safetensors": None}
    monkeypatch.setattr("sk_calex.store._files.regular_files", lambda *args: ghost)
    assert not section.find(keys).any()


def damaged_shards(folder, keys, rows):
    """Store rows as four shards and damage the data of three."""
    section = open_section(folder)
    for part in np.split(np.arange(40), 4):
        section.write(keys[part], rows[part])
    damaged = shards(folder)[:3]
    for path in damaged:
        flip(path, 1300)
    return damaged


@pytest.mark.parametrize("limit", [0, 100, 2**20])
def test_gathering_finds_all_that_is_damaged_in_one_pass(folder, limit):
    keys, rows = make_rows(40)
    damaged = damaged_shards(folder, keys, rows)
    section = open_section(folder)
    with (
        pytest.warns(StoreWarning) as record,
        pytest.raises(KeyError, match="30 of 40 rows"),
    ):
        section.gather(keys, memory_limit=limit)
    # One warning for each of them, and none for the second pass.
    told = sorted(str(warning.message) for warning in record)
    assert len(told) == 3
    assert all(path.name in text for path, text in zip(damaged, told, strict=True))
    missing = ~section.find(keys)
    assert section.write(keys[missing], rows[missing]) == 30
    np.testing.assert_array_equal(section.gather(keys, memory_limit=limit), rows)
    assert FeatureStore(folder).verify().shards == 2  # the sound one and the new one


def test_writing_does_not_rely_on_a_damaged_shard(folder):
    keys, rows = make_rows(40)
    damaged_shards(folder, keys, rows)
    section = open_section(folder)
    with pytest.warns(StoreWarning, match="do not give its digest") as record:
        assert section.write(keys, rows) == 30
    assert len(record) == 3
    assert assert_right(open_section(folder), keys, rows).all()


@pytest.mark.parametrize("where", ["header", "data"])
def test_pickled_section_keeps_the_list_of_damaged_shards(folder, where, monkeypatch):
    keys, rows = make_rows(40)
    section = open_section(folder)
    section.write(keys, rows)
    flip(shards(folder)[0], {"header": 0, "data": 2000}[where])
    section = open_section(folder) if where == "data" else None
    with pytest.warns(StoreWarning, match="ignored"):
        section, _ = open_and_read(folder, keys, rows, section=section)
    monkeypatch.setattr(
        "sk_calex.store._warnings._reported", set()
    )  # as in a new process
    copied = pickle.loads(pickle.dumps(section))
    assert not assert_right(copied, keys, rows).any()
    assert copied.write(keys, rows) == 40
    assert assert_right(section, keys, rows).all()


def test_unreadable_shard_is_a_miss(folder, monkeypatch):
    keys, rows = make_rows(4)
    section = open_section(folder)
    section.write(keys, rows)

    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(_shard.ShardReader, "verify", fail)
        with pytest.warns(StoreWarning, match=r"is unusable: .*Input/output error"):
            assert not assert_right(section, keys, rows).any()
    # A new look, in a new section, may find it well again.
    assert assert_right(open_section(folder), keys, rows).all()


def test_shard_of_another_section_is_refused(folder):
    keys, rows = make_rows(40)
    open_section(folder).write(keys, rows)
    (path,) = shards(folder)
    other = folder / "ffffffff"
    other.mkdir()
    shutil.copy(path, other)
    with pytest.warns(StoreWarning, match="header that does not fit"):
        section = FeatureStore(folder).section("ffffffff", WIDTH, "float32")
    assert not section.find(keys).any()
