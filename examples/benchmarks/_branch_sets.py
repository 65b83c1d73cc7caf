"""Branches that several benchmarks share: two backbones, several settings, seeds.

Each set is trained once and kept beside the feature cache: what its stages say of the
calibration and the test images, and how its training rows were weighted. Benchmarks of
exit rules, of alignment and of uncertainty then train nothing.

To keep it small, branches see 8,000 training images for 6 epochs, with narrow heads:
good for comparing settings with each other, not for the best figures.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from _common import TAPS, Normalize, cifar_resnet18, cifar_splits
from _networks import RESNET32_TAPS, cifar10_backbone, load_cifar10
from numpy.typing import NDArray
from sklearn.model_selection import PredefinedSplit, train_test_split

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    PrototypePoolingClassifier,
    SurvivorAlignment,
    alignment_report,
)
from sk_calex.cascade._costs import depth_prices

TRAINING_ROWS, TEST_ROWS = 8_000, 5_000  # at most, of each backbone's images
EPOCHS = 6
SEEDS = (0, 1, 2)
MARGIN = 0.05  # of the thresholds that make the weights, their default
# Widths of the heads' two layers.
BACKBONES = {"resnet18_cifar100": (32, 48), "resnet32_cifar10": (32, 48)}


@dataclass(frozen=True)
class Setting:
    """What is trained: weights of the rows, targets, head."""

    weights: str = "none"  # none, soft, hard, soft_out_of_fold, hard_out_of_fold
    targets: str = "argmax"  # argmax, labels, soft, soft_alone
    head: str = "conv"  # conv, prototype, linear

    @property
    def name(self) -> str:
        return f"{self.weights}-{self.targets}-{self.head}"

    def cascade(self, widths: tuple[int, ...], **params: Any) -> CascadeClassifier:
        """The estimator, on features."""
        kind = self.weights.removesuffix("_out_of_fold")
        weights: Any = kind
        if kind != self.weights:
            weights = SurvivorAlignment(kind, cross_fit=3)
        shared = {
            "alpha": 1.0 if self.targets == "soft_alone" else 0.5,
            "max_iter": EPOCHS,
            "solver": "adam",
        }
        branch: Any = BranchClassifier("conv", head_params={"widths": widths}, **shared)
        if self.head == "prototype":
            # The trunk of "conv": what prototypes add to it, at 2 to 6 % more MACs.
            branch = PrototypePoolingClassifier(widths=widths, **shared)
        elif self.head == "linear":
            branch = BranchClassifier("sdn", **shared)
        return CascadeClassifier(
            branch=branch,
            alignment=weights,
            targets=self.targets.removesuffix("_alone"),
            margin=MARGIN,
            input="features",
            **params,
        )


# Nothing of CalexNet, all of it, and what differs from either by one component. Most
# asked for first: the first `N_FIRST` are trained for all seeds before the others.
SETTINGS = tuple(
    Setting(*names)
    for names in (
        ("soft", "soft", "conv"),
        ("soft", "soft", "linear"),
        ("soft", "soft", "prototype"),
        ("soft_out_of_fold", "soft", "conv"),
        ("none", "soft", "conv"),
        ("none", "argmax", "conv"),
        ("hard", "argmax", "conv"),
        ("hard", "soft", "conv"),
        ("hard_out_of_fold", "soft", "conv"),
        ("none", "argmax", "linear"),
        ("none", "argmax", "prototype"),
        ("soft", "argmax", "conv"),
        ("none", "labels", "conv"),
        ("none", "soft_alone", "conv"),
    )
)
N_FIRST = 3
# Whose branches other benchmarks take: all rows alike, soft targets.
KEPT = Setting("none", "soft", "conv")


class Part(NamedTuple):
    """Features and labels."""

    X: NDArray[Any]
    y: NDArray[np.int64]


@dataclass
class BackboneData:
    """Features of one backbone: rows that train and calibrate, and those of test."""

    fit: Part
    split: PredefinedSplit
    test: Part
    test_images: NDArray[np.uint8]
    backbone: FrozenBackbone


def load_data(name: str, cache: str) -> BackboneData:
    """Features of a backbone, from the cache where they are there."""
    cache = str(Path(cache).expanduser())
    if name == "resnet32_cifar10":
        parts = load_cifar10()
        train, calibration, test = (
            parts[part] for part in ("train", "calibration", "test")
        )
        backbone = cifar10_backbone(cache, taps=RESNET32_TAPS, verbose=1)
    else:
        known, test, _ = cifar_splits()
        train, calibration = (
            Part(known.data[rows], known.target[rows])
            for rows in (known.train, known.val)
        )
        test = Part(test.data, test.target)
        backbone = FrozenBackbone(
            cifar_resnet18(),
            TAPS,
            preprocess=Normalize(),
            dtype="float16",
            cache=cache,
            verbose=1,
        )
    (images, y), (held, held_y), (test_images, test_y) = train, calibration, test
    test_images, test_y = test_images[:TEST_ROWS], test_y[:TEST_ROWS]
    rows, _ = train_test_split(
        np.arange(len(y)), train_size=TRAINING_ROWS, stratify=y, random_state=0
    )
    rows = np.sort(rows)
    both = np.concatenate([images[rows], held])
    X = backbone.fit(both).transform(both)
    fold = np.r_[np.full(len(rows), -1), np.zeros(len(held), int)]
    return BackboneData(
        Part(X, np.r_[y[rows], held_y]),
        PredefinedSplit(fold),
        Part(backbone.transform(test_images), test_y),
        np.asarray(test_images),
        backbone,
    )


def folder_of(cache: str) -> Path:
    """Where the sets lie: beside the feature cache."""
    folder = Path(cache).expanduser().parent / "branch_sets"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def path_of(cache: str, backbone: str, setting: Setting, seed: int) -> Path:
    """File of one set."""
    return folder_of(cache) / f"{backbone}-{setting.name}-seed{seed}.npz"


def fit(
    cache: str, backbone: str, setting: Setting, seed: int, data: BackboneData
) -> CascadeClassifier:
    """The cascade of one set; trained once, then taken from the folder of fits."""
    cascade = setting.cascade(
        BACKBONES[backbone],
        cv=data.split,
        memory=str(folder_of(cache) / "fits"),
        random_state=seed,
    )
    return cascade.fit(*data.fit)


def train(
    cache: str, backbone: str, setting: Setting, seed: int, data: BackboneData
) -> Path:
    """Train one set, unless it is there, and keep what its stages say."""
    path = path_of(cache, backbone, setting, seed)
    if path.exists():
        return path
    start = time.process_time()
    cascade = fit(cache, backbone, setting, seed, data)
    seconds = time.process_time() - start
    held = data.split.test_fold == 0
    # Its survivors are those at the margin of the weights.
    report = alignment_report(cascade, *data.test)
    arrays = {
        "calibration": cascade.stage_probabilities(data.fit.X[held]),
        "test": cascade.stage_probabilities(data.test.X),
    }
    temporary = path.with_suffix(".part.npz")
    np.savez(
        temporary,
        **{name: proba.astype(np.float32) for name, proba in arrays.items()},
        calibration_y=data.fit.y[held],
        test_y=data.test.y,
        costs=np.divide(*depth_prices(cascade, None)),
        seconds=seconds,
        effective_sample_size=report.effective_sample_size,
        n_survivors=report.n_survivors,
        class_training=report.class_share.training,
        class_survivors=report.class_share.survivors,
        class_unweighted=report.class_share.unweighted,
        **{name: value for name, value in report.items() if name.startswith("tv_")},
    )
    temporary.replace(path)
    return path


class BranchSet(NamedTuple):
    """What the stages of one set say, in float64, and how it was trained."""

    calibration: NDArray[np.float64]  # (n_stages, n_samples, n_classes)
    calibration_y: NDArray[np.int64]
    test: NDArray[np.float64]
    test_y: NDArray[np.int64]
    costs: NDArray[np.float64]  # of each depth, over the backbone's
    training: dict[str, NDArray[np.float64]]


def read(cache: str, backbone: str, setting: Setting, seed: int) -> BranchSet:
    """One set that was trained."""
    with np.load(path_of(cache, backbone, setting, seed)) as file:
        arrays = dict(file)
    parts = []
    for part in ("calibration", "test"):
        proba = arrays.pop(part).astype(np.float64)
        parts += [proba / proba.sum(axis=2, keepdims=True), arrays.pop(f"{part}_y")]
    return BranchSet(*parts, arrays.pop("costs"), arrays)


def settings_record() -> dict[str, Any]:
    """What a record says of the sets."""
    return {
        "training_rows": TRAINING_ROWS,
        "test_rows": TEST_ROWS,
        "epochs": EPOCHS,
        "seeds": SEEDS,
        "taps": {"resnet18_cifar100": TAPS, "resnet32_cifar10": RESNET32_TAPS},
        "widths": BACKBONES,
    }
