"""Taps that are added to stored ones: their stages alone are run, the rest is read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sk_calex import FeatureStore, FrozenBackbone
from sk_calex.backbone._stages import Stages
from sk_calex.store import StoreWarning

TAPS = ["0", "1", "2", "3"]
DTYPES = pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (20, 3, 8, 8), dtype=np.uint8)


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    convolutions = [
        nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        for c in (3, 4, 4, 4)
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*convolutions, *head)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path)


@pytest.fixture
def stages_run(monkeypatch):
    """Numbers of the stages that are run, in order."""
    run, advance = [], Stages.advance

    def counted(self, stage, state):
        run.append(stage)
        return advance(self, stage, state)

    monkeypatch.setattr(Stages, "advance", counted)
    return run


def fitted(module, taps, X, **params):
    return FrozenBackbone(module, taps, **params).fit(X)


@DTYPES
def test_stages_after_the_last_new_tap_are_not_run(
    module, images, store, stages_run, dtype
):
    params = {"cache": store, "dtype": dtype}
    old = fitted(module, ["0", "3"], images, **params)
    before = np.asarray(old.transform(images))
    new = fitted(module, TAPS, images, **params)
    stages_run.clear()
    misses = store.info()["misses"]
    found = new.transform(images)
    assert stages_run == [0, 1, 2]
    assert store.info()["misses"] == misses + len(images)
    columns = new.layout_.select_columns(["0", "3"])
    np.testing.assert_array_equal(np.asarray(found)[:, columns], before)
    alone = fitted(module, TAPS, images, dtype=dtype).transform(images)
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-3)
    stages_run.clear()
    np.testing.assert_array_equal(new.transform(images[::-1]), np.asarray(found)[::-1])
    assert stages_run == []


def test_a_tap_added_at_the_end_spares_the_outputs_only(
    module, images, store, stages_run
):
    fitted(module, ["0"], images, cache=store).transform(images)
    new = fitted(module, ["0", "3"], images, cache=store)
    stages_run.clear()
    found = new.transform(images)
    assert stages_run == [0, 1]
    np.testing.assert_allclose(
        found, fitted(module, ["0", "3"], images).transform(images), rtol=1e-5
    )


def test_of_several_the_one_that_spares_most_is_read(module, images, store, stages_run):
    for taps in (["0", "1"], ["1", "2", "3"], ["3"]):
        fitted(module, taps, images, cache=store).transform(images)
    new = fitted(module, TAPS, images, cache=store)
    stages_run.clear()
    new.transform(images)
    assert stages_run == [0]


def test_pieces_with_a_row_that_is_not_stored_are_computed(
    module, images, store, stages_run
):
    fitted(module, ["3"], images, cache=store).transform(images[:-1])
    new = fitted(module, TAPS, images, cache=store)
    stages_run.clear()
    found = new.transform(images)
    assert stages_run == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found, fitted(module, TAPS, images).transform(images))


@pytest.mark.parametrize(
    "other", [{"pool": 2}, {"dtype": "float16"}, {"preprocess": torch.Tensor.float}]
)
def test_rows_of_other_settings_are_not_taken(module, images, store, stages_run, other):
    fitted(module, ["3"], images, cache=store, **other).transform(images)
    new = fitted(module, TAPS, images, cache=store)
    stages_run.clear()
    new.transform(images)
    assert stages_run == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::sk_calex.store.StoreWarning")
def test_a_damaged_shard_is_not_taken(module, images, store, stages_run):
    fitted(module, ["3"], images, cache=store).transform(images)
    (path,) = store.folder.glob("*/*.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    new = fitted(module, TAPS, images, cache=FeatureStore(store.folder))
    stages_run.clear()
    found = new.transform(images)
    assert stages_run == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(found, fitted(module, TAPS, images).transform(images))


def test_changed_weights_take_nothing(module, images, store, stages_run):
    fitted(module, ["3"], images, cache=store).transform(images)
    new = fitted(module, TAPS, images, cache=store)
    with torch.no_grad():
        module[0][0].bias += 1
    stages_run.clear()
    try:
        new.transform(images)
    finally:
        with torch.no_grad():
            module[0][0].bias -= 1
    assert stages_run[-1] == 4


def test_workers_read_what_is_stored(module, images, store):
    before = fitted(module, ["0", "3"], images, cache=store).transform(images)
    new = fitted(module, TAPS, images, cache=store, n_jobs=2, batch_size=5)
    found = new.transform(images)
    columns = new.layout_.select_columns(["0", "3"])
    np.testing.assert_array_equal(np.asarray(found)[:, columns], before)


def test_a_store_with_a_limit_evicts_what_is_there(module, images, tmp_path):
    first = FeatureStore(tmp_path)
    fitted(module, ["3"], images, cache=first).transform(images)
    capped = FeatureStore(tmp_path, max_bytes=first.info()["bytes"])
    first = None
    with pytest.warns(StoreWarning, match="grows beyond"):  # the new rows are larger
        fitted(module, TAPS, images, cache=capped).transform(images)
    assert capped.info()["sections"] == 1


def test_of_many_taps_no_choices_are_looked_for(module, images, store, monkeypatch):
    from sk_calex.backbone import _stored_taps

    monkeypatch.setattr(_stored_taps, "_MOST_TAPS", 3)
    fitted(module, ["3"], images, cache=store).transform(images)
    new = fitted(module, TAPS, images, cache=store)
    monkeypatch.setattr(
        type(new.runner()), "fingerprints_of_fewer_taps", lambda self: 1 / 0
    )
    assert new.transform(images).shape == (20, new.layout_.width)
