"""The cache of a backbone: every row is computed once, and comes back the same.

Several processes: test_parallel_extraction.py and test_distributed.py.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.base import clone
from torch.utils.data import Dataset

from sk_calex import FeatureArray, FrozenBackbone
from sk_calex.backbone import _extraction
from sk_calex.backbone._extraction import rows_in_piece
from sk_calex.store import FeatureStore, StoreWarning
from tests._models import SHAPE, TinyNet, counted, hook_before, images

TAPS = ["stem", "block1"]
X = images(12)


def make(cache=None, net=None, **parameters):
    parameters = {"batch_size": 2, **parameters}
    return FrozenBackbone(net or TinyNet(), TAPS, cache=cache, **parameters)


def rows_computed(backbone, X):
    """Transform, and count the samples that the module saw."""
    # Cut again where weights were written to: that runs the module, too.
    backbone.runner().stages()
    with counted(backbone.module) as sizes:
        features = backbone.transform(X)
    return sum(sizes), features


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of 2 batches, 4 rows; results of more than that are memory maps."""
    row = 4 * (4 * 64 + 8 * 64 + 4)
    monkeypatch.setattr(_extraction, "PIECE_BYTES", 5 * row)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def expected(small_pieces):
    return make().fit(X).transform(X)


@given(batch=st.integers(1, 10**4), row=st.integers(1, 10**9))
def test_a_piece_is_whole_batches_within_its_bounds(batch, row):
    rows = rows_in_piece(batch, row)
    assert rows >= batch
    assert rows % batch == 0
    if rows > batch:
        assert rows <= _extraction.PIECE_ROWS
        assert rows * row <= _extraction.PIECE_BYTES


def test_features_that_will_not_fit_into_memory_warn(monkeypatch):
    backbone = make().fit(X)
    n_bytes = len(X) * backbone.layout_.width * 4
    free_memory = "sk_calex.backbone._extraction.free_memory"
    for free in (n_bytes, None):
        monkeypatch.setattr(free_memory, lambda free=free: free)
        backbone.transform(X)
    monkeypatch.setattr(free_memory, lambda: n_bytes - 1)
    with pytest.warns(UserWarning, match=f"take {n_bytes:,} bytes, .* Set cache=") as w:
        backbone.transform(X)
    assert w[0].filename == __file__


# The cache


def test_cached_features_that_will_not_fit_on_the_disk_warn(cache, monkeypatch):
    backbone = make(cache).fit(X)
    row_bytes = backbone.layout_.width * 4
    monkeypatch.setattr("sk_calex.store._section.free_disk_space", lambda folder: 0)
    match = f"take {len(X) * (row_bytes + 16):,} bytes .* set a smaller pool"
    with pytest.warns(StoreWarning, match=match):
        backbone.transform(X)


def test_cached_features_are_the_computed_ones_to_the_last_bit(cache, expected):
    backbone = make(cache).fit(X)
    assert not cache.exists()  # nothing is stored in fit
    n, first = rows_computed(backbone, X)
    assert n == len(X)
    assert type(first) is FeatureArray
    assert first.layout is backbone.layout_
    np.testing.assert_array_equal(first, expected)
    n, second = rows_computed(backbone, X)
    assert n == 0
    np.testing.assert_array_equal(second, expected)


def test_any_rows_are_read_from_the_cache(cache, expected):
    backbone = make(str(cache)).fit(X)
    backbone.transform(X)
    rng = np.random.default_rng(0)
    for rows in (slice(3, 7), rng.permutation(12), rng.integers(0, 12, 20), [5]):
        n, features = rows_computed(backbone, X[rows])
        assert n == 0
        np.testing.assert_array_equal(features, expected[rows])


def test_repeated_rows_are_computed_once(cache, expected):
    rows = np.array([0, 1, 0, 2, 2, 2, 3, 0, 1, 4, 5, 4])
    n, features = rows_computed(make(cache).fit(X), X[rows])
    assert n == 6
    np.testing.assert_allclose(features, expected[rows], rtol=1e-5, atol=1e-6)


def test_new_rows_are_collected_to_whole_batches(cache, expected):
    backbone = make(cache).fit(X)
    backbone.transform(X[::2])
    with counted(backbone.module) as sizes:
        features = backbone.transform(X)
    assert sizes == [2, 2, 2]
    np.testing.assert_allclose(features, expected, rtol=1e-5, atol=1e-6)


def test_the_form_of_the_samples_does_not_matter_only_their_values(cache, small_pieces):
    backbone = make(cache).fit(X)
    backbone.transform(X)
    assert rows_computed(backbone, torch.from_numpy(X))[0] == 0
    assert rows_computed(backbone, list(X))[0] == 0
    assert rows_computed(backbone, X.astype(np.float32) / 255)[0] == len(X)


OTHERS = {
    "weights": {"net": TinyNet(seed=1)},
    "taps": {"taps": ["stem"]},
    "pool": {"pool": 4},
    "pool of one tap": {"pool": {"stem": 4}},
    "dtype": {"dtype": "float16"},
    "bytes": {"dtype": "int8"},
    "preprocess": {"preprocess": lambda x: x / 255.0},
    "another": {"preprocess": lambda x: x / 127.5},
}


def test_what_shapes_the_features_has_a_place_of_its_own(cache, expected):
    make(cache).fit(X).transform(X)
    fingerprints = {make(cache).fit(X).fingerprint_}
    for change in OTHERS.values():
        net = change.get("net")
        given = {key: value for key, value in change.items() if key != "net"}
        backbone = make(cache, net).set_params(**given).fit(X)
        n, features = rows_computed(backbone, X)
        assert n == len(X)
        plain = make(None, net).set_params(**given).fit_transform(X)
        np.testing.assert_array_equal(features, plain)
        fingerprints.add(backbone.fingerprint_)
    assert len(fingerprints) == 1 + len(OTHERS)
    assert FeatureStore(cache).info()["by_section"].keys() == fingerprints


def test_what_does_not_shape_the_features_shares_the_place(cache, expected):
    backbone = make(cache, pool=8).fit(X)
    backbone.transform(X)
    same = [
        clone(backbone).fit(X[:1]),
        clone(backbone).set_params(batch_size=5, verbose=0, n_jobs=1).fit(X),
        clone(backbone).set_params(pool={"stem": (8, 8)}, classes=list("abcd")).fit(X),
        pickle.loads(pickle.dumps(backbone)),
        make(cache).fit(X),
    ]
    for other in same:
        assert other.fingerprint_ == backbone.fingerprint_
        n, features = rows_computed(other, X)
        assert n == 0
        np.testing.assert_array_equal(features, expected)


def test_weights_that_change_after_fit_are_noticed(cache, small_pieces):
    backbone = make(cache).fit(X)
    before = backbone.transform(X)
    with torch.no_grad():
        backbone.module.head[-1].bias += 1
    n, after = rows_computed(backbone, X)
    assert n == len(X)
    np.testing.assert_allclose(after[:, -4:], before[:, -4:] + 1, rtol=1e-5)


def test_weights_written_behind_the_back_of_torch_are_noticed(cache, small_pieces):
    # Stages hold copies of convolutions, and .data is not counted as a write.
    net = TinyNet()
    backbone = make(cache, net).fit(X)
    backbone.transform(X)
    for parameter in net.stem.parameters():
        parameter.data.mul_(2)
    features = backbone.transform(X)
    np.testing.assert_array_equal(features, make(None, net).fit(X).transform(X))
    late = make(None, net).fit(X)
    net.stem[0].weight.data.mul_(2)
    features = late.set_params(cache=cache).transform(X)
    np.testing.assert_array_equal(features, make(None, net).fit(X).transform(X))


def test_running_statistics_that_change_are_noticed(cache, small_pieces):
    backbone = make(cache).fit(X)
    backbone.transform(X)
    backbone.module.train()(torch.rand(2, *SHAPE))  # the user goes on training
    assert rows_computed(backbone, X)[0] == len(X)


def test_features_that_are_refused_are_not_stored(cache, small_pieces):
    backbone = make(cache, dtype="float16", preprocess=lambda x: x * 1e9).fit(X)
    with pytest.raises(ValueError, match="overflow"):
        backbone.transform(X)
    assert FeatureStore(cache).info()["rows"] == 0


def test_a_store_with_settings_of_its_own_is_used_as_it_is(cache, expected):
    store = FeatureStore(cache, verify="never")
    backbone = make(store).fit(X)
    assert "verify='never'" in repr(backbone)
    np.testing.assert_array_equal(backbone.transform(X), expected)
    assert store.info()["rows"] == len(X)
    twin = clone(backbone)
    assert twin.cache is store  # like the module, it is made to be shared
    n, _ = rows_computed(twin.fit(X), X)
    assert n == 0
    for copied in (pickle.loads(pickle.dumps(backbone)), copy.deepcopy(backbone)):
        assert copied.cache.folder == store.folder
        assert rows_computed(copied, X)[0] == 0
    damage(cache)
    np.testing.assert_array_equal(backbone.transform(X)[:, :-1], expected[:, :-1])


class Interrupted(Dataset):
    """Samples that cannot be read beyond the first few, until they can."""

    def __init__(self, error, readable):
        self.error, self.readable = error, readable

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        if i >= self.readable:
            raise self.error
        return X[i]


def test_an_interruption_keeps_the_finished_rows(cache, expected):
    backbone = make(cache).fit(X)
    batches = []

    def interrupt(_module, _inputs):
        batches.append(1)
        if len(batches) == 4:  # in the second piece
            raise KeyboardInterrupt

    hook = hook_before(backbone.module.block1[2], interrupt)
    with pytest.raises(KeyboardInterrupt):
        backbone.transform(X)
    hook.remove()
    assert not torch.is_inference_mode_enabled()
    n, features = rows_computed(clone(backbone).fit(X), X)
    assert n == len(X) - 4
    np.testing.assert_array_equal(features, expected)


def test_a_sample_that_cannot_be_read_keeps_the_finished_rows(cache, expected):
    backbone = make(cache).fit(X)
    data = Interrupted(KeyError("file 9"), readable=9)
    with pytest.raises(ValueError, match=r"X\[9\] cannot be read.*file 9"):
        backbone.transform(data)
    data.readable = 12
    n, features = rows_computed(backbone, data)
    assert n == len(X) - 8
    np.testing.assert_array_equal(features, expected)


def damage(cache):
    for shard in sorted(cache.glob("*/*.safetensors")):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)


def test_damaged_rows_are_computed_again(cache, expected):
    backbone = make(cache).fit(X)
    backbone.transform(X)
    damage(cache)
    # Large results are read shard by shard, so the damage is not found at once.
    with pytest.warns(StoreWarning, match="ignored"):
        n, features = rows_computed(backbone, X)
    assert n == len(X)
    np.testing.assert_array_equal(features, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StoreWarning)
        n, features = rows_computed(backbone, X)
    assert n == 0
    np.testing.assert_array_equal(features, expected)


def test_a_disk_that_never_gives_back_what_it_got_ends_in_an_error(
    cache, small_pieces, monkeypatch
):
    write = FeatureStore.section

    def section(self, *args):
        section = write(self, *args)
        store = section.write
        section.write = lambda *rows: (store(*rows), damage(cache))[0]
        return section

    monkeypatch.setattr(FeatureStore, "section", section)
    with (
        pytest.warns(StoreWarning),
        pytest.raises(OSError, match=r"cannot be read back. Check the disk"),
    ):
        make(cache).fit(X).transform(X)


def test_a_small_result_is_an_array(cache):
    features = make(cache).fit(X).transform(X)
    assert not isinstance(memory_behind(features), np.memmap)
    assert features.flags.writeable


def memory_behind(array):
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def test_a_large_result_is_a_read_only_memory_map(cache, expected):
    features = make(cache).fit(X).transform(X)
    base = memory_behind(features)
    assert isinstance(base, np.memmap)
    assert not features.flags.writeable
    np.testing.assert_array_equal(features, expected)
    part = features[3:5]
    assert part.layout is features.layout
    copied = pickle.loads(pickle.dumps(features))
    assert copied.layout == features.layout
    file = Path(base.filename)
    assert file.exists()
    del features, base
    np.testing.assert_array_equal(part, expected[3:5])  # the map lives on in its slices
    del part
    assert not file.exists()
    np.testing.assert_array_equal(copied, expected)


def test_the_progress_bar_counts_what_is_read_too(cache, small_pieces, capsys):
    backbone = make(cache, verbose=1).fit(X)
    for rows in (slice(0, 6), slice(0, 12), slice(0, 12)):
        backbone.transform(X[rows])
        n = len(X[rows])
        assert f"{n}/{n}" in capsys.readouterr().err
