"""int8 codes: how far values move, rows on their own, extreme values, reading parts."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.model_selection import KFold, cross_val_score
from sklearn.naive_bayes import GaussianNB

from sk_calex import TapLayout
from sk_calex.utils._int8 import Int8Features, RowFormat, TapCodec
from sk_calex.utils._rows import as_rows, gather_rows, take_rows

LARGEST = float(np.finfo(np.float32).max)
SHAPES = [(3, 8, 8), (5, 2, 3), (7, 1, 1), (40, 6), (2, 9), (70,), (1,)]
MIXED = RowFormat(((5, 4, 4), (6, 3), (9,)), n_outputs=3)


def features(n: int = 6, form: RowFormat = MIXED, seed: int = 0) -> Int8Features:
    generator = torch.Generator().manual_seed(seed)
    rows = form.empty(n)
    for k, shape in enumerate((*form.shapes, (form.n_outputs,))):
        form.put(rows, k, torch.randn(n, *shape, generator=generator))
    return Int8Features(rows, form, TapLayout(("a", "b", "c"), form.shapes, 3))


@st.composite
def batches(draw):
    shape = draw(st.sampled_from(SHAPES))
    values = st.floats(-LARGEST, LARGEST, width=32, allow_subnormal=True)
    x = draw(hnp.arrays(np.float32, (draw(st.integers(1, 4)), *shape), elements=values))
    return TapCodec(shape), torch.from_numpy(x)


@given(batches())
@settings(deadline=None, max_examples=150)
def test_a_value_moves_by_half_its_scale_at_most(batch):
    codec, x = batch
    codes, scales = codec.encode(x)
    assert codes.dtype == torch.int8
    assert scales.shape == (len(x), codec.n_scales)
    back = codec.decode(codes, scales)
    assert back.shape == x.shape
    assert torch.isfinite(back).all()
    half = codec._spread(scales).double().expand(x.shape) / 2
    # float32 divides, rounds and multiplies: a few units in the last place more.
    assert ((back.double() - x.double()).abs() <= half * (1 + 1e-4)).all()
    most = x.double().abs().amax() / 127 * (1 + 1e-6)
    assert scales.amax() <= max(float(most), float(np.finfo(np.float32).tiny))


@given(batches(), st.randoms())
@settings(deadline=None, max_examples=50)
def test_rows_do_not_depend_on_each_other(batch, random):
    codec, x = batch
    codes, scales = codec.encode(x)
    order = list(range(len(x)))
    random.shuffle(order)
    for i in order:
        alone = codec.encode(x[i : i + 1])
        assert torch.equal(alone[0], codes[i : i + 1])
        assert torch.equal(alone[1], scales[i : i + 1])


@pytest.mark.parametrize("shape", SHAPES)
def test_zeros_and_the_largest_values_are_kept(shape):
    codec = TapCodec(shape)
    zeros = torch.zeros(2, *shape)
    assert torch.equal(codec.round_trip(zeros), zeros)
    for value in (1.0, -3.5, 1e-30, 6e4, LARGEST):
        constant = torch.full((2, *shape), value)
        torch.testing.assert_close(
            codec.round_trip(constant), constant, rtol=1e-6, atol=0
        )
    rectified = torch.randn(4, *shape).relu()
    assert (codec.round_trip(rectified)[rectified == 0] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(value):
    """It cannot be told from codes later on: it must never look like a number."""
    x = torch.ones(2, 3, 8, 8)
    x[1, 2, 4, 4] = value
    back = TapCodec((3, 8, 8)).round_trip(x)
    assert not torch.isfinite(back[1, 2, 4, 4])
    torch.testing.assert_close(back[0], x[0])


def test_channels_have_scales_of_their_own():
    x = torch.ones(1, 3, 8, 8) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    torch.testing.assert_close(TapCodec((3, 8, 8)).round_trip(x), x)
    tokens = torch.ones(1, 40, 3) * torch.tensor([1e-3, 1.0, 1e3])
    torch.testing.assert_close(TapCodec((40, 3)).round_trip(tokens), tokens)
    # Channels with few positions share a scale, 32 values or more each.
    assert [TapCodec(shape).n_scales for shape in SHAPES] == [3, 1, 1, 6, 1, 3, 1]


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_take_little_more_than_a_byte_a_value(shape):
    wide = tuple(8 * size if size > 1 else size for size in shape)
    form = RowFormat((wide,), n_outputs=2)
    n_values = int(np.prod(wide))
    assert form.row_bytes % 4 == 0
    assert n_values <= form.row_bytes - 8 <= 1.13 * n_values + 8


def test_parts_of_a_matrix_are_those_of_the_decoded_one():
    X = features()
    full = np.asarray(X)
    assert full.dtype == X.dtype == np.float32
    assert full.shape == X.shape == (6, 80 + 18 + 9 + 3)
    assert len(X) == 6
    rng = np.random.default_rng(0)
    for rows in (slice(1, 4), [2, 0, 2], rng.integers(0, 6, 9), full[:, 0] > 0, []):
        part = X[rows]
        assert isinstance(part, Int8Features)
        assert part.layout is X.layout
        np.testing.assert_array_equal(part, full[rows])
        np.testing.assert_array_equal(take_rows(X, rows), full[rows])
    np.testing.assert_array_equal(X[np.array([1, 3]), ...], full[[1, 3]])
    for index in ((slice(2), slice(3, 9)), ([1, 2], [4, 5]), (..., 3), (0, 2), 1, -1):
        np.testing.assert_array_equal(X[index], full[index])
    np.testing.assert_array_equal(list(X), full)
    np.testing.assert_array_equal(np.asarray(X, dtype=np.float64), full)
    with pytest.raises(IndexError):
        X[6]
    with pytest.raises(ValueError, match="without a copy"):
        X.__array__(copy=False)  # which numpy asks for from version 2 on
    assert repr(X) == f"<Int8Features: (6, 110) in {X.nbytes:,} bytes>"


def test_blocks_are_the_columns_of_the_stages():
    X = features()
    full = np.asarray(X)
    for k in range(4):
        np.testing.assert_array_equal(X.layout.block(X, k), X.layout.block(full, k))
    assert np.shares_memory(X.layout.block(X, 3), X.rows)  # outputs are not copied
    some = X.select([1, 3], X.layout.select(["b"]))
    columns = X.layout.select_columns(["b"])
    np.testing.assert_array_equal(some, full[:, columns])
    np.testing.assert_array_equal(some.layout.block(some, 0), X.layout.block(full, 1))
    where = torch.tensor([3, 3, 0])
    gathered = gather_rows(X, where, torch.device("cpu"), torch.float64)
    np.testing.assert_array_equal(gathered, full[[3, 3, 0]].astype(np.float64))
    np.testing.assert_array_equal(as_rows(X), full)


def test_data_frames_are_made_of_it():
    X = features()
    frame = pd.DataFrame(X, columns=X.layout.feature_names())
    np.testing.assert_array_equal(frame.to_numpy(), X)


def test_a_copy_in_another_process_is_the_same():
    X = features()
    again = pickle.loads(pickle.dumps(X))
    np.testing.assert_array_equal(again, X)
    assert again.layout == X.layout


def test_estimators_of_scikit_learn_take_it():
    X, y = features(60), np.arange(60) % 2
    folds = KFold(3)
    expected = cross_val_score(GaussianNB(), np.asarray(X), y, cv=folds)
    np.testing.assert_array_equal(
        cross_val_score(GaussianNB(), X, y, cv=folds), expected
    )
