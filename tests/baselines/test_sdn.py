"""Shallow-Deep Networks: the sum of cross-entropies, one threshold for all."""

import math

import numpy as np
import pytest
import torch

from sk_calex.baselines import SDNClassifier
from sk_calex.baselines._exit_net import LabelNet
from tests._cascade_models import STAGE_MACS
from tests.baselines._every_cascade import CHECKS, FIXED, Y, features


def make(**params):
    small = {"max_iter": 8, "solver": "lbfgs", "device": "cpu", "random_state": 0}
    return SDNClassifier(**small | params)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_cascade(check):
    check(make, 0.6)


def slow_loss(outputs, labels, weight, branch_weights):
    """Sum over branches and rows, one by one."""
    total = 0.0
    for logits, v in zip(outputs, branch_weights, strict=True):
        for i, label in enumerate(labels):
            log_sum = math.log(sum(math.exp(z) for z in logits[i]))
            total += v * weight[i] * (log_sum - logits[i][label])
    return total / len(labels)


@pytest.mark.parametrize("branch_weights", [None, (0.5, 2.0, 1.0)])
def test_loss_is_the_slow_sum(branch_weights):
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(3, 7, 4))
    labels, weight = rng.integers(0, 4, 7), rng.uniform(0, 2, 7)
    net = LabelNet([(5,)] * 3, 4, "gap", None, torch.Generator(), branch_weights)
    tensors = [torch.from_numpy(z) for z in outputs]
    given = torch.from_numpy(labels), torch.empty(0), torch.from_numpy(weight)
    v = branch_weights or (1, 1, 1)
    for k in (1, 2, 3):  # the first branches alone, too
        expected = slow_loss(outputs[:k].tolist(), labels, weight, v[:k])
        loss = net.loss(tensors[:k], *given)
        assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_the_threshold_decides():
    train, test = features()
    fitted = make(input="features", cv=FIXED, threshold=0.7).fit(train, Y)
    proba = fitted.stage_probabilities(test)
    labels, depth = fitted.predict(test, return_depth=True)
    assert set(depth) == {0, 1, 2}
    for i in range(len(test)):
        k = 0
        while k < 2 and max(proba[k, i]) < 0.7:
            k += 1
        assert depth[i] == k
        assert labels[i] == proba[k, i].argmax()


def test_cost_by_hand():
    """Linear on 4 x 4 cells of 4 and 8 channels, three classes."""
    heads = [4 * 16 * 3, 8 * 16 * 3]
    fitted = make(input="features", cv=FIXED).fit(features()[0], Y)
    expected = np.cumsum(STAGE_MACS) + np.cumsum([*heads, 0])
    np.testing.assert_array_equal(fitted.depth_costs_, expected)
