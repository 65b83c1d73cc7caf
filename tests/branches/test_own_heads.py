"""Heads that a user makes: trained, costed, copied and saved as the others are."""

import pickle
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import make_blobs
from torch import nn

import sk_calex
from sk_calex import BranchClassifier, CascadeClassifier
from sk_calex.branches._heads import build_head
from sk_calex.utils._codec import CannotSaveError
from tests._cascade_models import images, tiny_backbone

SHAPE = (3, 4, 4)


def two_layers(feature_shape, n_classes, width=8):
    """A small network on the flat features."""
    n_in = int(np.prod(feature_shape))
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(n_in, width),
        nn.ReLU(),
        nn.Linear(width, n_classes),
    )


class TwoLayers(nn.Sequential):
    """The same made by a class, whose text holds no address as a function's does."""

    def __init__(self, feature_shape, n_classes):
        super().__init__(*two_layers(feature_shape, n_classes))


class Convolved(nn.Module):
    """Its class makes it; with normalisation and dropout, as people write them."""

    def __init__(self, feature_shape, n_classes):
        super().__init__()
        self.conv = nn.Conv2d(feature_shape[0], 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(6, n_classes)

    def forward(self, x):
        return self.out(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


class Tuples(nn.Linear):
    """Gives more than logits."""

    def __init__(self, feature_shape, n_classes):
        super().__init__(48, n_classes)

    def forward(self, x):
        logits = super().forward(x.flatten(1))
        return logits, logits


def like_gap(feature_shape, n_classes, generator):
    return build_head("gap", feature_shape, n_classes, generator=generator)


def rows(n=120, seed=0):
    """Features whose first numbers tell the class."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % 3)
    X = rng.standard_normal((n, 48))
    X[np.arange(n), 16 * y] += 4
    return X.astype(np.float32), np.array(["a", "b", "c"])[y]


def branch_of(head, **params):
    return BranchClassifier(head, feature_shape=SHAPE, random_state=0, **params)


@pytest.mark.parametrize("solver", ["adam", "adam_full_batch", "lbfgs"])
@pytest.mark.parametrize("head", [two_layers, Convolved])
def test_own_heads_learn(head, solver):
    X, y = rows()
    branch = branch_of(head, solver=solver).fit(X, y)
    assert branch.loss_curve_[-1] < branch.loss_curve_[0]
    # Chance is a third; what dropout draws differs between builds of torch.
    assert branch.score(X, y) > (0.8 if head is two_layers else 0.5)
    assert branch.predict_proba(X).shape == (120, 3)


def test_own_head_that_is_one_of_ours_is_trained_the_same():
    """A convex loss: another start ends at the same place."""
    X, y = rows()
    weight = np.random.default_rng(1).integers(0, 3, len(y))
    soft = np.full((len(y), 3), 0.1) + 0.7 * (y[:, None] == np.array(["a", "b", "c"]))
    fit_params = {"sample_weight": weight, "soft_targets": soft}
    settings = {"solver": "lbfgs", "max_iter": 200}
    own = branch_of(like_gap, **settings).fit(X, y, **fit_params)
    ours = branch_of("gap", **settings).fit(X, y, **fit_params)
    np.testing.assert_allclose(own.predict_proba(X), ours.predict_proba(X), atol=1e-3)
    assert own.macs_ == ours.macs_ == 9


def test_costs_are_counted():
    X, y = rows()
    assert branch_of(two_layers).fit(X, y).macs_ == 48 * 8 + 8 * 3
    wide = branch_of(two_layers, head_params={"width": 5}).fit(X, y)
    assert wide.macs_ == 48 * 5 + 5 * 3
    assert branch_of(Convolved).fit(X, y).macs_ == 16 * 9 * 3 * 6 + 6 * 3


@pytest.mark.parametrize("solver", ["adam", "adam_full_batch"])
def test_random_state_is_all_that_is_drawn_from(solver):
    """Initial weights and dropout too; torch's own generator stays as it was."""
    X, y = rows()
    answers = []
    for earlier in (1, 2):
        torch.manual_seed(earlier)
        before = torch.get_rng_state()
        answers.append(branch_of(Convolved, solver=solver).fit(X, y).predict_proba(X))
        assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(*answers)
    other = branch_of(Convolved, solver=solver).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(other.predict_proba(X), answers[0])


def test_zero_weights_are_absence():
    X, y = rows()
    weight = (np.arange(len(y)) % 4 > 0).astype(float)
    weighted = branch_of(two_layers).fit(X, y, sample_weight=weight)
    fewer = branch_of(two_layers).fit(X[weight > 0], y[weight > 0])
    np.testing.assert_allclose(
        weighted.predict_proba(X), fewer.predict_proba(X), atol=1e-9
    )


def test_copies_and_pickles(tmp_path):
    X, y = rows()
    branch = branch_of(two_layers, head_params={"width": 5})
    assert clone(branch).get_params() == branch.get_params()
    branch.fit(X, y)
    joblib.dump(branch, tmp_path / "branch")
    for copied in (
        pickle.loads(pickle.dumps(branch)),
        joblib.load(tmp_path / "branch"),
        clone(branch).fit(X, y),
    ):
        np.testing.assert_array_equal(copied.predict_proba(X), branch.predict_proba(X))


def test_warm_start_goes_on_from_the_own_head():
    X, y = rows()
    branch = branch_of(Convolved, solver="adam", max_iter=3, warm_start=True)
    first = branch.fit(X, y).loss_curve_[0]
    assert branch.fit(X, y).loss_curve_[0] < first


def test_own_heads_in_a_cascade():
    X, y = images(150)
    cascade = CascadeClassifier(
        tiny_backbone(),
        branch=BranchClassifier(Convolved, device="cpu"),
        random_state=0,
    )
    cascade.set_params(margin=0.1).fit(X, y)
    labels, depth = cascade.predict(X, return_depth=True)
    assert labels.shape == depth.shape == (150,)
    # Maps of 4 and of 8 channels, which the backbone pools to 4 x 4.
    heads = [16 * 9 * 4 * 6 + 18, 16 * 9 * 8 * 6 + 18]
    assert cascade._branch_macs() == heads


def test_saved_by_name_and_loaded_if_trusted(tmp_path):
    X, y = rows()
    branch = branch_of(two_layers, head_params={"width": 5}).fit(X, y)
    branch.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"names code of its writer.*trusted=True"):
        sk_calex.load(tmp_path / "saved")
    loaded = sk_calex.load(tmp_path / "saved", trusted=True)
    assert loaded.head is two_layers
    np.testing.assert_array_equal(loaded.predict_proba(X), branch.predict_proba(X))


def test_heads_of_ours_need_no_trust(tmp_path):
    X, y = rows()
    branch_of("gap").fit(X, y).save(tmp_path / "saved")
    assert sk_calex.load(tmp_path / "saved").head == "gap"


def local_factory():
    def inner(feature_shape, n_classes):
        return two_layers(feature_shape, n_classes)

    return inner


@pytest.mark.parametrize(
    "head",
    [
        lambda shape, n_classes: two_layers(shape, n_classes),
        local_factory(),
        partial(two_layers, width=3),
    ],
    ids=["lambda", "local", "partial"],
)
def test_what_has_no_name_is_not_saved(head, tmp_path):
    X, y = rows()
    branch = branch_of(head).fit(X, y)
    with pytest.raises(CannotSaveError, match=r"cannot be saved.*top of a module"):
        branch.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_is_gone_is_named(tmp_path, monkeypatch):
    X, y = rows()
    branch_of(two_layers).fit(X, y).save(tmp_path / "saved")
    monkeypatch.delattr(__import__(__name__, fromlist=["x"]), "two_layers")
    with pytest.raises(ValueError, match=r"two_layers', which cannot be imported"):
        sk_calex.load(tmp_path / "saved", trusted=True)


@pytest.mark.parametrize(
    ("head", "error", "message"),
    [
        (nn.Linear(48, 3), TypeError, "head is a module, a Linear, but each fit"),
        (lambda shape, n: "gap", TypeError, "returned a str for the features of shape"),
        (lambda shape, n: nn.Flatten(), ValueError, "without parameters to train"),
        (
            lambda shape, n: nn.Sequential(nn.Flatten(), nn.Linear(48, n + 1)),
            ValueError,
            r"returned the shape \(2, 4\) .* expected \(2, 3\)",
        ),
        (Tuples, TypeError, "returned a tuple"),
        ("vgg", ValueError, "The 'head' parameter of BranchClassifier"),
        (3, ValueError, "a callable"),
    ],
)
def test_bad_heads(head, error, message):
    X, y = rows()
    with pytest.raises(error, match=message):
        branch_of(head).fit(X, y)


@pytest.mark.parametrize("seed", range(6))
def test_few_rows_suffice_for_a_small_head_whatever_its_draws(seed):
    X, y = make_blobs(
        200, centers=[[0, 0], [3, 0], [0, 3]], cluster_std=0.5, random_state=0
    )
    branch = BranchClassifier(TwoLayers, random_state=seed).fit(X, y)
    assert branch.solver_ == "adam_full_batch"
    assert branch.score(X, y) > 0.9
