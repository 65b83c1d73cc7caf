"""Several processes and threads extract: the same rows, each of them computed once.

On one machine; clusters are the matter of test_distributed.py.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from torch.utils.data import Dataset, TensorDataset

from sk_calex import FrozenBackbone
from sk_calex.backbone import _extraction, _shipment
from sk_calex.backbone._samples import Samples
from sk_calex.backbone._shipment import Shipment
from sk_calex.backbone._stages import Stages
from sk_calex.store import FeatureStore, Section, StoreWarning
from tests._models import SHAPE, TinyNet, counted, hook_before, images

from ._extraction_models import Counting, Reading, assert_close

TAPS = ["stem", "block1"]
X = images(12)


def make(cache=None, **parameters):
    parameters = {"batch_size": 2, "n_jobs": 2, **parameters}
    return FrozenBackbone(TinyNet(), TAPS, cache=cache, **parameters)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Pieces of 2 batches, 4 rows; results of more than that are memory maps."""
    row = 4 * (4 * 64 + 8 * 64 + 4)
    monkeypatch.setattr(_extraction, "PIECE_BYTES", 5 * row)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def expected():
    return make(n_jobs=1).fit(X).transform(X)


@pytest.fixture
def counting(tmp_path):
    return Counting(tmp_path / "seen")


# Processes


@pytest.mark.parametrize("cached", [False, True])
def test_two_processes_give_what_one_gives(cache, expected, cached):
    backbone = make(cache if cached else None).fit(X)
    with counted(backbone.module) as sizes:
        features = backbone.transform(X)
    assert not sizes  # in this process
    assert_close(features, expected)
    assert features.layout == expected.layout
    if cached:
        assert FeatureStore(cache).info()["rows"] == len(X)
        again = clone(backbone).set_params(n_jobs=1).fit(X)
        with counted(backbone.module) as sizes:
            again.transform(X)
        assert not sizes


def test_processes_compute_what_is_missing_and_once(cache, counting, expected):
    backbone = make(cache, preprocess=counting).fit(X)
    counting.seen()
    for rows, n_new in [(slice(7), 7), (slice(12), 5), (slice(None, None, -1), 0)]:
        assert_close(backbone.transform(X[rows]), expected[rows])
        assert sum(counting.seen().values()) == n_new


@pytest.mark.parametrize("cached", [False, True])
def test_a_dataset_is_read_where_its_rows_are_computed(
    tmp_path, cache, expected, cached
):
    data = Reading(tmp_path, X)
    backbone = make(cache if cached else None).fit(data)
    data.readers()
    assert_close(backbone.transform(data), expected)
    readers = data.readers()
    # Here only the first sample is read, to see its shape.
    assert readers.pop(os.getpid()) == 1
    assert sum(readers.values()) == len(X)


def test_files_are_read_where_their_rows_are_computed(
    tmp_path, cache, expected, monkeypatch
):
    paths = [tmp_path / f"{i}.png" for i in range(len(X))]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    backbone = make(cache).fit(paths)
    monkeypatch.chdir(tmp_path)
    given = [path.name for path in paths]
    monkeypatch.setattr(
        "sk_calex.backbone._image_files._read", None
    )  # not in this process
    backbone.set_params(preprocess=None)
    samples = Samples(given)
    assert samples.on_demand
    samples._data._kept = {0: paths[0].read_bytes()}
    monkeypatch.setattr(backbone, "_check_samples", lambda _: samples)
    assert_close(backbone.transform(given), expected)


def test_a_dataset_that_cannot_be_pickled_is_read_here(tmp_path, expected):
    data = Reading(tmp_path, X)
    data.lock = threading.Lock()
    backbone = make().fit(data)
    data.readers()
    assert_close(backbone.transform(data), expected)
    assert set(data.readers()) == {os.getpid()}


def test_a_dataset_in_memory_is_sent_by_rows(expected, monkeypatch):
    data = TensorDataset(torch.from_numpy(X), torch.arange(12))
    backbone = make().fit(data)
    monkeypatch.setattr(TensorDataset, "__getstate__", None)  # it is never pickled
    assert_close(backbone.transform(data), expected)


def test_damaged_rows_are_computed_again_here(cache, expected, counting):
    backbone = make(cache, preprocess=counting).fit(X)
    backbone.transform(X)
    for shard in cache.glob("*/*.safetensors"):
        content = bytearray(shard.read_bytes())
        content[-1] ^= 1
        shard.write_bytes(content)
    with counted(backbone.module) as sizes, pytest.warns(StoreWarning, match="ignored"):
        features = backbone.transform(X)
    assert sum(sizes) == len(X)
    assert_close(features, expected)


# Workers that see another folder


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Let workers open a section in a folder of their own."""
    folder = tmp_path / "of_the_workers"

    def reduce(section):
        path, *settings = section._settings
        return Section, (folder / path.name, *settings)

    monkeypatch.setattr(Section, "__reduce__", reduce)
    monkeypatch.setattr(_extraction, "PATIENCE_SECONDS", 0.0)
    return folder


def test_rows_that_only_workers_find_are_computed_here(cache, expected, elsewhere):
    make(elsewhere, n_jobs=1).fit(X).transform(X)
    backbone = make(cache).fit(X)
    with pytest.warns(UserWarning, match=r"12 rows that workers found.*must share"):
        features = backbone.transform(X)
    np.testing.assert_array_equal(features, expected)


def test_rows_that_come_to_be_seen_late_are_waited_for(cache, expected, monkeypatch):
    find, asked = Section.find, []

    def late(section, keys):
        found = find(section, keys)
        if threading.current_thread() is threading.main_thread() and len(keys):
            asked.append(len(keys))
            found &= len(asked) > 1
        return found

    monkeypatch.setattr(Section, "find", late)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    backbone = make(cache).fit(X)
    with joblib.parallel_config("threading"):
        features = backbone.transform(X)
    np.testing.assert_array_equal(features, expected)
    assert asked[:2] == [4, 4]


# Several calls at once


def test_who_is_overtaken_goes_on_elsewhere(cache, expected, monkeypatch):
    backbone, other = make(cache, n_jobs=1).fit(X), make(cache, n_jobs=1).fit(X)
    order = []
    raw = Samples.raw

    def noted(samples, rows):
        if len(samples) == len(X):
            order.append(rows.start)
        return raw(samples, rows)

    def other_is_quicker(*_):
        hook.remove()
        other.transform(X[:4])

    monkeypatch.setattr(Samples, "raw", noted)
    monkeypatch.setattr(
        _extraction._Queue, "shuffle", lambda queue: queue._left.reverse()
    )
    hook = hook_before(backbone.module.stem[2], other_is_quicker)
    np.testing.assert_array_equal(backbone.transform(X), expected)
    assert order == [0, 8, 4]
    assert FeatureStore(cache).info()["rows"] == len(X)


def test_a_shuffled_queue_holds_what_it_held():
    queue = _extraction._Queue(_extraction._cut(103, 10))
    first = next(queue)
    queue.shuffle()
    rest = list(queue)
    assert queue.n_rows == 103
    rows = [i for part in (first, *rest) for i in range(part.start, part.stop)]
    assert first == slice(0, 10)
    assert sorted(rows) == list(range(103))
    assert rest != sorted(rest, key=lambda part: part.start)


def transform_in_small_pieces(backbone, given):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_extraction, "PIECE_ROWS", 2)
        return backbone.transform(given)


def test_processes_that_fill_one_store_share_the_work(cache, counting):
    """Started together on the same images: only rows in flight are computed twice."""
    many = images(80, seed=1)
    counting.seconds = 0.002
    backbone = make(cache, n_jobs=None, preprocess=counting).fit(many[:2])
    expected = make(n_jobs=1).fit_transform(many)
    counting.seen()
    results = joblib.Parallel(n_jobs=2)(
        joblib.delayed(transform_in_small_pieces)(backbone, many) for _ in range(2)
    )
    for features in results:
        assert_close(features, expected)
    seen = counting.seen()
    assert len(seen) == 80  # nothing is lost
    # In step from the first piece to the last they would see every image twice.
    assert sum(seen.values()) < 1.5 * 80
    assert backbone.cache == cache


# Threads


def test_threads_do_not_disturb_each_others_flags(expected):
    backbone = make().fit(X)
    backbone.module.train()
    before = {k: v.clone() for k, v in backbone.module.state_dict().items()}
    with joblib.parallel_config(backend="threading"):
        for _ in range(5):
            np.testing.assert_array_equal(backbone.transform(X), expected)
    assert all(m.training for m in backbone.module.modules())
    for name, tensor in backbone.module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_threads_share_the_module_and_one_of_them_reads(tmp_path, cache, counting):
    data = Reading(tmp_path, X)
    backbone = make(cache, preprocess=counting).fit(data)
    counting.seen()
    with joblib.parallel_config(backend="threading"):
        with counted(backbone.module) as sizes:
            features = backbone.transform(data)
        assert sum(sizes) == len(X)
        np.testing.assert_array_equal(backbone.transform(X), features)
    assert sum(counting.seen().values()) == len(X)


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return len(X)

    def __getitem__(self, i):
        if i >= 9:
            raise self.error
        return X[i]


@pytest.mark.parametrize(
    ("error", "seen"), [(KeyError("file 9"), ValueError), (OSError("disk"), OSError)]
)
def test_errors_of_the_samples_come_through(cache, error, seen):
    backbone = make(cache).fit(X)
    message = "file 9|disk"
    with joblib.parallel_config("threading"), pytest.raises(seen, match=message):
        backbone.transform(Broken(error))
    with pytest.raises(ValueError, match="NaN"), joblib.parallel_config("threading"):
        backbone.transform(np.full((20, *SHAPE), np.nan))


# What a worker does, here for once


def test_a_worker_runs_what_it_is_sent(expected):
    backbone = make().fit(X)
    rows = slice(4, 8)
    frozen = X[rows].copy()
    frozen.flags.writeable = False  # as joblib maps it, and Dask receives it

    def job(pieces):
        for part, raw in pieces:
            yield part, backbone.runner().features(raw)

    with backbone.runner().inference_mode(), torch.inference_mode(False):
        sent = Shipment((job, backbone.runner(), None))
        ((part, features),) = _extraction._in_worker(sent, rows, frozen)
        np.testing.assert_array_equal(features, expected[rows])
        sent = Shipment((job, backbone.runner(), Samples(list(X))))
        ((part, features),) = _extraction._in_worker(sent, rows, None)
        np.testing.assert_array_equal(features, expected[rows])
    assert part == rows


def test_threads_of_a_worker_cut_the_module_once(expected, monkeypatch):
    """Tracing is not for several threads: who comes first does it for all."""
    backbone = make().fit(X)
    split, cuts = Stages.split, []

    def counting(*args, **settings):
        cuts.append(threading.get_ident())
        time.sleep(0.05)
        return split(*args, **settings)

    monkeypatch.setattr(Stages, "split", counting)
    monkeypatch.setattr(_shipment, "_last", None)
    runner = backbone.runner()
    job = partial(_extraction._compute, runner)
    with runner.inference_mode(), torch.inference_mode(False):
        pickled = pickle.dumps(Shipment((job, runner, None)))
    arrived = pickle.loads(pickled)
    assert arrived is pickle.loads(pickled)
    parts = [slice(i, i + 4) for i in (0, 4, 8)]
    with ThreadPoolExecutor(3) as threads:
        for part, done in zip(
            parts,
            threads.map(lambda p: _extraction._in_worker(arrived, p, X[p]), parts),
            strict=True,
        ):
            np.testing.assert_array_equal(done[0][1], expected[part])
    assert len(cuts) == 1


# At the end: the processes of a call that failed are not used again.


def test_rows_that_workers_store_in_another_folder_are_missed(cache, elsewhere):
    with pytest.raises(OSError, match=r"4 rows .* cannot be read back.*must share"):
        make(cache).fit(X).transform(X)
    assert not cache.exists()
    assert FeatureStore(elsewhere).info()["rows"]


@pytest.mark.parametrize("what", ["module", "preprocess"])
def test_what_cannot_be_sent_to_workers_is_said_before_they_start(what):
    net, preprocess = TinyNet(), None
    if what == "module":
        net.lock = threading.Lock()
    else:
        lock = threading.Lock()

        def preprocess(x):
            return x.float() if lock else x

    backbone = FrozenBackbone(net, ["stem"], preprocess=preprocess, n_jobs=2)
    X = images(8, dtype="float32")
    backbone.fit(X)
    message = r"n_jobs=2 sends the module.*cannot be pickled.*Set n_jobs=None"
    with pytest.raises(TypeError, match=message):
        backbone.transform(X)
    assert backbone.set_params(n_jobs=None).transform(X).shape[0] == 8
