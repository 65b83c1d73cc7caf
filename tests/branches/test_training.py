"""The loss against plain loops; the solvers by what they promise."""

import copy
import math
import tracemalloc
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone

from sk_calex import BranchClassifier
from sk_calex.branches._heads import build_head
from sk_calex.branches._layers import smooth_gradients
from sk_calex.branches._soft_targets import SoftTargets
from sk_calex.branches._solvers import choose_full_batch, default_max_iter
from sk_calex.branches._training import (
    Batch,
    branch_loss,
    soften,
    soften_rows,
    train_adam,
    train_full_batch,
)

CPU = torch.device("cpu")
SHAPE = (2, 4, 4)
HEADS = {
    "gap": {},
    "sdn": {},
    "conv1d": {"width": 4},
    "conv": {"widths": (4,)},
    "prototype": {"dim": 4},
    "prototype_augmented": {"widths": (4,)},
}


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def problem(n=60, soft=False, seed=0, width=32, n_classes=3):
    """Separable up to noise; weights of which some are 0."""
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    X = rng.standard_normal((n, width)) + 2 * rng.standard_normal((n_classes, width))[y]
    w = rng.integers(4, size=n).astype(float)
    q = softmax(rng.standard_normal((n, n_classes))) if soft else None
    return Batch(X.astype(np.float32), np.arange(n), y, w, q)


def adam(batch, name="conv", head=None, **settings):
    if head is None:
        head = build_head(name, SHAPE, 3, generator=seeded(1), **HEADS[name])
    settings = {
        "temperature": 2.0,
        "alpha": 1.0,
        "epochs": 4,
        "batch_size": 16,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "generator": seeded(2),
    } | settings
    history = train_adam(head, batch, SHAPE, device=CPU, **settings)
    return head, history


def full_batch(solver, batch, name="conv", **settings):
    head = build_head(name, SHAPE, 3, generator=seeded(1), **HEADS[name])
    settings = {
        "temperature": 2.0,
        "alpha": 0.5,
        "solver": solver,
        "max_iter": 12,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
    } | settings
    history = train_full_batch(head, batch, SHAPE, device=CPU, **settings)
    return head, history


lbfgs = partial(full_batch, "lbfgs")


def probabilities(head, X):
    with torch.inference_mode():
        x = torch.from_numpy(np.asarray(X)).to(head.dtype).view(-1, *SHAPE)
        return softmax(head(x).numpy().astype(np.float64))


# -- loss --------------------------------------------------------------------------


def slow_loss(z, y, w, q, temperature, alpha):
    total = 0.0
    for i in range(len(z)):
        hard = -math.log(softmax(z[i])[y[i]])
        if q is None:
            total += w[i] * hard
            continue
        p = softmax(z[i] / temperature)
        divergence = sum(
            q[i, c] * math.log(q[i, c] / p[c]) for c in range(len(p)) if q[i, c] > 0
        )
        total += w[i] * (alpha * temperature**2 * divergence + (1 - alpha) * hard)
    return total / len(z)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("with_soft", [True, False])
def test_branch_loss(temperature, alpha, with_soft):
    rng = np.random.default_rng(0)
    z = 3 * rng.standard_normal((7, 4))
    y = rng.integers(4, size=7)
    w = np.array([0.0, 0.5, 1.0, 2.0, 3.0, 0.25, 1.0])
    q = softmax(rng.standard_normal((7, 4)))
    q[0], q[1] = [0, 1, 0, 0], [0.5, 0, 0.5, 0]
    got = branch_loss(
        torch.from_numpy(z),
        torch.from_numpy(y),
        torch.from_numpy(w),
        torch.from_numpy(q) if with_soft else None,
        temperature=temperature,
        alpha=alpha,
    )
    expected = slow_loss(z, y, w, q if with_soft else None, temperature, alpha)
    assert got.item() == pytest.approx(expected, rel=1e-12)


def test_soft_loss_vanishes_only_where_the_target_is_met():
    z = torch.randn(5, 3, dtype=torch.float64, generator=seeded())
    labels, weight = torch.zeros(5, dtype=torch.int64), torch.ones(5)
    soft = torch.softmax(z / 4, dim=1)
    met = branch_loss(z, labels, weight, soft, temperature=4, alpha=1)
    assert met.item() == pytest.approx(0, abs=1e-12)
    missed = branch_loss(z, labels, weight, soft.flip(0), temperature=4, alpha=1)
    assert missed.item() > 0.01


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 20.0])
def test_soften_is_the_softmax_at_a_temperature(temperature):
    z = 10 * np.random.default_rng(0).standard_normal((50, 5))
    np.testing.assert_allclose(
        soften(softmax(z), temperature), softmax(z / temperature), rtol=1e-9
    )


def test_soften_keeps_zeros_and_ties():
    p = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1e-300, 0.5, 0.5]])
    out = soften(p, 2.0)
    np.testing.assert_array_equal(out[0], p[0])
    np.testing.assert_array_equal(out[1], p[1])
    assert 0 < out[2, 0] < 1e-149
    np.testing.assert_allclose(out.sum(axis=1), 1)


# -- mini-batches --------------------------------------------------------------------


def test_adam_learns():
    batch = problem(120)
    batch = Batch(batch.features, batch.rows, batch.labels, np.ones(120), None)
    head, history = adam(batch, epochs=15)
    assert history.n_iter == len(history.loss) == 15
    assert history.validation_loss == []
    assert history.loss[-1] < history.loss[0] / 2
    right = probabilities(head, batch.features).argmax(axis=1) == batch.labels
    assert right.mean() > 0.9
    assert not head.training


def test_adam_follows_its_seed_and_leaves_the_global_one_alone():
    batch = problem(soft=True)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, _ = adam(batch, generator=seeded(5))
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    torch.manual_seed(123)
    again, _ = adam(batch, generator=seeded(5))
    other, _ = adam(batch, generator=seeded(6))
    X = batch.features
    np.testing.assert_array_equal(probabilities(first, X), probabilities(again, X))
    assert np.abs(probabilities(first, X) - probabilities(other, X)).max() > 1e-4


def test_weights_shift_the_solution():
    """The same rows under both labels: the heavier label wins."""
    X = np.random.default_rng(0).standard_normal((40, 32)).astype(np.float32)
    X, y = np.concatenate([X, X]), np.repeat([0, 1], 40)
    for favoured in (0, 1):
        w = np.where(y == favoured, 1.9, 0.1)
        head, _ = adam(Batch(X, np.arange(80), y, w, None), epochs=10)
        assert (probabilities(head, X).argmax(axis=1) == favoured).all()


def test_zero_weight_and_no_target_pull_nowhere():
    """Labels of rows with weight 0 do not matter to the gradient."""
    batch = problem(16)
    w = np.r_[np.ones(8), np.zeros(8)]
    heads = []
    for flip in (False, True):
        y = batch.labels.copy()
        y[8:] = (y[8:] + flip) % 3
        rows = Batch(batch.features, batch.rows, y, w, None)
        heads.append(adam(rows, batch_size=16, epochs=3)[0])
    X = batch.features
    np.testing.assert_array_equal(
        probabilities(heads[0], X), probabilities(heads[1], X)
    )


def test_alpha_mixes_targets_and_labels():
    """Soft targets that contradict the labels win at alpha 1 and lose at 0."""
    batch = problem(90)
    wrong = np.eye(3)[(batch.labels + 1) % 3] * 0.94 + 0.02
    rows = Batch(batch.features, batch.rows, batch.labels, np.ones(90), wrong)
    for alpha, shift in ((1.0, 1), (0.0, 0)):
        head, _ = adam(rows, alpha=alpha, epochs=25)
        answers = probabilities(head, batch.features).argmax(axis=1)
        assert (answers == (batch.labels + shift) % 3).mean() > 0.9


def test_rows_may_be_a_part_of_a_memory_map(tmp_path):
    """Column slices, row subsets, memory maps and float64 train like a small copy."""
    batch = problem(50, soft=True)
    wide = np.zeros((80, 40), dtype=np.float32)
    where = np.sort(np.random.default_rng(1).permutation(80)[:50])
    wide[where, 4:36] = batch.features
    np.save(tmp_path / "X.npy", wide)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    expected = probabilities(adam(batch)[0], batch.features)
    forms = {
        "slice": (wide[:, 4:36], where),
        "map": (mapped[:, 4:36], where),
        "fortran": (np.asfortranarray(batch.features), batch.rows),
        "float64": (batch.features.astype(np.float64), batch.rows),
    }
    for form, (features, rows) in forms.items():
        same = Batch(features, rows, batch.labels, batch.weight, batch.soft)
        got = probabilities(adam(same)[0], batch.features)
        np.testing.assert_array_equal(got, expected, err_msg=form)
        got = probabilities(lbfgs(same)[0], batch.features)
        exact = probabilities(lbfgs(batch)[0], batch.features)
        np.testing.assert_allclose(got, exact, rtol=1e-9, err_msg=form)


def test_early_stopping_keeps_the_best_epoch():
    """On labels without any pattern the validation loss soon rises."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((60, 32)).astype(np.float32)
    y = rng.integers(3, size=60)
    rows = Batch(X, np.arange(60), y, np.ones(60), None)
    train, validation = rows.take(np.arange(40)), rows.take(np.arange(40, 60))
    head, history = adam(
        train, epochs=60, validation=validation, patience=6, learning_rate=0.03
    )
    assert history.n_iter == len(history.validation_loss) < 60
    best = min(history.validation_loss)
    assert history.n_iter - 1 - history.validation_loss.index(best) == 6
    p = probabilities(head, X[40:])
    kept = -np.log(p[np.arange(20), y[40:]]).mean()
    assert kept == pytest.approx(best, rel=1e-5)
    assert kept < history.validation_loss[-1]


def test_validation_loss_is_weighted():
    batch = problem(40)
    w = np.random.default_rng(0).uniform(size=40)
    validation = Batch(batch.features, batch.rows, batch.labels, w, None)
    head, history = adam(problem(30, seed=1), epochs=1, validation=validation)
    p = probabilities(head, batch.features)
    expected = (-w * np.log(p[np.arange(40), batch.labels])).mean()
    assert history.validation_loss == [pytest.approx(expected, rel=1e-5)]


def test_patience_counts_gains_of_tol():
    batch = problem(40)
    _, history = adam(batch, epochs=30, validation=batch, patience=3, tol=100.0)
    # The first epoch beats infinity, no later one gains 100.
    assert history.n_iter == 4


@pytest.mark.parametrize(("n", "batch_size"), [(1, 16), (5, 16), (17, 16), (16, 5)])
def test_any_number_of_rows_and_epochs(n, batch_size):
    """Also where the schedule has hardly a step."""
    batch = problem(n)
    batch = Batch(batch.features, batch.rows, batch.labels, np.ones(n), None)
    for epochs in (1, 2, 3):
        head, history = adam(batch, batch_size=batch_size, epochs=epochs)
        assert len(history.loss) == epochs
        assert np.isfinite(probabilities(head, batch.features)).all()


def test_a_smaller_last_batch_is_left_out():
    """17 rows in batches of 16: one step an epoch, so the loss is of 16 rows."""
    batch = problem(17)
    weight = np.ones(17)
    batch = Batch(batch.features, batch.rows, batch.labels, weight, None)
    steps = []
    head = build_head("conv", SHAPE, 3, generator=seeded(1), **HEADS["conv"])
    head.register_forward_pre_hook(lambda _, args: steps.append(len(args[0])))
    adam(batch, head=head, batch_size=16, epochs=3)
    assert steps == [16, 16, 16]


def test_non_finite_loss_is_an_error():
    batch = problem(40)
    huge = Batch(batch.features, batch.rows, batch.labels, np.full(40, 1e38), None)
    with pytest.raises(ValueError, match=r"loss became (inf|nan).*learning_rate"):
        adam(huge, alpha=0.0, learning_rate=1.0)


# -- full batch ----------------------------------------------------------------------


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize("solver", ["lbfgs", "adam_full_batch"])
def test_full_batch_weights_are_repetition_and_zero_is_absence(solver, name, soft):
    train = partial(full_batch, solver)
    batch = problem(40, soft=soft)
    weighted = probabilities(train(batch, name)[0], batch.features)
    index = np.repeat(np.arange(40), batch.weight.astype(int))
    repeated = batch.take(index)
    repeated = Batch(
        batch.features[index],
        np.arange(len(index)),
        repeated.labels,
        np.ones(len(index)),
        repeated.soft,
    )
    got = probabilities(train(repeated, name)[0], batch.features)
    np.testing.assert_allclose(got, weighted, rtol=1e-6)
    present = batch.take(np.flatnonzero(batch.weight))
    assert len(present) < len(batch)
    got = probabilities(train(present, name)[0], batch.features)
    np.testing.assert_allclose(got, weighted, rtol=1e-6)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("solver", ["lbfgs", "adam_full_batch"])
def test_full_batch_ignores_the_order_of_rows_and_the_scale_of_weights(solver, name):
    train = partial(full_batch, solver)
    batch = problem(40, soft=True)
    # At least 1 each: a fraction of a row has no variance (see WeightedBatchNorm).
    batch = Batch(
        batch.features, batch.rows, batch.labels, batch.weight + 1, batch.soft
    )
    expected = probabilities(train(batch, name)[0], batch.features)
    shuffled = batch.take(np.random.default_rng(0).permutation(40))
    got = probabilities(train(shuffled, name)[0], batch.features)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_lbfgs_finds_the_minimum_of_a_convex_problem():
    """Of gap on flat features: multinomial logistic regression on scaled columns."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((30, 4)), rng.integers(3, size=30)
    head = build_head("gap", (4,), 3, generator=seeded())
    batch = Batch(X, np.arange(30), y, np.ones(30), None)
    history = train_full_batch(
        head,
        batch,
        (4,),
        solver="lbfgs",
        learning_rate=0.01,
        temperature=1.0,
        alpha=0.0,
        max_iter=200,
        weight_decay=0.1,
        device=CPU,
    )
    head.train()
    loss = branch_loss(
        head(torch.from_numpy(X)),
        torch.from_numpy(y),
        torch.ones(30),
        None,
        temperature=1.0,
        alpha=0.0,
    )
    objective = loss + 0.05 * sum(p.square().sum() for p in head.parameters())
    gradients = torch.autograd.grad(objective, list(head.parameters()))
    assert max(float(g.abs().max()) for g in gradients) < 1e-4
    assert history.loss[0] > history.loss[-1] > 0
    assert 0 < history.n_iter <= 200


@pytest.mark.parametrize("solver", ["lbfgs", "adam_full_batch"])
def test_full_batch_statistics_are_those_of_the_final_parameters(solver):
    """In eval mode the head gives what it gave on the training rows in train mode."""
    batch = problem(64)
    batch = Batch(batch.features, batch.rows, batch.labels, np.ones(64), None)
    head, _ = full_batch(solver, batch, "conv")
    x = torch.from_numpy(batch.features).double().view(-1, *SHAPE)
    with torch.no_grad():
        in_eval = head(x)
        in_training = copy.deepcopy(head).train()(x)
    # Up to the factor n / (n - 1) of the running variance.
    torch.testing.assert_close(in_eval, in_training, rtol=0.01, atol=0.01)
    assert head.dtype == torch.float64
    assert not head.training


def test_weight_decay_shrinks_every_solution():
    batch = problem(60)
    norms = {}
    full = partial(full_batch, "adam_full_batch")
    for decay in (0.0, 1.0):
        for train in (adam, lbfgs, full):
            head, _ = train(batch, weight_decay=decay)
            norms[train, decay] = sum(
                float(p.detach().square().sum()) for p in head.parameters()
            )
    assert norms[adam, 1.0] < norms[adam, 0.0]
    assert norms[lbfgs, 1.0] < norms[lbfgs, 0.0]
    assert norms[full, 1.0] < norms[full, 0.0]


@pytest.mark.parametrize("name", [name for name in HEADS if name not in ("gap", "sdn")])
def test_full_batch_adam_is_the_loop_one_would_write(name):
    """Adam on the penalised mean loss, one cycle; gradients smoothed at kinks."""
    batch = problem(40)
    head, history = full_batch("adam_full_batch", batch, name, max_iter=5)
    plain = build_head(name, SHAPE, 3, generator=seeded(1), **HEADS[name]).double()
    weight = torch.from_numpy(batch.weight)
    plain.set_row_weights(weight)
    x = torch.from_numpy(batch.features).double().view(-1, *SHAPE)
    parameters = list(plain.parameters())
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=5)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        with smooth_gradients():
            logits = plain(x)
        each = F.cross_entropy(logits, torch.from_numpy(batch.labels), reduction="none")
        loss = (weight / weight.mean() * each).mean()
        losses.append(float(loss.detach()))
        (loss + 0.005 * sum(p.square().sum() for p in parameters)).backward()
        optimizer.step()
        schedule.step()
    assert history.loss == pytest.approx(losses, rel=1e-6)
    for mine, theirs in zip(parameters, head.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", HEADS)
def test_rounding_in_the_features_stays_rounding_in_the_probabilities(name):
    """Features that differ by 1e-7, as those of two CPUs do; a fit of full length."""
    batch = problem(150, soft=True)
    # Wide enough that hardly a position has no active channel, as real heads are.
    params = {
        "conv1d": {"width": 16},
        "conv": {"widths": (16,)},
        "prototype": {"dim": 16},
        "prototype_augmented": {"widths": (16,)},
    }.get(name, {})
    head = build_head(name, SHAPE, 3, generator=seeded(1), **params)
    settings = {
        "solver": choose_full_batch(head.is_linear),
        "learning_rate": head.full_batch_rate,
    }
    settings["max_iter"] = default_max_iter(settings["solver"])
    noise = 1e-7 * np.random.default_rng(1).standard_normal(batch.features.shape)
    other = replace(batch, features=batch.features * (1 + noise))
    answers = []
    for data in (batch, other):
        head = build_head(name, SHAPE, 3, generator=seeded(1), **params)
        train_full_batch(
            head,
            data,
            SHAPE,
            temperature=2.0,
            alpha=0.5,
            weight_decay=0.01,
            device=CPU,
            **settings,
        )
        answers.append(probabilities(head, batch.features))
    first, second = answers
    assert np.abs(first - second).max() < 1e-4


def test_rows_are_softened_as_all_at_once():
    rng = np.random.default_rng(0)
    proba = rng.dirichlet(np.ones(5), size=700)
    rows = np.flatnonzero(rng.random(700) < 0.8)
    found = soften_rows(proba, rows, 3.0, np.float64)
    np.testing.assert_array_equal(found, soften(proba, 3.0)[rows])
    single = soften_rows(proba, rows, 3.0, np.float32)
    np.testing.assert_array_equal(single, found.astype(np.float32))


@pytest.mark.parametrize("early_stopping", [False, True])
def test_targets_that_are_softened_as_they_are_drawn(monkeypatch, early_stopping):
    """The same branch as from softened targets that are kept, to the last bit."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((300, 12)), np.arange(300) % 4
    soft = SoftTargets(rng.dirichlet(np.ones(5), 300), y, columns=np.arange(4))
    soft = SoftTargets(soft, y, present=np.ones(4, bool), alpha=0.7)
    branch = BranchClassifier(
        "gap",
        solver="adam",
        max_iter=3,
        batch_size=64,
        early_stopping=early_stopping,
        random_state=0,
    )
    weight = np.arange(300) % 3
    kept = clone(branch).fit(X, y, weight, soft_targets=np.asarray(soft))
    same = clone(branch).fit(X, y, weight, soft_targets=soft)
    monkeypatch.setattr("sk_calex.branches._base._SOFT_BYTES", 100)
    drawn = clone(branch).fit(X, y, weight, soft_targets=soft)
    for other in (same, drawn):
        np.testing.assert_array_equal(other.predict_proba(X), kept.predict_proba(X))


def test_soft_targets_are_those_of_their_rows():
    rng = np.random.default_rng(0)
    proba, y = rng.dirichlet(np.ones(4), 50), rng.integers(0, 3, 50)
    proba[7] = [0, 0, 0, 1]
    present = np.array([True, True, True, False])
    soft = SoftTargets(proba, y, present, alpha=0.5)
    assert soft.shape == (50, 4)
    assert len(soft) == 50
    full = np.asarray(soft)
    np.testing.assert_allclose(full.sum(axis=1), 1)
    np.testing.assert_array_equal(full[:, 3], 0)
    np.testing.assert_array_equal(full[7], np.eye(4)[y[7]])
    kept = proba[0, :3] / proba[0, :3].sum()
    np.testing.assert_allclose(full[0, :3], 0.5 * kept + 0.5 * np.eye(3)[y[0]])
    for rows in ([3, 3, 7], slice(2, 9), rng.integers(0, 50, 20)):
        np.testing.assert_array_equal(soft[rows], full[rows])
    some = SoftTargets(soft, y, columns=np.array([2, 0]))
    assert some.shape == (50, 2)
    np.testing.assert_array_equal(some[[5]], full[[5]][:, [2, 0]])


def test_soft_targets_are_not_copied_in_double_precision():
    """A fit takes half as much as the soft targets beside them, and a few blocks."""
    rng = np.random.default_rng(0)
    n, n_classes = 8000, 400
    X = rng.normal(size=(n, 4)).astype(np.float32)
    soft = np.full((n, n_classes), 1 / n_classes)
    y = np.arange(n) % n_classes
    branch = BranchClassifier(
        "gap", solver="adam", max_iter=1, random_state=0, device="cpu"
    )
    branch.fit(X[:10], y[:10])  # what torch imports at first does not count
    tracemalloc.start()
    try:
        branch.fit(X, y, soft_targets=soft)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < soft.nbytes
