"""Tiny frozen classifiers and images for the tests of the backbone and the cascade."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

SHAPE = (3, 16, 16)


class TinyNet(nn.Module):
    """Convolutions with batch norm on (n, 3, 16, 16); the same weights from one seed.

    Shapes per sample for width w: stem (w, 16, 16), block1 (2w, 8, 8), block2
    (4w, 4, 4), head (n_classes,).
    """

    def __init__(self, n_classes: int = 4, width: int = 4, seed: int = 0) -> None:
        super().__init__()
        with _seeded(seed):
            self.stem = _conv_block(3, width, 1)
            self.block1 = _conv_block(width, 2 * width, 2)
            self.block2 = _conv_block(2 * width, 4 * width, 2)
            self.head = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(4 * width, n_classes),
            )
            for buffer in self.buffers():
                if buffer.is_floating_point():
                    buffer.uniform_(0.5, 1.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block2(self.block1(self.stem(x))))


def tiny_vit(n_classes: int = 4, seed: int = 0) -> nn.Module:
    """A transformer on (n, 3, 16, 16): 5 tokens of 8 values after each of 2 layers."""
    from torchvision.models import VisionTransformer  # slow to import

    with _seeded(seed):
        vit = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=n_classes)
        nn.init.normal_(vit.heads.head.weight)  # zero as built: nothing to compare
    return vit


def as_stages(net: TinyNet) -> nn.Sequential:
    """Wrap the parts of a net as explicit stages, which are not traced."""
    return nn.Sequential(OrderedDict(net.named_children()))


def quantized(module: nn.Module) -> nn.Module:
    """A module whose linear and recurrent layers have 8-bit weights, for the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves this function to a package
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(module),
            {nn.Linear, nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell},
        )[0]


def images(n: int, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    """Random images of shape (n, 3, 16, 16): bytes, or floats from 0 to 1."""
    X = np.random.default_rng(seed).integers(0, 256, (n, *SHAPE), dtype=np.uint8)
    return X if dtype == "uint8" else (X / 255).astype(dtype)


def labelled_images(
    n: int, n_classes: int = 4, seed: int = 0, noise: float = 60.0
) -> tuple[np.ndarray, np.ndarray]:
    """Noisy images whose brightest horizontal band tells the class, and the classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    band = np.arange(SHAPE[1]) * n_classes // SHAPE[1]
    X = 80.0 + 80.0 * (band == y[:, None])[:, None, :, None]
    X = X + rng.normal(0, noise, (n, *SHAPE))
    return X.clip(0, 255).astype(np.uint8), y


def hook_before(layer: nn.Module, hook: Callable[..., None]) -> RemovableHandle:
    """Call a hook before one layer runs; it is none of the module's: no fingerprint."""

    def on_layer(module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is layer:
            hook(module, args)

    return register_module_forward_pre_hook(on_layer)


@contextmanager
def counted(net: TinyNet) -> Iterator[list[int]]:
    """Collect the sizes of the batches that enter a net, staged or not."""
    sizes: list[int] = []
    # On the activation: stages run copies of the convolutions, norms folded in.
    hook = hook_before(net.stem[2], lambda _, x: sizes.append(len(x[0])))
    try:
        yield sizes
    finally:
        hook.remove()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _conv_block(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )
