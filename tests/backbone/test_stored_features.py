"""Features that are read on demand: as the arrays that they stand for, in every use."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.naive_bayes import GaussianNB
from torch import nn

from sk_calex import BranchClassifier, CascadeClassifier, FrozenBackbone, select_taps
from sk_calex.backbone import _extraction
from sk_calex.backbone._stored_features import StoredFeatures
from sk_calex.cascade._fit_key import input_digest
from sk_calex.store import StoredRows
from sk_calex.utils._int8 import Int8Features
from sk_calex.utils._rows import as_rows, gather_rows, take_rows

N = 120


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)
    return X, np.arange(N) % 3


@pytest.fixture
def both(request, tmp_path, data, monkeypatch):
    """A backbone, its features read on demand, and the same as an array."""
    monkeypatch.setattr(_extraction, "PIECE_BYTES", 2**12)
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 3),
    )
    backbone = FrozenBackbone(
        module,
        ["0", "1"],
        cache=tmp_path,
        dtype=getattr(request, "param", "float32"),
        on_demand=True,
    ).fit(data[0])
    lazy = backbone.transform(data[0])
    whole = np.array(backbone.set_params(on_demand=False).transform(data[0]))
    backbone.set_params(on_demand=True)
    return backbone, lazy, whole


DTYPES = pytest.mark.parametrize("both", ["float32", "float16", "int8"], indirect=True)


@DTYPES
def test_every_part_is_that_of_the_array(both):
    backbone, lazy, whole = both
    kind = Int8Features if backbone.dtype == "int8" else StoredFeatures
    assert isinstance(lazy, kind)
    assert isinstance(lazy.rows, StoredRows)
    assert lazy.shape == whole.shape == (N, backbone.layout_.width)
    assert lazy.dtype == whole.dtype
    assert lazy.layout == backbone.layout_
    np.testing.assert_array_equal(lazy, whole)
    rng = np.random.default_rng(0)
    for rows in (slice(3, 9), [2, 0, 2], rng.integers(0, N, 50), whole[:, 0] > 0, []):
        part = lazy[rows]
        assert isinstance(part, kind)
        assert part.layout is lazy.layout
        np.testing.assert_array_equal(part, whole[rows])
        np.testing.assert_array_equal(take_rows(lazy, rows), whole[rows])
    for index in ((slice(2), slice(3, 9)), ([1, 2], [4, 5]), (..., 3), (0, 2), 1, -1):
        np.testing.assert_array_equal(lazy[index], whole[index])
    for k in range(3):
        block, expected = (lazy.layout.block(X, k) for X in (lazy, whole))
        np.testing.assert_array_equal(block, expected)
        np.testing.assert_array_equal(as_rows(block), expected)
        where = torch.tensor([5, 5, 0])
        gathered = gather_rows(block, where, torch.device("cpu"), torch.float32)
        np.testing.assert_array_equal(gathered, expected[[5, 5, 0]].astype("float32"))
    ends = lazy.select([0, 2], lazy.layout.select(["0"]))
    np.testing.assert_array_equal(ends, whole[:, lazy.layout.select_columns(["0"])])


@DTYPES
def test_there_is_no_second_copy_on_the_disk(both, data):
    backbone, lazy, _ = both
    (section,) = backbone.cache.glob("[0-9a-f]*")
    stored = sum(path.stat().st_size for path in section.iterdir())
    assert stored > lazy.nbytes
    shards = [*section.glob("*.safetensors"), *section.glob("*.json")]
    assert stored == sum(path.stat().st_size for path in shards)
    backbone.set_params(on_demand=False)
    mapped = backbone.transform(data[0])
    with_copy = sum(path.stat().st_size for path in section.iterdir())
    assert with_copy >= stored + mapped.nbytes


def test_small_results_are_arrays(both, data):
    backbone, _, whole = both
    few = backbone.transform(data[0][:1])
    assert isinstance(few, np.ndarray)
    np.testing.assert_array_equal(few, whole[:1])


@DTYPES
def test_a_cascade_is_the_same_as_of_the_array(both, data):
    """From samples, from features, through scikit-learn, in another process."""
    backbone, lazy, whole = both
    X, y = data
    split = PredefinedSplit(np.where(np.arange(N) % 4, -1, 0))
    cascade = CascadeClassifier(
        backbone,
        branch=BranchClassifier("gap", solver="adam", max_iter=2),
        cv=split,
        margin=0.3,
        random_state=0,
    ).fit(X, y)
    backbone = cascade.backbone.set_params(on_demand=False)
    expected = CascadeClassifier(**cascade.get_params(deep=False)).fit(X, y)
    np.testing.assert_array_equal(cascade.predict_proba(X), expected.predict_proba(X))
    cascade.set_params(input="features").fit(lazy, y)
    np.testing.assert_array_equal(
        cascade.predict_proba(lazy), expected.predict_proba(X)
    )
    again = pickle.loads(pickle.dumps(lazy))
    np.testing.assert_array_equal(again, whole)
    np.testing.assert_array_equal(
        cross_val_score(GaussianNB(), lazy, y, cv=3),
        cross_val_score(GaussianNB(), whole, y, cv=3),
    )
    found = [
        select_taps(one, rows, y, max_accuracy_drop=1.0)
        for one, rows in ((cascade, lazy), (expected, X))
    ]
    assert found[0].taps == found[1].taps
    np.testing.assert_array_equal(
        found[0].candidates["accuracy"], found[1].candidates["accuracy"]
    )


def test_equal_rows_have_equal_digests_and_others_do_not(both, data):
    backbone, lazy, _ = both
    again = backbone.transform(data[0])
    assert input_digest(lazy) == input_digest(again)
    digests = {
        input_digest(part)
        for part in (lazy, lazy[::-1], lazy[:-1], lazy.select([0]), lazy.select([1]))
    }
    assert len(digests) == 5


def test_it_needs_a_cache(data):
    backbone = FrozenBackbone(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), ["0"])
    with pytest.raises(ValueError, match="on_demand=True reads rows from a store"):
        backbone.set_params(on_demand=True).fit(data[0])


@pytest.mark.filterwarnings("ignore::sk_calex.store.StoreWarning")
def test_rows_that_are_damaged_are_computed_again(both, data):
    backbone, _, whole = both
    (section,) = backbone.cache.glob("[0-9a-f]*")
    path = next(section.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    np.testing.assert_array_equal(backbone.transform(data[0]), whole)
