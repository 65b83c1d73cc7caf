"""What a cascade and its branches make of unusual inputs."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import BaggingClassifier, HistGradientBoostingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_calex import (
    BranchClassifier,
    FeatureArray,
    FrozenBackbone,
    MarginSearchCV,
    TapLayout,
)
from sk_calex.cascade import _last_stage as labels_module
from tests._cascade_models import (
    flat_cascade,
    images,
    small_branch,
    tiny_backbone,
    tiny_net,
)
from tests._models import counted
from tests._quick_cascade import X, Y, cascade


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(X)


def plain(**params):
    """A cascade on plain 2-D data."""
    settings = {"branch": LogisticRegression(), "min_support": 3, "random_state": 0}
    return flat_cascade(**(settings | params))


# Numbers


@pytest.mark.parametrize("make", [np.asarray, np.ndarray.tolist, torch.from_numpy])
def test_integers_that_float32_cannot_tell_apart(make):
    rng = np.random.default_rng(0)
    X = 1_700_000_000 + rng.permutation(200)[:, None]
    y = (X[:, 0] % 2 == 0).astype(int)
    neighbour = KNeighborsClassifier(1)
    stages = plain(
        branch=neighbour,
        final_estimator=neighbour,
        targets="labels",
        alignment="none",
        cv=0.2,
    )
    stages.fit(make(X), y)
    # In float32 a hundred neighbours fall together.
    expected = stages.final_estimator_.predict(X.astype(float))
    labels = stages.set_margin(-1.0).predict(make(X))
    np.testing.assert_array_equal(labels, expected)
    assert (labels == y).mean() > 0.75


def test_features_that_overflow_are_refused_on_both_ways(features):
    fitted = cascade(
        branch=HistGradientBoostingClassifier(max_iter=3, max_depth=2),
        backbone=tiny_backbone(dtype="float16"),
        input="samples",
    ).fit(X, Y)
    for ask in (fitted.predict, fitted.stage_probabilities):
        with pytest.raises(ValueError, match=r"infinit|finite"):
            ask(X * 1e8)


@pytest.mark.parametrize("branch", [small_branch(), GaussianNB()])
def test_int8_features_are_those_that_they_stand_for(branch):
    given = tiny_backbone(dtype="int8").fit(X).transform(X)
    plain = FeatureArray.wrap(np.asarray(given), given.layout)
    fits = [
        cascade(branch=branch).fit(data, Y).set_margin(0.1) for data in (given, plain)
    ]
    np.testing.assert_array_equal(
        fits[0].stage_probabilities(given), fits[1].stage_probabilities(plain)
    )
    np.testing.assert_array_equal(
        fits[0].predict(given[20:50]), fits[1].predict(plain[20:50])
    )
    torch_branch = small_branch(feature_shape=given.layout.shapes[0])
    blocks = (given.layout.block(data, 0) for data in (given, plain))
    answers = [clone(torch_branch).fit(b, Y).predict_proba(b) for b in blocks]
    np.testing.assert_array_equal(*answers)
    with pytest.raises(ValueError, match="is expecting"):
        fits[0].branches_[0].predict(given)


def test_searches_take_int8_features_and_cut_their_taps():
    given = tiny_backbone(dtype="int8").fit(X).transform(X)
    plain = FeatureArray.wrap(np.asarray(given), given.layout)
    search = MarginSearchCV(
        cascade(branch=GaussianNB(), cv=0.3),
        max_accuracy_drop=0.02,
        margins=[0.0, 0.1],
        taps="select",
        cv=2,
    )
    found = [clone(search).fit(data, Y) for data in (given, plain)]
    assert found[0].taps_ == found[1].taps_
    np.testing.assert_array_equal(found[0].predict(given), found[1].predict(plain))


# Names and layouts


class Table(nn.Module):
    """A small network on rows of numbers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        return self.last(self.first(x))


def test_columns_of_a_data_frame_are_checked():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        rng.standard_normal((80, 4)).astype(np.float32), columns=list("abcd")
    )
    backbone = FrozenBackbone(Table(), ["first"], device="cpu")
    y = backbone.fit(frame).predict(frame)
    assert backbone.feature_names_in_.tolist() == list("abcd")
    swapped = frame[list("badc")]
    with pytest.raises(ValueError, match="same order"):
        backbone.transform(swapped)
    with pytest.raises(ValueError, match="same order"):
        backbone.predict(swapped)
    stages = cascade(backbone=backbone, input="samples", cv=0.3).fit(frame, y)
    assert stages.feature_names_in_.tolist() == list("abcd")
    with pytest.raises(ValueError, match="same order"):
        stages.predict(swapped)
    backbone.fit(frame.to_numpy())
    assert not hasattr(backbone, "feature_names_in_")


def test_features_of_other_taps_are_refused_though_as_wide(features):
    layout = features.layout
    fitted = cascade().fit(features, Y)
    other = FrozenBackbone(
        nn.Sequential(*list(tiny_net().children())), ["0", "1"], pool=4, device="cpu"
    )
    given = other.fit(X).transform(X)
    assert given.layout.width == layout.width
    with pytest.raises(ValueError, match=r"taps \['0', '1'\]"):
        fitted.predict(given)
    known = cascade(backbone=FrozenEstimator(tiny_backbone().fit(X)))
    with pytest.raises(ValueError, match="the backbone makes"):
        known.fit(given, Y)
    assert fitted.predict(np.asarray(given)).shape == Y.shape  # which cannot be told


def test_features_of_some_of_the_taps_of_a_fitted_backbone(features):
    layout, name = features.layout, features.layout.names[1]
    cut = type(features).wrap(
        np.asarray(features)[:, layout.select_columns([name])], layout.select([name])
    )
    known = FrozenEstimator(tiny_backbone().fit(X))
    fitted = cascade(backbone=known).fit(cut, Y)
    assert fitted.layout_.names == (name,)
    assert fitted.layout_.stage_macs == layout.select([name]).stage_macs
    by_hand = TapLayout(
        list(layout.names), [list(shape) for shape in layout.shapes], layout.n_outputs
    )
    same = cascade().fit(type(features).wrap(np.asarray(features), by_hand), Y)
    assert same.predict(features).shape == Y.shape


def test_a_backbone_that_could_not_be_fitted_is_not_fitted():
    frame = pd.DataFrame(np.zeros((4, 4), dtype=np.float32), columns=list("abcd"))
    backbone = FrozenBackbone(Table(), ["nope"], device="cpu")
    with pytest.raises(ValueError, match="nope"):
        backbone.fit(frame)
    with pytest.raises(NotFittedError):
        backbone.transform(frame)


# Branches of scikit-learn


def test_survivors_of_which_the_backbone_is_sure_teach_a_branch_nothing(features):
    sure = np.asarray(features).copy()
    logits = features.layout.columns(features.layout.n_taps)
    sure[:, logits] = 50 * (np.eye(3)[Y] - 0.5)
    # The first branch knows all classes but one for certain.
    easy = features.layout.columns(0)
    sure[:, easy] *= 0.01
    sure[:, easy.start] = np.where(Y == 0, 0.0, 10.0 * Y)
    given = type(features).wrap(sure, features.layout)
    for targets in ("soft", "argmax"):
        fitted = cascade(
            alignment="hard", targets=targets, margin=0.0, alignment_margin=0.0
        ).fit(given, Y)
        assert (fitted.predict(given) == Y).mean() > 0.95


# scikit-learn 1.7 takes so many classes for a regression.
@pytest.mark.filterwarnings("ignore:The number of unique classes is:UserWarning")
def test_soft_targets_that_are_the_same_for_very_many_classes():
    rng = np.random.default_rng(0)
    n_classes = 120
    y = np.repeat(np.arange(n_classes), 5)
    rows = rng.standard_normal((len(y), 3)).astype(np.float32)
    last = DummyClassifier(strategy="uniform")
    fitted = plain(branch=GaussianNB(), final_estimator=last, cv=0.4).fit(rows, y)
    assert np.isfinite(fitted.stage_probabilities(rows)).all()


def test_every_random_part_of_a_branch_gets_a_seed(features):
    branch = make_pipeline(
        StandardScaler(),
        BaggingClassifier(LogisticRegression(), n_estimators=3, max_samples=0.3),
    )
    one, two = (
        cascade(branch=branch, alignment="none", targets="argmax").fit(features, Y)
        for _ in range(2)
    )
    np.testing.assert_array_equal(
        one.predict_proba(features), two.predict_proba(features)
    )
    other = cascade(
        branch=branch, alignment="none", targets="argmax", random_state=1
    ).fit(features, Y)
    assert (one.predict_proba(features) != other.predict_proba(features)).any()
    assert branch.get_params()["baggingclassifier__random_state"] is None


# Before anything is computed


@pytest.mark.parametrize(
    ("params", "y", "error", "match"),
    [
        ({}, np.where(np.arange(180) == 5, np.nan, Y), ValueError, "NaN"),
        ({}, Y[:, None] * np.ones((1, 2)), ValueError, "1d array"),
        ({"final_estimator": StandardScaler()}, Y, TypeError, "final_estimator"),
    ],
    ids=["labels missing", "labels of two columns", "no classifier"],
)
def test_what_is_wrong_is_said_before_the_backbone_runs(params, y, error, match):
    net = tiny_net()
    stages = cascade(backbone=tiny_backbone(), input="samples", **params)
    with counted(net) as sizes, pytest.raises(error, match=match):
        stages.fit(X, y)
    assert sizes == []


def test_a_frozen_last_stage_keeps_the_labels_it_was_fitted_on(features):
    outputs = features.layout.block(features, features.layout.n_taps)
    names = np.array(["a", "b", "c"])[Y]
    last = FrozenEstimator(LogisticRegression().fit(outputs, names))
    named = cascade(final_estimator=last).fit(features, names)
    direct = last.predict_proba(outputs)
    np.testing.assert_allclose(named.stage_probabilities(features)[-1], direct)
    others = np.array(["a", "b", "d"])[Y]
    with pytest.raises(ValueError, match=r"frozen and knows .*lacks \['c'\]"):
        cascade(final_estimator=last).fit(features, others)
    last = FrozenEstimator(LogisticRegression().fit(outputs, Y))
    weight = 1.0 + (np.arange(len(Y)) % 2)  # which a frozen one has no use for
    fitted = cascade(final_estimator=last).fit(features, Y, sample_weight=weight)
    assert fitted.score(features, Y) > 0.5
    assert fitted.final_estimator_ is last


def test_outputs_that_are_mostly_right_are_not_compared_with_every_order(monkeypatch):
    def fail(*args):
        raise AssertionError("a matrix of all pairs of classes was made")

    monkeypatch.setattr(labels_module, "linear_sum_assignment", fail)
    codes = np.arange(100)
    labels_module.check_output_order(np.where(codes < 60, codes, 0), codes)


# Modes of the caller


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_a_branch_is_trained_whatever_mode_the_caller_is_in(mode, solver):
    settings = {"max_iter": 2, "solver": solver, "random_state": 0, "device": "cpu"}
    rows, y = images(30)
    rows = rows.reshape(30, -1)[:, :20]
    expected = BranchClassifier("gap", **settings).fit(rows, y)
    with mode():
        inside = BranchClassifier("gap", **settings).fit(rows, y)
    np.testing.assert_array_equal(
        inside.predict_proba(rows), expected.predict_proba(rows)
    )
    inside.set_params(warm_start=True).fit(rows, y)  # and goes on outside of it


def test_the_mode_of_the_caller_is_left_as_it_was(features):
    with torch.inference_mode():
        cascade(branch=small_branch("gap"), cv=0.3).fit(features, Y)
        assert torch.is_inference_mode_enabled()
