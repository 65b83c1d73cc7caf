"""Stores that were written before: what users have on their disks is still read.

The folder `_written_before` was written once, by `write` below, and is not written
again. If a test fails because the format or the keys were changed, every row that users
have stored is lost to them. If that is meant, raise the version of the format, so that
the warning about it appears, and put a new folder beside the old one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sk_calex import FrozenBackbone
from sk_calex.backbone._runner import Runner
from sk_calex.store import FeatureStore, row_keys

WRITTEN = Path(__file__).with_name("_written_before")
# Not the digest of a module, which differs between versions of Python and of packages.
OF_ROWS, OF_HALVES, OF_A_BACKBONE = "a0" * 8, "b1" * 8, "c2" * 8

# One for each kind of number that a key can be of, and shapes of one sample.
SAMPLES = {
    "bytes": np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2),
    "integers": np.array([[-1, 2**40], [3, 4]], dtype=np.int64),
    "floats": np.array([[0.5, -0.0, 1.0], [np.inf, 2.0, 3.0]], dtype=np.float32),
    "doubles": np.array([0.1, 1e300]),
    "booleans": np.array([[True], [False]]),
}
ROWS = np.arange(10.0).reshape(10, 1) + np.array([0, 1 / 4, -1000])
# What a backbone of powers of two makes of these is exact on every processor.
X = np.arange(12, dtype=np.float32).reshape(4, 3)


def keys():
    return np.concatenate([row_keys(samples) for samples in SAMPLES.values()])


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 2), nn.Linear(2, 2))
        with torch.no_grad():
            for layer in self:
                layer.weight.fill_(0.5)
                layer.bias.copy_(torch.tensor([0.0, 2.0]))


def backbone(folder):
    return FrozenBackbone(Net(), ["0"], cache=folder).fit(X)


FEATURES = np.array([[1.5, 3.5], [6, 8], [10.5, 12.5], [15, 17]])
OUTPUTS = FEATURES.mean(axis=1, keepdims=True) + np.array([0, 2])


@pytest.fixture
def fixed_name(monkeypatch):
    """Give the rows of a backbone the same place on every machine."""
    monkeypatch.setattr(Runner, "_digest", lambda runner, placed: OF_A_BACKBONE)


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(WRITTEN, tmp_path / "store")


def write(folder):
    """Write the stores; with `fixed_name`."""
    store = FeatureStore(folder)
    rows = store.section(OF_ROWS, 3, "float32")
    rows.write(keys()[:6], ROWS[:6])
    rows.write(keys()[6:], ROWS[6:])
    store.section(OF_HALVES, 3, "float16").write(keys(), ROWS)
    backbone(folder).transform(X)


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in (".json", ".safetensors")
    }


@pytest.mark.parametrize(
    ("name", "dtype"), [(OF_ROWS, "float32"), (OF_HALVES, "float16")]
)
def test_old_rows_are_found_by_the_content_of_their_samples(folder, name, dtype):
    store = FeatureStore(folder)
    section = store.section(name, 3, dtype)
    out = np.zeros((10, 3), dtype)
    assert section.read(keys(), out).all()
    np.testing.assert_array_equal(out, ROWS.astype(dtype))
    info = store.info()["by_section"][name]
    assert (info["rows"], info["hits"], info["misses"]) == (10, 10, 0)
    assert section.write(keys(), ROWS) == 0


def test_old_files_are_sound(folder):
    report = FeatureStore(folder).verify()
    assert not report.damaged
    assert FeatureStore(folder).repair() == {}


def test_a_backbone_reads_old_features_and_computes_none(folder, fixed_name):
    fitted = backbone(folder)
    features = fitted.transform(X)
    np.testing.assert_array_equal(features, np.hstack([FEATURES, OUTPUTS]))
    info = FeatureStore(folder).info()["by_section"][OF_A_BACKBONE]
    assert (info["rows"], info["misses"]) == (4, 0)


def test_stores_are_written_as_they_were(tmp_path, fixed_name):
    """A version of yesterday can read what today's code writes."""
    write(tmp_path / "new")
    assert files(tmp_path / "new") == files(WRITTEN)
