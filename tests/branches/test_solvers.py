"""The loops on plain problems; what they do to heads stands in test_training.py."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sk_calex.branches._solvers import adam_loop, lbfgs_loop


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ridge(n=30):
    """A linear model without bias, its data, and the mean squared loss of some rows."""
    rng = np.random.default_rng(0)
    X = torch.from_numpy(rng.standard_normal((n, 3)))
    y = X @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    y = y + 0.1 * torch.from_numpy(rng.standard_normal((n, 1)))
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.zeros_(model.weight)

    def loss_of(rows=slice(None)):
        return (model(X[rows]) - y[rows]).square().mean()

    return model, X, y, loss_of


def adam(model, loss_of, n=30, **settings):
    settings = {
        "epochs": 5,
        "batch_size": 8,
        "learning_rate": 0.1,
        "weight_decay": 0.01,
        "generator": seeded(),
    } | settings
    return adam_loop(model, loss_of, n, **settings)


# -- adam ------------------------------------------------------------------------------


def test_adam_is_the_loop_one_would_write():
    model, _, _, loss_of = ridge()
    history = adam(model, loss_of)
    plain, X, y, _ = ridge()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.1, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=15)
    generator, losses = seeded(), []
    for _ in range(5):
        order, epoch = torch.randperm(30, generator=generator), []
        for rows in order[:24].split(8):
            loss = (plain(X[rows]) - y[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            epoch.append(float(loss.detach()))
        losses.append(sum(epoch) / 3)
    torch.testing.assert_close(model.weight, plain.weight)
    assert history.loss == pytest.approx(losses)
    assert history.n_iter == 5


def test_every_epoch_sees_each_row_at_most_once():
    model, _, _, loss_of = ridge()
    seen = []

    def noted(rows):
        seen.append(rows.tolist())
        return loss_of(rows)

    adam(model, noted, epochs=4)
    assert [len(rows) for rows in seen] == [8] * 12
    epochs = [np.concatenate(seen[i : i + 3]) for i in range(0, 12, 3)]
    assert all(len(set(rows)) == 24 for rows in epochs)
    # Who is left out changes, so that all are seen in the end.
    assert set(np.concatenate(epochs)) == set(range(30))


def scripted(model, losses):
    """An evaluation that gives these losses and notes the weights it was asked at."""
    weights, left = [], iter(losses)

    def evaluate():
        assert not model.training
        weights.append(model.weight.detach().clone())
        return next(left)

    return evaluate, weights


def test_the_best_epoch_is_kept():
    model, _, _, loss_of = ridge()
    evaluate, weights = scripted(model, [3.0, 1.0, 2.0, 0.9999, 2.0, 5.0])
    history = adam(model, loss_of, epochs=50, evaluate=evaluate, patience=3, tol=0.01)
    # The fourth is better than the second by less than tol.
    assert history.validation_loss == [3.0, 1.0, 2.0, 0.9999, 2.0]
    assert history.n_iter == len(history.loss) == 5
    assert torch.equal(model.weight, weights[1])
    assert not model.training


def test_without_a_usable_evaluation_the_last_epoch_is_kept():
    model, _, _, loss_of = ridge()
    evaluate, weights = scripted(model, [math.inf, math.nan, math.inf])
    history = adam(model, loss_of, evaluate=evaluate, patience=3)
    assert history.n_iter == 3
    assert torch.equal(model.weight, weights[-1])


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(loss):
    model, _, _, loss_of = ridge()
    epochs = []

    def spoiled(rows):
        epochs.append(rows)
        return loss_of(rows) + (loss if len(epochs) > 3 else 0)

    message = rf"loss became {loss} in epoch 2\. Lower learning_rate \(now 0\.1\)"
    with pytest.raises(ValueError, match=message):
        adam(model, spoiled)


# -- l-bfgs ----------------------------------------------------------------------------


def test_lbfgs_solves_a_ridge_regression():
    """Of ``mean (y - X w)^2 + decay / 2 ||w||^2``, in closed form."""
    model, X, y, loss_of = ridge()
    history = lbfgs_loop(model, loss_of, max_iter=100, weight_decay=0.3)
    gram = 2 / 30 * X.T @ X + 0.3 * torch.eye(3, dtype=torch.float64)
    expected = torch.linalg.solve(gram, 2 / 30 * X.T @ y)
    torch.testing.assert_close(model.weight.T, expected, rtol=1e-4, atol=1e-6)
    # The penalty is no part of the loss that is told.
    assert history.loss[0] == pytest.approx(float(y.square().mean()))
    assert history.loss[-1] == pytest.approx(float(loss_of().detach()), rel=1e-6)
    assert 0 < history.n_iter < 100
    assert not model.training


def test_lbfgs_stops_where_it_is_told():
    model, _, _, loss_of = ridge()
    history = lbfgs_loop(model, loss_of, max_iter=1, weight_decay=0.0)
    assert history.n_iter == 1


def test_lbfgs_ends_with_a_pass_at_the_final_parameters():
    """So that running statistics are theirs; it asks for no gradient."""
    model, _, _, loss_of = ridge()
    calls = []

    def noted():
        assert model.training
        calls.append((torch.is_grad_enabled(), model.weight.detach().clone()))
        return loss_of()

    lbfgs_loop(model, noted, max_iter=3, weight_decay=0.0)
    enabled, weight = calls[-1]
    assert not enabled
    assert torch.equal(weight, model.weight)
    assert all(grad for grad, _ in calls[:-1])
