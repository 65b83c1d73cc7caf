"""The tasks of front.py: features to train and calibrate on, and a sealed test set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from _common import Normalize, cifar_resnet18, cifar_splits, load_network
from _networks import (
    EFFICIENTNET_TAPS,
    RESNET32_TAPS,
    EnlargedScale,
    ImageNetScale,
    cifar10_backbone,
    cifar10_resnet32,
    efficientnet_lite0,
    load_cifar10,
)
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sk_calex import FrozenBackbone

BLOCKS = ("layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1")
RESNET50_BLOCKS = (
    "layer1.0",
    "layer1.2",
    "layer2.1",
    "layer2.3",
    "layer3.2",
    "layer3.4",
)
TRANSFER_ROWS = {"train": 4_000, "calibration": 1_000}
EFFICIENTNET_ROWS = {"train": 20_000}  # all of the others calibrate
EFFICIENTNET_C = 0.001  # chosen on the calibration rows, of 1, 0.1, 0.01 and 0.001


class TestLabels:
    """Labels of the test set, which nobody reads before the points are frozen.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        The labels.
    """

    __test__ = False  # no test of pytest's

    def __init__(self, labels: NDArray[Any]) -> None:
        self._labels = labels
        self._frozen: str | None = None

    def __len__(self) -> int:
        return len(self._labels)

    def freeze(self, points: str) -> None:
        """Say which operating points were chosen, as text; it cannot change later."""
        if self._frozen is not None and points != self._frozen:
            raise RuntimeError("other operating points were frozen before.")
        self._frozen = points

    def read(self) -> NDArray[Any]:
        """Return the labels, once the points are frozen."""
        if self._frozen is None:
            raise RuntimeError(
                "the test labels were asked for before the operating points were "
                "chosen. Call freeze(points) first."
            )
        return self._labels


@dataclass
class Task:
    """Features of one backbone on one data set.

    Parameters
    ----------
    X, y
        Features and class codes of the rows that train and of those that calibrate.
    split
        Which of them calibrate.
    test_X, test_y
        Features of the test set, and its class codes under seal.
    final_estimator
        What answers in place of the backbone's classifier, if anything does.
    settings
        What a record says of the task.
    views
        Computes the features of changed images of the rows that train: takes which of
        these rows, and a function of images.
    """

    X: NDArray[Any]
    y: NDArray[np.int64]
    split: PredefinedSplit
    test_X: NDArray[Any]
    test_y: TestLabels
    final_estimator: Any = None
    settings: dict[str, Any] = field(default_factory=dict)
    views: Callable[[NDArray[np.intp], Callable[[Any], Any]], Any] | None = None

    @property
    def training(self) -> NDArray[np.intp]:
        """Rows that train."""
        return np.flatnonzero(self.split.test_fold == -1)

    @property
    def calibration(self) -> NDArray[np.intp]:
        """Rows that calibrate."""
        return np.flatnonzero(self.split.test_fold == 0)

    def save_labels(self, path: Path) -> None:
        """Write the class codes of the calibration rows and of the test set."""
        calibration = self.y[self.calibration]
        np.savez(path, calibration=calibration, test=self.test_y._labels)


def make_task(
    backbone: FrozenBackbone,
    train: tuple[Any, Any],
    calibration: tuple[Any, Any],
    test: tuple[Any, Any],
    **params: Any,
) -> Task:
    """Extract the features of all parts, from the cache where they are there."""
    images = np.concatenate([train[0], calibration[0]])
    classes, y = np.unique(np.r_[train[1], calibration[1]], return_inverse=True)
    fold = np.r_[np.full(len(train[1]), -1), np.zeros(len(calibration[1]), int)]
    X = backbone.fit(images[:256]).transform(images)
    settings = {
        "taps": list(backbone.layout_.names),
        "tap_shapes": [list(shape) for shape in backbone.layout_.shapes],
        "stage_mmacs": [macs / 1e6 for macs in backbone.layout_.stage_macs],
        "rows": {
            "train": len(train[1]),
            "calibration": len(calibration[1]),
            "test": len(test[1]),
        },
    }
    return Task(
        X,
        y,
        PredefinedSplit(fold),
        backbone.transform(test[0]),
        TestLabels(np.searchsorted(classes, test[1])),
        settings=settings,
        views=lambda rows, change: backbone.transform(change(images[rows])),
        **params,
    )


def resnet18_cifar100(cache: str) -> Task:
    """The trained ResNet18, on CIFAR-100 with 20 coarse classes."""
    return _cifar100(cache, cifar_resnet18(), Normalize(), BLOCKS)


def trained_network(
    cache: str, weights: Path | None, taps: tuple[str, ...] = BLOCKS
) -> Task:
    """A network that train_backbone.py left, on CIFAR-100 with 20 coarse classes."""
    if weights is None:
        raise FileNotFoundError(
            "this task needs the JSON that train_backbone.py leaves: "
            "--weights NAME=PATH."
        )
    told, module, scale = load_network(weights, cifar_splits()[0].val)
    task = _cifar100(cache, module, scale, taps)
    task.settings["network"] = {
        key: told[key] for key in ("settings", "seconds", "accuracy")
    }
    return task


def _cifar100(
    cache: str, module: nn.Module, scale: nn.Module, taps: tuple[str, ...]
) -> Task:
    known, test, _ = cifar_splits()
    backbone = _backbone(cache, module, scale, taps)
    train, held = (
        (known.data[rows], known.target[rows]) for rows in (known.train, known.val)
    )
    return make_task(backbone, train, held, (test.data, test.target))


def resnet32_cifar10(cache: str) -> Task:
    """The public ResNet-32 on CIFAR-10."""
    parts = load_cifar10()
    backbone = cifar10_backbone(cache, verbose=1)
    return make_task(backbone, parts["train"], parts["calibration"], parts["test"])


def transfer(cache: str) -> Task:
    """ResNet-32's features of CIFAR-100 with 20 coarse classes, from few rows."""
    module = cifar10_resnet32()
    module.linear = nn.Identity()  # its outputs are the 64 pooled features
    backbone = _backbone(cache, module, ImageNetScale(), RESNET32_TAPS)
    return _with_final_estimator(backbone, TRANSFER_ROWS, C=1.0)


def efficientnet_cifar100(cache: str) -> Task:
    """EfficientNet-Lite0, trained on ImageNet, for CIFAR-100 with 20 coarse classes."""
    module = efficientnet_lite0()
    backbone = _backbone(cache, module, EnlargedScale(), EFFICIENTNET_TAPS)
    return _with_final_estimator(backbone, EFFICIENTNET_ROWS, C=EFFICIENTNET_C)


def _backbone(
    cache: str, module: nn.Module, scale: nn.Module, taps: tuple[str, ...]
) -> FrozenBackbone:
    return FrozenBackbone(
        module, taps, preprocess=scale, dtype="float16", cache=cache, verbose=1
    )


def _with_final_estimator(
    backbone: FrozenBackbone, sizes: Mapping[str, int], C: float
) -> Task:
    """A task on part of CIFAR-100 coarse, and a logistic regression as last stage."""
    known, test, _ = cifar_splits()
    parts = []
    for name, rows in (("train", known.train), ("calibration", known.val)):
        if name in sizes:
            rows, _ = train_test_split(
                rows,
                train_size=sizes[name],
                stratify=known.target[rows],
                random_state=0,
            )
        parts.append((known.data[rows], known.target[rows]))
    last = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000))
    return make_task(backbone, *parts, (test.data, test.target), final_estimator=last)


#: Tasks by name. "long" is one of them with wider heads, trained for longer.
TASKS: Mapping[str, Callable[..., Task]] = {
    "resnet18_cifar100": resnet18_cifar100,
    "resnet18_cifar100_long": resnet18_cifar100,
    "resnet32_cifar10": resnet32_cifar10,
    "transfer": transfer,
    "efficientnet_cifar100": efficientnet_cifar100,
}
WEIGHTED_TASKS: Mapping[str, tuple[str, ...]] = {
    "resnet18_40_epochs": BLOCKS,
    "resnet50": RESNET50_BLOCKS,
}


def load_task(name: str, cache: str, weights: Path | None = None) -> Task:
    """Return the task of a name."""
    cache = str(Path(cache).expanduser())
    if name in WEIGHTED_TASKS:
        return trained_network(cache, weights, WEIGHTED_TASKS[name])
    return TASKS[name](cache)
