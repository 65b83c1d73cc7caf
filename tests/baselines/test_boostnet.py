"""BoostNet: each branch adds to what the branches before it said."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.model_selection import PredefinedSplit, StratifiedKFold
from torch import nn

from sk_calex import load
from sk_calex.baselines import BoostNetClassifier
from sk_calex.baselines._boostnet import BoostNet
from sk_calex.branches._heads import ConvHead
from sk_calex.branches._solvers import lbfgs_loop
from sk_calex.cascade._ensembles import Ensembles
from sk_calex.policies import OptimalStopping
from tests._cascade_models import STAGE_MACS, tiny_backbone
from tests.baselines._every_cascade import (
    CHECKS,
    FIXED,
    HELD,
    TEST,
    TEST_Y,
    X,
    Y,
    features,
    folds_calibrate_out_of_fold,
)


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


@pytest.mark.parametrize(
    # An ensemble is fitted on all folds together: see below.
    "check",
    [check for check in CHECKS if check is not folds_calibrate_out_of_fold],
    ids=lambda check: check.__name__,
)
def test_every_cascade_that_answers_together(check):
    check(partial(make, ensemble=True), 0.5)


@pytest.fixture(scope="module")
def alone_and_together():
    backbone = tiny_backbone()
    alone = make(backbone=backbone, cv=FIXED).fit(X, Y)
    return alone, make(backbone=backbone, cv=FIXED, ensemble=True).fit(X, Y)


def test_stages_answer_with_the_sums_before_them(alone_and_together):
    """The means of the method's own answers, weighted as on the calibration rows."""
    alone, together = alone_and_together
    assert alone.ensembles_ is None
    held = HELD == 0
    expected = Ensembles.fit(alone.stage_probabilities(X[held]), Y[held], np.ones(60))
    found = together.ensembles_
    np.testing.assert_allclose(found.exponents, expected.exponents, atol=1e-4)
    proba = expected.combine(alone.stage_probabilities(TEST))
    np.testing.assert_allclose(together.stage_probabilities(TEST), proba, atol=1e-4)
    given = together.calibration_
    np.testing.assert_array_equal(given.reference, alone.backbone_.predict(X[held]))
    # All heads run, whatever the rule: the last stage takes them in.
    together.set_calibrator(OptimalStopping(0.0))
    assert together._running_heads(together.calibrator_).all()


def test_out_of_fold_answers_weigh_the_stages():
    train, _ = features()
    together = make(input="features", cv=3, ensemble=True).fit(train, Y)
    proba = np.empty((3, 180, 3))
    for _, held in StratifiedKFold(3).split(train, Y):
        fold = np.where(np.isin(np.arange(180), held), 0, -1)
        alone = make(input="features", cv=PredefinedSplit(fold)).fit(train, Y)
        proba[:, held] = alone.stage_probabilities(train[held])
    expected = Ensembles.fit(proba, Y, np.ones(180)).exponents
    np.testing.assert_allclose(together.ensembles_.exponents, expected, atol=1e-4)


def test_a_saved_cascade_answers_together(alone_and_together, tmp_path):
    together = alone_and_together[1].set_calibrator(OptimalStopping(0.2))
    together.save(tmp_path / "saved")
    again = load(tmp_path / "saved", backbone=together.backbone_)
    for found, expected in zip(
        again.predict(TEST, return_depth=True),
        together.predict(TEST, return_depth=True),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


def test_rows_of_new_labels_are_judged_by_the_last_stage_alone(alone_and_together):
    together = alone_and_together[1].set_calibrator(None)
    plain = together.backbone_.predict(TEST)
    together.recalibrate(TEST, TEST_Y)
    np.testing.assert_array_equal(together.calibration_.reference, plain)


def test_loss_with_soft_targets_against_a_plain_sum():
    """Each branch: alpha T^2 KL(q || p) at T = 2, and the rest cross-entropy."""
    rng = np.random.default_rng(0)
    z, y = rng.normal(size=(2, 5, 3)), rng.integers(3, size=5)
    final, weight = rng.dirichlet(np.ones(3), size=5), rng.uniform(0.5, 2, size=5)
    shapes, alphas = [(4,), (4,)], (0.75, 0.0)
    net = BoostNet(
        shapes, 3, "gap", None, torch.Generator(), shrinkage=0.5, alphas=alphas
    )
    tensors = [torch.from_numpy(each) for each in (*z, y, final, weight)]
    found = net.loss(tensors[:2], *tensors[2:])
    expected = 0.0
    for i in range(5):
        q = final[i] ** 0.5 / (final[i] ** 0.5).sum()
        for logits, alpha in zip(z[:, i], alphas, strict=True):
            soft = np.exp(logits / 2) / np.exp(logits / 2).sum()
            hard = np.exp(logits) / np.exp(logits).sum()
            divergence = (q * np.log(q / soft)).sum()
            cross = -np.log(hard[y[i]])
            loss = alpha * 4 * divergence + (1 - alpha) * cross
            expected += weight[i] * loss / 5
    assert found.item() == pytest.approx(expected)


def test_soft_targets_teach_what_the_last_stage_says():
    """With labels of chance: alpha=1 does not see them."""
    train, test = features()
    backbone = tiny_backbone().fit(X)
    chance = np.random.default_rng(0).permutation(Y)
    settings = {"input": "features", "cv": FIXED, "max_iter": 30}
    imitates = make(**settings, alpha=1.0).fit(train, chance)
    learns = make(**settings, alpha=[0.0, 0.0]).fit(train, chance)
    last = backbone.predict(TEST)
    agree = [
        (fitted.stage_probabilities(test)[1].argmax(axis=1) == last).mean()
        for fitted in (imitates, learns)
    ]
    assert agree[0] > agree[1] + 0.2


@pytest.mark.parametrize("alpha", [[0.5], [0.5, 0.5, 0.5], [0.5, 1.5]])
def test_shares_that_do_not_fit_the_branches(alpha):
    with pytest.raises(ValueError, match="one for each of the 2 branches"):
        make(input="features", alpha=alpha).fit(features()[0], Y)


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
    "bad",
    [{"quota_decay": 0}, {"quota_decay": -1.0}, {"shrinkage": 1.5}, {"alpha": "auto"}],
    ids=str,
)
def test_settings_out_of_range(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"'{name}' parameter of BoostNetClassifier"):
        make(**bad).fit(np.zeros((4, 2)), [0, 1, 0, 1])
