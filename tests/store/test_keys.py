"""The keys of rows and the index over them."""

from __future__ import annotations

import tracemalloc
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sk_calex.store import row_keys
from sk_calex.store._index import KeyIndex


@given(
    hnp.arrays(
        st.sampled_from(["?", "u1", "<i2", ">i8", "<f2", ">f4", "f8"]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    )
)
def test_keys_depend_on_content_not_on_memory_layout(X):
    keys = row_keys(X)
    assert keys.shape == (len(X), 16)
    assert keys.dtype == np.uint8
    doubled = np.repeat(X, 2, axis=-1)
    for same in (
        X.copy(),
        np.asfortranarray(X),
        X.astype(X.dtype.newbyteorder(">")),
        X.astype(X.dtype.newbyteorder("<")),
        X[::-1][::-1],
    ):
        np.testing.assert_array_equal(row_keys(same), keys)
    np.testing.assert_array_equal(row_keys(X[::-1]), keys[::-1])
    if X.ndim > 1:
        np.testing.assert_array_equal(row_keys(doubled[..., ::2]), keys)
    # A sample's key does not depend on the other samples.
    for i in range(len(X)):
        np.testing.assert_array_equal(row_keys(X[i : i + 1])[0], keys[i])


@given(hnp.arrays("u1", (6, 3), elements=st.integers(0, 1)))
def test_keys_are_equal_only_where_samples_are(X):
    keys = row_keys(X)
    same_keys = (keys[:, None] == keys[None]).all(axis=2)
    np.testing.assert_array_equal(same_keys, (X[:, None] == X[None]).all(axis=2))


def test_keys_tell_dtypes_and_shapes_apart():
    X = np.zeros((1, 24), dtype=np.uint8)
    views = [X, X.view(np.int8), X.view(bool), X.view("f4"), X.view("f8")]
    views += [X.reshape(1, 4, 6), X.reshape(1, 6, 4), X[:, :23], X.reshape(1, 24, 1)]
    assert len({row_keys(view).tobytes() for view in views}) == len(views)


def test_keys_are_the_documented_digest():
    # The keys of a store on disk must mean the same in later versions.
    key = row_keys(np.arange(3, dtype=np.float32)[:, None])[1].tobytes()
    one = np.float32(1).astype("<f4").tobytes()
    assert key == sha256(sha256(b"<f4(1,)").digest() + one).digest()[:16]
    assert key.hex() == "4a8604e71395c604c13a0fd781d5e205"


def test_keys_of_many_chunks_equal_those_of_single_rows():
    X = np.arange(2 * 10 * 2**20, dtype=np.uint8).reshape(20, -1)  # 1 MiB a row
    X[:, 0] = np.arange(20)
    np.testing.assert_array_equal(row_keys(X)[7:9], row_keys(X[7:9]))
    assert len(np.unique(row_keys(X), axis=0)) == 20


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.float32(1), "first axis"),
        (np.array(["a"]), "dtype <U1"),
        (np.array([None]), "dtype object"),
        (np.array([1j]), "complex"),
        (np.zeros(1, dtype=np.longdouble), "64 bits"),
    ],
)
def test_keys_of_objects_and_scalars_raise(X, match):
    with pytest.raises(ValueError, match=match):
        row_keys(X)


@given(
    st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=12), max_size=12),
    st.data(),
)
def test_index_agrees_with_a_dict(shards, data):
    index = KeyIndex()
    model: dict[int, set[tuple[int, int]]] = {}
    # Keys that differ in their first or last byte only, and end in zero bytes.
    all_keys = np.zeros((41, 16), dtype=np.uint8)
    all_keys[:20, 0], all_keys[20:, 15] = np.arange(20), np.arange(1, 22)
    for number, content in enumerate(shards):
        index.add(all_keys[content], number)
        for row, key in enumerate(content):
            model.setdefault(key, set()).add((number, row))
    for number in data.draw(st.sets(st.integers(0, 12), max_size=6)):
        index.discard(number)
        model = {
            key: kept
            for key, copies in model.items()
            if (kept := {copy for copy in copies if copy[0] != number})
        }
    shard, row = index.find(all_keys)
    for key in range(41):
        if key in model:
            assert (shard[key], row[key]) in model[key]
        else:
            assert shard[key] == -1
    assert index.n_distinct() == len(model)


def test_index_takes_at_most_fifty_bytes_a_row():
    index = KeyIndex()
    keys = np.random.default_rng(0).integers(0, 256, (50, 1000, 16), dtype=np.uint8)
    tracemalloc.start()
    try:
        for number, part in enumerate(keys):
            index.add(part, number)
        assert tracemalloc.get_traced_memory()[0] < 50 * 50_000
    finally:
        tracemalloc.stop()
