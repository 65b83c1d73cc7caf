"""BoostNet: each branch adds to what the branches before it said."""

import numpy as np
import pytest
import torch
from torch import nn

from sk_calex.baselines import BoostNetClassifier
from sk_calex.baselines._boostnet import BoostNet
from sk_calex.branches._heads import ConvHead
from sk_calex.branches._solvers import lbfgs_loop
from tests._cascade_models import STAGE_MACS
from tests.baselines._every_cascade import CHECKS, FIXED, HELD, Y, features


def make(**params):
    small = {
        "head_params": {"widths": (6,)},
        "max_iter": 8,
        "solver": "lbfgs",
        "device": "cpu",
        "random_state": 0,
    }
    return BoostNetClassifier(**small | params)


class Given(nn.Module):
    """A head that says what it was given, whatever it sees."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([logits], dtype=torch.float64))

    def forward(self, tap):
        return self.logits.expand(len(tap), -1)


def given_net(*logits, shrinkage=0.5):
    n_classes = len(logits[0])
    shapes = [(1,)] * len(logits)
    net = BoostNet(
        shapes, n_classes, "gap", None, torch.Generator(), shrinkage=shrinkage
    )
    net.heads = nn.ModuleList(Given(z) for z in logits)
    return net, [torch.zeros(2, 1)] * len(logits)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_cascade(check):
    check(make, 0.5)


def test_recursion_by_hand():
    net, taps = given_net([1.0, 0.0], [0.0, 2.0], [4.0, 4.0])
    outputs = [F[0].tolist() for F in net(taps)]
    # E_1 = (0.5, 0); E_2 = 0.5 (0.5, 2) = (0.25, 1).
    assert outputs == [[1.0, 0.0], [0.5, 2.0], [4.25, 5.0]]
    memory = None
    for k, (said, handed_on) in enumerate(
        [([1.0, 0.0], [0.5, 0.0]), ([0.5, 2.0], [0.25, 1.0]), ([4.25, 5], [2.125, 2.5])]
    ):
        F, memory = net.exit(k, taps[k], memory)
        assert F[1].tolist() == said
        assert memory[1].tolist() == handed_on


def test_without_shrinkage_or_without_memory():
    net, taps = given_net([1.0, 0.0], [0.0, 2.0], shrinkage=1.0)
    assert net(taps)[1][0].tolist() == [1.0, 2.0]
    net, taps = given_net([1.0, 0.0], [0.0, 2.0], shrinkage=0.0)
    assert net(taps)[1][0].tolist() == [0.0, 2.0]


def test_a_branch_learns_from_its_own_loss_alone():
    """Cross-entropy has the gradient softmax minus one-hot; no more arrives."""
    net, taps = given_net([1.0, 0.0], [0.0, 2.0], [4.0, 4.0])
    labels, weight = torch.tensor([0, 0]), torch.ones(2, dtype=torch.float64)
    outputs = net(taps)
    net.loss(outputs, labels, torch.empty(0), weight).backward()
    for head, F in zip(net.heads, outputs, strict=True):
        expected = F[0].detach().softmax(0) - torch.tensor([1.0, 0.0])
        torch.testing.assert_close(head.logits.grad[0], expected)


def test_full_batch_training_is_boosting(monkeypatch):
    """Branch after branch, each on what the sum of those before it gets wrong."""
    train, _ = features()

    def start():
        generator = torch.Generator().manual_seed(1)
        return BoostNet(shapes, 3, "sdn", None, generator, shrinkage=0.5)

    cascade = make(input="features", cv=FIXED)
    shapes = train.layout.shapes
    monkeypatch.setattr(cascade, "_net", lambda *_: start())
    cascade.fit(train, Y)
    rows = HELD == -1
    labels, before, losses = torch.from_numpy(Y[rows]), torch.zeros(1, 3), []
    for k, head in enumerate(start().double().heads):
        tap = torch.from_numpy(train.layout.block(train, k)[rows]).double()
        tap = tap.reshape(-1, *shapes[k])

        def loss(head=head, tap=tap, before=before):
            return nn.functional.cross_entropy(head(tap) + before, labels)

        lbfgs_loop(head, loss, max_iter=8, weight_decay=1e-2)
        for name, value in cascade.net_.heads[k].named_parameters():
            expected = head.get_parameter(name)
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-8)
        losses.append(loss().item())
        before = 0.5 * (head(tap) + before).detach()
    assert losses[1] < losses[0]


def test_quotas_are_filled():
    """Shares 4/7, 2/7, 1/7 of the 60 calibration samples, rounded down."""
    train, _ = features()
    fitted = make(input="features", cv=FIXED, quota_decay=0.5).fit(train, Y)
    depth = fitted.exit_depth(train[HELD == 0])
    assert np.bincount(depth).tolist() == [34, 17, 9]


def test_memory_costs_nothing():
    """An addition of logits is no multiplication: the heads' MACs are their own."""
    fitted = make(input="features", cv=FIXED).fit(features()[0], Y)
    heads = [16 * 9 * channels * 6 + 12 * 3 for channels in (4, 8)]
    expected = np.cumsum(STAGE_MACS) + np.cumsum([*heads, 0])
    np.testing.assert_array_equal(fitted.depth_costs_, expected)


@pytest.mark.parametrize("shape", [(6, 4, 4), (5, 6), (6,)])
def test_maps_tokens_and_vectors(shape):
    net = BoostNet(
        [shape, shape], 3, "conv", {"widths": (4,)}, torch.Generator(), shrinkage=0.5
    ).eval()
    taps = [torch.randn(2, *shape), torch.randn(2, *shape)]
    first, second = net(taps)
    alone = [head(tap) for head, tap in zip(net.heads, taps, strict=True)]
    torch.testing.assert_close(first, alone[0])
    torch.testing.assert_close(second, alone[1] + 0.5 * alone[0])
    assert all(isinstance(head, ConvHead) for head in net.heads)


@pytest.mark.parametrize(
    "bad", [{"quota_decay": 0}, {"quota_decay": -1.0}, {"shrinkage": 1.5}], ids=str
)
def test_settings_out_of_range(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"'{name}' parameter of BoostNetClassifier"):
        make(**bad).fit(np.zeros((4, 2)), [0, 1, 0, 1])
