"""What the benchmarks share: the CIFAR-100 backbone, versions, JSON that grows."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
import torchvision
from safetensors.torch import load_file
from sklearn.model_selection import PredefinedSplit
from torch import Tensor, nn

import sk_calex
from sk_calex import FrozenBackbone
from sk_calex.datasets import get_data_home, load_cifar100_coarse

RESULTS = Path(__file__).parent / "results"
TAPS = ("layer1", "layer2", "layer3")


class Normalize(nn.Module):
    """uint8 images to the standardised floats that the backbone was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.5071, 0.4866, 0.4409]).view(3, 1, 1)
        self.std = torch.tensor([0.2673, 0.2564, 0.2762]).view(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.mean.to(x.device), self.std.to(x.device)
        return (x.float() / 255 - mean) / std


def cifar_resnet18(weights: Path | None = None) -> nn.Module:
    """ResNet18 for 32 x 32 images and 20 classes, with the weights of a file."""
    module = torchvision.models.resnet18(num_classes=20)
    module.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    path = weights or (
        Path(get_data_home()) / "backbones" / "resnet18_cifar100_coarse.safetensors"
    )
    state = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(path).items()
    }
    module.load_state_dict(state)
    return module.eval()


def load_network(
    path: Path, validation_rows: Any
) -> tuple[dict[str, Any], nn.Module, Normalize]:
    """What train_backbone.py left: its record, the network, and how it saw images."""
    sys.path.append(str(Path(__file__).parents[1]))
    from train_backbone import small_image_resnet

    told = json.loads(path.read_text())
    if set(told["validation_rows"]) != set(np.asarray(validation_rows).tolist()):
        raise SystemExit(f"{path}: trained on rows that validate here.")
    module = small_image_resnet(told["settings"]["arch"], 20)
    module.load_state_dict(load_file(path.with_suffix(".safetensors")))
    scale = Normalize()
    for name in ("mean", "std"):
        setattr(scale, name, torch.tensor(told[name]).view(3, 1, 1))
    return told, module.eval(), scale


def cifar_backbone(cache: str | None = None, **params: Any) -> FrozenBackbone:
    """The trained ResNet18 with three taps."""
    return FrozenBackbone(
        cifar_resnet18(), TAPS, preprocess=Normalize(), cache=cache, **params
    )


def cifar_splits() -> tuple[Any, Any, PredefinedSplit]:
    """Official train and test parts, and the split that calibrates on `val`."""
    train = load_cifar100_coarse(split="train")
    test = load_cifar100_coarse(split="test")
    fold = np.full(len(train.target), -1)
    fold[train.val] = 0
    return train, test, PredefinedSplit(fold)


def cifar_features(
    cache: str, network: Path | None = None
) -> tuple[dict[str, tuple[Any, Any]], PredefinedSplit]:
    """Features and labels: to train on, of the rows that calibrate, of test; the split.

    Of the trained ResNet18, or of a network that train_backbone.py left.
    """
    train, test, split = cifar_splits()
    backbone = cifar_backbone(str(Path(cache).expanduser()), verbose=1)
    if network is not None:
        _, module, scale = load_network(network, train.val)
        backbone.set_params(module=module, preprocess=scale)
    backbone.fit(train.data)
    features, test_features = (backbone.transform(part.data) for part in (train, test))
    data = {
        "train": (features, train.target),
        "validation": (features[train.val], train.target[train.val]),
        "test": (test_features, test.target),
    }
    return data, split


def environment() -> dict[str, Any]:
    """Day, versions and machine, for the record."""
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "sk_calex": sk_calex.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "cuda": torch.cuda.is_available(),
    }


def write_json(name: str, record: dict[str, Any]) -> Path:
    """Write a record whole or not at all; long runs call it after each step."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
    return path


def read_json(name: str) -> dict[str, Any]:
    """A record written before; empty where there is none."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def spread(values: Any) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    array = np.asarray(values, dtype=float)
    return {
        "median": float(np.median(array)),
        "min": float(array.min()),
        "max": float(array.max()),
        "n": int(array.size),
    }
