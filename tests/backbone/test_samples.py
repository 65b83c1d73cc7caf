"""Samples are read the same in every accepted form; anything else is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array
from torch.nested import nested_tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from sk_calex.backbone._samples import Samples


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
        "list of pairs": [(x, 0) for x in tensor],
        "list of named": [(x, "name", 3) for x in X],
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
        (DataLoader(Items([1])), TypeError, "the `dataset` of a DataLoader"),
        (
            torch.zeros(3, 4).to_sparse(),
            ValueError,
            r"X has dtype.*layout torch.sparse.* Give X\.to_dense\(\)",
        ),
        (torch.zeros(3, 4, device="meta"), ValueError, "device meta.*: load them"),
        (csr_array(np.eye(3)), ValueError, r"Give X\.toarray\(\)"),
        (
            pd.DataFrame({"a": [1.0], "b": ["x"]}),
            ValueError,
            "Encode the columns that are no numbers, {'b': '(str|object)'}",
        ),
        (np.zeros((3, 4), np.longdouble), ValueError, r"Give X\.astype\('float64'\)"),
        (
            nested_tensor([torch.zeros(2)], layout=torch.jagged),
            ValueError,
            r"float32, nested.* Give torch\.nested\.to_padded_tensor\(X",
        ),
        ({}, ValueError, "X holds no input"),
        ({"labels": [1, 2]}, ValueError, "X holds no input"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, ValueError, "different lengths"),
        ({"a": ["x", "y"]}, ValueError, r"X\['a'\] has dtype <U1"),
        ({"a": np.zeros((0, 3))}, ValueError, "X is empty"),
        ({"a": [[1, 2], [3]]}, ValueError, r"samples of X\['a'\] cannot be stacked"),
    ],
)
def test_what_is_not_samples_is_refused(given, error, message):
    with pytest.raises(error, match=message):
        Samples(given)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([np.zeros(3), np.zeros(4)], "cannot be stacked"),
        ([{"image": np.zeros(3)}, {"image": np.zeros(4)}], r"X\['image'\] cannot be"),
        ([{"text": "a", "n": 1}] * 2, r"X\['text'\].*type str.*leave that entry out"),
        ([{"a": np.zeros(3)}, {"b": np.zeros(3)}], "some items of X have no 'a'"),
        ([{"label": 3}] * 2, "nothing but labels"),
        ([object()] * 2, "transform that returns tensors"),
    ],
)
def test_items_that_do_not_make_a_batch_are_refused(items, message):
    with pytest.raises(ValueError, match=message):
        Samples(Items(items)).raw(slice(0, 2))


def test_what_a_dataset_cannot_read_is_named():
    class Broken(Items):
        def __getitem__(self, index):
            raise TypeError("pic should be PIL Image")

    with pytest.raises(ValueError, match=r"X\[0\] cannot be read: Broken raised TypeE"):
        Samples(Broken([1, 2])).raw(slice(0, 2))


def test_a_shape_that_changes_between_batches_is_refused():
    samples = Samples(Items([np.zeros((3, 4))] * 4 + [np.zeros((3, 8))] * 4))
    samples.raw(slice(0, 4))
    with pytest.raises(ValueError, match=r"shape \(3, 8\) from row 4 on"):
        samples.raw(slice(4, 8))


# Inputs by name

IDS = np.arange(12).reshape(4, 3)
MASK = IDS < 7


class Encoding(dict):
    """Stands for a tokeniser's BatchEncoding."""


class Columns:
    """Stands for a Dataset of Hugging Face: no torch Dataset, items as lists."""

    column_names = ("ids", "mask", "labels")

    def __len__(self):
        return 4

    def __getitem__(self, i):
        return {"ids": IDS[i].tolist(), "mask": MASK[i].tolist(), "labels": 1}


def named_forms():
    items = [{"ids": IDS[i], "mask": MASK[i], "labels": i} for i in range(4)]
    both = {"ids": IDS, "mask": MASK}
    return {
        "arrays": {**both, "labels": np.zeros(4)},
        "tensors": {k: torch.from_numpy(v) for k, v in both.items()},
        "encoding": Encoding({k: v.tolist() for k, v in both.items()}),
        "frame": pd.DataFrame({k: list(v) for k, v in both.items()}).assign(label=0),
        "list of dicts": items,
        "dataset of dicts": Items(items),
        "dataset of pairs": Items([(item, 3) for item in items]),
        "list of pairs": [(item, 3) for item in items],
        "columns": Columns(),
    }


@pytest.mark.parametrize("form", named_forms())
def test_inputs_by_name_read_the_same_in_every_form(form):
    samples = Samples(named_forms()[form])
    assert len(samples) == 4
    assert samples.sample_shape == {"ids": (3,), "mask": (3,)}
    assert samples.sample_bytes == 3 * 8 + 3
    first, second = (raw for _, raw in samples.batches(3))
    assert (len(first), len(second)) == (3, 1)
    for raw in (first, first[np.array([0, 2])] + second):
        assert [name for name, _ in raw.items()] == ["ids", "mask"]
        assert raw.tensors["mask"].dtype == torch.bool
        rows = [0, 1, 2] if raw is first else [0, 2, 3]
        np.testing.assert_array_equal(raw.tensors["ids"].numpy(), IDS[rows])
        np.testing.assert_array_equal(raw.tensors["mask"].numpy(), MASK[rows])


# Data frames


def test_frames_with_bools_and_missing_values_are_arrays():
    frame = pd.DataFrame({"a": [1.5, 2.0], "b": [True, False]})
    frame["c"] = pd.array([1, 2], dtype="Int64")
    frame["d"] = pd.array([True, False], dtype="boolean")
    raw = Samples(frame).raw(slice(0, 2))
    np.testing.assert_array_equal(raw.numpy(), [[1.5, 1, 1, 1], [2, 0, 2, 0]])
    assert Samples(frame[["b"]]).raw(slice(0, 2)).dtype == torch.float32
    assert Samples(frame[["a"]]).raw(slice(0, 2)).dtype == torch.float64
    frame.loc[0, "c"] = pd.NA
    assert np.isnan(Samples(frame).raw(slice(0, 2)).numpy()[0, 2])


@pytest.mark.parametrize(
    "column", [["a", "b"], pd.Categorical(["x", "y"]), [object(), object()]], ids=type
)
def test_frames_of_other_things_are_refused(column):
    frame = pd.DataFrame({"a": [1.5, 2.0]}).assign(b=column)
    with pytest.raises(ValueError, match="X has dtype object"):
        Samples(frame)
