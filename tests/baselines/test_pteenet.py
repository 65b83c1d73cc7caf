"""PTEENet: the recursion, its numbers, and what the weight of the cost buys."""

import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis

from sk_calex.baselines import PTEENetClassifier
from sk_calex.baselines._pteenet import PTEENet, PTEENetHead
from sk_calex.policies import OwnGate, SharedThreshold
from tests._cascade_models import STAGE_MACS, images, tiny_backbone
from tests._reference.heads import slow_trunk
from tests.baselines._every_cascade import CHECKS, FIXED, TEST, X, Y, features


def make(**params):
    params = {"widths": (6, 5), "random_state": 0, "device": "cpu"} | params
    return PTEENetClassifier(**params)


def net(shapes, n_classes, cost_weight=1.0, costs=(), widths=(6, 5)):
    generator = torch.Generator().manual_seed(0)
    made = PTEENet(shapes, n_classes, widths, cost_weight, generator)
    made.costs = tuple(costs)
    return made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_every_cascade(check):
    # With these both branches let some samples exit.
    mixed = {"solver": "adam", "batch_size": 32, "max_iter": 100, "cost_weight": 0.6}
    check(partial(make, **mixed), 0.31)


# -- the loss --------------------------------------------------------------------------


def test_recursion_by_hand():
    """Two branches, two classes, one sample; the last stage says class 0."""
    # Branch 0: softmax (3/4, 1/4), h = 1/2. Branch 1: softmax (1/5, 4/5), h = 3/4.
    outputs = [
        torch.tensor([[math.log(3), 0.0, 0.0]]),
        torch.tensor([[0.0, math.log(4), math.log(3)]]),
    ]
    final = torch.tensor([[0.9, 0.1]])
    # Y_1 = 3/4 * 1/5 + 1/4 * 0.9   = 0.375    C_1 = 3/4 * 0.5 + 1/4 * 1.1  = 0.65
    # Y_0 = 1/2 * 3/4 + 1/2 * 0.375 = 0.5625   C_0 = 1/2 * 0.2 + 1/2 * 0.65 = 0.425
    expected = -math.log(0.5625) + 2 * 0.425
    made = net([(3,), (3,)], 2, cost_weight=2.0, costs=(0.2, 0.5, 1.1))
    labels = torch.tensor([1])  # not looked at
    loss = made.loss(outputs, labels, final, torch.ones(1))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def slow_loss(outputs, final, weight, costs, cost_weight):
    """The mixtures in full, row by row, without logarithms until the end."""
    total = 0.0
    for i, row in enumerate(final):
        mixture, cost = row, costs[-1]
        for output, depth_cost in zip(outputs[::-1], costs[-2::-1], strict=True):
            e = np.exp(output[i, :-1])
            h = 1 / (1 + np.exp(-output[i, -1]))
            mixture = h * e / e.sum() + (1 - h) * mixture
            cost = h * depth_cost + (1 - h) * cost
        likelihood = mixture[np.argmax(row)]
        total += weight[i] * (cost_weight * cost - np.log(likelihood))
    return total / len(final)


def random_outputs(rng, n, n_branches=3, n_classes=4):
    outputs = [rng.normal(size=(n, n_classes + 1)) for _ in range(n_branches)]
    final = rng.dirichlet(np.ones(n_classes), size=n)
    return outputs, final, rng.uniform(0.5, 2, n)


@pytest.mark.parametrize("cost_weight", [0.0, 0.7])
def test_loss_is_the_slow_loop(cost_weight):
    outputs, final, weight = random_outputs(np.random.default_rng(0), 11)
    costs = (0.2, 0.5, 0.9, 1.2)
    made = net([(3,)] * 3, 4, cost_weight=cost_weight, costs=costs)
    tensors = [torch.from_numpy(output) for output in outputs]
    loss = made.loss(
        tensors,
        torch.zeros(11, dtype=torch.long),
        torch.from_numpy(final),
        torch.from_numpy(weight),
    )
    expected = slow_loss(outputs, final, weight, costs, cost_weight)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(0, 50))
@settings(max_examples=30)
def test_the_mixture_lies_between_what_is_mixed(seed, scale):
    outputs, final, _ = random_outputs(np.random.default_rng(seed), 1)
    tensors = [torch.from_numpy(scale * output) for output in outputs]
    costs = (0.2, 0.5, 0.9, 1.2)
    target = final[0].argmax()
    alone = [-float(z[0, :-1].log_softmax(dim=0)[target]) for z in tensors]
    alone.append(-np.log(final[0, target]))
    for cost_weight, low, high in [
        (0.0, min(alone), max(alone)),
        (100.0, min(alone) + 20, max(alone) + 120),
    ]:
        made = net([(3,)] * 3, 4, cost_weight=cost_weight, costs=costs)
        loss = made.loss(
            tensors,
            torch.zeros(1, dtype=torch.long),
            torch.from_numpy(final),
            torch.ones(1),
        )
        assert low - 1e-9 <= float(loss) <= high + 1e-9


def test_gradient_reaches_answers_and_confidences_of_all_branches():
    outputs, final, weight = random_outputs(np.random.default_rng(1), 3)
    made = net([(3,)] * 3, 4, costs=(0.2, 0.5, 0.9, 1.2))
    rest = torch.from_numpy(final), torch.from_numpy(weight)
    labels = torch.zeros(3, dtype=torch.long)

    def loss(*branches):
        return made.loss(list(branches), labels, *rest)

    tensors = [torch.from_numpy(output).requires_grad_() for output in outputs]
    assert torch.autograd.gradcheck(loss, tensors)
    for gradient in torch.autograd.grad(loss(*tensors), tensors):
        assert (gradient != 0).all()


@pytest.mark.parametrize("size", [60.0, 1e4, 1e30])
def test_certainty_gives_no_infinity(size):
    """Logits far beyond what a probability can show, in float32, and final zeros."""
    signs = torch.tensor([[1.0, -1, 1], [-1, 1, 1], [1, -1, -1], [-1, 1, -1]])
    outputs = [(size * signs).requires_grad_(), (-size * signs).requires_grad_()]
    final = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    made = net([(3,), (3,)], 2, costs=(0.2, 0.5, 1.1))
    loss = made.loss(outputs, torch.zeros(4, dtype=torch.long), final, torch.ones(4))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(output.grad).all() for output in outputs)


def test_true_labels_train_nothing():
    train, _ = features()
    wrong = Y.copy()
    wrong[1:60:6] = (wrong[1:60:6] + 1) % 3  # training rows
    nets = [
        make(input="features", cv=FIXED, max_iter=4).fit(train, y).net_.state_dict()
        for y in (Y, wrong)
    ]
    for name, value in nets[0].items():
        torch.testing.assert_close(nets[1][name], value, rtol=0, atol=0)


# -- heads -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 5, 7), (4, 4, 4), (9, 3), (6,)], ids=str)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_head_is_the_slow_one(shape, train):
    generator = torch.Generator().manual_seed(0)
    head = PTEENetHead(shape, 3, widths=(6, 5), generator=generator).double()
    head.train(train)
    x = torch.randn(4, *shape, dtype=torch.float64)
    state = {name: value.numpy().copy() for name, value in head.state_dict().items()}
    u, is_map = x.numpy(), len(shape) == 3
    if not is_map:
        u = u.reshape(4, -1, shape[-1]).transpose(0, 2, 1)[..., None]
    u = slow_trunk(u, state, is_map, train).mean((2, 3))
    expected = [
        u @ state[f"{part}.weight"].T + state[f"{part}.bias"]
        for part in ("classifier", "confidence")
    ]
    np.testing.assert_allclose(
        head(x).detach(), np.concatenate(expected, axis=1), rtol=1e-9, atol=1e-9
    )


# -- answers and exits -----------------------------------------------------------------


def test_a_branch_reads_softmax_and_sigmoid():
    made = net([(3,)], 2)
    outputs = torch.tensor([[math.log(3), 0.0, 0.0], [0.0, 0.0, -math.log(3)]])
    proba, gate = made.read(0, outputs)
    np.testing.assert_allclose(proba, [[0.75, 0.25], [0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(gate, [0.5, 0.25], rtol=1e-6)
    assert proba.dtype == gate.dtype == np.float64


def test_the_confidence_decides_and_not_the_probability():
    train, test = features()
    fitted = make(input="features", cv=FIXED).fit(train, Y)
    assert isinstance(fitted.calibrator_, OwnGate)
    depth = fitted.exit_depth(test)
    outputs = fitted.net_(
        [
            torch.from_numpy(np.array(fitted.layout_.block(test, k)))
            .double()
            .reshape(-1, *fitted.layout_.shapes[k])
            for k in range(2)
        ]
    )
    open_ = np.stack([output[:, -1].detach().numpy() >= 0 for output in outputs])
    expected = np.where(open_[0], 0, np.where(open_[1], 1, 2))
    np.testing.assert_array_equal(depth, expected)
    assert (fitted.set_operating_point(0.0).exit_depth(test) == 0).all()
    assert (fitted.set_operating_point(1.1).exit_depth(test) == 2).all()


def test_another_rule_may_read_the_answers():
    train, test = features()
    fitted = make(input="features", cv=FIXED, calibrator=SharedThreshold(0.0))
    assert (fitted.fit(train, Y).exit_depth(test) == 0).all()


# -- cost ------------------------------------------------------------------------------


def test_macs_by_hand():
    fitted = make(backbone=tiny_backbone(), max_iter=1).fit(X, Y)
    # Taps (4, 4, 4) and (8, 4, 4): 3x3 convolutions to 6 and to 5 channels at 16
    # places, then 3 classes and a confidence.
    heads = [16 * 9 * (n * 6 + 6 * 5) + 5 * 4 for n in (4, 8)]
    stem, block, rest = STAGE_MACS
    expected = [
        stem + heads[0],
        stem + block + sum(heads),
        stem + block + rest + sum(heads),
    ]
    np.testing.assert_array_equal(fitted.depth_costs_, expected)
    np.testing.assert_allclose(
        fitted.relative_costs_, np.array(expected) / sum(STAGE_MACS)
    )
    assert fitted.net_.costs == tuple(fitted.relative_costs_)


def test_larger_maps_are_halved_and_tokens_have_linear_layers():
    # 3x3 on the 3 x 3 places that a stride of 2 leaves of 5 x 6 at most; 4 tokens.
    made = net([(2, 5, 6), (4, 7), (3,)], 3)
    assert made.macs() == [
        9 * 9 * (2 * 6 + 6 * 5) + 5 * 4,
        4 * (7 * 6 + 6 * 5) + 5 * 4,
        3 * 6 + 6 * 5 + 5 * 4,
    ]


def test_costs_where_macs_are_unknown():
    train, _ = features()
    frame = pd.DataFrame(
        np.asarray(train), columns=tiny_backbone().fit(X).get_feature_names_out()
    )
    by_name = make(input="features", max_iter=1).fit(frame, Y)
    np.testing.assert_allclose(by_name.relative_costs_, [1 / 3, 2 / 3, 1])
    plain, y = make_classification(60, random_state=0)
    last = QuadraticDiscriminantAnalysis(reg_param=0.1)
    uncounted = make(final_estimator=last, max_iter=1).fit(plain, y)
    np.testing.assert_allclose(uncounted.relative_costs_, [1 / 2, 1])


def test_costs_of_plain_data_are_those_of_the_final_estimator():
    plain, y = make_classification(60, random_state=0)
    fitted = make(max_iter=1).fit(plain, y)
    head = 20 * 6 + 6 * 5 + 5 * 3  # linear layers on 20 columns; 2 classes, confidence
    np.testing.assert_allclose(fitted.relative_costs_, [head / 20, 1 + head / 20])


def test_a_larger_cost_weight_gives_a_cheaper_cascade():
    backbone = tiny_backbone().fit(X)
    train = backbone.transform(X)
    test = backbone.transform(images(120, seed=5)[0])
    costs = [
        make(input="features", cv=FIXED, cost_weight=weight, learning_rate=0.05)
        .fit(train, Y)
        .cost(test)
        for weight in (0.0, 0.3, 3.0, 100.0)
    ]
    means = [cost.mean() for cost in costs]
    assert means == sorted(means, reverse=True)
    assert means[0] > 1.02 * means[-1]
    assert (costs[-1] == costs[-1].min()).all()  # nothing but the first branch pays


def test_without_a_cost_weight_the_costs_do_not_matter():
    outputs, final, weight = random_outputs(np.random.default_rng(2), 5)
    tensors = [torch.from_numpy(output) for output in outputs]
    rest = torch.from_numpy(final), torch.from_numpy(weight)
    losses = [
        float(
            net([(3,)] * 3, 4, 0.0, costs).loss(
                tensors, torch.zeros(5, dtype=torch.long), *rest
            )
        )
        for costs in ((0.1, 0.2, 0.3, 1), (5, 6, 7, 8))
    ]
    assert losses[0] == losses[1]


# -- errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {"cost_weight": -0.1},
        {"threshold": "high"},
        {"widths": 6},
        {"solver": "sgd"},
        {"max_iter": 0},
    ],
    ids=lambda params: next(iter(params)),
)
def test_settings_out_of_range(params):
    (name,) = params
    with pytest.raises(ValueError, match=f"'{name}' parameter of PTEENetClassifier"):
        make(**params).fit(TEST, Y)


def test_widths_are_positive():
    train, _ = features()
    for widths in ((), (0,), (6, -1)):
        with pytest.raises(ValueError, match="widths"):
            make(input="features", widths=widths).fit(train, Y)
