"""Fits are told apart by all that reaches the training, and by nothing else."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import (
    KFold,
    PredefinedSplit,
    StratifiedKFold,
    StratifiedShuffleSplit,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_calex import (
    FeatureArray,
    FrozenBackbone,
    SurvivorAlignment,
    SurvivorThresholdCalibrator,
    TapLayout,
)
from sk_calex.baselines import BTSEEClassifier, SDNClassifier
from sk_calex.cascade import _fit_key as content
from sk_calex.cascade._fit_key import (
    array_digest,
    fit_request,
    input_digest,
    labels_digest,
)
from sk_calex.policies import SharedThreshold
from tests._cascade_models import flat_cascade, tiny_backbone

X = np.random.default_rng(0).standard_normal((30, 6))
Y = np.arange(30) % 3


def asked(cascade, X=X, y=Y, sample_weight=None, **split_args):
    trained, moved = cascade._split_params()
    return fit_request(
        cascade,
        X,
        y,
        sample_weight,
        split_args,
        trained=trained,
        moved=moved,
    )


def cascade(**params):
    return flat_cascade(**({"random_state": 0} | params))


# -- parameters ------------------------------------------------------------------------

CHANGED = {
    "margin": 0.3,
    "max_accuracy_drop": 0.1,
    "calibrator": SharedThreshold(),
    "calibrator__margin_mode": "absolute",
    "calibrator__min_support": 3,
    "calibrator__rule": "first_violation",
    "calibrator__shrinkage": 30,
    "calibrator__calibrate_on": "all",
    "calibrator__rare_classes": "shared",
    "alignment__margin": 0.2,
    "alignment__bandwidth": 0.3,
    "alignment__mixture": 0.7,
    "alignment__cross_fit": 3,
    "alpha": 0.2,
    "ensemble": True,
    "branch": LogisticRegression(),
    "final_estimator": LogisticRegression(C=2),
    "targets": "labels",
    "cv": 0.3,
    "input": "features",
    "random_state": 1,
    "costs": [1, 2],
    "branches": "auto",
    "n_jobs": 2,
    "verbose": 1,
    "memory": "folder",
    "backbone": tiny_backbone(),
}
ALWAYS = {
    "margin",
    "max_accuracy_drop",
    "calibrator",
    "costs",
    "branches",
    "n_jobs",
    "verbose",
    "memory",
}
SOFT = {"alignment__bandwidth", "alignment__mixture"}
SETTINGS = {name for name in CHANGED if name.startswith("calibrator__")}
#: What makes no difference to the training under each alignment.
SHARING = {
    "soft": ALWAYS,
    "hard": ALWAYS | SOFT,
    "none": ALWAYS | SOFT | SETTINGS | {"alignment__margin", "alignment__cross_fit"},
}


@pytest.mark.parametrize("name", CHANGED)
@pytest.mark.parametrize("alignment", SHARING)
def test_each_parameter(alignment, name):
    one = cascade(
        alignment=SurvivorAlignment(alignment),
        calibrator=SurvivorThresholdCalibrator(margin_mode="local"),
    )
    two = clone(one).set_params(**{name: CHANGED[name]})
    assert (asked(one).key == asked(two).key) == (name in SHARING[alignment])


def test_every_parameter_is_told_apart():
    """One that is added later counts, unless it is said not to."""
    known = {name.partition("__")[0] for name in CHANGED}
    assert set(cascade().get_params(deep=False)) <= known


def test_a_part_and_its_name_are_one():
    one, two = cascade(), cascade(alignment=SurvivorAlignment())
    assert asked(one).key == asked(two).key
    two.set_params(calibrator=SurvivorThresholdCalibrator(margin_mode="local"))
    assert asked(one).key == asked(two).key
    two.set_params(calibrator=SurvivorThresholdCalibrator())
    assert asked(one).key != asked(two).key


def test_one_margin_for_both():
    one = cascade(alignment_margin="same", margin=0.1)
    assert asked(one).key != asked(clone(one).set_params(margin=0.3)).key
    free = clone(one).set_params(alignment__kind="none")
    assert asked(free).key == asked(clone(free).set_params(margin=0.3)).key


def test_points_are_what_moves():
    one = asked(cascade(margin=0.1))
    assert one.point != asked(cascade(margin=0.2)).point
    assert one.point != asked(cascade(margin=0.1, calibrator=SharedThreshold())).point
    assert one.point == asked(cascade(margin=0.1)).point
    both = cascade(margin=[0.1, 0.2])
    assert asked(both).point == asked(cascade(margin=[0.1, 0.2])).point != one.point


def test_classes_and_their_parts():
    assert asked(BTSEEClassifier(random_state=0)).key != asked(cascade()).key
    one = SDNClassifier(random_state=0)
    moved = clone(one).set_params(threshold=0.3)
    assert asked(one).key == asked(moved).key
    assert asked(one).key != asked(clone(one).set_params(max_iter=3)).key
    unusual = clone(one)
    unusual.anything = 1  # not a parameter, but who knows
    assert asked(one).key != asked(unusual).key


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (LogisticRegression(), LogisticRegression(C=2)),
        (LogisticRegression(C=1), LogisticRegression(C=True)),
        (LogisticRegression(class_weight={0: 1}), LogisticRegression()),
        (
            make_pipeline(StandardScaler(), LogisticRegression()),
            make_pipeline(StandardScaler(with_mean=False), LogisticRegression()),
        ),
        ([LogisticRegression()], [LogisticRegression(tol=1)]),
    ],
)
def test_templates_count_by_their_parameters(one, two):
    assert asked(cascade(branch=one)).key == asked(cascade(branch=clone_of(one))).key
    assert asked(cascade(branch=one)).key != asked(cascade(branch=two)).key


def clone_of(value):
    return [clone(v) for v in value] if isinstance(value, list) else clone(value)


def test_splitters_count_by_what_they_hold():
    fold = np.arange(30) % 2
    same = [PredefinedSplit(fold), PredefinedSplit(fold.copy())]
    assert asked(cascade(cv=same[0])).key == asked(cascade(cv=same[1])).key
    other = PredefinedSplit(1 - fold)
    assert asked(cascade(cv=same[0])).key != asked(cascade(cv=other)).key
    pairs = [(np.arange(10), np.arange(10, 30))]
    assert asked(cascade(cv=pairs)).key == asked(cascade(cv=list(pairs))).key


class Odd(PredefinedSplit):
    """Of a class that may keep its state anywhere."""


@pytest.mark.parametrize(
    "params",
    [
        {"random_state": np.random.RandomState(0)},
        {"branch": LogisticRegression(random_state=np.random.RandomState(0))},
        {"cv": KFold(2, shuffle=True, random_state=np.random.RandomState(0))},
        {"cv": Odd(np.arange(30) % 2)},
        {"cv": iter([(np.arange(10), np.arange(10, 30))])},
        {"final_estimator": FrozenEstimator(LogisticRegression().fit(X, Y))},
        {"margin": np.array([object()])},
    ],
    ids=lambda params: next(iter(params)),
)
def test_what_cannot_be_told_is_not_shared(params):
    assert asked(cascade(**params)) is None


def test_parameters_that_go_in_circles():
    loop = []
    loop.append(loop)
    assert asked(cascade(branch=loop)) is None


@pytest.mark.parametrize(
    ("params", "repeatable"),
    [
        ({}, True),
        ({"random_state": None}, False),
        ({"random_state": np.int64(3)}, True),
        # The cascade seeds its branches and what is inside of them.
        ({"branch": LogisticRegression()}, True),
        ({"branch": [LogisticRegression()]}, True),
        ({"branch": make_pipeline(LogisticRegression())}, True),
        ({"final_estimator": LogisticRegression()}, False),
        ({"final_estimator": LogisticRegression(random_state=0)}, True),
        ({"cv": StratifiedKFold(3)}, True),
        ({"cv": StratifiedKFold(3, shuffle=True)}, False),
        ({"cv": StratifiedKFold(3, shuffle=True, random_state=0)}, True),
        ({"cv": StratifiedShuffleSplit(1)}, False),
    ],
    ids=str,
)
def test_what_draws_from_the_global_generator(params, repeatable):
    assert asked(cascade(**params)).repeatable == repeatable


# -- backbones -------------------------------------------------------------------------


def test_backbones_count_by_module_and_settings():
    plain = tiny_backbone()
    one = asked(cascade(backbone=plain))
    assert one.key == asked(cascade(backbone=tiny_backbone())).key
    assert any(kept is plain.module for kept in one.keeps)
    assert one.key == asked(cascade(backbone=tiny_backbone(n_jobs=2, verbose=1))).key
    for params in (
        {"taps": ["stem"]},
        {"pool": 2},
        {"dtype": "float16"},
        {"classes": [2, 1, 0]},
        {"preprocess": nn.Identity()},
        {"preprocess": abs},
        {"cache": "folder"},
    ):
        other = asked(cascade(backbone=tiny_backbone(**params)))
        assert one.key != other.key, params
        assert other.key == asked(cascade(backbone=tiny_backbone(**params))).key
    module = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
    backbone = FrozenBackbone(module, ["0"], device=torch.device("cpu"))
    before = asked(cascade(backbone=backbone)).key
    assert before == asked(cascade(backbone=clone(backbone))).key
    with torch.no_grad():
        module[0].weight += 1
    assert before != asked(cascade(backbone=backbone)).key
    fitted = clone(backbone).fit(np.float32(X))  # knows what the features are
    features = {"input": "features"}
    assert asked(cascade(backbone=backbone, **features)).key != (
        asked(cascade(backbone=fitted, **features)).key
    )


def test_functions_count_by_identity_and_partials_by_their_parts():
    def scaled(x, by=1):
        return x * by

    def backbone(by):
        return tiny_backbone(preprocess=functools.partial(scaled, by=by))

    one = asked(cascade(backbone=backbone(2))).key
    assert one == asked(cascade(backbone=backbone(2))).key
    assert one != asked(cascade(backbone=backbone(3))).key
    tensors = [torch.zeros(2), torch.zeros(2).bfloat16()]
    keys = [asked(cascade(backbone=backbone(tensor))).key for tensor in tensors]
    assert keys[0] != keys[1]
    assert keys[0] == asked(cascade(backbone=backbone(torch.zeros(2)))).key


# -- data ------------------------------------------------------------------------------


def test_data_count_by_content():
    one = asked(cascade())
    assert one.key == asked(cascade(), X.copy(), Y.tolist()).key
    assert one.key == asked(cascade(), np.asfortranarray(X)).key
    changed = X.copy()
    changed[-1, -1] += 1
    assert one.key != asked(cascade(), changed).key
    assert one.key != asked(cascade(), X[::-1], Y[::-1]).key
    assert one.key != asked(cascade(), X, Y[::-1]).key
    assert one.key != asked(cascade(), X, sample_weight=np.ones(30)).key
    assert asked(cascade(), sample_weight=np.ones(30)).key == (
        asked(cascade(), sample_weight=pd.Series(np.ones(30))).key
    )
    groups = np.arange(30)
    assert one.key != asked(cascade(), groups=groups).key
    assert asked(cascade(), groups=groups).key != asked(cascade(), names=groups).key
    assert asked(cascade(), groups=np.array([object()] * 30)) is None
    names = np.array(["a", "b", "c"])[Y]
    assert asked(cascade(), X, names).key == asked(cascade(), X, list(names)).key
    assert (
        asked(cascade(), X, names.astype(object)).key == asked(cascade(), X, names).key
    )
    assert asked(cascade(), X, [object()] * 30) is None


def test_columns_count_by_their_names():
    frames = [pd.DataFrame(X, columns=list(names)) for names in ("abcdef", "abcdeg")]
    keys = [input_digest(frame) for frame in frames]
    assert len({*keys, input_digest(X)}) == 3
    assert keys[0] == input_digest(frames[0].copy())
    assert input_digest(frames[0].assign(a="text")) is None
    layouts = [TapLayout((name,), ((4,),), 2) for name in ("a", "b")]
    marked = [FeatureArray.wrap(X, layout) for layout in layouts]
    assert len({input_digest(X), *map(input_digest, marked)}) == 3
    assert input_digest(marked[0][:20]) == input_digest(marked[0][:20].copy())


def test_tensors():
    tensor = torch.arange(12.0).reshape(3, 4).requires_grad_()
    assert input_digest(tensor) == input_digest(tensor.clone())
    assert input_digest(tensor) != input_digest(tensor.double())
    assert input_digest(tensor.bfloat16()) is not None
    assert input_digest(torch.zeros(3, dtype=torch.uint8)) is not None


@pytest.mark.parametrize(
    "given", [X.tolist(), [], X.astype(object), np.float64(3), object(), None]
)
def test_what_is_not_digested(given):
    assert input_digest(given) is None


def test_files_count_by_their_bytes(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        path.write_bytes(bytes([i]))
    one = input_digest(paths)
    assert one == input_digest(list(map(str, paths)))
    assert one != input_digest(paths[::-1])
    paths[1].write_bytes(b"another")
    assert one != input_digest(paths)


def test_arrays_are_read_in_blocks(monkeypatch):
    whole = array_digest(X), array_digest(X[:, ::2]), array_digest(np.float32(1))
    monkeypatch.setattr(content, "_CHUNK_BYTES", 100)
    assert array_digest(X) == whole[0]
    assert array_digest(X[:, ::2]) == whole[1]
    assert array_digest(X[:0]) != array_digest(X[:1])
    assert array_digest(np.zeros((2, 3))) != array_digest(np.zeros((3, 2)))
    assert labels_digest(np.array(["a", "b"])) != labels_digest(np.array(["ab", ""]))
