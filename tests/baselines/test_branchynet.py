"""BranchyNet: weighted cross-entropies, exit at low entropy."""

import math

import numpy as np
import pytest

from sk_calex.baselines import BranchyNetClassifier
from tests._cascade_models import STAGE_MACS
from tests.baselines._every_cascade import CHECKS, FIXED, Y, features


def make(**params):
    small = {
        "head_params": {"widths": (6,)},
        "max_iter": 8,
        "solver": "lbfgs",
        "device": "cpu",
        "random_state": 0,
    }
    return BranchyNetClassifier(**small | params)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_cascade(check):
    check(make, 0.8)


def test_the_entropy_decides():
    train, test = features()
    fitted = make(input="features", cv=FIXED, threshold=0.6).fit(train, Y)
    proba = fitted.stage_probabilities(test)
    labels, depth = fitted.predict(test, return_depth=True)
    assert set(depth) == {0, 1, 2}
    for i in range(len(test)):
        k = 0
        while k < 2 and -sum(p * math.log(p) for p in proba[k, i]) > 0.6:
            k += 1
        assert depth[i] == k
        assert labels[i] == proba[k, i].argmax()


def test_the_ends_of_the_knob():
    """Nobody is certain; nobody is less certain than log(n_classes)."""
    train, test = features()
    fitted = make(input="features", cv=FIXED, threshold=0.0).fit(train, Y)
    assert (fitted.exit_depth(test) == 2).all()
    fitted.set_operating_point(math.log(3) + 1e-9)
    assert (fitted.exit_depth(test) == 0).all()


def test_branch_weights_weigh_the_losses():
    train, _ = features()

    def losses(branch_weights, **params):
        params = {"input": "features", "cv": FIXED} | params
        fitted = make(branch_weights=branch_weights, **params).fit(train, Y)
        proba = fitted.stage_probabilities(train)[:2, FIXED.test_fold == -1]
        labels = Y[FIXED.test_fold == -1]
        return -np.log(proba[:, np.arange(len(labels)), labels]).mean(axis=1), fitted

    even, plain = losses(None, max_iter=40)
    same, _ = losses([1, 1], max_iter=40)
    np.testing.assert_array_equal(same, even)
    # Against the same penalty, a heavy loss is fitted closer, a light one less.
    uneven, weighted = losses((0.01, 100), max_iter=40)
    assert uneven[0] > even[0]
    assert uneven[1] < even[1]
    assert weighted.net_.branch_weights == (0.01, 100)
    assert plain.net_.branch_weights == (1, 1)


@pytest.mark.parametrize(
    "bad", [[1.0], [1, 1, 1], [1, -1], [1, 0], [1, np.nan], [[1, 1]], 3]
)
def test_branch_weights_that_do_not_fit(bad):
    with pytest.raises(ValueError, match="branch_weights") as error:
        make(input="features", branch_weights=bad, cv=FIXED).fit(features()[0], Y)
    if bad != 3:
        assert "2 finite positive numbers" in str(error.value)
        assert "['stem', 'block1']" in str(error.value)


def test_cost_by_hand():
    """A 3x3 convolution to 6 channels on 4 x 4 maps, its mean and maximum, linear."""
    heads = [16 * 9 * channels * 6 + 12 * 3 for channels in (4, 8)]
    fitted = make(input="features", cv=FIXED).fit(features()[0], Y)
    expected = np.cumsum(STAGE_MACS) + np.cumsum([*heads, 0])
    np.testing.assert_array_equal(fitted.depth_costs_, expected)
