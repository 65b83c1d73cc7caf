"""A network of branches: what it says, what it costs, and how it is trained."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sk_calex.backbone._layout import TapLayout
from sk_calex.baselines import _exit_net as exitnet
from sk_calex.baselines._exit_net import ExitNet, ExitRows, fit_exit_net
from sk_calex.branches._heads import build_head

CPU = torch.device("cpu")
LAYOUT = TapLayout(("a", "b"), ((2, 2, 2), (5,)), n_outputs=3)


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class SoftNet(ExitNet):
    """Heads on their own; cross-entropy on the last stage's probabilities."""

    def __init__(self, head="gap", seed=0):
        super().__init__(LAYOUT.shapes, 3)
        self.heads = nn.ModuleList(
            build_head(head, shape, 3, generator=seeded(seed)) for shape in self.shapes
        )
        self.finished = None

    def loss(self, outputs, labels, final, weight):
        losses = [F.cross_entropy(z, final, reduction="none") for z in outputs]
        return (weight * sum(losses)).mean()

    def finish(self, rows):
        self.finished = rows, self.training


class LabelNet(SoftNet):
    """The same on the labels."""

    def loss(self, outputs, labels, final, weight):
        losses = [F.cross_entropy(z, labels, reduction="none") for z in outputs]
        return (weight * sum(losses)).mean()


class Chain(ExitNet):
    """Each branch adds to the logits before, and has an opinion on its own answer."""

    def __init__(self):
        super().__init__(LAYOUT.shapes, 3)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(width, 4)) for width in (8, 5)
        )

    def exit(self, branch, tap, memory):
        out = self.heads[branch](tap)
        logits = out[:, :3] if memory is None else out[:, :3] + memory
        return torch.cat([logits, out[:, 3:]], dim=1), logits

    def read(self, branch, outputs):
        z = outputs.double().cpu().numpy()
        return softmax(z[:, :3]), 1 / (1 + np.exp(-z[:, 3]))


def problem(n=60, seed=0, dtype=np.float32):
    """Separable up to noise; weights are 1 to 3."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    centres = 2 * rng.standard_normal((3, LAYOUT.width))
    X = (rng.standard_normal((n, LAYOUT.width)) + centres[y]).astype(dtype)
    final = softmax(rng.standard_normal((n, 3)))
    weight = rng.integers(1, 4, size=n).astype(float)
    return ExitRows(X, LAYOUT, np.arange(n), y, final, weight)


def take(rows, index):
    names = ("rows", "labels", "final", "weight")
    return replace(rows, **{name: getattr(rows, name)[index] for name in names})


def train(net, rows, **settings):
    settings = {
        "solver": "lbfgs",
        "max_iter": 12,
        "batch_size": 16,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "generator": seeded(2),
        "device": CPU,
    } | settings
    return fit_exit_net(net, rows, **settings)


def said(net, X):
    """Probabilities of both branches, from the columns of the taps."""
    first = net.answer(0, torch.from_numpy(X[:, :8]), None)
    second = net.answer(1, torch.from_numpy(X[:, 8:13]), first)
    return np.stack([first.proba, second.proba])


# -- answers ---------------------------------------------------------------------------


def test_answers_by_hand():
    net, X = Chain().eval(), problem(7).features
    (w0, b0), (w1, b1) = (
        (head[1].weight.detach().numpy(), head[1].bias.detach().numpy())
        for head in net.heads
    )
    out0, out1 = X[:, :8] @ w0.T + b0, X[:, 8:13] @ w1.T + b1
    first = net.answer(0, torch.from_numpy(X[:, :8]).view(7, 2, 2, 2), None)
    second = net.answer(1, torch.from_numpy(X[:, 8:13]), first)
    for answer, logits, opinion in (
        (first, out0[:, :3], out0[:, 3]),
        (second, out0[:, :3] + out1[:, :3], out1[:, 3]),
    ):
        np.testing.assert_allclose(answer.proba, softmax(logits), rtol=1e-5)
        np.testing.assert_allclose(answer.gate, 1 / (1 + np.exp(-opinion)), rtol=1e-5)
        np.testing.assert_allclose(answer.memory.numpy(), logits, rtol=1e-4, atol=1e-5)
    same = first.predicted == second.predicted
    np.testing.assert_array_equal(second.streak, 1 + same)


def test_samples_may_leave_in_between():
    """What the second branch builds on follows those who stay."""
    net, X = Chain().eval(), problem(30).features
    whole = said(net, X)[1]
    stay = np.array([3, 29, 4])
    first = net.answer(0, torch.from_numpy(X[:, :8]), None).keep(stay)
    second = net.answer(1, torch.from_numpy(X[stay, 8:13]), first)
    np.testing.assert_allclose(second.proba, whole[stay], rtol=1e-6)


def test_branches_on_their_own_hand_nothing_on():
    net, X = SoftNet().eval(), problem(9).features
    answer = net.answer(0, torch.from_numpy(X[:, :8]), None)
    assert answer.memory is None
    assert answer.gate is None
    with torch.no_grad():
        logits = net.heads[0](torch.from_numpy(X[:, :8]).view(9, 2, 2, 2))
    np.testing.assert_allclose(answer.proba, softmax(logits.double().numpy()))


def test_forward_is_every_answer():
    net, rows = Chain().eval(), problem(9)
    taps, *_ = rows.tensors(torch.arange(9), CPU, torch.float32)
    with torch.no_grad():
        outputs = net(taps)
    proba = [softmax(z[:, :3].double().numpy()) for z in outputs]
    np.testing.assert_allclose(said(net, rows.features), proba, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_features_of_any_precision(dtype):
    net, X = Chain().eval(), problem(9, dtype=dtype).features
    np.testing.assert_allclose(said(net, X), said(net, X.astype(np.float32)), rtol=1e-6)
    double = copy.deepcopy(net).double()
    np.testing.assert_allclose(said(double, X), said(net, X), rtol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_no_answer_comes_from_an_output_that_is_not_finite(bad):
    net, X = Chain().eval(), problem(9).features
    X[4, 10] = bad
    with pytest.raises(ValueError, match=r"outputs of branch 1 contains NaN or inf"):
        said(net, X)


def test_answers_take_no_gradients():
    first = Chain().eval().answer(0, torch.zeros(2, 8), None)
    assert not first.memory.requires_grad


# -- cost ------------------------------------------------------------------------------


def test_macs_by_hand():
    assert Chain().macs() == [8 * 4, 5 * 4]


@pytest.mark.parametrize("training", [True, False])
def test_counting_changes_nothing(training):
    net = SoftNet("conv").train(training)
    net.heads[0].eval()
    before = copy.deepcopy(net.state_dict())
    assert all(count > 0 for count in net.macs())
    assert [net.training, net.heads[0].training, net.heads[1].training] == [
        training,
        False,
        training,
    ]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- rows ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["array", "map", "float16", "fortran"])
def test_rows_are_gathered_where_they_lie(form, tmp_path):
    """Some rows of a larger matrix, in any order, as the taps that the layout names."""
    wide = np.random.default_rng(0).standard_normal((50, LAYOUT.width))
    wide = wide.astype(np.float16 if form == "float16" else np.float32)
    if form == "map":
        np.save(tmp_path / "X.npy", wide)
        given = np.load(tmp_path / "X.npy", mmap_mode="r")
    else:
        given = np.asfortranarray(wide) if form == "fortran" else wide
    where = np.random.default_rng(1).permutation(50)[:20]
    y, weight = np.arange(20) % 3, np.arange(20) / 7
    final = softmax(np.random.default_rng(2).standard_normal((20, 3)))
    rows = ExitRows(given, LAYOUT, where, y.astype(np.int32), final, weight)
    assert len(rows) == 20
    index = [19, 0, 7, 7]
    taps, labels, soft, share = rows.tensors(torch.tensor(index), CPU, torch.float64)
    picked = wide[where[index]]
    np.testing.assert_array_equal(taps[0], picked[:, :8].reshape(4, 2, 2, 2))
    np.testing.assert_array_equal(taps[1], picked[:, 8:13])
    np.testing.assert_array_equal(labels, y[index])
    np.testing.assert_array_equal(soft, final[index])
    np.testing.assert_array_equal(share, weight[index])
    assert labels.dtype == torch.int64
    assert {t.dtype for t in (*taps, soft, share)} == {torch.float64}


# -- training --------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["gap", "conv"])
def test_lbfgs_weights_are_repetition(head):
    """In the loss and in the statistics of the normalisation."""
    rows = problem(40)
    index = np.repeat(np.arange(40), rows.weight.astype(int))
    repeated = replace(take(rows, index), weight=np.ones(len(index)))
    nets = SoftNet(head), SoftNet(head)
    train(nets[0], rows)
    train(nets[1], repeated)
    X = rows.features
    np.testing.assert_allclose(said(nets[0], X), said(nets[1], X), rtol=1e-6)
    for name, value in nets[0].state_dict().items():
        if "running" in name:
            torch.testing.assert_close(
                value, nets[1].state_dict()[name], rtol=1e-6, atol=0
            )
    assert all(norm.row_weights is None for norm in nets[0]._norms())
    assert nets[0]._norms()


def test_lbfgs_ignores_order_and_seed():
    rows = problem(40)
    nets = SoftNet(), SoftNet()
    train(nets[0], rows)
    order = np.random.default_rng(0).permutation(40)
    train(nets[1], take(rows, order), generator=seeded(7))
    X = rows.features
    np.testing.assert_allclose(said(nets[0], X), said(nets[1], X), rtol=1e-6)


def test_lbfgs_finds_the_minimum():
    """The gradient of the mean loss with its penalty vanishes."""
    rows, net = problem(40), SoftNet()
    history = train(net, rows, max_iter=300, weight_decay=0.1)
    taps, labels, final, _ = rows.tensors(torch.arange(40), CPU, torch.float64)
    share = torch.from_numpy(rows.weight / rows.weight.mean())
    for norm in net._norms():
        norm.row_weights = torch.from_numpy(rows.weight)
    net.train()
    penalty = sum(p.square().sum() for p in net.parameters())
    objective = net.loss(net(taps), labels, final, share) + 0.05 * penalty
    gradients = torch.autograd.grad(objective, list(net.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    assert history.loss[-1] < history.loss[0]
    assert 0 < history.n_iter <= 300


class Boosted(ExitNet):
    """Each branch adds to logits before it that it may not change."""

    separable = True

    def __init__(self):
        super().__init__(LAYOUT.shapes, 3)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Flatten(), nn.Linear(width, 3)) for width in (8, 5)
        )

    def exit(self, branch, tap, memory):
        out = self.heads[branch](tap)
        out = out if memory is None else out + memory.detach()
        return out, out

    def loss(self, outputs, labels, final, weight):
        losses = [F.cross_entropy(z, labels, reduction="none") for z in outputs]
        return (weight * sum(losses)).mean()


def test_separable_branches_are_trained_in_order():
    """Each to the minimum of its own loss; the sum's gradient is of no function."""
    rows, net = problem(40), Boosted()
    history = train(net, rows, max_iter=300, weight_decay=0.1)
    taps, labels, final, _ = rows.tensors(torch.arange(40), CPU, torch.float64)
    share = torch.from_numpy(rows.weight / rows.weight.mean())
    for head, output in zip(net.heads, net(taps), strict=True):
        penalty = sum(p.square().sum() for p in head.parameters())
        objective = net.loss([output], labels, final, share) + 0.05 * penalty
        for gradient in torch.autograd.grad(objective, list(head.parameters())):
            assert float(gradient.abs().max()) < 2e-5
    assert 0 < history.n_iter <= 300
    # The course of the sum so far, over both runs.
    whole = net.loss(net(taps), labels, final, share).item()
    assert history.loss[-1] == pytest.approx(whole)
    alone = net.loss(net(taps)[:1], labels, final, share).item()
    assert np.abs(np.array(history.loss) / alone - 1).min() < 1e-6
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_what_is_learned_is_what_the_loss_says(solver):
    """The last stage's answers against the labels; weights decide between them."""
    rows = problem(90)
    wrong = (rows.labels + 1) % 3
    rows = replace(rows, final=np.eye(3)[wrong], weight=np.ones(90))
    for kind, taught in ((LabelNet, rows.labels), (SoftNet, wrong)):
        net = kind()
        train(net, rows, solver=solver, max_iter=20, learning_rate=0.05)
        for proba in said(net, rows.features):
            assert (proba.argmax(axis=1) == taught).mean() > 0.9
        assert not net.training


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_the_heavier_label_wins(solver):
    X = np.random.default_rng(0).standard_normal((40, LAYOUT.width)).astype(np.float32)
    X, y = np.concatenate([X, X]), np.repeat([0, 1], 40)
    for favoured in (0, 1):
        weight = np.where(y == favoured, 1.9, 0.1)
        rows = ExitRows(X, LAYOUT, np.arange(80), y, np.eye(3)[y], weight)
        net = LabelNet()
        train(net, rows, solver=solver, learning_rate=0.05)
        assert (said(net, X).argmax(axis=2) == favoured).all()


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_the_scale_of_the_weights_does_not_matter(solver):
    rows = problem(40)
    nets = SoftNet(), SoftNet()
    train(nets[0], rows, solver=solver)
    train(nets[1], replace(rows, weight=rows.weight * 1000), solver=solver)
    X = rows.features
    # L-BFGS: but for n / (n - 1) in the running variance, as of repeated rows.
    tolerance = 1e-6 if solver == "adam" else 0.02
    np.testing.assert_allclose(said(nets[0], X), said(nets[1], X), rtol=tolerance)


def test_adam_follows_its_seed_and_leaves_the_global_one_alone():
    rows = problem()
    nets = SoftNet(), SoftNet(), SoftNet()
    before = torch.get_rng_state()
    train(nets[0], rows, solver="adam", generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(123)
    train(nets[1], rows, solver="adam", generator=seeded(5))
    train(nets[2], rows, solver="adam", generator=seeded(6))
    X = rows.features
    np.testing.assert_array_equal(said(nets[0], X), said(nets[1], X))
    assert np.abs(said(nets[0], X) - said(nets[2], X)).max() > 1e-4


@pytest.mark.parametrize(
    ("limit", "dtype"), [(60 * 13, torch.float64), (60 * 13 - 1, torch.float32)]
)
def test_auto_takes_all_rows_at_once_where_the_taps_are_small(
    monkeypatch, limit, dtype
):
    monkeypatch.setattr(exitnet, "SMALL_SIZE", limit)
    net = SoftNet()
    train(net, problem(60), solver="auto", max_iter=1)
    assert next(net.parameters()).dtype == dtype


@pytest.mark.parametrize(
    ("n", "batch_size", "epochs"),
    [(40, 1, 12), (60, 2, 14), (48, 16, 134), (10, 16, 400)],
)
def test_epochs_for_at_least_400_updates(monkeypatch, n, batch_size, epochs):
    asked = {}
    monkeypatch.setattr(
        exitnet, "adam_loop", lambda *args, **kwargs: asked.update(kwargs)
    )
    train(SoftNet(), problem(n), solver="adam", max_iter=None, batch_size=batch_size)
    assert asked["epochs"] == epochs


def test_iterations_by_default(monkeypatch):
    asked = {}
    monkeypatch.setattr(
        exitnet, "lbfgs_loop", lambda *_, **kwargs: asked.update(kwargs)
    )
    train(SoftNet(), problem(), max_iter=None)
    assert asked["max_iter"] == 30


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_what_builds_on_trained_heads_is_fitted_at_the_end(solver):
    rows, net = problem(40), SoftNet()
    train(net, rows, solver=solver, max_iter=2)
    given, training = net.finished
    assert not training
    np.testing.assert_array_equal(given.rows, rows.rows)
    np.testing.assert_allclose(given.weight, rows.weight / rows.weight.mean())


def test_progress_is_shown_on_demand(capfd):
    train(SoftNet(), problem(), solver="adam", max_iter=3)
    assert capfd.readouterr().err == ""
    train(SoftNet(), problem(), solver="adam", max_iter=3, verbose=True)
    assert "3/3" in capfd.readouterr().err


def test_a_network_without_a_loss_is_none():
    net = ExitNet(LAYOUT.shapes, 3)
    with pytest.raises(NotImplementedError):
        net.loss([], torch.zeros(0), torch.zeros(0), torch.zeros(0))
    assert net.finish(problem()) is None
