"""Modules that are called with keywords take their inputs by name, rows together."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score, train_test_split
from torch import nn
from torch.utils.data import Dataset

from sk_calex import CascadeClassifier, FrozenBackbone
from sk_calex.backbone._samples import Samples
from sk_calex.store import FeatureStore
from tests._models import SHAPE, TinyNet, labelled_images

TAPS = ["first", "second"]
N = 60


class Texts(nn.Module):
    """Classifies rows of token ids, of which a mask says which count."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.first = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask):
        x = self.second(self.first(self.embed(ids)))
        weight = mask.unsqueeze(-1).to(x.dtype)
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Texts().eval()


def texts(n=N, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 3)
    ids = rng.integers(0, 20, (n, 6))
    ids[:, 0] = y
    mask = rng.random((n, 6)) < 0.7
    mask[:, 0] = True
    return {"ids": ids, "mask": mask}, y


X, Y = texts()


def outputs(module, X):
    with torch.inference_mode():
        return module(**{k: torch.from_numpy(np.array(v)) for k, v in X.items()})


def rows_of(X, rows):
    return {name: values[rows] for name, values in X.items()}


def test_features_are_those_of_the_module(module):
    backbone = FrozenBackbone(module, TAPS).fit(X)
    assert backbone.sample_shape_ == {"ids": (6,), "mask": (6,)}
    assert backbone.n_features_in_ == 2
    features = backbone.transform(X)
    logits = features[:, backbone.layout_.columns(2)]
    np.testing.assert_allclose(logits, outputs(module, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(backbone.predict(X), logits.argmax(1))
    copy = pickle.loads(pickle.dumps(backbone))
    one = backbone.set_params(batch_size=1).transform(X)
    np.testing.assert_allclose(one, features, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(copy.transform(X), features)


def test_the_order_of_the_names_does_not_matter(module):
    backbone = FrozenBackbone(module, TAPS).fit(X)
    turned = dict(reversed(X.items()))
    np.testing.assert_array_equal(backbone.transform(turned), backbone.transform(X))


def test_masks_travel_with_their_rows(module):
    runner = FrozenBackbone(module, TAPS).fit(X).runner()
    batch = Samples(X).raw(slice(0, N))
    with runner.inference_mode():
        _, state = runner.advance(0, runner.start(batch))
        state = runner.keep(state, np.array([7, 3, 20, 1]))
        _, state = runner.advance(1, state)
        state = runner.keep(state, np.array([2, 0]))
        logits, _ = runner.advance(2, state)
    expected = outputs(module, rows_of(X, [20, 7]))
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-6)


def test_a_cascade_answers_each_row_as_it_does_alone(module):
    cascade = cascade_on(FrozenBackbone(module, TAPS)).fit(X, Y)
    proba = cascade.predict_proba(X)
    alone = [cascade.predict_proba(rows_of(X, [i])) for i in range(0, N, 7)]
    np.testing.assert_allclose(proba[::7], np.concatenate(alone), rtol=1e-4, atol=1e-6)


def test_inputs_of_another_length_than_the_labels_are_refused(module):
    cascade = cascade_on(FrozenBackbone(module, TAPS))
    with pytest.raises(ValueError, match=r"inconsistent .* samples: 60, 60, 59"):
        cascade.fit(X, Y[1:])


class Watched(Dataset):
    """Counts the samples that are read."""

    def __init__(self, pixels):
        self.pixels, self.reads = pixels, 0

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, i):
        self.reads += 1
        return self.pixels[i]


@pytest.mark.parametrize(
    ("change", "y", "most"),
    [
        ({}, Y[1:], 0),  # the length of y
        ({}, np.zeros(N, int), 0),  # one class
        ({}, np.full(N, np.nan), 0),
        ({"cv": 200}, Y, 0),
        ({"margin": 2.0}, Y, 0),
        ({"alignment": "none of them"}, Y, 0),
        ({"final_estimator": 3}, Y, 0),
        ({"backbone__taps": "stem"}, Y, 0),
        ({"backbone__taps": ["nowhere"]}, Y, 4),
        ({"backbone__batch_size": 0}, Y, 0),
        (
            {"final_estimator": None, "backbone__classes": None},
            Y,
            4,
        ),  # 4 outputs, not 3
    ],
    ids=str,
)
def test_errors_come_before_the_samples_are_read(change, y, most):
    data = Watched(labelled_images(N)[0])
    cascade = cascade_on(FrozenBackbone(TinyNet(), ["stem", "block1"], batch_size=8))
    cascade.set_params(**change)
    with pytest.raises((ValueError, TypeError)):
        cascade.fit(data, y)
    assert data.reads <= most


def test_every_input_counts_in_the_store(module, tmp_path):
    store = FeatureStore(tmp_path / "cache")
    backbone = FrozenBackbone(module, TAPS, cache=store).fit(X)
    expected = FrozenBackbone(module, TAPS).fit(X).transform(X)
    np.testing.assert_array_equal(backbone.transform(X), expected)
    assert store.info()["rows"] == N
    np.testing.assert_array_equal(
        backbone.transform(rows_of(X, [3, 1])), expected[[3, 1]]
    )
    assert store.info()["rows"] == N
    other = {**X, "mask": ~X["mask"]}
    wanted = FrozenBackbone(module, TAPS).fit(X).transform(other)
    np.testing.assert_array_equal(backbone.transform(other), wanted)
    assert store.info()["rows"] == 2 * N


@pytest.mark.parametrize("cached", [False, True])
def test_workers_get_the_inputs_by_name(module, tmp_path, cached):
    cache = tmp_path / "cache" if cached else None
    backbone = FrozenBackbone(module, TAPS, cache=cache, n_jobs=2, batch_size=16)
    expected = FrozenBackbone(module, TAPS).fit(X).transform(X)
    found = backbone.fit(X).transform(X)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_stages_in_a_sequential_get_the_dict(module):
    class Start(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, batch):
            x = self.net.first(self.net.embed(batch["ids"]))
            return x, batch["mask"]

    class End(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = module

        def forward(self, both):
            x, mask = both
            weight = mask.unsqueeze(-1).to(x.dtype)
            x = self.net.second(x) * weight
            return self.net.head(x.sum(1) / weight.sum(1).clamp(min=1))

    stages = nn.Sequential(OrderedDict(start=Start(), end=End()))
    backbone = FrozenBackbone(stages, ["start"]).fit(X)
    logits = backbone.transform(X)[:, backbone.layout_.columns(1)]
    np.testing.assert_allclose(logits, outputs(module, X), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(backbone.predict(X), logits.argmax(1))


def test_another_shape_or_name_than_in_fit_is_refused(module):
    backbone = FrozenBackbone(module, TAPS).fit(X)
    short = {name: values[:, :4] for name, values in X.items()}
    with pytest.raises(ValueError, match=r"'ids': \(4,\).*fitted with.*'ids': \(6,\)"):
        backbone.transform(short)
    with pytest.raises(ValueError, match="fitted with"):
        backbone.transform({"ids": X["ids"]})
    with pytest.raises(ValueError, match=r"refused the keywords ids=a batch.*int64"):
        FrozenBackbone(module, TAPS).fit({"ids": X["ids"]})


def test_a_preprocess_may_make_the_inputs_of_one_array(module):
    def split(x):
        return {"ids": x, "mask": x > 4}

    backbone = FrozenBackbone(module, TAPS, preprocess=split).fit(X["ids"])
    both = {"ids": X["ids"], "mask": X["ids"] > 4}
    expected = FrozenBackbone(module, TAPS).fit(both).transform(both)
    np.testing.assert_array_equal(backbone.transform(X["ids"]), expected)


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]


def cascade_on(backbone):
    return CascadeClassifier(
        backbone,
        branch=LogisticRegression(),
        final_estimator=LogisticRegression(),
        targets="labels",
        margin=0.05,
        alignment="none",
        random_state=0,
    )


def test_data_frames_and_datasets_of_dicts_are_split_by_scikit_learn(module):
    frame = pd.DataFrame({name: list(values) for name, values in X.items()})
    data = Items([rows_of(X, i) for i in range(N)])
    cascade = cascade_on(FrozenBackbone(module, TAPS))
    scores = [cross_val_score(cascade, given, Y, cv=2) for given in (frame, data)]
    np.testing.assert_array_equal(*scores)
    assert np.isfinite(scores).all()


def test_datasets_of_pairs_are_split_by_scikit_learn():
    pixels, y = labelled_images(60)
    pairs = zip(torch.from_numpy(pixels), y.tolist(), strict=True)
    data = Items(list(pairs))
    cascade = cascade_on(FrozenBackbone(TinyNet(), ["stem", "block1"], batch_size=32))
    expected = cross_val_score(cascade, pixels, y, cv=2)
    np.testing.assert_array_equal(cross_val_score(cascade, data, y, cv=2), expected)
    train, test, y_train, y_test = train_test_split(data, y, random_state=0)
    arrays = train_test_split(pixels, y, random_state=0)
    got = cascade.fit(train, y_train).predict(test)
    np.testing.assert_array_equal(
        got, cascade.fit(arrays[0], y_train).predict(arrays[1])
    )
    assert got.shape == y_test.shape
    assert arrays[0].shape[1:] == SHAPE


@pytest.mark.filterwarnings("ignore")
def test_a_bert_of_hugging_face_fits():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=20,
        num_labels=3,
    )
    torch.manual_seed(0)
    bert = transformers.BertForSequenceClassification(config).eval()

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.bert = bert

        def forward(self, input_ids, attention_mask):
            return self.bert(input_ids, attention_mask=attention_mask).logits

    given = transformers.BatchEncoding(
        {"input_ids": X["ids"], "attention_mask": X["mask"].astype(np.int64)}
    )
    taps = ["bert.bert.encoder.layer.0", "bert.bert.encoder.layer.1"]
    backbone = FrozenBackbone(Logits(), taps).fit(given)
    logits = backbone.transform(given)[:, backbone.layout_.columns(2)]
    np.testing.assert_allclose(logits, outputs(Logits(), given), rtol=1e-4, atol=1e-5)


def test_frames_with_bools_reach_a_module():
    net = nn.Sequential(OrderedDict(a=nn.Linear(3, 4), b=nn.ReLU(), c=nn.Linear(4, 2)))
    frame = pd.DataFrame(
        {"x": [0.5, 1.5, 2.5], "y": [True, False, True], "z": [1, 2, 3]}
    ).astype({"z": "Int64"})
    plain = frame.to_numpy(dtype=np.float32)
    backbone = FrozenBackbone(net, ["b"]).fit(frame)
    assert backbone.feature_names_in_.tolist() == ["x", "y", "z"]
    np.testing.assert_array_equal(
        backbone.transform(frame),
        FrozenBackbone(net, ["b"]).fit(plain).transform(plain),
    )


def test_tiny_nets_are_refused_inputs_that_they_do_not_know():
    with pytest.raises(ValueError, match="refused the keywords y=a batch of shape"):
        FrozenBackbone(TinyNet(), ["stem"]).fit(
            {"y": np.zeros((4, *SHAPE)), "x": Y[:4]}
        )
