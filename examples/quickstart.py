"""Quickstart: a frozen network that stops early on easy images.

    python examples/quickstart.py

takes less than a minute on two cores and downloads nothing. It

1. makes images: scikit-learn's digits, moved about and covered with noise, from none
   to very much;
2. trains a small ResNet on them, the network that we want to make cheaper;
3. freezes it and fits a cascade: a small branch after each of its first three stages
   learns when it may answer in place of the rest;
4. measures on 10,350 new images what that saves and what it costs, draws it, and
   certifies on 450 others what will be lost at most.
"""

from __future__ import annotations

import argparse
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torchvision.models.resnet import BasicBlock
from tqdm import tqdm

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    CascadeDisplay,
    ExitRiskController,
    FrozenBackbone,
    margin_curve,
)
from sk_calex.datasets import load_digits_images

TAPS = ["stage1", "stage2", "stage3"]
MARGINS = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, tiny network: a smoke test")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    args = parser.parse_args(argv)
    start = time.perf_counter()
    print("A network that stops early on easy images: under a minute on two cores.\n")

    copies = (1, 1, 2) if args.quick else (6, 6, 24)
    digits = load_digits_images(noise=(0.0, 0.8), copies=copies)
    X, y = digits.data, digits.target
    train, val = digits.train, digits.val
    # A certificate takes independent images: one of each digit, kept apart.
    certify, test = np.split(digits.test, [len(digits.test) // copies[2]])
    print(f"[1/4] {len(train):,} images to train on, {len(val):,} to choose when the")
    print(f"      branches may answer, {len(test):,} new ones to measure on.")

    print("[2/4] Training a small ResNet ...")
    module = train_network(X[train], y[train], args)

    print("[3/4] Freezing it; fitting three branches that may answer early ...")
    # The network is too sure of the images that trained it: others set the thresholds.
    known = np.concatenate([train, val])
    held_out = PredefinedSplit(np.where(np.isin(known, val), 0, -1))
    # The default branch is made for a ResNet-18; so small a network has a smaller one.
    branch = BranchClassifier("conv", head_params={"widths": (16, 32)})
    if args.quick:
        branch.set_params(max_iter=2)
    cascade = CascadeClassifier(
        FrozenBackbone(module, TAPS),
        branch=branch,
        cv=held_out,
        random_state=args.seed,
        verbose=1,
    ).fit(X[known], y[known])

    print(f"[4/4] Measuring on {len(test):,} new images ...\n")
    cascade.set_params(verbose=0)
    plain, answers, depth, faster = time_both(module, cascade, X[test])
    curve = margin_curve(cascade, X[test], y[test], margins=MARGINS)
    print_curve(curve)
    lost, error = mean_and_error(
        (plain == y[test]).astype(float) - (answers == y[test]), digits.source[test]
    )
    saved = cascade.flops_reduction(X[test])
    before, after = (np.mean(given == y[test]) for given in (plain, answers))
    nothing = np.isnan(cascade.margin_)
    found = "that nothing exits" if nothing else f"a margin of {cascade.margin_:.2g}"
    change = f"{'loses' if lost >= 0 else 'gains'} {abs(100 * lost):.1f}"
    print(
        f"\nThe default, half a point of accuracy at most, is {found}.\nThe cascade "
        f"saves {saved:.0%} of the compute and is {faster:.1f} times as fast here. It\n"
        f"{change} ± {200 * error:.1f} points of accuracy: the network has "
        f"{before:.1%} of the new images right,\nthe cascade {after:.1%}."
    )
    promise = 0.5 if args.quick else 0.02
    safe = ExitRiskController(cascade, max_risk=promise).fit(X[certify], y[certify])
    print(
        f"\nCertified on {len(certify)} images of digits that it has never seen: with "
        f"{safe.confidence_level:.0%} confidence\nat most {100 * promise:g} points are "
        f"lost at a margin of {safe.best_margin_:.2g}, which saves about "
        f"{safe.best_flops_reduction_:.0%}."
    )
    path = args.output / "quickstart.png"
    draw(curve, answers == y[test], depth, X[test], digits.source[test], path)
    print(f"\nPicture: {path}")
    print("Next: docs/quickstart.md builds this step by step; README.md does it with a")
    print("torchvision model; docs/examples has one script for each question.")
    print(f"({time.perf_counter() - start:.0f} s)")


def make_network(widths):
    """Return a ResNet whose last stage has most of the layers, and of the cost."""
    first = widths[0]
    parts = OrderedDict(
        stem=nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
        )
    )
    for i, width in enumerate(widths[1:], start=1):
        shortcut = nn.Sequential(
            nn.Conv2d(first, width, 1, stride=2, bias=False), nn.BatchNorm2d(width)
        )
        parts[f"stage{i}"] = BasicBlock(first, width, stride=2, downsample=shortcut)
        first = width
    parts["stage4"] = nn.Sequential(BasicBlock(first, first), BasicBlock(first, first))
    parts["pool"] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    parts["classify"] = nn.Linear(first, 10)
    return nn.Sequential(parts)


def train_network(X, y, args):
    """Train the network above: AdamW under a one-cycle schedule."""
    torch.manual_seed(args.seed)  # initial weights, order of the images
    module = make_network((8, 8, 8, 8) if args.quick else (16, 32, 64, 128))
    module.to(memory_format=torch.channels_last)  # trains faster on CPUs
    X, y = torch.from_numpy(X) / 255, torch.from_numpy(y)
    epochs = 1 if args.quick else 5
    steps = epochs * -(-len(X) // 64)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    module.train()
    with tqdm(total=steps, unit="batch", mininterval=0.5) as bar:
        for _ in range(epochs):
            for rows in torch.randperm(len(X)).split(64):
                loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return module.eval()


def time_both(module, cascade, X):
    """Return the answers of both, the depths, and how many times as fast it was.

    They take turns, batch by batch: what else runs here slows both alike.
    """
    plain, early, seconds = [], [], []
    for i in range(0, len(X), 256):
        batch, start = X[i : i + 256], time.perf_counter()
        with torch.inference_mode():
            plain.append(module(torch.from_numpy(batch) / 255).argmax(dim=1))
        between = time.perf_counter()
        early.append(cascade.predict(batch, return_depth=True))
        seconds.append((between - start, time.perf_counter() - between))
    of_network, of_cascade = np.sum(seconds[1:], axis=0)  # the first warms both up
    answers, depth = np.concatenate(early, axis=1)
    return torch.cat(plain).numpy(), answers, depth, of_network / of_cascade


def mean_and_error(values, source):
    """Return the mean and its standard error.

    The images are noisy copies of 450 digits, and copies of one digit are alike: the
    error is that of 450 independent means, not of 10,350 independent images.
    """
    digits, row = np.unique(source, return_inverse=True)
    means = np.bincount(row, values) / np.bincount(row)
    return means.mean(), means.std(ddof=1) / np.sqrt(len(digits))


def print_curve(curve):
    print(
        "margin   accuracy   compute saved   answered at stage 1, 2, 3, whole network"
    )
    print(f"network  {curve.backbone_accuracy:8.1%}   {0:13.0%}")
    for i, margin in enumerate(curve.margins):
        shares = " ".join(f"{share:5.0%}" for share in curve.depth_share[i])
        print(
            f"{margin:<7g}  {curve.accuracy[i]:8.1%}   "
            f"{curve.flops_reduction[i]:13.0%}   {shares}"
        )


def draw(curve, right_answers, depth, X, source, path):
    """Draw the curve, and some of the images that each depth answers."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.1, 1])
    # As many independent images as would have the error that our copies have.
    accuracy, error = mean_and_error(right_answers, source)
    curve.n_samples = accuracy * (1 - accuracy) / error**2
    CascadeDisplay.from_curve(curve, name="cascade", ax=left)

    right.suptitle("Which images are answered where", fontsize="medium")
    axes = right.subplots(len(TAPS) + 1, 8, squeeze=False)
    rng = np.random.default_rng(0)
    for k, row in enumerate(axes):
        rows = np.flatnonzero(depth == k)
        shown = rng.permutation(rows)[: len(row)]
        for ax in row:
            ax.set_axis_off()
        for ax, i in zip(row, shown, strict=False):
            ax.imshow(X[i, 0], cmap="gray", vmin=0, vmax=255)
        where = f"stage {k + 1}" if k < len(TAPS) else "the end"
        row[0].set_title(
            f"at {where}: {len(rows) / len(depth):.0%}", loc="left", fontsize="small"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
