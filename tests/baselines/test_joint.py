"""What the baselines share whose heads are trained together."""

import copy
import inspect
import pickle

import numpy as np
import pytest
import torch
from joblib import Memory
from numpydoc.docscrape import NumpyDocString
from sklearn.base import clone
from sklearn.datasets import make_classification
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.neighbors import KNeighborsClassifier

from sk_calex import baselines
from sk_calex.baselines import (
    BoostNetClassifier,
    BranchyNetClassifier,
    PABEEClassifier,
    SDNClassifier,
    ZTWClassifier,
    _joint,
)
from sk_calex.calibration import SurvivorThresholdCalibrator
from sk_calex.policies import EntropyThreshold
from tests._cascade_models import images, tiny_backbone
from tests.baselines._every_cascade import FIXED, HELD, TEST, TEST_Y, X, Y, features

# Each with values of its knob; nobody exits at the last.
KNOBS = {
    SDNClassifier: [0.5, 0.9, 2.0],
    BranchyNetClassifier: [0.9, 0.5, -1.0],
    PABEEClassifier: [0, 1, 2],
    BoostNetClassifier: [0.5, 1.0, 1e9],
}
METHODS = list(KNOBS)
JOINT = [
    method
    for method in map(baselines.__dict__.get, baselines.__all__)
    if issubclass(method, _joint.JointCascade) and method is not _joint.JointCascade
]
every_method = pytest.mark.parametrize("method", METHODS)


def make(method, **params):
    small = {"max_iter": 4, "solver": "lbfgs", "device": "cpu", "random_state": 0}
    if "head" in inspect.signature(method).parameters:
        small |= {"head": "gap"}
    return method(**small | params)


def on_features(method, **params):
    return make(method, **{"input": "features", "cv": FIXED} | params)


@pytest.fixture
def trainings(monkeypatch):
    """A list that gets the settings of every run of the training loop."""
    runs, train = [], _joint.fit_exit_net

    def counted(net, rows, **settings):
        runs.append(settings)
        return train(net, rows, **settings)

    monkeypatch.setattr(_joint, "fit_exit_net", counted)
    return runs


# -- one interface ---------------------------------------------------------------------


@pytest.mark.parametrize("method", JOINT)
def test_shared_parameters_are_the_same_everywhere(method):
    """In name and order; here, where nothing is special, in default and text too.

    The text of `max_accuracy_drop` names the knob, which is another one for each.
    """
    shared = {"backbone", *_joint.JointCascade._parameter_constraints}
    ours, sdn = (parameters_of(m, shared) for m in (method, SDNClassifier))
    assert list(ours) == list(sdn)
    assert f'``{method.knob}="auto"``' in ours.pop("max_accuracy_drop").desc[0]
    del sdn["max_accuracy_drop"]
    if method in METHODS:
        assert ours == sdn
    signature = inspect.signature(method).parameters
    first, *others = signature.values()
    assert first.name == "backbone"
    assert all(p.kind is p.KEYWORD_ONLY for p in others)
    assert method.knob in signature


def parameters_of(method, names):
    documented = NumpyDocString(inspect.getdoc(method))["Parameters"]
    return {p.name: p for p in documented if p.name in names}


# -- the last stage --------------------------------------------------------------------


@every_method
def test_outputs_are_put_in_the_order_of_the_labels(method):
    """Output j is class names[j], whatever the alphabet says."""
    names = np.array(["wren", "auk", "crow"])
    fitted = make(method, backbone=tiny_backbone(classes=names)).fit(X, names[Y])
    assert fitted.classes_.tolist() == ["auk", "crow", "wren"]
    fitted.set_operating_point(KNOBS[method][-1])
    labels, depth = fitted.predict(TEST, return_depth=True)
    assert (depth == 2).all()
    np.testing.assert_array_equal(labels, fitted.backbone_.predict(TEST))
    np.testing.assert_allclose(
        fitted.predict_proba(TEST),
        fitted.backbone_.predict_proba(TEST)[:, [1, 2, 0]],
        rtol=1e-5,
    )


@every_method
def test_a_backbone_that_never_saw_the_classes(method):
    """Its seven outputs are what the final estimator learns from."""
    backbone, final = tiny_backbone(7), LogisticRegression(max_iter=500)
    fitted = make(method, backbone=backbone, final_estimator=final, cv=FIXED).fit(X, Y)
    assert fitted.final_estimator_.coef_.shape == (3, 7)
    heads = fitted.net_.eval().macs()
    plain = sum(fitted.backbone_.stage_macs_) + 3 * 7
    assert fitted.depth_costs_[-1] == plain + sum(heads)
    fitted.set_operating_point(KNOBS[method][-1])
    outputs = fitted.layout_.block(fitted.backbone_.transform(TEST), 2)
    expected = fitted.final_estimator_.predict_proba(outputs)
    np.testing.assert_allclose(fitted.predict_proba(TEST), expected, rtol=1e-5)
    assert fitted.score(TEST, TEST_Y) > 0.5


def test_the_rule_is_fitted_on_what_nobody_was_trained_on():
    """Heads and final estimator: neither is believed on rows that it has seen."""
    train, _ = features()
    final = KNeighborsClassifier(1)  # right wherever it was trained
    fitted = on_features(SDNClassifier, cv=KFold(3), final_estimator=final)
    table = fitted.fit(train, Y).calibration_.answers
    assert table.n_samples == 180
    assert (table.predicted[-1] == Y).mean() < 0.95
    assert fitted.final_estimator_.n_samples_fit_ == 180
    held_out = on_features(SDNClassifier, final_estimator=final).fit(train, Y)
    assert held_out.calibration_.answers.n_samples == 60
    proba = held_out.stage_probabilities(train[HELD == 0])
    np.testing.assert_array_equal(
        held_out.calibration_.answers.predicted, proba.argmax(axis=2)
    )
    np.testing.assert_allclose(
        held_out.calibration_.answers.confidence, proba.max(axis=2), rtol=1e-5
    )


# -- training --------------------------------------------------------------------------


@every_method
def test_mini_batches_learn_and_repeat(method):
    train, test = features()
    settings = {
        "solver": "adam",
        "max_iter": 15,
        "batch_size": 32,
        "learning_rate": 0.03,
    }
    a, b, other = (
        on_features(method, **settings, head="sdn", random_state=seed).fit(train, Y)
        for seed in (0, 0, 1)
    )
    assert a.n_iter_ == len(a.loss_curve_) == 15
    assert a.loss_curve_[-1] < a.loss_curve_[0]
    proba = [fitted.stage_probabilities(test) for fitted in (a, b, other)]
    np.testing.assert_array_equal(proba[0], proba[1])
    assert np.abs(proba[0][:2] - proba[2][:2]).max() > 1e-3
    assert (proba[0][:2].argmax(axis=2) == TEST_Y).mean() > 0.5


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_memory_maps_are_read_and_nothing_else(tmp_path, solver):
    backbone = tiny_backbone().fit(X)
    train = np.asarray(backbone.transform(X))
    np.save(tmp_path / "train.npy", train)
    mapped = np.load(tmp_path / "train.npy", mmap_mode="r")
    settings = {"backbone": backbone, "solver": solver}
    given = on_features(BoostNetClassifier, **settings).fit(mapped, Y)
    plain = on_features(BoostNetClassifier, **settings).fit(train, Y)
    np.testing.assert_array_equal(
        given.predict_proba(mapped), plain.predict_proba(train)
    )
    np.testing.assert_array_equal(np.load(tmp_path / "train.npy"), train)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_features_of_low_precision_are_enough(dtype):
    full = tiny_backbone().fit(X).transform(X)
    half = tiny_backbone(dtype=dtype).fit(X).transform(X)
    assert half.nbytes < 0.51 * full.nbytes
    for solver in ("adam", "lbfgs"):
        fits = [
            on_features(SDNClassifier, solver=solver).fit(data, Y).predict_proba(data)
            for data in (full, half)
        ]
        np.testing.assert_allclose(fits[0], fits[1], atol=0.02)


def test_progress_is_shown_on_demand(capsys):
    train, _ = features()
    settings = {"solver": "adam", "max_iter": 2}
    on_features(SDNClassifier, **settings).fit(train, Y)
    assert capsys.readouterr().err == ""
    on_features(SDNClassifier, **settings, verbose=1).fit(train, Y)
    assert "epoch" in capsys.readouterr().err


# -- memory ----------------------------------------------------------------------------

# joblib warns of slow disks, which a busy machine has.
slow_disk = pytest.mark.filterwarnings("ignore:Persisting input arguments:UserWarning")


@slow_disk
@every_method
def test_a_search_over_the_knob_trains_once_a_fold(method, tmp_path, trainings):
    train, _ = features()
    grid = {method.knob: KNOBS[method]}
    memory = Memory(tmp_path, verbose=0)
    cached = GridSearchCV(on_features(method, cv=0.3, memory=memory), grid, cv=2)
    cached.fit(train, Y)
    assert len(trainings) == 3  # two folds, and all of it at the end
    # Another cascade, which shares nothing with the first one but the folder.
    again = GridSearchCV(on_features(method, cv=0.3, memory=memory), grid, cv=2)
    again.fit(train, Y)
    assert len(trainings) == 3
    # Without a cache as well: clones share what they train.
    plain = GridSearchCV(on_features(method, cv=0.3), grid, cv=2).fit(train, Y)
    assert len(trainings) == 3 + 3
    for name in ("mean_test_score", "rank_test_score"):
        np.testing.assert_array_equal(cached.cv_results_[name], plain.cv_results_[name])
    assert cached.best_estimator_.loss_curve_ == plain.best_estimator_.loss_curve_
    np.testing.assert_array_equal(
        cached.predict_proba(train), plain.predict_proba(train)
    )


@slow_disk
def test_whatever_shapes_the_heads_trains_anew(tmp_path, trainings):
    train, _ = features()

    def count(method, y=Y, **params):
        before = len(trainings)
        on_features(method, memory=str(tmp_path), **params).fit(train, y)
        return len(trainings) - before

    changes = (
        {},
        {"head": "sdn"},
        {"head": "conv", "head_params": {"widths": (4,)}},
        {"head": "conv", "head_params": {"widths": (5,)}},
        {"shrinkage": 0.25},
        {"max_iter": 5},
        {"weight_decay": 0.1},
        {"random_state": 1},
        {"cv": 3},
        {"y": np.where(np.arange(180) == 1, (Y + 1) % 3, Y)},
    )
    expected = [3 + 1 if "cv" in change else 1 for change in changes]
    assert [count(BoostNetClassifier, **change) for change in changes] == expected
    assert [count(BoostNetClassifier, **change) for change in changes] == [0] * 10
    assert count(BoostNetClassifier, quota_decay=0.3, verbose=1) == 0
    # The same tensors, another loss.
    assert count(SDNClassifier) == 1
    assert count(PABEEClassifier) == 1
    assert count(BranchyNetClassifier, branch_weights=[1, 2]) == 1
    assert count(BranchyNetClassifier, branch_weights=[1, 3]) == 1
    assert count(BranchyNetClassifier, branch_weights=[1, 2]) == 0


# -- the knob --------------------------------------------------------------------------


@every_method
def test_a_search_over_the_knob_on_plain_data(method):
    given, labels = make_classification(
        200, n_informative=6, n_classes=3, random_state=0
    )
    grid = {method.knob: KNOBS[method]}
    search = GridSearchCV(make(method), grid, cv=3).fit(given, labels)
    assert search.best_params_[method.knob] in KNOBS[method]
    best = search.best_estimator_
    assert isinstance(best.final_estimator_, LogisticRegression)
    assert best.backbone_ is None
    assert search.score(given, labels) > 0.5
    best.set_operating_point(KNOBS[method][-1])
    np.testing.assert_array_equal(
        best.predict(given), labels_of(best, best.final_estimator_.predict(given))
    )


def labels_of(cascade, codes):
    return cascade.classes_[codes]


@pytest.mark.parametrize(
    ("method", "bad"),
    [
        (SDNClassifier, "high"),
        (BranchyNetClassifier, None),
        (PABEEClassifier, -1),
        (PABEEClassifier, 0.5),
        (BoostNetClassifier, 0.0),
    ],
)
def test_a_bad_operating_point_changes_nothing(method, bad):
    train, test = features()
    fitted = on_features(method).fit(train, Y)
    before = getattr(fitted, method.knob), fitted.exit_depth(test)
    with pytest.raises(ValueError, match="parameter"):
        fitted.set_operating_point(bad)
    assert getattr(fitted, method.knob) == before[0]
    np.testing.assert_array_equal(fitted.exit_depth(test), before[1])
    with pytest.raises(
        ValueError, match=f"'{method.knob}' parameter of {method.__name__}"
    ):
        on_features(method, **{method.knob: bad}).fit(train, Y)


def test_any_rule_may_decide():
    """As a parameter or afterwards, on the same heads."""
    train, test = features()
    rule = EntropyThreshold(0.6)
    given = on_features(SDNClassifier, calibrator=rule).fit(train, Y)
    swapped = on_features(SDNClassifier).fit(train, Y)
    own = swapped.exit_depth(test)
    swapped.set_calibrator(rule)
    np.testing.assert_array_equal(given.exit_depth(test), swapped.exit_depth(test))
    expected = rule.fit(given.calibration_.answers, Y[HELD == 0]).depth(
        given.stage_probabilities(test)
    )
    np.testing.assert_array_equal(given.exit_depth(test), expected)
    assert not np.array_equal(own, expected)
    np.testing.assert_array_equal(swapped.set_calibrator(None).exit_depth(test), own)
    precise = swapped.set_calibrator(SurvivorThresholdCalibrator(0.1, min_support=3))
    assert 0 < (precise.exit_depth(test) < 2).mean() < 1


# -- copies ----------------------------------------------------------------------------


def test_copies_made_before_and_after_the_fit():
    train, test = features()
    fitted = pickle.loads(pickle.dumps(on_features(SDNClassifier, device="auto")))
    fitted.fit(train, Y)
    told = fitted.predict_proba(test)
    weight = fitted.net_.heads[0].classifier.weight
    for copied in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(copied.predict_proba(test), told)
        # Nothing is shared, and what is trained is kept once.
        assert copied.branches_[0] is copied.net_.heads[0]
        assert copied.net_.heads[0].classifier.weight is not weight
        assert copied.set_operating_point(2.0).exit_depth(test).min() == 2
    np.testing.assert_array_equal(fitted.predict_proba(test), told)
    unfitted = clone(fitted)
    assert not hasattr(unfitted, "net_")
    np.testing.assert_array_equal(unfitted.fit(train, Y).predict_proba(test), told)


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"head": "cnn"}, ValueError, r"'head' parameter of SDN.*'conv1d'"),
        ({"head_params": 3}, ValueError, "'head_params' parameter of SDN"),
        ({"head_params": {"depth": 3}}, TypeError, "'gap' has no parameter 'depth'"),
        ({"solver": "sgd"}, ValueError, "'solver' parameter of SDN"),
        ({"max_iter": 0}, ValueError, "'max_iter' parameter of SDN"),
        ({"batch_size": 0}, ValueError, "'batch_size' parameter of SDN"),
        ({"learning_rate": 0}, ValueError, "'learning_rate' parameter of SDN"),
        ({"weight_decay": -1}, ValueError, "'weight_decay' parameter of SDN"),
        ({"device": "abacus"}, ValueError, "device='abacus'"),
        ({"memory": 3}, ValueError, "'memory' parameter of SDN"),
        ({"calibrator": "entropy"}, ValueError, "'calibrator' parameter of SDN"),
        ({"input": "images"}, ValueError, "'input' parameter of SDN"),
        ({"backbone": torch.nn.ReLU()}, TypeError, "backbone must be a FrozenBack"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings(params, error, message):
    with pytest.raises(error, match=message):
        on_features(SDNClassifier, **params).fit(features()[0], Y)


def test_the_device_is_checked_before_any_work():
    class Counting(type(tiny_backbone())):
        def transform(self, X):
            raise AssertionError("the backbone ran")

    backbone = Counting(tiny_backbone().module, ["stem"], device="cpu")
    with pytest.raises(ValueError, match="abacus"):
        make(SDNClassifier, backbone=backbone, device="abacus").fit(X, Y)


def test_features_that_a_head_cannot_take():
    train, _ = features()
    train = train.copy()
    train[:, :64] *= 1e38
    with pytest.raises(ValueError, match=r"loss became (inf|nan).*scale the feat"):
        on_features(SDNClassifier, head="sdn", solver="adam").fit(train, Y)
    fitted = on_features(SDNClassifier, head="sdn").fit(features()[0], Y)
    with torch.no_grad():
        fitted._fused_net_.heads[0].classifier.bias[0] = torch.nan
    with pytest.raises(ValueError, match="outputs of branch 0 contains NaN"):
        fitted.predict(features()[1])


def test_the_base_is_no_method():
    given, labels = make_classification(50, random_state=0)
    with pytest.raises(NotImplementedError):
        _joint.JointCascade().fit(given, labels)
    with pytest.raises(NotImplementedError):
        _joint.JointCascade()._rule()


@every_method
def test_use_before_fit(method):
    for call in ("predict", "stage_probabilities", "cost", "set_operating_point"):
        with pytest.raises(NotFittedError, match=method.__name__):
            getattr(make(method), call)(images(3)[0])


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
@pytest.mark.parametrize("method", [SDNClassifier, BoostNetClassifier, ZTWClassifier])
def test_heads_are_trained_whatever_mode_the_caller_is_in(mode, solver, method):
    settings = {"solver": solver, "max_iter": 2, "cv": FIXED, "random_state": 0}
    given, _ = features()
    expected = method(input="features", **settings).fit(given, Y)
    with mode():
        inside = method(input="features", **settings).fit(given, Y)
    np.testing.assert_array_equal(
        inside.stage_probabilities(given), expected.stage_probabilities(given)
    )


def test_a_memory_is_anything_that_caches():
    class Calls:
        def __init__(self):
            self.functions = []

        def cache(self, function):
            self.functions.append(function)
            return function

    given, _ = features()
    memory = Calls()
    settings = {"max_iter": 1, "cv": FIXED, "random_state": 0, "input": "features"}
    fitted = SDNClassifier(memory=memory, **settings).fit(given, Y)
    assert memory.functions
    plain = SDNClassifier(**settings).fit(given, Y)
    np.testing.assert_array_equal(
        fitted.stage_probabilities(given), plain.stage_probabilities(given)
    )
