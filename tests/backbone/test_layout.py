"""Columns, their names, and an array that carries them through scikit-learn."""

from __future__ import annotations

import copy
import math
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import KFold, cross_validate, train_test_split
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils import _safe_indexing, resample, shuffle

from sk_calex import FeatureArray, TapLayout

LAYOUT = TapLayout(("layer1", "layer2.0"), ((2, 2, 3), (4,)), 3, (10, 20, 30))

shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
names = st.text("ab.0[],\n é", min_size=1, max_size=5)


@st.composite
def layouts(draw):
    taps = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    sizes = [draw(shapes) for _ in taps]
    return TapLayout(tuple(taps), tuple(sizes), draw(st.integers(1, 4)))


def make(n=6):
    rng = np.random.default_rng(0)
    return FeatureArray.wrap(rng.random((n, LAYOUT.width)), LAYOUT)


# TapLayout


def test_columns_of_a_small_layout():
    assert (LAYOUT.n_taps, LAYOUT.width) == (2, 19)
    assert [LAYOUT.columns(k) for k in range(3)] == [
        slice(0, 12),
        slice(12, 16),
        slice(16, 19),
    ]
    assert LAYOUT.feature_names()[[0, 5, 11, 12, 18]].tolist() == [
        "layer1[0,0,0]",
        "layer1[0,1,2]",
        "layer1[1,1,2]",
        "layer2.0[0]",
        "output[2]",
    ]
    with pytest.raises(IndexError):
        LAYOUT.columns(3)


@given(layouts())
def test_blocks_tile_the_columns_in_order(layout):
    X = np.arange(2 * layout.width).reshape(2, layout.width)
    blocks = [layout.block(X, k) for k in range(layout.n_taps + 1)]
    np.testing.assert_array_equal(np.hstack(blocks), X)
    assert all(np.shares_memory(block, X) for block in blocks)
    sizes = [*map(math.prod, layout.shapes), layout.n_outputs]
    assert [block.shape[1] for block in blocks] == sizes


@given(layouts())
def test_names_tell_each_column_and_are_read_back(layout):
    names = layout.feature_names()
    assert len(set(names)) == len(names) == layout.width
    start = 0
    for tap, shape in zip(layout.names, layout.shapes, strict=True):
        # The index in a name is that of the unflattened block.
        block = np.arange(math.prod(shape)).reshape(shape)
        for name in names[start : start + block.size]:
            index = name.removeprefix(f"{tap}[").removesuffix("]").split(",")
            assert names[start + block[tuple(map(int, index))]] == name
        start += block.size
    if "output" not in layout.names:
        assert TapLayout.from_feature_names(names) == layout


def test_names_lose_only_the_macs():
    columns = pd.DataFrame(columns=LAYOUT.feature_names()).columns
    read = TapLayout.from_feature_names(columns)
    assert read.stage_macs is None
    assert (read.names, read.shapes, read.n_outputs) == (
        LAYOUT.names,
        LAYOUT.shapes,
        LAYOUT.n_outputs,
    )


@pytest.mark.parametrize(
    "columns",
    [
        [],
        ["a", "b"],
        [0, 1],
        ["a[0]", "a[1]"],
        ["output[0]", "output[1]"],
        ["a[0]", "b", "output[0]"],
        ["a[0]", "a[2]", "output[0]"],
        ["a[1]", "a[0]", "output[0]"],
        ["a[0]", "output[0]", "b[0]"],
        ["a[0]", "output[0]", "output[0]"],
        ["a[-1]", "output[0]"],
        # Never written out: that would not fit into memory.
        ["a[999999999999,999999999999]", "output[0]"],
    ],
)
def test_other_names_are_no_layout(columns):
    assert TapLayout.from_feature_names(columns) is None


def test_plain_data_are_tap_and_output_at_once():
    layout = TapLayout.identity(3)
    X = np.eye(3)
    assert layout.width == 3
    assert layout.stage_macs == (0, 0)
    for stage in range(2):
        np.testing.assert_array_equal(layout.block(X, stage), X)
    assert layout.feature_names().tolist() == ["x[0]", "x[1]", "x[2]"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((), (), 3), "one entry per tap"),
        ((("a",), ((1,), (2,)), 3), "one entry per tap"),
        ((("a",), ((2, 0),), 3), "positive"),
        ((("a",), ((),), 3), "positive"),
        ((("a",), ((2,),), 0), "positive"),
        ((("a",), ((2,),), 3, (1, 2, 3)), "must have 2 entries"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TapLayout(*arguments)


# FeatureArray

ROWS = {
    "slice": lambda X: X[1:3],
    "step": lambda X: X[::-2],
    "indices": lambda X: X[[3, 0, 0]],
    "mask": lambda X: X[np.arange(len(X)) % 2 == 0],
    "none": lambda X: X[[]],
    "ellipsis": lambda X: X[1:, ...],
    "all columns": lambda X: X[[0, 1], :],
    "take": lambda X: X.take([1, 2], axis=0),
    "copy": lambda X: X.copy(),
    "astype": lambda X: X.astype(np.float32),
    "safe_indexing": lambda X: _safe_indexing(X, [2, 1]),
    "safe_indexing mask": lambda X: _safe_indexing(X, np.arange(len(X)) < 2),
    "train_test_split": lambda X: train_test_split(X, random_state=0)[0],
    "resample": lambda X: resample(X, random_state=0),
    "shuffle": lambda X: shuffle(X, random_state=0),
    "split": lambda X: X[next(KFold(3).split(X))[0]],
    "deepcopy": copy.deepcopy,
    "pickle": lambda X: pickle.loads(pickle.dumps(X)),
}


@pytest.mark.parametrize("how", ROWS)
def test_rows_keep_the_layout(how):
    part = ROWS[how](make())
    assert type(part) is FeatureArray
    assert part.layout == LAYOUT
    plain = ROWS[how](np.asarray(make()))
    np.testing.assert_array_equal(np.asarray(part), plain)


def test_joblib_keeps_the_layout(tmp_path):
    joblib.dump(make(), tmp_path / "X")
    assert joblib.load(tmp_path / "X").layout == LAYOUT


COLUMNS = {
    "fewer": lambda X: X[:, :4],
    "one": lambda X: X[:, 0],
    "another order": lambda X: X[:, ::-1],
    "a permutation": lambda X: X[:, np.arange(LAYOUT.width)[::-1]],
    "of the last axis": lambda X: X[..., ::-1],
    "of some rows": lambda X: X[:2, [0, 1]],
    "safe_indexing": lambda X: _safe_indexing(X, [0, 1], axis=1),
    "a row": lambda X: X[0],
    "reshape": lambda X: X.reshape(-1),
    "transpose": lambda X: X.T,
    "new axis": lambda X: X[None],
}


@pytest.mark.parametrize("how", COLUMNS)
def test_columns_drop_the_layout(how):
    assert getattr(COLUMNS[how](make()), "layout", None) is None


def test_arithmetic_gives_plain_arrays_and_scalars():
    X = make()
    for result in (X + 1, X * X, np.exp(X), X > 0.5, X @ X.T, X.mean(axis=0)):
        assert type(result) is np.ndarray
    assert type(X.sum()) is np.float64
    assert type(X[0, 0]) is np.float64
    np.testing.assert_array_equal(X + 1, np.asarray(X) + 1)


def test_wrapping_copies_nothing():
    plain = np.zeros((2, LAYOUT.width))
    assert np.shares_memory(FeatureArray.wrap(plain, LAYOUT), plain)
    assert type(plain) is np.ndarray
    with pytest.raises(ValueError, match=r"19 columns.*shape \(2, 18\)"):
        FeatureArray.wrap(plain[:, 1:], LAYOUT)


def test_estimators_see_the_layout_in_cross_validation():
    seen = []

    class Spy(KNeighborsClassifier):
        def fit(self, X, y):
            seen.append(X.layout)
            return super().fit(X, y)

        def predict(self, X):
            seen.append(X.layout)
            return super().predict(X)

    cross_validate(Spy(1), make(), [0, 1, 0, 1, 0, 1], cv=3)
    assert seen == [LAYOUT] * 6


def test_columns_that_are_moved_have_no_layout():
    layout = TapLayout(("tap",), ((3,),), 2)
    X = FeatureArray.wrap(np.arange(25.0).reshape(5, 5), layout)
    order = [4, 3, 2, 1, 0]
    everything = np.ones(5, bool)
    for rows in (
        np.take(X, order, axis=0),
        X.take(order, -2),
        np.compress(everything, X, axis=0),
    ):
        assert rows.layout is layout
    for columns in (
        np.take(X, order, axis=1),
        X.take(order, -1),
        np.compress(everything, X, axis=1),
        X.T,
        X.transpose(),
        np.transpose(X),
        X[:1].T.T,
    ):
        assert getattr(columns, "layout", None) is None
    np.testing.assert_array_equal(X.T, np.asarray(X).T)
    assert np.take(X, [0, 1]).shape == (2,)
