"""Smoothed gradients: the plain functions' values, slopes without jumps."""

import numpy as np
import pytest
import torch

from sk_calex.branches._layers import (
    max_over_positions,
    max_pool,
    mixed_pool,
    relu,
    smooth_gradients,
)

WIDTH = 0.1


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def gradient(function, x, weight=None):
    x = x.clone().requires_grad_()
    with smooth_gradients():
        out = function(x)
    weight = torch.ones_like(out) if weight is None else weight
    return torch.autograd.grad((weight * out).sum(), x)[0]


@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (2, 3, 2, 2), (4, 5, 1, 1)])
def test_smoothing_leaves_the_values(shape):
    x = maps(*shape)
    grid = (min(shape[2], 4), min(shape[3], 4))
    alpha = torch.tensor(0.3, dtype=torch.float64)
    for function in (
        relu,
        max_over_positions,
        lambda x: max_pool(x, grid),
        lambda x: mixed_pool(x, grid, alpha),
    ):
        plain = function(x.clone())
        with smooth_gradients():
            smooth = function(x.clone())
        assert torch.equal(plain, smooth)


def test_smoothed_slope_of_a_rectifier_rises_over_a_band():
    x = torch.tensor([-1.0, -0.1, -0.05, 0.0, 0.05, 0.1, 1.0], dtype=torch.float64)
    expected = torch.tensor([0, 0, 0.25, 0.5, 0.75, 1, 1], dtype=torch.float64)
    torch.testing.assert_close(gradient(relu, x), expected)


def test_smoothed_gradient_of_a_maximum_is_shared_by_those_near_it():
    """The gradient of a soft maximum: softmax over the positions of each cell."""
    x = maps(2, 3, 4, 4)
    got = gradient(lambda x: max_pool(x, (2, 2)), x).numpy()
    for i, c, h, w in np.ndindex(2, 3, 2, 2):
        cell = np.s_[i, c, 2 * h : 2 * h + 2, 2 * w : 2 * w + 2]
        share = np.exp((x.numpy()[cell] - x.numpy()[cell].max()) / WIDTH)
        np.testing.assert_allclose(got[cell], share / share.sum(), rtol=1e-9)
    whole = gradient(max_over_positions, x).sum((2, 3))
    torch.testing.assert_close(whole, torch.ones_like(whole))


@pytest.mark.parametrize("function", [relu, max_over_positions])
def test_smoothed_gradients_move_little_where_plain_ones_jump(function):
    """Two inputs 1e-7 apart, on either side of a kink."""
    before = torch.tensor([[[[-5e-8, 0.0]]]], dtype=torch.float64)
    after = torch.tensor([[[[5e-8, 0.0]]]], dtype=torch.float64)
    moved = gradient(function, before) - gradient(function, after)
    assert 0 < moved.abs().max() < 1e-6
    plain = [
        torch.autograd.grad(function(2 * x.requires_grad_()).sum(), x)[0]
        for x in (before, after)
    ]
    assert (plain[0] - plain[1]).abs().max() >= 1


def test_gradients_are_smooth_inside_the_block_only():
    x = torch.tensor([0.05], dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="stop"), smooth_gradients():
        raise RuntimeError("stop")
    (plain,) = torch.autograd.grad(relu(x * 1), x)
    assert float(plain) == 1


def test_values_far_below_the_maximum_have_finite_gradients():
    x = torch.tensor([[[[0.0, 1e4], [-1e4, -1e4]]]], dtype=torch.float64)
    got = gradient(lambda x: max_pool(x, (2, 1)), x)
    assert torch.isfinite(got).all()
