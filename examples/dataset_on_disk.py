"""Images that stay on disk: a torch Dataset or a list of paths, and a feature store.

    python examples/dataset_on_disk.py

writes scikit-learn's digits as PNG files, a folder for each class, and fits a cascade
on them without ever holding all images. The features of an image are computed once and
kept in a store: a second fit, another margin or a grid search reads them from there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import PILToTensor

from sk_calex import BranchClassifier, CascadeClassifier, FeatureStore, FrozenBackbone
from sk_calex.datasets import load_digits_images

TAPS = ["block1", "block2", "block3"]


def write_images(images, labels, folder, names):
    """Write PNG files into a folder for each class, as ImageFolder wants them."""
    for image, label, name in zip(images, labels, names, strict=True):
        path = folder / str(label) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(path)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, hardly trained: a smoke test")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        fit_from_disk(Path(folder), args)


def fit_from_disk(folder, args):
    X, y, train, val, test_rows = load_digits(args)
    module = train_network(X[train], y[train], args)
    # The name of a file says whether its image chooses the thresholds.
    known_rows = np.r_[train, val]
    held = np.isin(known_rows, val)
    names = [f"{'val' if h else 'train'}{i}" for i, h in enumerate(held)]
    write_images(X[known_rows], y[known_rows], folder / "known", names)
    write_images(X[test_rows], y[test_rows], folder / "test", range(len(test_rows)))

    # A map-style Dataset: its items are (image, label), of which the image is taken.
    known = ImageFolder(folder / "known", transform=PILToTensor())
    test = ImageFolder(folder / "test", transform=PILToTensor())
    calibrate = [Path(path).name.startswith("val") for path, _ in known.samples]
    print(f"{len(known)} files to learn from, {len(test)} to test")

    store = FeatureStore(folder / "store")
    cascade = CascadeClassifier(
        FrozenBackbone(module, TAPS, dtype="float16", cache=store),
        branch=small_branch(args),
        cv=PredefinedSplit(np.where(calibrate, 0, -1)),
        random_state=args.seed,
    )
    print("                                rows computed  rows read")
    steps = {}
    cascade.fit(known, known.targets)
    steps["fit on the Dataset"] = rows_since(store, steps)
    cascade.fit(known, known.targets)
    steps["the same again"] = rows_since(store, steps)

    # Paths do without a Dataset. Their rows are found by the bytes of the files, so
    # they are computed anew once, and nothing is decoded to look them up.
    paths = [Path(path) for path, _ in known.samples]
    cascade.fit(paths, known.targets)
    steps["fit on paths"] = rows_since(store, steps)
    cascade.fit(paths[::-1], known.targets[::-1])
    steps["the same, in another order"] = rows_since(store, steps)
    for what, (computed, read) in steps.items():
        print(f"{what:30}  {computed:13}  {read:9}")

    answers, depth = cascade.predict([path for path, _ in test.samples], True)
    print(f"accuracy {np.mean(answers == test.targets):.1%}, ", end="")
    print(f"FLOPs saved {cascade.flops_reduction(test):.1%}, ", end="")
    shares = np.bincount(depth, minlength=4) / len(depth)
    print("answered at", ", ".join(f"{share:.0%}" for share in shares))
    draw(steps, args.output)


def rows_since(store, steps):
    """Return how many rows were computed, and read, after the steps before."""
    before = np.sum([*steps.values(), (0, 0)], axis=0)
    info = store.info()
    return tuple(np.array([info["misses"], info["hits"]]) - before)


def draw(steps, folder):
    """Draw how many rows each step computed and read."""
    ax = Figure(figsize=(6.4, 3), layout="constrained").subplots()
    computed, read = np.array([*steps.values()]).T
    ax.barh([*steps], computed, label="rows computed")
    ax.barh([*steps], read, left=computed, hatch="//", label="rows read", alpha=0.6)
    ax.invert_yaxis()
    ax.set(xlabel="rows", title="What a fit computes, and reads from the store")
    ax.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dataset_on_disk.png"
    ax.figure.savefig(path, dpi=100)
    print(f"Picture: {path.name}")


def load_digits(args):
    """Return images, labels, and the row numbers of the train, val and test parts."""
    if args.quick:
        digits = load_digits_images(noise=0, shift=0, copies=1)
        rows = digits.train[:300], digits.val[:150], digits.test[:100]
    else:
        digits = load_digits_images(copies=(3, 4, 2))
        rows = digits.train, digits.val, digits.test
    return digits.data, digits.target, *rows


def make_network(widths):
    """Return blocks of two convolutions, and a linear classifier of ten classes."""
    parts = OrderedDict()
    for i, (before, after) in enumerate(zip((3, *widths), widths, strict=False), 1):
        parts[f"block{i}"] = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=1 + (i > 1), padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
        )
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["out"] = nn.Linear(widths[-1], 10)
    return nn.Sequential(parts)


def train_network(X, y, args):
    """Train the network above: AdamW under a one-cycle schedule."""
    torch.manual_seed(args.seed)  # initial weights, order of the images
    widths = (8, 16, 32, 32) if args.quick else (16, 32, 64, 128)
    module = make_network(widths)
    X, y = torch.from_numpy(X) / 255, torch.from_numpy(y)
    epochs = 1 if args.quick else 4
    steps = epochs * -(-len(X) // 64)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(64):
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def small_branch(args):
    """Return a branch for so small a network; the default is made for a ResNet-18."""
    if args.quick:
        return BranchClassifier("gap", max_iter=2)
    return BranchClassifier("conv", head_params={"widths": (16, 32)})


if __name__ == "__main__":
    main()
