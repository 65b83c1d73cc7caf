"""Rows that stay in the store: any columns of any rows, and what is lost meanwhile."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sk_calex.store import FeatureStore, _shard_file
from tests.store._helpers import FINGERPRINT, fill, folder, make_rows, shards

__all__ = ["folder"]  # a fixture


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A section of several shards whose rows are wider than the gap between reads."""
    keys, rows = make_rows(60, width=6_000)
    path = tmp_path_factory.mktemp("wide")
    section = FeatureStore(path).section(FINGERPRINT, 6_000, "float32")
    for start in range(0, 60, 20):
        section.write(keys[start : start + 20], rows[start : start + 20])
    return section, keys, rows


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 59), max_size=80),
    st.sampled_from([(0, 1), (17, 2_500), (0, 5_990), (3, 6_000), (5_999, 6_000)]),
)
def test_columns_of_rows_are_those_of_the_whole_rows(wide, picked, columns):
    """Parts that are read alone, and parts of rows that are read whole."""
    section, keys, rows = wide
    picked, columns = np.array(picked, dtype=np.intp), slice(*columns)
    out = np.zeros((len(picked), columns.stop - columns.start), dtype=np.float32)
    assert section.read(keys[picked], out, columns).all()
    np.testing.assert_array_equal(out, rows[picked, columns])
    lazy = section.on_demand(keys)
    np.testing.assert_array_equal(lazy.read(columns, picked), rows[picked, columns])
    np.testing.assert_array_equal(lazy[picked].read(slice(-7, None)), rows[picked, -7:])


def test_few_columns_of_neighbouring_rows_read_little_else(wide, monkeypatch):
    section, keys, rows = wide
    n_bytes, pread = [], _shard_file._pread

    def counted(descriptor, size, offset):
        n_bytes.append(size)
        return pread(descriptor, size, offset)

    lazy = section.on_demand(keys)
    monkeypatch.setattr(_shard_file, "_pread", counted)
    np.testing.assert_array_equal(lazy.read(slice(10, 14)), rows[:, 10:14])
    assert sum(n_bytes) == 60 * 4 * rows.itemsize


@pytest.mark.parametrize(
    "columns", [slice(0, 4, 2), slice(4, 2), slice(9, 12), slice(3, 0, -1)]
)
def test_columns_must_be_neighbours(folder, columns):
    section, keys, _ = fill(folder)
    with pytest.raises(ValueError, match="columns must be a slice of neighbouring"):
        section.read(keys, np.zeros((len(keys), 2), dtype=np.float32), columns)


def test_out_must_fit_the_columns(folder):
    section, keys, _ = fill(folder)
    with pytest.raises(ValueError, match=r"out must be an ndarray of shape \(80, 2\)"):
        section.read(keys, np.zeros((80, 6), dtype=np.float32), slice(1, 3))


def test_rows_say_what_they_are_and_are_sent_as_keys(folder):
    section, keys, rows = fill(folder)
    lazy = section.on_demand(keys)
    assert (lazy.shape, lazy.dtype, lazy.ndim) == (rows.shape, rows.dtype, 2)
    assert lazy.nbytes == rows.nbytes
    assert len(lazy[3:8]) == 5
    sent = pickle.dumps(lazy)
    np.testing.assert_array_equal(pickle.loads(sent).read(), rows)
    assert not list(folder.glob("*/*.tmp")), "no second copy"


def test_rows_that_are_not_stored_are_refused_at_once(folder):
    section, keys, _ = fill(folder)
    other, _ = make_rows(3, seed=9)
    with pytest.raises(KeyError, match="3 of 83 rows are not in"):
        section.on_demand(np.concatenate([keys, other]))


@pytest.mark.filterwarnings("ignore::sk_calex.store.StoreWarning")
def test_damage_is_found_before_the_rows_are_handed_out(folder):
    section, keys, _ = fill(folder)
    path = shards(folder)[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(KeyError, match="10 of 80 rows are not in"):
        section.on_demand(keys)
    assert section.find(keys).sum() == 70


@pytest.mark.filterwarnings("ignore::sk_calex.store.StoreWarning")
def test_rows_that_are_lost_later_are_an_error_that_says_what_to_do(folder):
    section, keys, rows = fill(folder)
    lazy = section.on_demand(keys)
    shards(folder)[0].unlink()
    with pytest.raises(OSError, match=r"10 of 80 rows of .*Call transform again"):
        lazy.read()
    found = section.find(keys)
    np.testing.assert_array_equal(lazy[found].read(), rows[found])


def test_an_open_section_is_not_evicted(folder):
    section, keys, rows = fill(folder)
    lazy = section.on_demand(keys)
    section = None
    store = FeatureStore(folder, max_bytes=1)
    other, more = make_rows(5, seed=3)
    with pytest.warns(UserWarning, match="grows beyond"):
        store.section("ab" * 8, 6, "float32").write(other, more)
    np.testing.assert_array_equal(lazy.read(), rows)
