"""Features that do not fit into memory: nothing on their way holds all of them.

What numpy allocates is seen by tracemalloc, what torch allocates by a dispatch mode.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sk_calex import BranchClassifier, CascadeClassifier, FrozenBackbone
from sk_calex.backbone import _extraction

N, WIDTH = 20_000, 8 * 64  # rows, and columns of each of two taps


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest memory that an operation has made."""

    nbytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {
            leaf.untyped_storage().data_ptr()
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in given:
                    self.nbytes = max(self.nbytes, storage.nbytes())
        return result


class Peak:
    """Bytes that numpy and torch took beyond those at the beginning."""

    def __enter__(self):
        tracemalloc.start()
        self._torch = LargestTensor()
        self._torch.__enter__()
        self._before = tracemalloc.get_traced_memory()[0]
        return self

    def __exit__(self, *error):
        self.numpy = tracemalloc.get_traced_memory()[1] - self._before
        self._torch.__exit__(*error)
        self.torch = self._torch.nbytes
        tracemalloc.stop()


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).integers(0, 256, (N, 3, 8, 8), dtype=np.uint8)
    return X, np.arange(N) % 3


@pytest.fixture(
    params=[("float32", False), ("float32", True), ("float16", False), ("int8", True)],
    ids=str,
)
def backbone(request, tmp_path, data, monkeypatch):
    dtype, on_demand = request.param
    monkeypatch.setattr(_extraction, "PIECE_BYTES", 2**20)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    return FrozenBackbone(
        module, ["0", "1"], pool=None, cache=tmp_path, dtype=dtype, on_demand=on_demand
    ).fit(data[0])


def test_extraction_and_fit_and_prediction_hold_a_part_only(backbone, data, tmp_path):
    X, y = data
    with Peak() as extracting:
        features = backbone.transform(X)
    assert features.nbytes > N * 2 * WIDTH * np.dtype(backbone.dtype).itemsize
    assert extracting.numpy < features.nbytes / 3
    assert extracting.torch < features.nbytes / 3

    split = PredefinedSplit(np.where(np.arange(N) % 5, -1, 0))
    branch = BranchClassifier("gap", solver="adam", max_iter=1, batch_size=1024)
    cascade = CascadeClassifier(
        backbone,
        branch=branch,
        cv=split,
        margin=0.05,
        memory=str(tmp_path / "branches") if backbone.dtype == "float32" else None,
        random_state=0,
    )
    with Peak() as fitting:
        cascade.fit(X, y)
    # At most 4096 rows, in float64, give a head its first values.
    start = 4096 * WIDTH * 8
    # Beside it some hundred bytes a row, whatever the type of the features.
    beside = max(features.nbytes / 5, 500 * N)
    assert fitting.numpy < 1.2 * start + beside
    assert fitting.torch < 1.2 * start

    block = cascade.layout_.block(features, 1)
    with Peak() as predicting:
        cascade.branches_[1].predict(block)
    assert predicting.numpy < block.nbytes / 5
    assert predicting.torch < block.nbytes / 5
