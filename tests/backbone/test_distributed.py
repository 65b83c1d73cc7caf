"""A Dask cluster of two worker processes extracts features and searches a grid."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.model_selection import GridSearchCV

from sk_calex import FrozenBackbone
from sk_calex.backbone import _extraction
from sk_calex.store import FeatureStore, Section
from tests._cascade_models import flat_cascade, small_branch, tiny_backbone
from tests._cascade_models import images as easy_and_hard
from tests._models import TinyNet, counted, images

from ._extraction_models import Counting, Reading, assert_close

distributed = pytest.importorskip(
    "distributed", reason="Dask is not installed: see the extra 'distributed'"
)

SCRIPT = Path(__file__).parents[2] / "examples" / "distributed_extraction.py"
X = images(24)


class Travelling(TinyNet):
    """A network that leaves a line each time that it is pickled or unpickled."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def __getstate__(self):
        with open(self.path, "a") as file:
            file.write("pickled\n")
        return self.__dict__

    def __setstate__(self, state):
        super().__setstate__(state)
        with open(self.path, "a") as file:
            file.write(f"{os.getpid()}\n")


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=":0",
            silence_logs=50,
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        # Also where workers extract as a part of something larger.
        client.run(set_piece, _extraction.PIECE_BYTES, 4)
        yield client


def set_piece(n_bytes, n_rows):
    _extraction.PIECE_BYTES, _extraction.PIECE_ROWS = n_bytes, n_rows


@pytest.fixture(autouse=True)
def cluster(client, monkeypatch):
    monkeypatch.setattr(_extraction, "PIECE_ROWS", 4)
    with joblib.parallel_config(backend="dask"):
        yield


@pytest.fixture
def counting(tmp_path):
    return Counting(tmp_path / "seen")


@pytest.fixture(scope="module")
def expected():
    return make(n_jobs=1).fit_transform(X)


def make(cache=None, module=None, **parameters):
    parameters = {"batch_size": 2, "cache": cache, **parameters}
    return FrozenBackbone(module or TinyNet(), ["stem", "block1"], **parameters)


def test_rows_come_over_the_network(expected):
    backbone = make().fit(X)
    with counted(backbone.module) as sizes:
        features = backbone.transform(X)
    assert not sizes  # in this process
    assert_close(features, expected)
    assert features.layout == backbone.layout_


def test_rows_come_through_a_store_and_are_computed_once(tmp_path, counting, expected):
    backbone = make(FeatureStore(tmp_path / "cache"), preprocess=counting).fit(X)
    counting.seen()
    for rows, n_new in [(slice(10), 10), (slice(24), 14), (slice(None, None, -1), 0)]:
        assert_close(backbone.transform(X[rows]), expected[rows])
        assert sum(counting.seen().values()) == n_new
    assert backbone.cache.info()["rows"] == len(X)


def test_the_module_goes_to_each_worker_once_a_call(tmp_path, expected):
    backbone = make(module=Travelling(tmp_path / "log")).fit(X)
    for n in (1, 2):
        assert_close(backbone.transform(X), expected)
        log = (tmp_path / "log").read_text().split()
        assert log.count("pickled") == n
        assert log.count(str(os.getpid())) == 0
        assert len(log) - n <= 2 * n


def test_workers_read_what_they_compute(tmp_path, expected):
    data = Reading(tmp_path, X)
    backbone = make(tmp_path / "cache").fit(data)
    data.readers()
    assert_close(backbone.transform(data), expected)
    readers = data.readers()
    assert readers.pop(os.getpid()) == 1  # to see the shape
    assert sum(readers.values()) == len(X)


def test_workers_read_files_and_name_those_they_cannot(tmp_path, expected):
    paths = [str(tmp_path / f"{i}.png") for i in range(len(X))]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    backbone = make().fit(paths)
    assert_close(backbone.transform(paths), expected)
    os.remove(paths[13])
    with pytest.raises(FileNotFoundError, match=r"X\[13\] cannot be read") as caught:
        backbone.transform(paths)
    assert caught.value.filename == paths[13]


def test_a_folder_that_is_not_shared_is_an_error(tmp_path, monkeypatch):
    elsewhere = tmp_path / "of_the_workers"

    def reduce(section):
        path, *settings = section._settings
        return Section, (elsewhere / path.name, *settings)

    monkeypatch.setattr(Section, "__reduce__", reduce)
    monkeypatch.setattr(_extraction, "PATIENCE_SECONDS", 0.0)
    with pytest.raises(OSError, match=r"cannot be read back.*must share that folder"):
        make(tmp_path / "cache").fit(X).transform(X)
    assert FeatureStore(elsewhere).info()["rows"]


def test_a_grid_search_shares_the_features(tmp_path):
    X, y = easy_and_hard(120)
    store = FeatureStore(tmp_path / "cache")
    cascade = flat_cascade(
        tiny_backbone(batch_size=4, cache=store),
        branch=small_branch("gap"),
        min_support=5,
        cv=0.4,
        random_state=0,
    )
    margins = {"margin": [-0.2, 0.2, 0.5]}
    search = GridSearchCV(cascade, margins, cv=2, error_score="raise").fit(X, y)
    assert len(np.unique(search.cv_results_["mean_test_score"])) == 3
    # A row that two workers had in flight may be there twice.
    assert 120 <= store.info()["rows"] <= 240
    with joblib.parallel_config("sequential"):
        local = GridSearchCV(cascade, margins, cv=2).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    np.testing.assert_array_equal(scores, local.cv_results_["mean_test_score"])
    assert search.best_params_ == local.best_params_


def load_example():
    spec = importlib.util.spec_from_file_location("distributed_extraction", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    return example


def test_the_example_extracts_reads_back_and_searches(client, tmp_path, capsys):
    example = load_example()
    address = client.scheduler.address
    example.main(["--quick", "--scheduler", address, "--folder", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "2 workers" in printed
    assert "The same numbers: True" in printed
    assert len(list(tmp_path.glob("images/*.png"))) == 200
    (n_rows,) = re.findall(r"The store holds (\d+) rows", printed)
    assert 200 <= int(n_rows) <= 400
    table = re.findall(r"^ *([+-]\d\.\d\d) +[\d.]+% +-?[\d.]+%$", printed, re.M)
    assert [float(margin) for margin in table] == example.MARGINS


def test_the_example_asks_for_a_folder_that_all_see(client, capsys):
    with pytest.raises(SystemExit):
        load_example().parse_args(["--scheduler", client.scheduler.address])
    assert "--folder that all of its machines see" in capsys.readouterr().err
