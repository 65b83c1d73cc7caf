"""PABEE: exit where some branches in a row agree."""

import numpy as np
import pytest

from sk_calex.baselines import PABEEClassifier
from tests._cascade_models import STAGE_MACS, tiny_backbone
from tests.baselines._every_cascade import (
    CHECKS,
    FIXED,
    TEST,
    X,
    Y,
    features,
    same,
    staged_is_vectorised,
)


def make(**params):
    small = {"max_iter": 8, "solver": "lbfgs", "device": "cpu", "random_state": 0}
    return PABEEClassifier(**small | params)


# With patience, nobody exits at the first branch: see below.
@pytest.mark.parametrize(
    "check",
    [check for check in CHECKS if check is not staged_is_vectorised],
    ids=lambda check: check.__name__,
)
def test_every_cascade(check):
    check(make, 0)


@pytest.mark.parametrize("patience", [0, 1, 2, 3])
def test_patience_decides_staged_and_from_features(patience):
    """The streak of a sample survives the leaving of others."""
    backbone = tiny_backbone(taps=["stem", "block1", "block2"])
    staged = make(backbone=backbone, cv=FIXED, patience=patience).fit(X, Y)
    cached = make(input="features", cv=FIXED, patience=patience)
    cached.fit(backbone.fit(X).transform(X), Y)
    labels, depth = staged.predict(TEST, return_depth=True)
    same((labels, depth), cached.predict(backbone.transform(TEST), return_depth=True))
    predicted = staged.stage_probabilities(TEST).argmax(axis=2)
    for i in range(len(TEST)):
        counter, k = 0, 0
        while k < 3 and counter < patience:
            k += 1
            counter = counter + 1 if predicted[k, i] == predicted[k - 1, i] else 0
        # The backbone, too, is reached by those whom nobody let go.
        assert depth[i] == k
        assert labels[i] == predicted[k, i]
    # Three branches can agree twice.
    assert set(depth) == {0: {0}, 1: {1, 2, 3}, 2: {2, 3}, 3: {3}}[patience]


def test_later_branches_weigh_more():
    """After the public code: k + 1, over the sum."""
    backbone = tiny_backbone(taps=["stem", "block1", "block2"]).fit(X)
    fitted = make(input="features", cv=FIXED).fit(backbone.transform(X), Y)
    np.testing.assert_allclose(fitted.net_.branch_weights, [1 / 6, 2 / 6, 3 / 6])


def test_cost_by_hand():
    """Linear on the mean of 4 and of 8 channels: the statistics are folded in."""
    fitted = make(input="features", cv=FIXED).fit(features()[0], Y)
    expected = np.cumsum(STAGE_MACS) + np.cumsum([4 * 3, 8 * 3, 0])
    np.testing.assert_array_equal(fitted.depth_costs_, expected)
