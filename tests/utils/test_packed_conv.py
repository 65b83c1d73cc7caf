"""Convolutions with packed weights."""

import copy

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from sk_calex.backbone._stages import Stages, inference_mode_for
from sk_calex.backbone._whole import autocast_to
from sk_calex.branches._heads import build_head, fuse_for_inference
from sk_calex.utils import _packed_conv as _packed
from sk_calex.utils._flops import count_macs
from sk_calex.utils._packed_conv import PackedConv2d, pack

needs_packing = pytest.mark.skipif(
    not _packed._operators_work(torch.float32),
    reason="this build of torch packs no weights",
)
needs_bfloat16 = pytest.mark.skipif(
    not _packed._operators_work(torch.bfloat16),
    reason="torch packs no weights in bfloat16 on this processor",
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def convolution(*args, seed=0, **kwargs):
    layer = nn.utils.skip_init(nn.Conv2d, *args, **kwargs)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 0, 0.3, generator=seeded(seed))
    return layer.eval().requires_grad_(False)


@needs_packing
@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 3),
    n_in=st.integers(1, 5),
    n_out=st.integers(1, 5),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    rows=st.sampled_from([1, 2, 17, 33]),
    sides=st.sampled_from([(7, 9), (5, 3)]),
)
def test_a_packed_convolution_gives_the_same_values(
    groups, n_in, n_out, kernel, stride, padding, dilation, bias, rows, sides
):
    for k, size in enumerate(sides):  # as torch asks: the window has to fit
        assume(dilation * (kernel[k] - 1) < size + 2 * padding[k])
    layer = convolution(
        groups * n_in,
        groups * n_out,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bias,
    )
    packed = pack(layer)
    assert isinstance(packed, PackedConv2d)
    for height, width in [sides, (6, 5)]:  # packed for the first, used for both
        x = torch.randn(rows, groups * n_in, height, width, generator=seeded(1))
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)


@needs_packing
@pytest.mark.parametrize(
    ("layer", "side", "plain_rows"),
    [
        (convolution(3, 4, 3, padding=1), 4, 32),
        (convolution(3, 4, 3, padding=1), 5, None),
        (convolution(3, 4, 1), 4, None),
        (convolution(4, 4, 3, padding=1, groups=4), 4, None),
    ],
    ids=["window on a small map", "larger map", "1 x 1", "depthwise"],
)
def test_a_window_on_many_small_maps_is_convolved_contiguously(layer, side, plain_rows):
    packed = pack(layer)
    for rows in (1, 31, 32, 256):
        x = torch.randn(rows, layer.in_channels, side, side, generator=seeded())
        with torch.inference_mode():
            found = packed(x)
            torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)
        plain = plain_rows is not None and rows >= plain_rows
        assert found.is_contiguous() is plain


@needs_packing
def test_output_is_channels_last_whatever_comes_in():
    packed = pack(convolution(3, 4, 3))
    x = torch.randn(2, 3, 8, 8, generator=seeded())
    with torch.inference_mode():
        plain = packed(x)
        last = packed(x.contiguous(memory_format=torch.channels_last))
    assert plain.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(plain, last, rtol=0, atol=0)


@needs_packing
def test_macs_are_those_of_the_plain_convolution():
    layer = convolution(6, 4, 3, groups=2)
    x = torch.zeros(1, 6, 8, 8)
    assert count_macs(pack(layer), x) == count_macs(layer, x) == 36 * 4 * 3 * 9


@needs_packing
def test_the_layer_is_left_as_it_is():
    layer = convolution(3, 4, 3)
    before = copy.deepcopy(layer.state_dict())
    packed = pack(layer)
    with torch.inference_mode():
        packed(torch.ones(1, 3, 5, 5))
    assert all(torch.equal(layer.state_dict()[name], before[name]) for name in before)
    assert "stride=[1, 1]" in repr(packed)


class Loud(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(3, 3),
        nn.Conv1d(3, 4, 3),
        nn.Conv2d(3, 4, 3, padding="same"),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(3, 4, 3, dtype=torch.float64),
        nn.Conv2d(3, 4, 3, device="meta"),
        Loud(3, 4, 3),
    ],
    ids=repr,
)
def test_other_layers_stay_as_they_are(layer):
    assert pack(layer) is layer


@needs_packing
def test_no_layer_is_packed_if_onednn_is_switched_off(monkeypatch):
    layer = convolution(3, 4, 3)
    assert pack(layer) is not layer
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert pack(layer) is layer


@pytest.fixture
def tried_anew():
    _packed._operators_work.cache_clear()
    yield
    _packed._operators_work.cache_clear()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_a_torch_without_the_operators(tried_anew, monkeypatch, error):
    def missing(*arguments):
        raise error("no such operator")

    monkeypatch.setattr(_packed, "_convolve", missing)
    layer = convolution(3, 4, 3)
    assert pack(layer) is layer
    assert count_macs(layer, torch.zeros(1, 3, 3, 3)) == 3 * 4 * 9


@needs_packing
def test_operators_with_another_meaning_are_not_used(tried_anew, monkeypatch):
    convolve = _packed._convolve
    monkeypatch.setattr(_packed, "_convolve", lambda *a: convolve(*a) + 1)
    layer = convolution(3, 4, 3)
    assert pack(layer) is layer


def outputs(stages, module, x, amp=None):
    values = []
    with inference_mode_for(module), autocast_to(x.device, amp):
        state = stages.start(x)
        for k in range(stages.n_taps + 1):
            output, state = stages.advance(k, state)
            values.append(output)
    return values


@needs_packing
def test_traced_stages_are_packed_and_equal_without_it(monkeypatch):
    torch.manual_seed(0)
    module = torchvision.models.resnet18(num_classes=5).eval()
    x = torch.randn(3, 3, 32, 32, generator=seeded())
    packed = Stages.split(module, ["layer1", "layer3"], x, fast=True)
    monkeypatch.setattr(_packed, "_operators_work", lambda dtype: False)
    plain = Stages.split(module, ["layer1", "layer3"], x, fast=True)
    assert packed.macs == plain.macs
    for a, b in zip(outputs(packed, module, x), outputs(plain, module, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_bfloat16
@pytest.mark.parametrize("side", [4, 9])
@pytest.mark.parametrize("rows", [1, 40])
def test_in_bfloat16_it_computes_as_under_autocast(side, rows):
    layer = convolution(6, 4, 3, padding=1, groups=2)
    x = torch.randn(rows, 6, side, side, generator=seeded(1))
    packed = pack(layer, torch.bfloat16)
    with torch.inference_mode():
        exact = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            expected, found = layer(x), packed(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    # Two units in the last of 8 bits, on the scale of what is summed.
    tolerance = 2 * torch.finfo(torch.bfloat16).eps * float(exact.abs().max())
    torch.testing.assert_close(found.float(), exact, rtol=0, atol=tolerance)


@needs_bfloat16
def test_what_autocast_says_does_not_reach_the_trial(tried_anew):
    with torch.autocast("cpu", torch.bfloat16):
        assert _packed._operators_work(torch.float32)
        assert _packed._operators_work(torch.bfloat16)


@needs_bfloat16
def test_stages_in_bfloat16_are_packed_in_it():
    torch.manual_seed(0)
    module = torchvision.models.resnet18(num_classes=5).eval()
    x = torch.randn(3, 3, 32, 32, generator=seeded())
    taps, low = ["layer1", "layer3"], torch.bfloat16
    packed = Stages.split(module, taps, x, amp=low, fast=True)
    plain = Stages.split(module, taps, x, amp=low)
    assert packed.macs == plain.macs
    layers = [m for step in packed._steps for m in step.__self__.modules()]
    dtypes = [m._dtype for m in layers if isinstance(m, PackedConv2d)]
    assert dtypes == [torch.bfloat16] * 20
    every = (outputs(stages, module, x, low) for stages in (packed, plain))
    for found, expected in zip(*every, strict=True):
        assert found.dtype == expected.dtype
        scale = float(expected.float().abs().max())
        torch.testing.assert_close(
            found.float(), expected.float(), rtol=0, atol=0.05 * scale
        )


def test_other_low_precision_is_left_to_autocast():
    module = torchvision.models.resnet18(num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32, generator=seeded())
    stages = Stages.split(module, ["layer1"], x, amp=torch.float16, fast=True)
    layers = [m for step in stages._steps for m in step.__self__.modules()]
    assert not any(isinstance(m, PackedConv2d) for m in layers)


@needs_packing
def test_a_watched_convolution_is_not_packed():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    module = nn.ModuleDict({"inner": module})["inner"].eval()
    wrapped = Wrapped(module)
    seen = []
    module[0].register_forward_hook(lambda *_: seen.append(1))
    stages = Stages.split(wrapped, ["module.0"], torch.randn(2, 3, 4, 4), fast=True)
    seen.clear()
    outputs(stages, wrapped, torch.randn(2, 3, 4, 4))
    assert seen == [1]


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@needs_packing
def test_the_trunk_of_a_fused_head_is_packed():
    head = build_head("prototype_augmented", (8, 6, 6), 3, widths=(12, 16)).eval()
    fused = fuse_for_inference(head)
    assert sum(isinstance(m, PackedConv2d) for m in fused.modules()) == 2
    x = torch.randn(5, 8, 6, 6, generator=seeded(2))
    with torch.inference_mode():
        torch.testing.assert_close(fused(x), head(x), rtol=1e-4, atol=1e-5)
    assert count_macs(fused, x[:1]) == count_macs(head, x[:1])
