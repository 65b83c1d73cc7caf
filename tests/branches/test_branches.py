"""Branch classifiers: every head behind scikit-learn's interface."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from sk_calex import BranchClassifier, PrototypePoolingClassifier
from sk_calex.branches._heads import HEADS, build_head
from sk_calex.utils._flops import count_macs

SHAPES = {"grid": (3, 4, 4), "tokens": (6, 5), "flat": (12,)}
PARAMS = {
    "gap": {},
    "sdn": {},
    "conv1d": {"width": 6},
    "conv": {"widths": (6, 8)},
    "prototype": {"dim": 6},
    "prototype_augmented": {"widths": (6,)},
}


def data(shape=(12,), n=90, seed=0, n_classes=3, spread=1.0):
    rng = np.random.default_rng(seed)
    width = int(np.prod(shape))
    y = np.arange(n) % n_classes
    centres = np.random.default_rng(1).standard_normal((n_classes, width))
    X = 2 * centres[y] + spread * rng.standard_normal((n, width))
    return X.astype(np.float32), y


def branch(head="conv", **params):
    params = {
        "head_params": PARAMS[head],
        "max_iter": 8,
        "random_state": 0,
        "device": "cpu",
    } | params
    return BranchClassifier(head, **params)


# -- what every head gives -------------------------------------------------------------


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_every_head_learns_every_shape(head, kind, solver):
    shape = SHAPES[kind]
    X, y = data(shape, spread=0.5)
    epochs = 25 if solver == "adam" else 8
    model = branch(
        head,
        feature_shape=shape,
        solver=solver,
        max_iter=epochs,
        learning_rate=0.02,
        batch_size=30,
    ).fit(X, y)
    assert model.score(X, y) > 0.8
    assert model.solver_ == solver
    assert model.feature_shape_ == model.head_.feature_shape == shape
    assert 0 < model.n_iter_ <= epochs
    assert len(model.loss_curve_) >= model.n_iter_
    assert not model.head_.training


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("n_classes", [2, 3])
def test_the_answers_agree_with_each_other(head, n_classes):
    X, y = data((3, 4, 4), n_classes=n_classes, spread=3.0)
    model = branch(head, feature_shape=(3, 4, 4)).fit(X, y)
    proba, scores = model.predict_proba(X), model.decision_function(X)
    assert proba.shape == (90, n_classes)
    assert proba.dtype == scores.dtype == np.float64
    np.testing.assert_allclose(proba.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_array_equal(model.predict(X), model.classes_[proba.argmax(1)])
    if n_classes == 2:
        np.testing.assert_allclose(proba[:, 1], 1 / (1 + np.exp(-scores)), rtol=1e-9)
    else:
        expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(proba, expected, rtol=1e-9)
    # What the head itself says, before anything was fused for inference.
    with torch.no_grad():
        x = torch.from_numpy(X).to(model.head_.dtype).view(-1, 3, 4, 4)
        logits = model.head_(x).double().numpy()
    if n_classes == 2:
        logits = logits[:, 1] - logits[:, 0]
    np.testing.assert_allclose(scores, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("head", HEADS)
def test_macs_are_those_of_the_head(head, kind):
    shape = SHAPES[kind]
    X, y = data(shape, n=30)
    model = branch(head, feature_shape=shape, max_iter=1).fit(X, y)
    plain = count_macs(model.head_, torch.zeros(1, *shape, dtype=model.head_.dtype))
    assert isinstance(model.macs_, int)
    # Fusing may only save: prototypes are normalised once, not for every sample.
    assert 0 < model.macs_ <= plain
    if "prototype" not in head:
        assert model.macs_ == plain


def test_linear_heads_cost_their_weights():
    X, y = data((12,), n=30)
    assert branch("gap", max_iter=1).fit(X, y).macs_ == 12 * 3


def test_predictions_do_not_depend_on_the_chunks():
    X, y = data((12,), n=90, spread=3.0)
    model = branch().fit(X, y)
    many = np.tile(X, (25, 1))  # more than one chunk
    np.testing.assert_allclose(
        model.predict_proba(many), np.tile(model.predict_proba(X), (25, 1)), rtol=1e-6
    )


# -- what it learns from ---------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_soft_targets_are_imitated(solver, temperature):
    """At alpha 1 the probabilities follow the targets, whatever the labels say.

    At any temperature: targets and answers are softened alike in training.
    """
    X, y = data((12,), n=120, spread=0.5)
    target = np.full((120, 3), 0.1)
    target[np.arange(120), (y + 1) % 3] = 0.8
    settings = {
        "solver": solver,
        "max_iter": 30,
        "learning_rate": 0.02,
        "batch_size": 40,
        "weight_decay": 0.0,
    }
    model = branch(alpha=1.0, temperature=temperature, **settings)
    model.fit(X, y, soft_targets=target)
    assert np.abs(model.predict_proba(X) - target).mean() < 0.04
    assert (model.predict(X) == (y + 1) % 3).mean() > 0.95
    by_label = branch(alpha=0.0, **settings).fit(X, y, soft_targets=target)
    plain = branch(**settings).fit(X, y)
    np.testing.assert_allclose(
        by_label.predict_proba(X), plain.predict_proba(X), rtol=1e-6
    )
    assert plain.score(X, y) > 0.95


def test_temperature_matters_only_with_soft_targets():
    X, y = data((12,), n=60, spread=2.0)
    target = np.full((60, 3), 0.05)
    target[np.arange(60), y] = 0.9
    fits = {
        (t, soft): branch(temperature=t)
        .fit(X, y, soft_targets=target if soft else None)
        .predict_proba(X)
        for t in (1.0, 4.0)
        for soft in (True, False)
    }
    np.testing.assert_array_equal(fits[1.0, False], fits[4.0, False])
    assert np.abs(fits[1.0, True] - fits[4.0, True]).max() > 1e-3


@pytest.mark.parametrize("head", HEADS)
def test_weights_are_repetition_and_zero_is_absence(head):
    X, y = data((3, 4, 4), n=60, spread=3.0)
    w = np.random.default_rng(0).integers(4, size=60)
    model = branch(head, feature_shape=(3, 4, 4), weight_decay=0.1)
    expected = clone(model).fit(X, y, sample_weight=w).predict_proba(X)
    index = np.repeat(np.arange(60), w)
    repeated = clone(model).fit(X[index], y[index]).predict_proba(X)
    np.testing.assert_allclose(repeated, expected, rtol=1e-6)
    present = clone(model).fit(X[w > 0], y[w > 0], sample_weight=w[w > 0])
    np.testing.assert_allclose(present.predict_proba(X), expected, rtol=1e-6)


def test_labels_of_any_kind():
    X, y = data(n=60)
    codes = branch("gap", max_iter=50).fit(X, y)
    names = np.array(["wren", "auk", "crow"])[y]
    named = branch("gap", max_iter=50).fit(X, names)
    assert named.classes_.tolist() == ["auk", "crow", "wren"]
    assert set(named.predict(X)) == set(names)
    assert named.score(X, names) == codes.score(X, y)
    # Column j is the j-th sorted label: wren, coded 0 before, comes last now.
    assert (named.predict_proba(X)[y == 0].argmax(axis=1) == 2).mean() > 0.8


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_the_seed_decides(solver):
    X, y = data(n=60, spread=3.0)
    state = torch.get_rng_state()
    first, again, other = (
        branch(solver=solver, max_iter=3, random_state=seed).fit(X, y).predict_proba(X)
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6
    assert torch.equal(torch.get_rng_state(), state)


def test_auto_solver_goes_by_size_head_and_early_stopping():
    X, y = data(n=60)
    for head in HEADS:
        solver = "lbfgs" if head in ("gap", "sdn") else "adam_full_batch"
        assert branch(head, max_iter=1).fit(X, y).solver_ == solver
    pooling = PrototypePoolingClassifier(max_iter=1, device="cpu").fit(X, y)
    assert pooling.solver_ == "adam_full_batch"
    assert branch(max_iter=1, early_stopping=True).fit(X, y).solver_ == "adam"
    many = np.tile(X, (150, 1))
    large = branch("gap", max_iter=1).fit(many, np.tile(y, 150))
    assert large.solver_ == "adam"


@pytest.mark.parametrize(
    ("solver", "head", "rate"),
    [
        ("adam", "conv", 3e-3),
        ("adam_full_batch", "conv", 5e-3),
        ("adam_full_batch", "prototype", 1e-2),
        ("adam_full_batch", "conv1d", 2e-2),
    ],
)
def test_default_learning_rate_goes_by_solver_and_head(solver, head, rate):
    X, y = data(n=60, spread=3.0)
    default = branch(head, solver=solver, max_iter=4).fit(X, y)
    same = branch(head, solver=solver, max_iter=4, learning_rate=rate).fit(X, y)
    np.testing.assert_array_equal(default.predict_proba(X), same.predict_proba(X))
    assert default.learning_rate is None
    other = branch(head, solver=solver, max_iter=4, learning_rate=2 * rate).fit(X, y)
    assert np.abs(other.predict_proba(X) - same.predict_proba(X)).max() > 1e-6


@pytest.mark.parametrize("solver", ["lbfgs", "adam_full_batch"])
def test_default_length_of_a_full_batch_fit(solver):
    X, y = data(n=60, spread=9.0)
    model = branch("conv", solver=solver, max_iter=None).fit(X, y)
    assert model.n_iter_ == {"lbfgs": 30, "adam_full_batch": 60}[solver]


def test_default_epochs_give_enough_updates():
    X, y = data(n=80)
    model = branch("gap", solver="adam", max_iter=None, batch_size=4).fit(X, y)
    assert model.n_iter_ == 20  # of 20 updates each
    model = branch("gap", solver="adam", max_iter=None, batch_size=2).fit(X, y)
    assert model.n_iter_ == 12


def test_early_stopping_keeps_the_best_epoch():
    X, y = data(n=90, spread=8.0)
    model = branch(
        solver="adam",
        early_stopping=True,
        validation_fraction=0.3,
        n_iter_no_change=3,
        max_iter=100,
        learning_rate=0.05,
    ).fit(X, y)
    curve = model.validation_loss_curve_
    assert model.n_iter_ == len(curve) == len(model.loss_curve_) < 100
    assert len(curve) - 1 - int(np.argmin(curve)) >= 3 - 1
    assert min(curve) < curve[-1]
    assert branch().fit(X, y).validation_loss_curve_ == []


def test_warm_start_goes_on():
    X, y = data(n=90, spread=3.0)
    model = branch(solver="adam", max_iter=3, warm_start=True).fit(X, y)
    first, head = model.loss_curve_[-1], model.head_
    model.fit(X, y)
    assert model.head_ is head
    assert model.loss_curve_[0] < first
    cold = branch(solver="adam", max_iter=3).fit(X, y)
    assert cold.fit(X, y).loss_curve_[0] > first


def test_warm_start_may_change_the_solver():
    """Whatever came before, running statistics are those of many batches again."""
    X, y = data(n=96, spread=3.0)
    model = branch(solver="lbfgs", max_iter=5, warm_start=True).fit(X, y)
    model.set_params(solver="adam", batch_size=8, max_iter=3).fit(X, y)
    momenta = {norm.momentum for norm in model.head_._norms()}
    fresh = build_head("conv", (12,), 3, **PARAMS["conv"])
    assert momenta == {norm.momentum for norm in fresh._norms()}
    assert np.isfinite(model.predict_proba(X)).all()


def test_prototype_pooling_is_the_augmented_head():
    X, y = data((3, 4, 4), n=60)
    common = {
        "feature_shape": (3, 4, 4),
        "max_iter": 3,
        "random_state": 0,
        "device": "cpu",
    }
    model = PrototypePoolingClassifier(4, widths=(6,), **common).fit(X, y)
    same = branch(
        "prototype_augmented",
        head_params={"n_prototypes": 4, "widths": (6,)},
        **common,
    ).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(X), same.predict_proba(X))
    without_trunk = PrototypePoolingClassifier(widths=[], dim=5, **common).fit(X, y)
    assert without_trunk.macs_ < model.macs_


def test_features_may_be_read_only_and_strided(tmp_path):
    X, y = data((12,), n=60, spread=3.0)
    wide = np.zeros((60, 20), dtype=np.float32)
    wide[:, 5:17] = X
    np.save(tmp_path / "X.npy", wide)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")[:, 5:17]
    for solver in ("adam", "lbfgs"):
        model = branch(solver=solver, max_iter=3)
        expected = clone(model).fit(X, y).predict_proba(X)
        fitted = clone(model).fit(mapped, y)
        np.testing.assert_allclose(fitted.predict_proba(mapped), expected, rtol=1e-6)


# -- as an object ----------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_pickle_and_joblib(head, tmp_path):
    X, y = data((3, 4, 4), n=45)
    model = branch(head, feature_shape=(3, 4, 4), max_iter=2).fit(X, y)
    joblib.dump(model, tmp_path / "model.joblib")
    for copy in (
        pickle.loads(pickle.dumps(model)),
        joblib.load(tmp_path / "model.joblib"),
    ):
        np.testing.assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
        assert copy.macs_ == model.macs_
        assert copy.head_ is not model.head_
    assert pickle.loads(pickle.dumps(branch(head))).get_params() == (
        branch(head).get_params()
    )


def test_automatic_device_is_chosen_again_after_loading():
    X, y = data(n=45)
    model = branch(device="auto", max_iter=1).fit(X, y)
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_allclose(copy.predict_proba(X), model.predict_proba(X))


def test_clone_takes_parameters_only():
    X, y = data(n=45)
    model = branch(max_iter=1, warm_start=True).fit(X, y)
    copy = clone(model)
    assert copy.get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(X)


def test_progress_is_shown_on_demand(capfd):
    X, y = data(n=45)
    branch(solver="adam", max_iter=2).fit(X, y)
    assert capfd.readouterr().err == ""
    branch(solver="adam", max_iter=2, verbose=1).fit(X, y)
    assert "epoch" in capfd.readouterr().err


# -- bad input -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape", [(3, 4, 5), (12, 2), (13,), (1, 2, 2, 3), (), (-3, -4), (0,)]
)
def test_feature_shape_must_fit(shape):
    X, y = data((12,), n=30)
    with pytest.raises(ValueError, match=r"feature_shape=.*12\s+features"):
        branch(feature_shape=shape).fit(X, y)


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({"head": "dense"}, "'head' parameter"),
        ({"temperature": 0}, "'temperature' parameter"),
        ({"temperature": np.inf}, "'temperature' parameter"),
        ({"alpha": 1.5}, "'alpha' parameter"),
        ({"alpha": np.nan}, "'alpha' parameter"),
        ({"solver": "sgd"}, "'solver' parameter"),
        ({"max_iter": 0}, "'max_iter' parameter"),
        ({"batch_size": 0}, "'batch_size' parameter"),
        ({"learning_rate": 0.0}, "'learning_rate' parameter"),
        ({"weight_decay": -1.0}, "'weight_decay' parameter"),
        ({"validation_fraction": 1.0}, "'validation_fraction' parameter"),
        ({"n_iter_no_change": 0}, "'n_iter_no_change' parameter"),
        ({"tol": -1.0}, "'tol' parameter"),
        ({"feature_shape": 12}, "'feature_shape' parameter"),
        ({"device": "abacus"}, "device='abacus'"),
        ({"head_params": {"depth": 3}}, "no parameter 'depth'"),
        ({"solver": "lbfgs", "early_stopping": True}, "early_stopping=True"),
        ({"solver": "adam_full_batch", "early_stopping": True}, "adam_full_batch"),
    ],
)
def test_parameters_are_checked_by_name(params, error):
    X, y = data(n=30)
    with pytest.raises((ValueError, TypeError), match=error):
        branch().set_params(**params).fit(X, y)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_an_error():
    X, y = data(n=30)
    with pytest.raises(ValueError, match=r"device='cuda'.*no CUDA"):
        branch(device="cuda").fit(X, y)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"y": np.zeros(30)}, "at least 2 classes.*one class"),
        ({"y": np.arange(29)}, "inconsistent numbers of samples"),
        ({"y": np.linspace(0, 1, 30)}, "Unknown label type"),
        ({"sample_weight": np.ones(29)}, "sample_weight"),
        ({"sample_weight": -np.ones(30)}, "sample_weight"),
        ({"sample_weight": np.zeros(30)}, "sample_weight"),
        ({"soft_targets": np.full((30, 2), 0.5)}, r"soft_targets has shape \(30, 2\)"),
        ({"soft_targets": np.full((29, 3), 1 / 3)}, "soft_targets has shape"),
        ({"soft_targets": np.ones((30, 3))}, "soft_targets must hold probabilities"),
        ({"soft_targets": np.full((30, 3), np.nan)}, "soft_targets contains NaN"),
    ],
)
def test_data_is_checked_by_name(arguments, error):
    X, y = data(n=30)
    arguments = {"y": y} | arguments
    with pytest.raises(ValueError, match=error):
        branch().fit(X, **arguments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_features(value):
    X, y = data(n=30)
    model = branch(max_iter=1).fit(X, y)
    X[3, 2] = value
    with pytest.raises(ValueError, match="X contains"):
        model.predict(X)
    with pytest.raises(ValueError, match="X contains"):
        branch().fit(X, y)


def test_width_and_fittedness_are_checked():
    X, y = data(n=30)
    with pytest.raises(NotFittedError):
        branch().predict_proba(X)
    model = branch(max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="expecting 12 features"):
        model.predict(X[:, :7])


def test_overflowing_logits_are_an_error_not_an_answer():
    X, y = data(n=30)
    model = branch("gap", solver="adam", max_iter=1).fit(X, y)
    with pytest.raises(ValueError, match="logits of BranchClassifier contains NaN"):
        model.predict(X.astype(np.float64) * 1e38)


@pytest.mark.parametrize("change", ["shape", "classes", "labels"])
def test_warm_start_needs_the_same_problem(change):
    X, y = data((12,), n=60)
    model = branch(max_iter=1, warm_start=True).fit(X, y)
    if change == "shape":
        model.set_params(feature_shape=(3, 2, 2))
    elif change == "classes":
        y = y % 2
    else:
        y = y + 1
    with pytest.raises(ValueError, match="warm_start=True"):
        model.fit(X, y)


def test_early_stopping_that_leaves_no_row_says_so():
    X, y = np.eye(6)[:5], [0, 1, 0, 1, 0]
    branch = BranchClassifier(
        "gap", solver="adam", early_stopping=True, validation_fraction=0.9
    )
    with pytest.raises(ValueError, match="train set will be empty"):
        branch.fit(X, y)
