"""The share of the soft targets, for each branch: given, or chosen by log-loss."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.base import clone

from sk_calex import BranchClassifier, CascadeClassifier
from sk_calex.branches._as_branch import fit_as_branch
from sk_calex.cascade._ensembles import loss_together
from tests._cascade_models import converged_regression, small_branch, tiny_backbone
from tests._quick_cascade import FIXED, HELD, X, Y, cascade


@pytest.fixture(scope="module")
def features():
    return tiny_backbone().fit(X).transform(X)


def made(**params):
    settings = {"branch": small_branch("gap"), "alignment": "none"}
    return cascade(**(settings | params))


def same_branches(one, two, given):
    np.testing.assert_array_equal(
        one.stage_probabilities(given), two.stage_probabilities(given)
    )


def test_a_share_is_that_of_the_branch(features):
    here = made(alpha=0.25).fit(features, Y)
    there = made(branch=small_branch("gap", alpha=0.25)).fit(features, Y)
    same_branches(here, there, features)
    assert here.alpha_ == [0.25, 0.25]
    assert there.alpha_ == [None, None]
    assert here.branches_[0].alpha == 0.25


def test_each_branch_has_its_own(features):
    mixed = made(alpha=[1.0, 0.0]).fit(features, Y)
    soft = made(alpha=1.0).fit(features, Y)
    labels = made(alpha=0.0).fit(features, Y)
    expected = [
        soft.stage_probabilities(features),
        labels.stage_probabilities(features),
    ]
    found = mixed.stage_probabilities(features)
    for k in (0, 1):
        np.testing.assert_array_equal(found[k], expected[k][k])
    assert mixed.alpha_ == [1.0, 0.0]


def test_none_and_labels_alone(features):
    """0 of the soft targets is learning from labels."""
    none = made(alpha=0.0).fit(features, Y)
    labels = made(targets="labels").fit(features, Y)
    same_branches(none, labels, features)


@pytest.mark.parametrize("cv", [FIXED, 3], ids=["split", "folds"])
@pytest.mark.parametrize("ensemble", [False, True])
def test_auto_takes_the_least_loss(features, cv, ensemble):
    auto = made(alpha="auto", cv=cv, ensemble=ensemble).fit(features, Y)
    assert all(share in (0.0, 0.5, 1.0) for share in auto.alpha_)
    again = made(alpha=auto.alpha_, cv=cv, ensemble=ensemble).fit(features, Y)
    same_branches(auto, again, features)
    for name in ("confidence", "predicted", "gap"):
        np.testing.assert_array_equal(
            getattr(auto.calibration_.answers, name),
            getattr(again.calibration_.answers, name),
        )
    np.testing.assert_array_equal(auto.thresholds_, again.thresholds_)
    if cv is not FIXED:
        return
    held = HELD == 0
    told = {
        share: made(alpha=share).fit(features, Y).stage_probabilities(features[held])
        for share in (0.5, 1.0, 0.0)
    }
    chosen = []
    for k, share in enumerate(auto.alpha_):
        losses = {}
        for tried, proba in told.items():
            stages = [*chosen, proba[k]] if ensemble else [proba[k]]
            losses[tried] = loss_by_search(stages, Y[held])
            if ensemble:
                losses[tried] += loss_by_search([*stages, proba[-1]], Y[held])
        assert losses[share] <= min(losses.values()) + 1e-6
        chosen.append(told[share][k])


def loss_by_search(stages, y):
    """Log-loss of a weighted geometric mean, its weights by a search without slopes."""
    logs = np.log(np.maximum(stages, 1e-12))

    def loss(exponents):
        weight = np.exp(exponents) / len(stages)
        mean = log_softmax(np.tensordot(weight, logs, axes=1), axis=1)
        penalty = exponents @ exponents / (2 * len(y))
        return -mean[np.arange(len(y)), y].mean() + penalty, penalty

    found = minimize(
        lambda e: loss(e)[0],
        np.zeros(len(stages)),
        method="Nelder-Mead",
        options={"xatol": 1e-8, "fatol": 1e-12, "maxiter": 10_000},
    ).x
    return loss(found)[0] - loss(found)[1]


def test_auto_judges_an_ensemble_by_what_a_branch_adds():
    """Sharp answers that are right where the last stage is wrong beat a copy of it."""
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=4000)
    strong, weak = (np.where(rng.random(4000) < p, y, 1 - y) for p in (0.8, 0.7))
    final, other = (np.eye(2)[c] * 0.6 + 0.2 for c in (strong, weak))
    ones = np.ones(len(y))
    copy = loss_together(np.stack([final]), y, ones)
    assert copy < loss_together(np.stack([other]), y, ones)
    # The copy adds nothing to the last stage, the weaker one does.
    assert loss_together(np.stack([final, final]), y, ones) == pytest.approx(copy)
    assert loss_together(np.stack([other, final]), y, ones) < copy - 0.02


def test_auto_does_not_ask_how_sharp_a_branch_is():
    rng = np.random.default_rng(1)
    y = rng.integers(3, size=500)
    logits = rng.normal(size=(500, 3)) + 2 * np.eye(3)[y]
    losses = [
        loss_together(softmax(factor * logits, axis=1)[None], y, np.ones(500))
        for factor in (0.3, 1.0, 3.0)
    ]
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)


def test_weights_of_later_branches_follow_the_branch_that_was_kept(features):
    auto = made(alpha="auto", alignment="soft").fit(features, Y)
    again = made(alpha=auto.alpha_, alignment="soft").fit(features, Y)
    np.testing.assert_array_equal(
        auto.effective_sample_size_, again.effective_sample_size_
    )
    same_branches(auto, again, features)


def test_classifiers_without_soft_targets_learn_the_mixture(features):
    """Rows repeated by class, weighted by the mixed probabilities."""
    regression = converged_regression()
    mixed = made(branch=regression, alpha=0.25).fit(features, Y)
    train = HELD != 0
    layout = mixed.layout_
    final = mixed.stage_probabilities(features)[-1]
    soft = 0.25 * final + 0.75 * np.eye(3)[Y]
    by_hand = fit_as_branch(
        clone(regression),
        layout.block(np.asarray(features), 0),
        layout.shapes[0],
        Y,
        train.astype(float),
        soft,
    )
    np.testing.assert_allclose(mixed.branches_[0].coef_, by_hand.coef_, rtol=1e-6)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, [0.5], [0.5, 2.0], "most", [0.1, np.nan]])
def test_other_shares_are_refused(features, alpha):
    with pytest.raises(ValueError, match="alpha"):
        made(alpha=alpha).fit(features, Y)


@pytest.mark.parametrize("targets", ["labels", "argmax"])
def test_without_soft_targets_there_is_nothing_to_share(features, targets):
    with pytest.raises(ValueError, match=f"targets='{targets}' has none"):
        made(alpha=0.5, targets=targets).fit(features, Y)


def test_the_default_leaves_it_to_the_branches():
    assert CascadeClassifier().alpha is None
    assert BranchClassifier().alpha == 0.5
