"""Bad input: each kind gets an error that names the parameter and the way out."""

import copy

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import PredefinedSplit, ShuffleSplit
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.utils.data import Dataset

from sk_calex import CascadeClassifier, FrozenBackbone, SurvivorAlignment
from sk_calex.baselines import SDNClassifier
from tests._cascade_models import (
    composed,
    flat_cascade,
    images,
    small_branch,
    tiny_backbone,
    tiny_net,
)

X, Y = images(60)


def cascade(backbone=None, **params):
    params = {"branch": small_branch("gap", max_iter=2), "random_state": 0} | params
    return flat_cascade(tiny_backbone() if backbone is None else backbone, **params)


@pytest.fixture(scope="module")
def fitted():
    return cascade().fit(X, Y)


@pytest.mark.parametrize(
    ("taps", "message"),
    [
        (["stem", "blok1"], r"'blok1' is not in the module.*'block1'"),
        (["block1", "stem"], r"order of execution.*\['stem', 'block1'\]"),
        (["stem", "stem"], "'stem' is repeated"),
        ([], "taps is empty"),
        (["head"], "the module's output"),
    ],
)
def test_taps(taps, message):
    with pytest.raises(ValueError, match=message):
        cascade(FrozenBackbone(tiny_net(), taps)).fit(X, Y)


def test_wrong_number_of_channels(fitted):
    with pytest.raises(ValueError, match=r"\(2, 1, 16, 16\).*number of channels"):
        cascade().fit(X[:, :1], Y)
    with pytest.raises(ValueError, match=r"\(1, 16, 16\).*\(3, 16, 16\)"):
        fitted.predict(X[:, :1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite(fitted, bad):
    broken = X.copy()
    broken[7, 0, 3, 3] = bad
    with pytest.raises(ValueError, match="X contains NaN or infinity"):
        cascade().fit(broken, Y)
    with pytest.raises(ValueError, match="X contains NaN or infinity"):
        fitted.predict(broken)


def test_features_that_are_not_finite():
    features = tiny_backbone().fit(X).transform(X).copy()
    features[5, -1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        flat_cascade(input="features").fit(features, Y)


def test_empty(fitted):
    with pytest.raises(ValueError, match="X and y are empty"):
        cascade().fit(X[:0], Y[:0])
    with pytest.raises(ValueError, match="X is empty"):
        fitted.predict(X[:0])


def test_labels_of_another_length():
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples.*60, 59"):
        cascade().fit(X, Y[:-1])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_labels_that_are_not_finite(bad):
    y = Y.astype(float)
    y[0] = bad
    with pytest.raises(ValueError, match=r"Input y contains (NaN|infinity)"):
        cascade().fit(X, y)


def test_labels_that_are_not_classes():
    with pytest.raises(ValueError, match="Unknown label type: continuous"):
        cascade().fit(X, np.linspace(0, 1, 60))


def test_a_single_class():
    with pytest.raises(ValueError, match="at least 2 classes, y holds one class: 1"):
        cascade().fit(X, np.ones(60, dtype=int))


def test_a_class_absent_from_training():
    fold = np.where(np.arange(60) % 3 == 0, 0, -1)
    fold[Y == 2] = 0
    with pytest.raises(ValueError, match=r"training part of cv=.*no sample of class 2"):
        cascade(cv=PredefinedSplit(fold)).fit(X, Y)


def test_nothing_held_out_has_weight():
    fold = np.where(np.arange(60) % 3 == 0, 0, -1)
    with pytest.raises(ValueError, match="holds out no sample of positive weight"):
        cascade(cv=PredefinedSplit(fold)).fit(X, Y, sample_weight=(fold < 0) * 1.0)


def test_splits_that_overlap():
    with pytest.raises(ValueError, match=r"cv=.*exactly once"):
        cascade(cv=ShuffleSplit(3, test_size=0.4, random_state=0)).fit(X, Y)


def test_weights():
    with pytest.raises(ValueError, match="sample_weight is zero for all samples"):
        cascade().fit(X, Y, sample_weight=np.zeros(60))
    with pytest.raises(ValueError, match=r"Negative values.*sample_weight"):
        cascade().fit(X, Y, sample_weight=-np.ones(60))


@pytest.mark.parametrize("margin", [1, 1.5, np.inf, -np.inf, np.nan])
def test_margins(fitted, margin):
    with pytest.raises(ValueError, match=r"margin=.* a finite number below 1"):
        cascade(margin=margin).fit(X, Y)
    with pytest.raises(ValueError, match="alignment__margin="):
        cascade(alignment_margin=margin).fit(X, Y)
    before = fitted.thresholds_.copy(), fitted.margin
    for call in (fitted.set_margin, fitted.thresholds_at):
        with pytest.raises(ValueError, match=r"margin=.* a finite number below 1"):
            call(margin)
    np.testing.assert_array_equal(fitted.thresholds_, before[0])
    assert fitted.margin == before[1]


def test_negative_margins_are_legal():
    assert cascade(margin=-3.0).fit(X, Y).thresholds_.shape == (2, 3)


def test_outputs_that_do_not_fit_the_classes():
    with pytest.raises(
        ValueError, match=r"3 outputs but y has 4 classes.*final_estimator"
    ):
        cascade().fit(X, np.arange(60) % 4)
    with pytest.raises(ValueError, match=r"classes=.*'zebra'|classes=.*not among"):
        cascade(tiny_backbone(classes=["a", "b", "c"])).fit(
            X, np.array(["a", "b", "zebra"])[Y]
        )


def test_labels_in_another_order_than_the_outputs():
    names = np.array(["zebra", "ant", "bee"])  # sorted, they go by another order
    with pytest.raises(ValueError, match=r"another order.*classes=\[\.\.\.\]"):
        cascade().fit(X, names[Y])
    told = cascade(tiny_backbone(classes=names)).fit(X, names[Y])
    assert told.score(X, names[Y]) > 0.6


def test_a_module_instead_of_a_backbone():
    with pytest.raises(TypeError, match=r"FrozenBackbone\(module, taps="):
        cascade(nn.Linear(2, 2)).fit(X, Y)


def test_use_before_fit():
    for call in ("predict", "predict_proba", "exit_depth", "cost", "flops_reduction"):
        with pytest.raises(NotFittedError, match="CascadeClassifier"):
            getattr(cascade(), call)(X)
    with pytest.raises(NotFittedError):
        cascade().set_margin(0.1)


def test_features_without_a_layout():
    features = np.asarray(tiny_backbone().fit(X).transform(X))
    with pytest.raises(ValueError, match=r"input='features'.*which columns"):
        flat_cascade(input="features").fit(features, Y)
    with pytest.raises(ValueError, match=r"input='features'.*which columns"):
        flat_cascade(tiny_backbone(), input="features").fit(features, Y)
    # A fitted backbone tells.
    backbone = tiny_backbone().fit(X)
    told = flat_cascade(
        backbone, input="features", branch=small_branch("gap", max_iter=2)
    )
    assert told.fit(features, Y).layout_ == backbone.layout_
    with pytest.raises(ValueError, match="features as input"):
        told.predict(features[:, :-1])


def test_a_branch_for_each_tap():
    with pytest.raises(ValueError, match=r"list of 3 classifiers.*2 taps"):
        cascade(branch=[small_branch()] * 3).fit(X, Y)


def test_branches_that_take_no_weights():
    neighbours = KNeighborsClassifier(3)
    with pytest.raises(ValueError, match=r"branch=KNeighbors.*targets='argmax'"):
        cascade(branch=neighbours).fit(X, Y)
    cascade(branch=neighbours, targets="argmax", alignment="none").fit(X, Y)


def test_costs_that_nobody_can_count():
    fitted = cascade(branch=DummyClassifier(), targets="labels").fit(X, Y)
    with pytest.raises(ValueError, match=r"MACs of branch DummyClassifier.*macs_"):
        fitted.cost(X)
    for branch in fitted.branches_:
        branch.macs_ = 7
    assert (fitted.cost(X) > 0).all()


def test_settings_out_of_range():
    for setting in (
        {"alignment": "sharp"},
        {"targets": "hard"},
        {"input": "images"},
        {"cv": 1.5},
    ):
        (name,) = setting
        with pytest.raises(ValueError, match=rf"'{name}' parameter of Cascade"):
            cascade(**setting).fit(X, Y)


@pytest.mark.parametrize(
    ("setting", "owner"),
    [
        ({"calibrate_on": "train"}, "SurvivorThresholdCalibrator"),
        ({"margin_mode": "both"}, "SurvivorThresholdCalibrator"),
        ({"rule": "best"}, "SurvivorThresholdCalibrator"),
        ({"min_support": -1}, "SurvivorThresholdCalibrator"),
        ({"alignment_kind": "sharp"}, "SurvivorAlignment"),
        ({"alignment_mixture": 1.5}, "SurvivorAlignment"),
        ({"alignment_bandwidth": -1}, "SurvivorAlignment"),
        ({"cross_fit": 1}, "SurvivorAlignment"),
    ],
    ids=str,
)
def test_settings_of_parts_out_of_range_are_refused_before_the_work(
    setting, owner, monkeypatch
):
    monkeypatch.setattr(FrozenBackbone, "transform", pytest.fail)
    (name,) = setting
    name = name.removeprefix("alignment_")
    parts = composed(**setting)
    with pytest.raises(ValueError, match=rf"'{name}' parameter of {owner}"):
        CascadeClassifier(tiny_backbone(), **parts).fit(*images(30))


@pytest.mark.parametrize(
    "name", ["margin_mode", "shrinkage", "policy", "alignment_mixture", "cross_fit"]
)
def test_parameters_that_became_those_of_a_part_are_unknown(name):
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
        CascadeClassifier(**{name: 1})
    with pytest.raises(ValueError, match=f"Invalid parameter '{name}'"):
        CascadeClassifier().set_params(**{name: 1})


def test_one_margin_for_branches_and_thresholds_cannot_move():
    bound = cascade(alignment_margin="same", margin=0.1).fit(X, Y)
    with pytest.raises(ValueError, match=r"alignment__margin='same'.*fit again"):
        bound.set_margin(0.2)


def test_final_estimator_must_classify():
    class Almost(BaseEstimator):
        def fit(self, X, y):
            return self

        def predict_proba(self, X):
            return np.ones((len(X), 1))

    with pytest.raises(TypeError, match="final_estimator must be a classifier"):
        cascade(final_estimator=Almost()).fit(X, Y)


# -- before the work -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "params", "message"),
    [
        (range(10), {}, r"cv=0.2 of 10 samples leaves 8 that are trained on, fewer"),
        ([0, 1, 2] * 2, {"cv": 0.8}, r"cv=0.8 of 6 samples leaves 1 that are trained"),
        ([0, 1, 2] * 4, {"cv": 5}, r"cv=5 makes more folds .* frequent, 0, has 4"),
        ([0, 1] * 10 + [2], {"cv": 3}, r"training part of cv=3 holds no .* class 2"),
        (np.array([1, "a"] * 15, object), {}, "y mixes labels of the types int, str"),
        ([2**70, 1] * 15, {}, rf"y holds the integer {2**70}, which .* 64 bits"),
        ([2.0**60, 1] * 15, {}, r"numbers beyond 2\*\*53 are not distinct"),
        ([0] * 30, {}, "needs at least 2 classes, y holds one class: 0"),
    ],
)
def test_what_needs_only_the_labels_is_checked_before_a_sample_is_read(
    labels, params, message
):
    class Counted(Dataset):
        reads = 0

        def __len__(self):
            return len(labels)

        def __getitem__(self, i):
            Counted.reads += 1
            return images(1)[0][0]

    for method in (CascadeClassifier, SDNClassifier):
        with pytest.raises(ValueError, match=message):
            method(tiny_backbone(), **params).fit(Counted(), labels)
    assert Counted.reads == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"margin": [0.1] * 3}, "margin is a sequence of 3 .* there are 2 branches"),
        (
            {"alignment": SurvivorAlignment(margin=[0.1])},
            "alignment__margin is a sequence of 1 numbers",
        ),
        ({"branch": [GaussianNB()] * 3}, "list of 3 classifiers but there are 2 taps"),
        ({"costs": [1, 2]}, r"costs=\[1, 2\] must be 3"),
        (
            {"alignment": SurvivorAlignment(cross_fit=50)},
            "alignment__cross_fit=50 makes more folds",
        ),
    ],
)
def test_what_needs_the_taps_is_checked_after_two_samples(params, message):
    given, y = images(60)

    class Counted(Dataset):
        reads = 0

        def __len__(self):
            return len(y)

        def __getitem__(self, i):
            Counted.reads += 1
            return given[i]

    with pytest.raises(ValueError, match=message):
        CascadeClassifier(tiny_backbone(), **params).fit(Counted(), y)
    assert Counted.reads <= 4


def test_a_list_of_branches_must_hold_classifiers():
    given, y = images(20)
    with pytest.raises(TypeError, match=r"branch\[1\]=LinearRegression\(\) must be"):
        CascadeClassifier(branch=[GaussianNB(), LinearRegression()]).fit(given, y)
    with pytest.raises(ValueError, match="branch is an empty list"):
        CascadeClassifier(branch=[]).fit(given, y)


def test_lengths_and_weights_are_refused_in_our_words():
    given, y = images(20)
    for data in (given, {"x": given}):
        with pytest.raises(ValueError, match=r"X and y have .*: 20, 19\. Give one"):
            CascadeClassifier(tiny_backbone()).fit(data, y[:-1])
    for weight, message in (
        (np.ones(3), "sample_weight has 3 values, but there are 20 samples"),
        (np.r_[-2.0, np.ones(19)], "Negative values in sample_weight: the least is -2"),
    ):
        with pytest.raises(ValueError, match=message):
            CascadeClassifier(tiny_backbone()).fit(given, y, sample_weight=weight)


def test_outputs_are_compared_with_the_classes_before_all_samples_run(monkeypatch):
    monkeypatch.setattr(FrozenBackbone, "transform", pytest.fail)
    given, y = images(60)
    with pytest.raises(ValueError, match=r"3 outputs but y has 2 .*classes=\[...\]"):
        CascadeClassifier(tiny_backbone()).fit(given, y % 2)
    with pytest.raises(ValueError, match=r"not among the 3 of .*classes=...\).*'d'"):
        CascadeClassifier(tiny_backbone(classes=["a", "b", "c"])).fit(
            given, np.array(["a", "b", "d"])[y]
        )


def test_folds_of_the_alignment():
    cross = SurvivorAlignment(cross_fit=30)
    given, y = images(60)
    with pytest.raises(ValueError, match="alignment__cross_fit=30 makes more folds"):
        CascadeClassifier(tiny_backbone(), alignment=cross).fit(given, y)


def test_answers_of_a_last_stage_that_are_all_one_class():
    given, y = images(60)
    backbone = tiny_backbone()
    outputs = backbone.module.head[2]
    biased = copy.deepcopy(backbone.module)
    with torch.no_grad():
        biased.head[2].bias.copy_(outputs.bias + torch.tensor([0.0, 1e4, 0.0]))
    cascade = CascadeClassifier(
        FrozenBackbone(biased, ["stem"], classes=[0, 1, 2]), targets="argmax"
    )
    with pytest.raises(ValueError, match=r"targets='argmax'.*class number 1 to all 48"):
        cascade.fit(given, y)
    assert not hasattr(cascade, "classes_")
