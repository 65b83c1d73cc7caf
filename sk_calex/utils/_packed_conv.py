"""Frozen convolutions with their weights laid out once for the CPU's kernels."""

from __future__ import annotations

import functools
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["pack"]

_HINT_ROWS = 16
# Maps of at most 4 x 4 pixels, from 32 rows on: there a window of several pixels is
# convolved faster in contiguous maps than in channels last, which packed weights need.
_SMALL_MAP, _MANY_ROWS = 16, 32


def pack(layer: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a faster form of a layer for inference, or the layer itself.

    Parameters
    ----------
    layer : torch.nn.Module
        Not changed. A `torch.nn.Conv2d` in float32 on the CPU is packed where torch's
        build can.
    dtype : torch.dtype, default=torch.float32
        What it computes in, and returns: float32, or bfloat16 as under autocast.

    Returns
    -------
    layer : torch.nn.Module
        Computes the same up to rounding, in channels last for the most part. Later
        changes of the weights do not reach it.
    """
    if not _can_pack(layer, dtype):
        return layer
    assert isinstance(layer, nn.Conv2d)
    return PackedConv2d(layer, dtype)


class PackedConv2d(nn.Module):
    """`torch.nn.Conv2d` in inference, with its weights packed.

    oneDNN, which convolves on the CPU, rearranges plain weights anew at every call: for
    one sample and wide layers that takes longer than the convolution. Torch's compiler
    packs the weights of frozen modules through the two operators used here; they are
    not part of torch's documented interface, so `pack` tries them first.

    The rule for small maps is our definition, by
    ``examples/benchmarks/convolution_formats.py``: it looks at sizes alone, so that
    equal batches are always computed alike.

    Parameters
    ----------
    layer : torch.nn.Conv2d
        The layer.
    dtype : torch.dtype
        What it computes in.
    """

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        padding = cast("tuple[int, ...]", layer.padding)  # words are not packed
        self._geometry = (
            list(padding),
            list(layer.stride),
            list(layer.dilation),
            layer.groups,
        )
        self._dtype = dtype
        self._weight = layer.weight.detach().to(dtype)
        self._plain_weight: Tensor | None = None
        self._bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``input``, as torch names it, of shape (n, C, H, W)."""
        weight = self._weight
        if self._dtype == torch.bfloat16:  # as autocast casts; float32 is never lowered
            input = input.to(self._dtype)
        if not weight.is_mkldnn:
            if self._is_window_on_small_map(input.shape):
                self._plain_weight = weight
            weight = self._weight = self._packed_for(weight, input.shape)
        if self._plain_weight is not None and len(input) >= _MANY_ROWS:
            padding, stride, dilation, groups = self._geometry
            return F.conv2d(
                input.contiguous(),
                self._plain_weight,
                self._bias,
                stride,
                padding,
                dilation,
                groups,
            )
        x = input.contiguous(memory_format=torch.channels_last)
        return _convolve(x, weight, self._bias, *self._geometry, "none", [], "")

    def _is_window_on_small_map(self, shape: torch.Size) -> bool:
        # Of depthwise convolutions, channels last is faster on small maps, too.
        window = self._weight.shape[2] * self._weight.shape[3] > 1
        return window and self._geometry[3] == 1 and shape[2] * shape[3] <= _SMALL_MAP

    def _packed_for(self, weight: Tensor, shape: torch.Size) -> Tensor:
        # The best layout depends on the size of the maps, hardly on the rows. Another
        # size later is right too, but may be rearranged at every call.
        hint = [_HINT_ROWS, *shape[1:]]
        dense = weight.contiguous().to_mkldnn()
        return torch._C._nn.mkldnn_reorder_conv2d_weight(
            dense,
            *self._geometry,
            hint,  # type: ignore[call-arg]
        )

    def extra_repr(self) -> str:
        """Return shape and geometry, for ``print``."""
        padding, stride, dilation, groups = self._geometry
        return (
            f"weight={tuple(self._weight.shape)}, stride={stride}, padding={padding}, "
            f"dilation={dilation}, groups={groups}"
        )


def _convolve(*arguments: Any) -> Tensor:
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(*arguments)
    return result


def _can_pack(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Tell whether a layer is a convolution that this build of torch packs."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and _operators_work(dtype)
    )


@functools.cache
def _operators_work(dtype: torch.dtype) -> bool:
    """Try torch's operators on one small convolution."""
    layer = torch.nn.utils.skip_init(nn.Conv2d, 4, 4, 3, stride=2, padding=1, groups=2)
    x = torch.linspace(-1, 1, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5)
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        layer.weight.copy_(torch.linspace(-1, 1, layer.weight.numel()).view(4, 2, 3, 3))
        layer.bias.copy_(torch.linspace(-1, 1, 4))
        expected = F.conv2d(x, layer.weight, layer.bias, 2, 1, groups=2)
        try:
            found = PackedConv2d(layer, dtype)(x)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False  # a build without oneDNN, or another signature
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    return found.dtype == dtype and torch.allclose(
        found.float(), expected, atol=tolerance
    )
