"""ZTW: heads that see the logits before, ensembles fitted to them, one threshold."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from joblib import Memory
from scipy.optimize import minimize

from sk_calex.baselines import ZTWClassifier
from sk_calex.baselines._ztw import ZTW, ZTWHead
from sk_calex.branches._heads import fuse_for_inference
from sk_calex.policies import SharedThreshold
from tests._cascade_models import STAGE_MACS, tiny_backbone
from tests._reference.heads import slow_conv3x3, slow_pointwise, slow_sdn_pool
from tests.baselines._every_cascade import CHECKS, FIXED, HELD, TEST, X, Y, features

SHAPES = [(3, 5, 7), (4, 4, 4), (9, 3), (6,)]


def make(**params):
    params = {"width": 6, "random_state": 0, "device": "cpu", "max_iter": 60} | params
    return ZTWClassifier(**params)


def net(shapes, n_classes=3, ensemble=True, width=5):
    generator = torch.Generator().manual_seed(0)
    return ZTW(shapes, n_classes, width, ensemble, generator)


def taps(shapes, n=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, *s, generator=generator, dtype=dtype) for s in shapes]


def log_softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return np.log(e / e.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("ensemble", [True, False], ids=["ensemble", "alone"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_as_every_cascade(check, ensemble):
    check(lambda **params: make(ensemble=ensemble, **params), 0.6)


# -- heads -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n_before", [0, 3])
def test_head_is_the_slow_one(shape, n_before):
    head = ZTWHead(
        shape, 3, width=5, n_before=n_before, generator=torch.Generator().manual_seed(0)
    ).double()
    with torch.no_grad():
        head.conv.bias.uniform_(-0.5, 0.5)
        head.alpha.fill_(0.3)
    (x,) = taps([shape])
    before = torch.randn(6, n_before, dtype=torch.float64) if n_before else None
    state = {name: value.numpy() for name, value in head.state_dict().items()}
    is_map, u = len(shape) == 3, x.numpy()
    if is_map:
        u = slow_conv3x3(u, state["conv.weight"], 2 if min(shape[1:]) > 4 else 1)
    else:
        u = u.reshape(6, -1, shape[-1]).transpose(0, 2, 1)[..., None]
        u = slow_pointwise(u, state["conv.weight"])
    u = np.maximum(u + state["conv.bias"][:, None, None], 0)
    h = slow_sdn_pool(u, 0.3, is_map)
    if n_before:
        h = np.concatenate([h, before], axis=1)
    expected = h @ state["classifier.weight"].T + state["classifier.bias"]
    np.testing.assert_allclose(head(x, before).detach(), expected, rtol=1e-9, atol=1e-9)


def test_folded_heads_say_the_same():
    made = net(SHAPES).eval()
    given = taps(SHAPES, dtype=torch.float32)
    for plain, folded in zip(made(given), fuse_for_inference(made)(given), strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-4, atol=1e-5)


def test_macs_by_hand():
    fitted = make(backbone=tiny_backbone(), max_iter=1).fit(X, Y)
    # Taps (4, 4, 4) and (8, 4, 4): a 3x3 convolution to 6 channels at 16 places, which
    # stay 16; the second linear layer also sees the 3 logits of the first.
    heads = [16 * 9 * 4 * 6 + 16 * 6 * 3, 16 * 9 * 8 * 6 + (16 * 6 + 3) * 3]
    stem, block, rest = STAGE_MACS
    np.testing.assert_array_equal(
        fitted.depth_costs_,
        [stem + heads[0], stem + block + sum(heads), stem + block + rest + sum(heads)],
    )


# -- first stage: the heads ------------------------------------------------------------


def test_outputs_are_the_logits_so_far():
    made = net(SHAPES).double()
    outputs = made(taps(SHAPES))
    assert [output.shape for output in outputs] == [(6, 3), (6, 6), (6, 9), (6, 12)]
    for short, long in pairwise(outputs):
        torch.testing.assert_close(long[:, : short.shape[1]], short)


def test_loss_is_the_slow_loop():
    made = net(SHAPES).double()
    outputs = made(taps(SHAPES))
    labels, weight = (
        torch.tensor([0, 1, 2, 2, 1, 0]),
        torch.linspace(0.5, 2, 6).double(),
    )
    loss = made.loss(outputs, labels, torch.zeros(6, 3), weight)
    expected = 0.0
    for output in outputs:
        logits = output[:, -3:].detach().numpy()
        for i in range(6):
            expected -= float(weight[i]) * log_softmax(logits[i])[labels[i]] / 6
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-12)


def test_no_gradient_goes_back_to_an_earlier_head():
    """The loss of a branch trains its own head alone."""
    made = net([(4, 4, 4)] * 3).double()
    labels, weight = torch.zeros(6, dtype=torch.long), torch.ones(6).double()
    for branch in range(3):
        outputs = made(taps([(4, 4, 4)] * 3))
        made.zero_grad()
        made.loss([outputs[branch]], labels, torch.zeros(6, 3), weight).backward()
        for k, head in enumerate(made.heads):
            touched = [p.grad is not None for p in head.parameters()]
            assert all(touched) if k == branch else not any(touched)


def test_later_heads_leave_the_first_as_it_is():
    """Full-batch training takes one head after the other."""
    both, alone = (
        make(backbone=tiny_backbone(taps=taps), cv=FIXED).fit(X, Y)
        for taps in (["stem", "block1"], ["stem"])
    )
    heads = both.net_.heads[0].state_dict(), alone.net_.heads[0].state_dict()
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=1e-6, atol=1e-9)


def test_a_head_looks_at_the_logits_before():
    made = net([(4, 4, 4)] * 2).double().eval()
    (tap,) = taps([(4, 4, 4)])
    first, memory = made.exit(0, tap, None)
    second, _ = made.exit(1, tap, memory)
    other, _ = made.exit(1, tap, memory + torch.tensor([1.0, 0, 0]))
    expected = second[:, 3:] + made.heads[1].classifier.weight[:, -3]
    torch.testing.assert_close(other[:, 3:], expected)
    assert memory is first


# -- second stage: the ensembles -------------------------------------------------------


def test_ensemble_by_hand():
    """Two branches, two classes: e^w = (1, 2), so exponents 1/2 and 1."""
    made = net([(4,), (4,)], n_classes=2)
    made.exponents[1] = torch.tensor([0.0, math.log(2)])
    made.shifts[1] = torch.tensor([0.0, math.log(2)])
    # p_1 = (3/4, 1/4), p_2 = (1/2, 1/2).
    outputs = torch.tensor([[math.log(3), 0.0, 0.0, 0.0]])
    # sqrt(3/4) * 1/2 = sqrt(3)/4 against sqrt(1/4) * 1/2 * 2 = 2/4.
    expected = np.array([math.sqrt(3), 2]) / (math.sqrt(3) + 2)
    proba, gate = made.read(1, outputs)
    np.testing.assert_allclose(proba, [expected], rtol=1e-6)
    assert gate is None
    assert proba.dtype == np.float64


def test_ensemble_of_one_branch_by_hand():
    made = net([(4,), (4,)], n_classes=2)
    made.exponents[0, 0], made.shifts[0, 0] = math.log(2), math.log(5)
    # (3/4)^2 * 5 against (1/4)^2.
    proba, _ = made.read(0, torch.tensor([[math.log(3), 0.0]]))
    np.testing.assert_allclose(proba, [[45 / 46, 1 / 46]], rtol=1e-6)


def test_before_anything_is_fitted_the_ensemble_is_the_geometric_mean():
    made = net([(4,), (4,)], n_classes=2)
    proba, _ = made.read(1, torch.tensor([[math.log(3), 0.0, math.log(9), 0.0]]))
    a, b = math.sqrt(3 / 4 * 9 / 10), math.sqrt(1 / 4 * 1 / 10)
    np.testing.assert_allclose(proba, [[a / (a + b), b / (a + b)]], rtol=1e-6)


def slow_ensemble(log_proba, labels, weight):
    """The same objective by another optimiser: weights, shift, objective."""
    n, k, n_classes = log_proba.shape

    def answers(theta):
        mean = sum(math.exp(theta[j]) * log_proba[:, j] for j in range(k)) / k
        return log_softmax(mean + theta[k:])

    def objective(theta):
        likelihood = answers(theta)[np.arange(n), labels]
        return -(weight * likelihood).mean() + 1e-4 / 2 * (theta**2).sum()

    found = minimize(objective, np.zeros(k + n_classes), tol=1e-12)
    return np.exp(answers(found.x)), objective


@pytest.mark.parametrize("solver", ["lbfgs", "adam"])
def test_ensembles_are_those_of_another_optimiser(solver):
    train, _ = features()
    weight = np.random.default_rng(0).uniform(0.5, 2, 180)
    fitted = make(input="features", cv=FIXED, solver=solver)
    fitted.fit(train, Y, sample_weight=weight)
    rows, made = np.flatnonzero(HELD != 0), fitted.net_
    dtype = torch.float64 if solver == "lbfgs" else torch.float32
    assert made.exponents.dtype == made.shifts.dtype == dtype
    assert (made.exponents.triu(1) == 0).all()
    assert (made.exponents.tril() != 0).sum() == 3
    inputs = [
        torch.from_numpy(np.array(fitted.layout_.block(train, k))[rows])
        .reshape(-1, *fitted.layout_.shapes[k])
        .to(dtype)
        for k in range(2)
    ]
    outputs = made(inputs)[-1].detach()
    log_proba = log_softmax(outputs.double().numpy().reshape(-1, 2, 3))
    scaled = weight[rows] / weight[rows].mean()
    for k in range(2):
        slow, objective = slow_ensemble(log_proba[:, : k + 1], Y[rows], scaled)
        proba, _ = made.read(k, outputs[:, : 3 * (k + 1)])
        np.testing.assert_allclose(proba, slow, atol=2e-3)
        theta = torch.cat([made.exponents[k, : k + 1], made.shifts[k]]).double()
        assert objective(theta.numpy()) <= objective(np.zeros(k + 4)) + 1e-9


def test_ensembles_stay_finite_where_every_answer_is_right():
    train, _ = features()
    easy = np.flatnonzero(tiny_backbone().fit(X).predict(X) == Y)[:60]
    fitted = make(input="features", cv=0.5, max_iter=200, weight_decay=0.0)
    fitted.fit(train[easy], Y[easy])
    assert torch.isfinite(fitted.net_.exponents).all()
    assert fitted.net_.exponents.abs().max() < 10
    assert np.isfinite(fitted.stage_probabilities(train)).all()


def test_without_ensembles_a_branch_answers_by_its_head():
    train, test = features()
    alone = make(input="features", cv=FIXED, ensemble=False).fit(train, Y)
    assert not alone.net_.exponents.any()
    together = make(input="features", cv=FIXED).fit(train, Y)
    for name, value in together.net_.heads.state_dict().items():
        torch.testing.assert_close(alone.net_.heads.state_dict()[name], value)
    outputs = alone.net_(
        [
            torch.from_numpy(np.array(alone.layout_.block(test, k)))
            .double()
            .reshape(-1, *alone.layout_.shapes[k])
            for k in range(2)
        ]
    )
    for k, output in enumerate(outputs):
        expected = np.exp(log_softmax(output[:, -3:].detach().numpy()))
        said = alone.stage_probabilities(test)[k]
        np.testing.assert_allclose(said, expected, rtol=1e-6)
        assert np.abs(together.stage_probabilities(test)[k] - expected).max() > 0.01


# joblib warns of slow disks, which a busy machine has.
@pytest.mark.filterwarnings("ignore:Persisting input arguments:UserWarning")
def test_ensembles_come_back_from_a_cache(tmp_path):
    train, test = features()
    cache = Memory(tmp_path, verbose=0)
    first, again = (
        make(input="features", cv=FIXED, memory=cache, threshold=t).fit(train, Y)
        for t in (0.9, 0.5)
    )
    np.testing.assert_array_equal(
        first.stage_probabilities(test), again.stage_probabilities(test)
    )


# -- exits and errors ------------------------------------------------------------------


def test_one_threshold_for_all():
    train, test = features()
    fitted = make(input="features", cv=FIXED).fit(train, Y)
    assert isinstance(fitted.calibrator_, SharedThreshold)
    proba = fitted.stage_probabilities(test).max(axis=2)
    expected = np.where(proba[0] >= 0.9, 0, np.where(proba[1] >= 0.9, 1, 2))
    np.testing.assert_array_equal(fitted.exit_depth(test), expected)
    assert (fitted.set_operating_point(0.0).exit_depth(test) == 0).all()
    assert (fitted.set_operating_point(1.1).exit_depth(test) == 2).all()


@pytest.mark.parametrize(
    "params",
    [{"width": 0}, {"ensemble": "both"}, {"threshold": "high"}, {"max_iter": 0}],
    ids=lambda params: next(iter(params)),
)
def test_settings_out_of_range(params):
    (name,) = params
    with pytest.raises(ValueError, match=f"'{name}' parameter of ZTWClassifier"):
        make(**params).fit(TEST, Y)
