"""Prototypes that start where the features of the classes lie."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sk_calex.branches._heads import (
    PrototypeHead,
    build_head,
)
from tests._reference.heads import (
    CLASSES,
    PARAMS,
    WITH_PROTOTYPES,
    make,
    normal,
    seeded,
    slow_trunk,
)


def class_means(head, x, y):
    """Slow class means of the body's output, normalised by the batch itself."""
    state = {key: value.detach().numpy() for key, value in head.state_dict().items()}
    x = x.numpy()
    if x.ndim < 4:
        x = x.reshape(len(x), -1, x.shape[-1]).transpose(0, 2, 1)[..., None]
    u = slow_trunk(x, state, True, True)
    means = []
    for c in range(CLASSES):
        positions = u[y.numpy() == c].transpose(0, 2, 3, 1).reshape(-1, u.shape[1])
        means.append(
            positions.mean(0) if len(positions) else np.full(u.shape[1], np.nan)
        )
    return np.array(means)


DATA_Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])


@pytest.mark.parametrize("shape", [(3, 6, 6), (4, 3), (4,)])
@pytest.mark.parametrize("name", WITH_PROTOTYPES)
def test_prototypes_start_at_class_means(name, shape):
    head = make(name, shape, n_prototypes=2 * CLASSES + 1)
    x = normal(8, *shape)
    means = class_means(head, x, DATA_Y)
    buffers = [buffer.clone() for buffer in head.buffers()]
    head.eval()
    head.init_from_data(x, DATA_Y)

    prototypes = head.pool.prototypes.detach().numpy()
    np.testing.assert_allclose(prototypes[:CLASSES], means, rtol=1e-9)
    # The extra ones lie around the mean of their class, at about a tenth of its norm.
    for m in range(CLASSES, len(prototypes)):
        mean = means[m % CLASSES]
        away = np.linalg.norm(prototypes[m] - mean) / np.linalg.norm(mean)
        assert 0.01 < away < 0.3
    assert not head.training
    assert all(map(torch.equal, head.buffers(), buffers))
    assert head.pool.prototypes.requires_grad


def test_fewer_prototypes_than_classes_share():
    head = make("prototype", (4,), n_prototypes=2)
    x = normal(8, 4)
    means = class_means(head, x, DATA_Y)
    head.init_from_data(x, DATA_Y)
    expected = [(means[0] + means[2]) / 2, means[1]]
    np.testing.assert_allclose(head.pool.prototypes.detach(), expected, rtol=1e-9)


def test_absent_class_starts_near_the_mean_of_the_others():
    head = make("prototype", (4,), n_prototypes=CLASSES)
    x, y = normal(8, 4), torch.tensor([0, 2, 2, 0, 0, 2, 0, 0])
    overall = np.nanmean(class_means(head, x, y), axis=0)
    head.init_from_data(x, y)
    start = head.pool.prototypes.detach().numpy()[1]
    away = np.linalg.norm(start - overall) / np.linalg.norm(overall)
    assert 0.01 < away < 0.3


@pytest.mark.parametrize("name", WITH_PROTOTYPES)
def test_data_start_weights_and_order(name):
    x, shape = normal(8, 3, 6, 6), (3, 6, 6)
    w = torch.tensor([1, 0, 2, 3, 1, 1, 0, 2])
    rows = torch.repeat_interleave(torch.arange(8), w)
    order = torch.tensor([4, 1, 7, 3, 0, 6, 2, 5])

    def start(x, y, w=None, seed=5):
        head = make(name, shape)
        head.init_from_data(x, y, sample_weight=w, generator=seeded(seed))
        return head.pool.prototypes.detach()

    weighted = start(x, DATA_Y, w)
    torch.testing.assert_close(weighted, start(x[rows], DATA_Y[rows]))
    torch.testing.assert_close(weighted, start(x[order], DATA_Y[order], w[order]))
    assert torch.equal(weighted, start(x, DATA_Y, w))
    assert not torch.equal(weighted, start(x, DATA_Y, w, seed=6))


def test_features_without_direction_keep_the_drawn_prototypes():
    head = build_head("prototype", (4,), CLASSES)
    drawn = head.pool.prototypes.detach().clone()
    head.init_from_data(torch.zeros(6, 4), torch.arange(6) % CLASSES)
    assert torch.equal(head.pool.prototypes, drawn)
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize("name", sorted(PARAMS.keys() - WITH_PROTOTYPES))
def test_data_start_changes_nothing_without_prototypes(name):
    head = make(name, (3, 6, 6))
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head.init_from_data(normal(8, 3, 6, 6), DATA_Y)
    assert all(torch.equal(v, before[k]) for k, v in head.state_dict().items())


@pytest.mark.parametrize(
    ("y", "w", "message"),
    [
        ([0, 1], None, r"y and sample_weight must have shape \(3,\), got \(2,\)"),
        ([0, 1, 2], [1.0], r"must have shape \(3,\), got \(3,\) and \(1,\)"),
        ([0, 1, 3], None, r"y must lie in 0..2, got 0..3; encode"),
        ([-1, 1, 2], None, r"y must lie in 0..2, got -1..2"),
        ([0, 1, 2], [0.0, 0.0, 0.0], "sample_weight must be >= 0 and > 0 for at"),
        ([0, 1, 2], [1.0, -1.0, 1.0], "sample_weight must be >= 0"),
        ([0, 1, 2], [1.0, math.nan, 1.0], "sample_weight must be >= 0"),
    ],
)
def test_data_start_errors(y, w, message):
    head = build_head("prototype", (4,), CLASSES)
    weight = None if w is None else torch.tensor(w)
    with pytest.raises(ValueError, match=message):
        head.init_from_data(torch.zeros(3, 4), torch.tensor(y), sample_weight=weight)


def test_data_start_needs_rows():
    head = build_head("prototype", (4,), CLASSES)
    with pytest.raises(ValueError, match="for at least one row"):
        head.init_from_data(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_temperature_is_learned():
    head = build_head("prototype", (3, 6, 6), CLASSES, temperature=0.5)
    assert isinstance(head, PrototypeHead)
    assert head.pool.log_t.exp().item() == pytest.approx(0.5)
    F.cross_entropy(head(normal(3, 3, 6, 6).float()), torch.arange(3)).backward()
    assert head.pool.log_t.grad.abs() > 0
