"""Branches by cost: what is chosen, and what is warned of."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    PrototypePoolingClassifier,
)
from sk_calex.branches import BranchCostWarning
from sk_calex.branches._defaults import (
    _count_trunk_macs,
    default_branch_for,
    default_branches,
    warn_of_costly_branches,
)
from sk_calex.branches._heads import build_head, fuse_for_inference
from sk_calex.branches._layers import trunk
from sk_calex.utils._flops import count_macs

RICH = [(96, 128), (48, 64), (24, 32)]


def head_macs(shape, widths, n_classes=10):
    head = build_head("prototype_augmented", shape, n_classes, widths=widths)
    return count_macs(fuse_for_inference(head), torch.zeros(1, *shape))


@pytest.mark.parametrize("shape", [(16, 9, 7), (64, 4, 4), (50, 96)])
def test_the_richest_branch_within_a_twentieth_is_chosen(shape):
    for widths in RICH:
        needed = 20 * head_macs(shape, widths)
        branch = default_branch_for(shape, 10, needed)
        assert isinstance(branch, PrototypePoolingClassifier)
        assert branch.widths == widths
        cheaper = default_branch_for(shape, 10, needed - 20)
        assert getattr(cheaper, "widths", None) != widths
    assert isinstance(cheaper, BranchClassifier)
    assert cheaper.head == "gap"


@pytest.mark.parametrize("shape", [(16, 9, 7), (5, 4, 4), (3, 5, 5), (50, 96)])
@pytest.mark.parametrize("widths", [(8,), (6, 7)])
def test_trunks_are_counted_as_torch_counts_them(shape, widths):
    body = trunk(shape, widths, torch.Generator())
    example = torch.zeros(1, *shape)
    if len(shape) == 2:
        example = example.unsqueeze(2).permute(0, 3, 1, 2)
    assert _count_trunk_macs(shape, widths) == count_macs(body.eval(), example)


def test_vectors_have_a_logistic_regression_and_unknown_costs_the_richest():
    assert isinstance(default_branch_for((12,), 3, 1e9), LogisticRegression)
    assert default_branch_for((8, 4, 4), 3, None).widths == RICH[0]


def test_what_an_exit_saves_is_all_that_follows_its_tap():
    shape = (16, 8, 8)
    enough = 20 * head_macs(shape, RICH[1], 3)
    branches = default_branches([shape, shape, shape], [1, 0, enough, 5], 3)
    assert [getattr(b, "widths", None) for b in branches] == [RICH[1], RICH[1], None]
    unknown = default_branches([shape, (7,)], None, 3)
    assert [type(b) for b in unknown] == [
        PrototypePoolingClassifier,
        LogisticRegression,
    ]


def test_costly_branches_are_warned_of_with_numbers_and_remedy():
    with pytest.warns(BranchCostWarning) as caught:
        warn_of_costly_branches([30, 20], [100, 200, 100])
    message = str(caught[0].message)
    assert "12%" in message
    assert "30, 20 MACs, the backbone 400" in message
    assert "BranchClassifier('gap')" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_costly_branches([20, 20], [100, 200, 100])
    with pytest.warns(BranchCostWarning, match="more than all"):
        warn_of_costly_branches([1], [0, 0])


class Narrow(nn.Module):
    """A convolution, and a later part that costs `width` squared."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        self.early = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.late = nn.Sequential(
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 2),
        )

    def forward(self, x):
        return self.late(self.early(x))


def images(n=120):
    rng = np.random.default_rng(0)
    y = np.arange(n) % 2
    x = rng.standard_normal((n, 1, 8, 8)).astype(np.float32)
    return x + 3 * y[:, None, None, None].astype(np.float32), y


@pytest.mark.parametrize(("width", "head"), [(20, "gap"), (2000, "prototype")])
def test_a_cascade_chooses_its_branches_by_cost(width, head):
    X, y = images()
    backbone = FrozenBackbone(Narrow(width).eval(), taps=["early"], classes=[0, 1])
    cascade = CascadeClassifier(backbone, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BranchCostWarning)
        cascade.fit(X, y)
    (branch,) = cascade.branches_
    if head == "gap":
        assert branch.head == "gap"
    else:
        assert isinstance(branch, PrototypePoolingClassifier)
    stages = cascade.layout_.stage_macs
    assert branch.macs_ <= stages[-1] / 20


def test_a_fit_warns_of_branches_that_cost_more_than_a_tenth():
    X, y = images()
    backbone = FrozenBackbone(Narrow(20).eval(), taps=["early"], classes=[0, 1])
    costly = CascadeClassifier(
        backbone, branch=BranchClassifier("conv", max_iter=2), random_state=0
    )
    with pytest.warns(BranchCostWarning, match=r"the branches cost \d+% of the back"):
        costly.fit(X, y)


def test_plain_columns_have_a_logistic_regression():
    # Classes this far apart exit early on every processor, so that the branch is run.
    X, y = make_blobs(200, 10, centers=2, cluster_std=0.1, random_state=0)
    cascade = CascadeClassifier(margin=0.5, random_state=0).fit(X, y)
    assert isinstance(cascade.branches_[0], LogisticRegression)
    assert cascade.depth_costs_.tolist() == [10, 20]
