"""Samples are read the same in every accepted form; anything else is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from sk_calex.backbone._samples import Samples, prepare

CPU = torch.device("cpu")


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


def forms(X):
    tensor = torch.from_numpy(X.copy())
    return {
        "array": X,
        "fortran": np.asfortranarray(X),
        "big-endian": X.astype(X.dtype.newbyteorder(">")),
        "reversed view": X[::-1].copy()[::-1],
        "list of arrays": list(X),
        "tuple of tensors": tuple(tensor),
        "tensor": tensor,
        "tensor with gradient": tensor.clone().requires_grad_(),
        "strided tensor": torch.stack([tensor, tensor], dim=-1)[..., 0],
        "dataset of arrays": Items(list(X)),
        "dataset of pairs": TensorDataset(tensor, torch.arange(len(X))),
        "dataset of lists": Items([[x, 0, "name"] for x in X]),
    }


X = np.random.default_rng(0).standard_normal((7, 3, 4, 5)).astype(np.float32)


@pytest.mark.parametrize("form", forms(X))
def test_every_form_reads_the_same(form):
    samples = Samples(forms(X)[form])
    assert len(samples) == 7
    assert samples.sample_shape == (3, 4, 5)
    assert samples.sample_bytes == 3 * 4 * 5 * 4
    batches = list(samples.batches(3))
    assert [rows for rows, _ in batches] == [slice(0, 3), slice(3, 6), slice(6, 7)]
    np.testing.assert_array_equal(torch.cat([raw for _, raw in batches]).numpy(), X)
    assert not samples.raw(slice(0, 2)).requires_grad


@given(
    X=hnp.arrays(
        st.sampled_from(["u1", "i2", "?", "f2", "f4", ">f8"]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements={"allow_nan": False},
    ),
    size=st.integers(1, 7),
)
def test_batches_are_the_array_cut_up(X, size):
    batches = list(Samples(X).batches(size))
    assert max(len(raw) for _, raw in batches) <= size
    np.testing.assert_array_equal(np.concatenate([raw for _, raw in batches]), X)


@pytest.mark.parametrize("given", [X.copy(), torch.from_numpy(X.copy())])
def test_what_is_done_to_a_batch_stays_there(given):
    Samples(given).raw(slice(0, 7)).zero_()
    np.testing.assert_array_equal(np.asarray(given), X)


def test_a_read_only_array_is_read_without_a_warning():
    frozen = X.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(Samples(frozen).raw(slice(0, 7)).numpy(), X)


def test_a_memory_map_is_read_in_batches(tmp_path):
    np.save(tmp_path / "X.npy", X)
    samples = Samples(np.load(tmp_path / "X.npy", mmap_mode="r"))
    np.testing.assert_array_equal(samples.raw(slice(2, 4)).numpy(), X[2:4])


def test_bfloat16_keeps_its_values_in_a_type_that_numpy_has():
    tensor = torch.from_numpy(X).bfloat16()
    raw = Samples(tensor).raw(slice(0, 7))
    assert raw.dtype == torch.float32
    assert torch.equal(raw, tensor.float())


class Endless(IterableDataset):
    def __iter__(self):
        return iter(X)


class Unsized(Dataset):
    def __getitem__(self, index):
        return X[index]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (np.empty((0, 3, 4, 4)), ValueError, "X is empty"),
        ([], ValueError, "X has shape"),
        (Items([]), ValueError, "X is empty"),
        (torch.empty(0, 3), ValueError, "X is empty"),
        (np.float32(3), ValueError, r"X has shape \(\)"),
        (torch.tensor(3.0), ValueError, r"X has shape \(\)"),
        (np.zeros(4), ValueError, "Reshape a single sample"),
        (None, ValueError, "dtype object"),
        ([["a", "b"]], ValueError, "dtype <U1"),
        (np.zeros((2, 2), complex), ValueError, "dtype complex"),
        (torch.zeros(2, 2, dtype=torch.complex64), ValueError, "dtype torch.complex"),
        ([np.zeros((3, 4)), np.zeros((3, 5))], ValueError, "one shape"),
        ([torch.zeros(3, 4), torch.zeros(3, 5)], ValueError, "one shape"),
        (Endless(), TypeError, "cannot be indexed"),
        (Unsized(), TypeError, "cannot be indexed"),
    ],
)
def test_what_is_not_samples_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        Samples(given)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([np.zeros(3), np.zeros(4)], "cannot be stacked"),
        ([{"image": np.zeros(3)}] * 2, "cannot be stacked"),
        ([object()] * 2, "transform that returns tensors"),
    ],
)
def test_items_that_do_not_make_a_batch_are_refused(items, message):
    with pytest.raises(ValueError, match=message):
        Samples(Items(items)).raw(slice(0, 2))


def test_a_shape_that_changes_between_batches_is_refused():
    samples = Samples(Items([np.zeros((3, 4))] * 4 + [np.zeros((3, 8))] * 4))
    samples.raw(slice(0, 4))
    with pytest.raises(ValueError, match=r"shape \(3, 8\) from row 4 on"):
        samples.raw(slice(4, 8))


def test_bytes_are_scaled_and_floats_pass():
    raw = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    torch.testing.assert_close(
        prepare(raw, None, CPU, "X"), torch.tensor([[0.0, 0.2, 1.0]])
    )
    floats = torch.tensor([[0.0, -3.0, 255.0]], dtype=torch.float64)
    assert torch.equal(prepare(floats, None, CPU, "X"), floats)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_the_scale_of_other_integers_is_not_guessed(dtype):
    raw = torch.ones(2, 3, dtype=dtype)
    with pytest.raises(ValueError, match=f"X has dtype {dtype}.*preprocess"):
        prepare(raw, None, CPU, "X")
    assert torch.equal(prepare(raw, torch.Tensor.float, CPU, "X"), torch.ones(2, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_refused(value):
    raw = torch.zeros(2, 3)
    raw[1, 1] = value
    with pytest.raises(ValueError, match="X contains NaN or infinity"):
        prepare(raw, torch.nan_to_num, CPU, "X")


@pytest.mark.parametrize(
    ("preprocess", "error", "message"),
    [
        (torch.Tensor.numpy, TypeError, "got ndarray"),
        (torch.Tensor.int, TypeError, "got torch.int32"),
        (torch.mean, ValueError, r"shape \(\)"),
        (lambda x: x[:1], ValueError, r"shape \(1, 3\) from a batch of 2"),
    ],
)
def test_a_preprocess_that_returns_something_else_is_named(preprocess, error, message):
    with pytest.raises(error, match=message):
        prepare(torch.zeros(2, 3), preprocess, CPU, "X")
