"""Frozen convolutions with their weights laid out once for the CPU's kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PackedConv2d", "can_pack", "pack"]

_HINT_ROWS = 16


class PackedConv2d(nn.Module):
    """`torch.nn.Conv2d` in inference, weights packed; channels-last in and out.

    oneDNN, which convolves on the CPU, rearranges plain weights anew at every call: for
    one sample and wide layers that takes longer than the convolution. Torch's compiler
    packs the weights of frozen modules through the two operators used here; they are
    not part of torch's documented interface, so `can_pack` tries them first.

    Parameters
    ----------
    layer : torch.nn.Conv2d
        One for which `can_pack` is true. Later changes of its weights do not arrive.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self._geometry = (
            list(layer.padding),
            list(layer.stride),
            list(layer.dilation),
            layer.groups,
        )
        self._weight = layer.weight.detach()
        self._bias = None if layer.bias is None else layer.bias.detach()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``input``, as torch names it, of shape (n, C, H, W)."""
        weight = self._weight
        if not weight.is_mkldnn:
            weight = self._weight = self._packed_for(weight, input.shape)
        x = input.contiguous(memory_format=torch.channels_last)
        return _convolve(x, weight, self._bias, *self._geometry, "none", [], "")

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
        """Shape and geometry, for ``print``."""
        padding, stride, dilation, groups = self._geometry
        return (
            f"weight={tuple(self._weight.shape)}, stride={stride}, padding={padding}, "
            f"dilation={dilation}, groups={groups}"
        )


def _convolve(*arguments: Any) -> Tensor:
    result: Tensor = torch.ops.mkldnn._convolution_pointwise(*arguments)
    return result


def can_pack(layer: nn.Module) -> bool:
    """Whether a layer is a convolution that this build of torch packs."""
    return (
        type(layer) is nn.Conv2d
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and bool(torch.backends.mkldnn.enabled)
        and _operators_work()
    )


def pack(layer: nn.Module) -> nn.Module:
    """The packed form of a frozen layer where there is one, else the layer itself."""
    if not can_pack(layer):
        return layer
    assert isinstance(layer, nn.Conv2d)
    return PackedConv2d(layer)


@functools.cache
def _operators_work() -> bool:
    """Try torch's operators on one small convolution."""
    layer = torch.nn.utils.skip_init(nn.Conv2d, 4, 4, 3, stride=2, padding=1, groups=2)
    x = torch.linspace(-1, 1, 2 * 4 * 5 * 5).reshape(2, 4, 5, 5)
    with torch.inference_mode():
        layer.weight.copy_(torch.linspace(-1, 1, layer.weight.numel()).view(4, 2, 3, 3))
        layer.bias.copy_(torch.linspace(-1, 1, 4))
        expected = F.conv2d(x, layer.weight, layer.bias, 2, 1, groups=2)
        try:
            found = PackedConv2d(layer)(x)
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return False  # a build without oneDNN, or another signature
    return torch.allclose(found, expected, atol=1e-5)
