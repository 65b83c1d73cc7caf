"""The feature store when nothing goes wrong, and when it is asked wrong things."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import tracemalloc
import weakref
from pathlib import Path

import joblib
import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn.base import BaseEstimator, clone

from sk_calex.store import FeatureStore, Section, StoreWarning, row_keys

from ._helpers import FINGERPRINT, WIDTH, make_rows, read


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "store")


@pytest.fixture
def section(store):
    return store.section(FINGERPRINT, WIDTH, "float32")


# Reading and writing


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rows_are_read_in_any_subset_order_and_repetition(store, dtype):
    section = store.section(FINGERPRINT, WIDTH, dtype)
    keys, rows = make_rows(50)
    for part in (slice(0, 20), slice(20, 21), slice(21, 50)):
        assert section.write(keys[part], rows[part]) == part.stop - part.start
    rng = np.random.default_rng(1)
    for which in (np.arange(50), np.arange(50)[::-1], rng.integers(0, 50, 200), [3]):
        assert section.find(keys[which]).all()
        found, out = read(section, keys[which], dtype)
        assert found.all()
        np.testing.assert_array_equal(out, rows[which].astype(dtype))
        np.testing.assert_array_equal(section.gather(keys[which]), out)
    assert section.n_rows == 50


def test_missing_rows_are_reported_and_left_alone(section):
    keys, rows = make_rows(10)
    section.write(keys[::2], rows[::2])
    found, out = read(section, keys)
    np.testing.assert_array_equal(found, np.arange(10) % 2 == 0)
    np.testing.assert_array_equal(section.find(keys), found)
    np.testing.assert_array_equal(out[found], rows[::2])
    assert (out[~found] == -7).all()


def test_rows_of_many_blocks_with_gaps_are_read(store):
    width = 300_000  # 1.2 MB a row: a block holds three
    section = store.section(FINGERPRINT, width, "float32")
    keys, _ = make_rows(12)
    rows = np.arange(12, dtype=np.float32)[:, None] + np.zeros(width, np.float32)
    section.write(keys, rows)
    for which in ([0, 1, 2, 3, 4, 5, 6], [11, 0, 5, 5, 5, 5, 5, 6, 6, 2], [2, 0, 0]):
        found, out = read(section, keys[list(which)])
        assert found.all()
        np.testing.assert_array_equal(out[:, [0, -1]], rows[list(which)][:, [0, -1]])


def test_reading_a_block_over_small_gaps(store):
    section = store.section(FINGERPRINT, 1000, "float32")  # a gap is 8 rows
    keys, rows = make_rows(200, width=1000)
    section.write(keys, rows)
    for step in (2, 7, 8, 9, 10, 50):
        found, out = read(section, keys[::step])
        assert found.all()
        np.testing.assert_array_equal(out, rows[::step])


def test_rows_are_stored_once(section):
    keys, rows = make_rows(10)
    assert section.write(keys[:6], rows[:6]) == 6
    assert section.write(keys[:6], rows[:6]) == 0
    batch = [4, 8, 5, 8, 9, 8]
    other = rows[batch].copy()
    other[[3, 5]] = 0  # later rows of the same key do not count
    assert section.write(keys[batch], other) == 2
    assert section.n_rows == 8
    found, out = read(section, keys)
    np.testing.assert_array_equal(out[found], rows[[0, 1, 2, 3, 4, 5, 8, 9]])


def test_writing_nothing_makes_no_file(store, section):
    keys, rows = make_rows(0)
    assert section.write(keys, rows) == 0
    assert not store.folder.exists()
    assert section.find(keys).shape == (0,)
    assert section.read(keys, rows).shape == (0,)
    assert section.gather(keys).shape == (0, WIDTH)
    assert section.n_rows == 0
    assert store.info()["sections"] == 0


def test_read_into_other_dtypes_and_maps(tmp_path, section):
    keys, rows = make_rows(10)
    section.write(keys, rows)
    mapped = np.memmap(tmp_path / "out", np.float32, mode="w+", shape=rows.shape)
    strided = np.zeros((10, 2 * WIDTH), np.float32)[:, ::2]
    for out in (mapped, strided, np.zeros_like(rows, dtype="f8")):
        assert section.read(keys, out).all()
        np.testing.assert_array_equal(out, rows)
    half = np.zeros_like(rows, dtype=np.float16)
    assert section.read(keys, half).all()
    np.testing.assert_array_equal(half, rows.astype(np.float16))


def test_float64_rows_are_rounded_and_order_of_memory_is_free(section):
    keys, rows = make_rows(4)
    fine = np.asfortranarray(rows.astype(np.float64) + 1e-12)
    section.write(keys, fine)
    np.testing.assert_array_equal(read(section, keys)[1], fine.astype(np.float32))


def test_fingerprints_are_isolated(store):
    keys, rows = make_rows(5)
    first = store.section("aaaaaaaa", WIDTH, "float32")
    second = store.section("bbbbbbbb", WIDTH, "float32")
    first.write(keys, rows)
    assert not second.find(keys).any()
    second.write(keys[:2], rows[:2] + 1)
    np.testing.assert_array_equal(read(first, keys)[1], rows)
    np.testing.assert_array_equal(read(second, keys[:2])[1], rows[:2] + 1)
    info = store.info()
    assert (info["rows"], info["sections"]) == (7, 2)
    assert info["bytes"] == sum(
        path.stat().st_size for path in store.folder.rglob("*.safetensors")
    )


def test_another_store_sees_later_rows(tmp_path):
    keys, rows = make_rows(10)
    writer, reader = (
        FeatureStore(tmp_path).section(FINGERPRINT, WIDTH, "float32") for _ in "ab"
    )
    assert not reader.find(keys).any()
    writer.write(keys[:5], rows[:5])
    assert reader.find(keys[:5]).all()
    writer.write(keys[5:], rows[5:])
    assert reader.write(keys, rows) == 0
    np.testing.assert_array_equal(read(reader, keys)[1], rows)


def test_shards_are_plain_safetensors(store, section):
    keys, rows = make_rows(5)
    section.write(keys, rows)
    (path,) = store.folder.rglob("*.safetensors")
    content = load_file(path)
    np.testing.assert_array_equal(content["keys"], keys)
    np.testing.assert_array_equal(content["rows"], rows)
    assert json.loads((path.parent / "section.json").read_text())["width"] == WIDTH


# Gathering


def test_gathered_map_is_removed_with_its_array(store, section):
    keys, rows = make_rows(100)
    section.write(keys, rows)
    which = np.random.default_rng(0).permutation(100)
    mapped = section.gather(keys[which], memory_limit=1000)
    assert isinstance(mapped, np.memmap)
    assert not mapped.flags.writeable
    np.testing.assert_array_equal(mapped, rows[which])
    assert isinstance(section.gather(keys, memory_limit=rows.nbytes), np.ndarray)

    files = set(os.listdir(store.folder / FINGERPRINT))
    (name,) = (name for name in files if name.endswith(".tmp"))
    # Another open, which sweeps, spares it; the end of the last view removes it.
    FeatureStore(store.folder).section(FINGERPRINT, WIDTH, "float32")
    assert set(os.listdir(store.folder / FINGERPRINT)) == files
    part = mapped[10:20]
    del mapped
    gc.collect()
    np.testing.assert_array_equal(part, rows[which][10:20])
    assert set(os.listdir(store.folder / FINGERPRINT)) == files
    del part
    gc.collect()
    assert set(os.listdir(store.folder / FINGERPRINT)) == files - {name}


def test_joblib_workers_read_a_gathered_map(section):
    keys, rows = make_rows(100)
    section.write(keys, rows)
    mapped = section.gather(keys, memory_limit=100)
    sums = joblib.Parallel(n_jobs=2)(
        joblib.delayed(np.sum)(mapped[i:], dtype="f8") for i in range(3)
    )
    np.testing.assert_allclose(sums, [rows[i:].sum(dtype="f8") for i in range(3)])


def test_memory_of_gather_is_bounded(store):
    width = 4096
    section = store.section(FINGERPRINT, width, "float32")
    keys, _ = make_rows(2400)
    for start in range(0, 2400, 400):
        rows = np.full((400, width), start, dtype=np.float32)
        section.write(keys[start : start + 400], rows)
    order = np.random.default_rng(0).permutation(2400)
    tracemalloc.start()
    try:
        mapped = section.gather(keys[order], memory_limit=2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 1 MiB of chunk, a block of 4 MiB and the index, for 38 MiB of rows.
    assert peak < 12 * 2**20 < mapped.nbytes / 3
    np.testing.assert_array_equal(mapped[:, 0], order // 400 * 400)


def test_memory_of_reading_one_row_many_times_is_bounded(store):
    section = store.section(FINGERPRINT, 1000, "float32")
    keys, rows = make_rows(2, width=1000)
    section.write(keys, rows)
    many = np.repeat(keys, 2500, axis=0)
    out = np.empty((5000, 1000), dtype=np.float32)  # 19 MiB
    tracemalloc.start()
    try:
        assert section.read(many, out).all()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 10 * 2**20
    np.testing.assert_array_equal(out[2499:2501], rows)


def test_gather_counts_what_is_missing(section):
    keys, rows = make_rows(10)
    section.write(keys[:7], rows[:7])
    for limit in (0, 2**20):
        with pytest.raises(KeyError, match="3 of 10 rows are not in"):
            section.gather(keys, memory_limit=limit)


# Settings


def test_stores_and_sections_are_pickled_as_settings(store, section, monkeypatch):
    keys, rows = make_rows(5)
    section.write(keys, rows)
    for twin in (pickle.loads(pickle.dumps(section)), copy.deepcopy(section)):
        assert isinstance(twin, Section)
        np.testing.assert_array_equal(read(twin, keys)[1], rows)
        assert len(pickle.dumps(section)) < 500
    again = pickle.loads(pickle.dumps(store))
    assert repr(again) == repr(store)
    twin = again.section(FINGERPRINT, WIDTH, "float32")
    np.testing.assert_array_equal(read(twin, keys)[1], rows)
    assert FINGERPRINT in repr(section)


def test_stores_with_equal_settings_are_equal(tmp_path):
    settings = [{}, {"verify": "always"}, {"max_bytes": 10**9}]
    stores = [FeatureStore(tmp_path / "a", **each) for each in settings]
    stores.append(FeatureStore(tmp_path / "b"))
    for store in stores:
        for twin in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
            assert twin is not store
            assert twin == store
            assert hash(twin) == hash(store)
            assert repr(twin) == repr(store)
    assert len(set(stores)) == 4
    assert stores[0] != "a"
    assert repr(stores[2]) == (
        f"FeatureStore({str(tmp_path / 'a')!r}, max_bytes=1000000000, verify='first')"
    )


class Holder(BaseEstimator):
    def __init__(self, store=None):
        self.store = store


def test_estimator_that_holds_a_store_is_cloned(store):
    copied = clone(Holder(store))
    assert copied.store == store
    assert copied.get_params() == {"store": store}


def test_folder_is_absolute_and_made_by_the_first_write(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert FeatureStore("~/a/b").folder == tmp_path / "a" / "b"
    store = FeatureStore(Path("a"))
    assert store.folder == tmp_path / "a"
    section = store.section(FINGERPRINT, WIDTH, "float32")
    assert os.listdir(tmp_path) == []
    section.write(*make_rows(1))
    assert os.listdir(tmp_path) == ["a"]


def test_section_is_opened_once_while_it_is_held(store):
    first = store.section(FINGERPRINT, WIDTH, "float32")
    assert store.section(FINGERPRINT, WIDTH, "float32") is first
    held = weakref.ref(first)
    del first
    assert held() is None


# Wrong requests


@pytest.mark.parametrize(
    "fingerprint",
    ["", "../../etc", "abc", "ABCDEF0123", "0123abc/", "0" * 129, b"01234567", None],
)
def test_fingerprint_must_be_hexadecimal(store, fingerprint):
    with pytest.raises(ValueError, match="fingerprint must be 8 to 128"):
        store.section(fingerprint, WIDTH, "float32")


@pytest.mark.parametrize("width", [0, -1, 2**40, 3.0, True, "3"])
def test_width_must_be_a_positive_int(store, width):
    with pytest.raises(ValueError, match="width must be an int"):
        store.section(FINGERPRINT, width, "float32")


@pytest.mark.parametrize("dtype", ["float64", "O", ["float32"], np.float32])
def test_dtype_must_be_known(store, dtype):
    with pytest.raises(ValueError, match="dtype must be 'float32', 'float16' or"):
        store.section(FINGERPRINT, WIDTH, dtype)


@pytest.mark.parametrize(("width", "dtype"), [(WIDTH + 1, "float32"), (6, "float16")])
def test_section_has_one_width_and_dtype(store, section, width, dtype):
    section.write(*make_rows(1))
    for opener in (store, FeatureStore(store.folder)):
        with pytest.raises(ValueError, match=r"holds rows of width 6 .* asked for"):
            opener.section(FINGERPRINT, width, dtype)


def test_store_refuses_bad_settings(tmp_path):
    with pytest.raises(ValueError, match=r"verify must be .* got 'sometimes'"):
        FeatureStore(tmp_path, verify="sometimes")
    with pytest.raises(ValueError, match="folder must not be empty"):
        FeatureStore("")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="got the file"):
        FeatureStore(tmp_path / "file")


@pytest.mark.parametrize(
    "keys",
    [
        np.zeros((3, 15), np.uint8),
        np.zeros((3, 16), np.int8),
        np.zeros(16, np.uint8),
        ["a"],
    ],
)
def test_keys_are_checked(section, keys):
    for call in (
        section.find,
        section.gather,
        lambda keys: section.write(keys, np.zeros((3, WIDTH))),
        lambda keys: section.read(keys, np.zeros((3, WIDTH))),
    ):
        with pytest.raises(ValueError, match=r"keys must be .* make it with row_keys"):
            call(keys)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (np.zeros((4, WIDTH)), r"floats of shape \(3, 6\)"),
        (np.zeros((3, WIDTH + 1)), r"floats of shape \(3, 6\)"),
        (np.zeros((3, WIDTH), int), "got dtype int64"),
        (np.full((3, WIDTH), np.nan), "3 of 3 .*NaN or infinite"),
        (np.diag([0, 1, np.inf])[:, [0, 1, 2, 0, 1, 2]] + 0.0, "NaN or infinite"),
        (np.full((3, WIDTH), 1e300), "too large for float32"),
    ],
)
def test_rows_are_checked_before_anything_is_written(store, section, rows, match):
    with np.errstate(invalid="ignore"), pytest.raises(ValueError, match=match):
        section.write(make_rows(3)[0], rows)
    assert not store.folder.exists()


def test_rows_too_large_for_float16_raise(store):
    keys, rows = make_rows(3)
    rows[1, 2] = 70_000
    half = store.section("aaaaaaaa", WIDTH, "float16")
    with pytest.raises(
        ValueError, match=r"1 of 3 \(the first is 1\) hold values too large for float16"
    ):
        half.write(keys, rows)
    single = store.section("bbbbbbbb", WIDTH, "float32")
    single.write(keys, rows)
    with pytest.raises(ValueError, match="out of dtype float16 cannot hold"):
        single.read(keys, np.zeros((3, WIDTH), np.float16))


def test_bytes_are_kept_as_they_are_and_never_converted(store):
    rng = np.random.default_rng(0)
    keys, rows = row_keys(np.arange(40)), rng.integers(0, 256, (40, 7), np.uint8)
    section = store.section(FINGERPRINT, 7, "uint8")
    assert section.write(keys, rows) == 40
    which = rng.integers(0, 40, 100)
    out = np.zeros((100, 7), np.uint8)
    assert section.read(keys[which], out).all()
    np.testing.assert_array_equal(out, rows[which])
    mapped = section.gather(keys[which], memory_limit=100)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, rows[which])
    assert FeatureStore(store.folder).info()["by_section"][FINGERPRINT]["rows"] == 40
    assert FeatureStore(store.folder).verify().ok
    for dtype in (np.float32, np.int8, np.uint16):
        with pytest.raises(ValueError, match="rows must be uint8 of shape"):
            section.write(keys, rows.astype(dtype))
        with pytest.raises(ValueError, match="out must be a writeable array of uint8"):
            section.read(keys, np.zeros((40, 7), dtype))


def test_write_of_too_many_rows_raises(store, monkeypatch):
    monkeypatch.setattr("sk_calex.store._section.MAX_SHARD_ROWS", 2)
    section = store.section(FINGERPRINT, WIDTH, "float32")
    with pytest.raises(ValueError, match="at most 2 in one call, got 3"):
        section.write(*make_rows(3))


@pytest.mark.parametrize(
    "out",
    [np.zeros((2, WIDTH)), np.zeros((3, WIDTH), int), [[0.0] * WIDTH] * 3],
)
def test_out_is_checked(section, out):
    with pytest.raises(ValueError, match="out must be"):
        section.read(make_rows(3)[0], out)
    frozen = np.zeros((3, WIDTH))
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match="writeable=False"):
        section.read(make_rows(3)[0], frozen)


def test_warning_has_a_class_of_its_own():
    assert issubclass(StoreWarning, UserWarning)


@pytest.mark.parametrize(("limit", "to_gather"), [(10**6, 0), (0, 24)])
def test_rows_that_will_not_fit_on_the_disk_warn(store, monkeypatch, limit, to_gather):
    section = store.section(FINGERPRINT, WIDTH, "float32")
    section.write(*make_rows(10))
    needed = 90 * (16 + 24) + 100 * to_gather
    space = "sk_calex.store._section.free_disk_space"
    monkeypatch.setattr(space, lambda folder: needed)
    assert section.check_space(100, memory_limit=limit) == needed
    monkeypatch.setattr(space, lambda folder: needed - 1)
    match = f"take {needed:,} bytes .* Only {needed - 1:,} bytes are free. Tap fewer"
    with pytest.warns(StoreWarning, match=match):
        section.check_space(100, memory_limit=limit)
