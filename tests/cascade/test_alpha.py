"""The share of the soft targets, for each branch: given, or chosen by log-loss."""

import numpy as np
import pytest
from sklearn.base import clone

from sk_calex import BranchClassifier, CascadeClassifier
from sk_calex.branches._as_branch import fit_as_branch
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
def test_auto_takes_the_least_log_loss(features, cv, ensemble):
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
    if cv is not FIXED or ensemble:
        return
    held = HELD == 0
    losses = {}
    for share in (0.0, 0.5, 1.0):
        fixed = made(alpha=share, cv=cv).fit(features, Y)
        told = fixed.stage_probabilities(features[held])
        rows = np.arange(held.sum())
        losses[share] = -np.log(told[:2, rows, Y[held]]).sum(axis=1)
    for k, share in enumerate(auto.alpha_):
        assert losses[share][k] == min(loss[k] for loss in losses.values())


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
