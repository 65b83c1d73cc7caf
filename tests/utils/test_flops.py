import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sk_calex.utils._flops import count_macs, depth_costs, flops_reduction

MACS = st.integers(0, 10**9)
COSTS = st.integers(0, 5).flatmap(
    lambda k: st.tuples(
        st.lists(MACS, min_size=k + 1, max_size=k + 1),
        st.lists(MACS, min_size=k, max_size=k),
    )
)


def test_linear_and_convolution_by_hand():
    linear = nn.Linear(7, 5)
    assert count_macs(linear, torch.zeros(1, 7)) == 7 * 5
    assert count_macs(linear, torch.zeros(3, 7)) == 3 * 7 * 5
    conv = nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2)
    assert count_macs(conv, torch.zeros(1, 4, 8, 8)) == 4 * 4 * 6 * (4 // 2) * 9


def test_uncounted_layers_add_nothing():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    assert count_macs(module, torch.zeros(1, 1, 4, 4)) == 16 * 2


@pytest.mark.parametrize("kind", ["attention", "encoder", "functional"])
def test_attention_by_hand(kind):
    # In eval mode torch runs these in fused kernels, which its counter does not know.
    tokens, width, hidden = 5, 8, 12
    x = torch.randn(1, tokens, width)
    projections = tokens * 4 * width * width
    products = 2 * tokens * tokens * width
    feed_forward = 2 * tokens * width * hidden
    if kind == "attention":
        attention = nn.MultiheadAttention(width, 2, batch_first=True)
        got = count_macs(attention, x, x, x)
        assert got == projections + products
    elif kind == "encoder":
        layer = nn.TransformerEncoderLayer(width, 2, hidden, batch_first=True)
        assert count_macs(layer, x) == projections + products + feed_forward
    else:
        heads = x.view(1, tokens, 2, 4).transpose(1, 2)
        got = count_macs(F.scaled_dot_product_attention, heads, heads, heads)
        assert got == products


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_attention_setting_is_restored(enabled):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        count_macs(nn.Linear(2, 2), torch.zeros(1, 2))
        with pytest.raises(RuntimeError):
            count_macs(nn.Linear(2, 2), torch.zeros(1, 3))
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_module_is_left_as_it_was():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout())
    module.train()
    module[2].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    # One row: batch normalisation would refuse it in training mode.
    count_macs(module, torch.randn(1, 3))
    assert [m.training for m in module.modules()] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_callable_runs_in_inference_mode():
    def call(a, b):
        assert torch.is_inference_mode_enabled()
        return a @ b

    assert count_macs(call, torch.zeros(2, 3), torch.zeros(3, 4)) == 24


@given(COSTS)
def test_depth_costs_equals_the_definition(macs):
    stages, heads = macs
    cost = depth_costs(stages, heads)
    assert cost.dtype == np.float64
    expected = [sum(stages[: k + 1]) + sum(heads[: k + 1]) for k in range(len(heads))]
    assert cost.tolist() == [*expected, sum(stages) + sum(heads)]
    assert np.all(np.diff(cost) >= 0)


def test_no_heads():
    assert depth_costs([7], []).tolist() == [7.0]
    assert flops_reduction([0, 0], [7], []) == 0.0


@given(COSTS.filter(lambda macs: sum(macs[0]) > 0), st.data())
def test_flops_reduction_equals_the_definition(macs, data):
    stages, heads = macs
    depth = data.draw(st.lists(st.integers(0, len(heads)), min_size=1, max_size=8))
    costs = [
        sum(stages) + sum(heads)
        if d == len(heads)
        else sum(stages[: d + 1]) + sum(heads[: d + 1])
        for d in depth
    ]
    expected = 1 - sum(costs) / len(costs) / sum(stages)
    got = flops_reduction(depth, stages, heads)
    assert got == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert got <= 1
    assert flops_reduction(depth[::-1], stages, heads) == pytest.approx(got)


def test_reduction_is_negative_when_nobody_exits():
    assert flops_reduction([1, 1], [60, 40], [10]) == pytest.approx(-0.1)
    assert flops_reduction(np.array([0, 1]), [60, 40], [10]) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("stages", "heads", "message"),
    [
        ([1, 2], [1, 2], "stage_macs has 2 entries and head_macs 2"),
        ([[1, 2]], [1], r"stage_macs must be 1-D; got shape \(1, 2\)"),
        ([1, -2], [1], "stage_macs must be finite and not negative"),
        ([1, 2], [np.nan], "head_macs must be finite and not negative"),
        ([1, np.inf], [1], "stage_macs must be finite"),
    ],
)
def test_costs_errors(stages, heads, message):
    with pytest.raises(ValueError, match=message):
        depth_costs(stages, heads)
    with pytest.raises(ValueError, match=message):
        flops_reduction([0], stages, heads)


@pytest.mark.parametrize(
    ("depth", "message"),
    [
        ([], "non-empty 1-D array of integers"),
        ([[0, 1]], r"got shape \(1, 2\)"),
        ([0.0, 1.0], "dtype float64"),
        ([True, False], "dtype bool"),
        ([0, 2], r"must lie in 0\.\.1 .* from 0 to 2"),
        ([-1, 0], "from -1 to 0"),
    ],
)
def test_depth_errors(depth, message):
    with pytest.raises(ValueError, match=message):
        flops_reduction(depth, [5, 5], [1])


def test_reduction_of_nothing():
    with pytest.raises(ValueError, match="stage_macs sums to 0"):
        flops_reduction([0], [0, 0], [1])


def test_threads_that_count_leave_the_attention_kernels_as_they_were():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.zeros(1, 4, 8)

    def settings():
        cuda = torch.backends.cuda
        return (
            torch.backends.mha.get_fastpath_enabled(),
            cuda.flash_sdp_enabled(),
            cuda.mem_efficient_sdp_enabled(),
            cuda.math_sdp_enabled(),
        )

    def slowly(x):
        attention(x, x, x)
        time.sleep(0.01)  # others come in meanwhile, and leave later

    before, counts = settings(), []

    def work():
        counts.extend(count_macs(slowly, x) for _ in range(5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(counts)) == 1
    assert len(counts) == 20
    assert settings() == before
