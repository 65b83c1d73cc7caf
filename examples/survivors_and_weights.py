"""Survivors and weights: is a branch trained on what will reach it?

    python examples/survivors_and_weights.py

A later branch sees only what the earlier ones let pass. This compares, branch by
branch, the weighted training rows with the survivors among the test images, for the
three settings of `alignment`; and draws who exits where, which precision the thresholds
were chosen for, and the two distributions side by side.

Survivors are those of each cascade's own operating point, which the automatic margin
chose. The weights are made for the survivors at a margin of 0.05. Where the automatic
one is stricter, more samples get to a branch than its weights expect, and other ones:
so hard weights come out further from the survivors than none. Beside the survivors that
they are made for, `alignment_report(..., at="alignment")`, they do their work.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import PredefinedSplit
from torch import nn

from sk_calex import (
    AlignmentDisplay,
    BranchClassifier,
    CascadeClassifier,
    ExitDepthDisplay,
    FrozenBackbone,
    ThresholdDisplay,
    alignment_report,
    exit_report,
)
from sk_calex.datasets import load_digits_images

TAPS = ["block1", "block2", "block3"]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, hardly trained: a smoke test")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    X, y, train, val, test = load_digits(args)
    backbone = FrozenBackbone(train_network(X[train], y[train], args), TAPS)
    # The network is over-confident on the rows that trained it: others calibrate.
    known = np.r_[train, val]
    held_out = PredefinedSplit(np.where(np.isin(known, val), 0, -1))
    cascades = {
        alignment: CascadeClassifier(
            backbone,
            branch=small_branch(args),
            alignment=alignment,
            cv=held_out,
            random_state=args.seed,
        ).fit(X[known], y[known])
        for alignment in ("soft", "hard", "none")
    }
    print_distances(cascades, X[test], y[test], X[train], y[train])
    print_exits(cascades["soft"], X[test], y[test])
    draw(cascades["soft"], X[test], y[test], args.output)


def print_distances(cascades, X_test, y_test, X_train, y_train):
    """Total-variation distance of the classes: 0 is the same mix, 1 is disjoint."""
    print("               training   worth    survivors   distance  unweighted  chance")
    for name, cascade in cascades.items():
        report = alignment_report(
            cascade, X_test, y_test, X_train=X_train, y_train=y_train
        )
        for k, branch in enumerate(report.branch_names):
            print(
                f"{name:5} {branch:7} {report.n_train:8}  "
                f"{report.effective_sample_size[k]:7.0f}  "
                f"{report.n_survivors[k]:9}  "
                f"{report.tv_class[k]:9.2f}  "
                f"{report.tv_class_unweighted[k]:10.2f}  "
                f"{report.tv_class_noise[k]:6.2f}"
            )


def print_exits(cascade, X_test, y_test):
    report = exit_report(cascade, X_test, y_test)
    print("\nanswered at   share of test images   right")
    for name, share, right in zip(
        report.depth_names, report.depth_share, report.depth_precision, strict=True
    ):
        print(f"{name:12}  {share:20.1%}  {f'{right:.1%}' if share else '-':>6}")


def draw(cascade, X_test, y_test, folder):
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "depths": ExitDepthDisplay.from_estimator(cascade, X_test, y_test),
        "thresholds": ThresholdDisplay.from_estimator(cascade, branch=1),
        "weights": AlignmentDisplay.from_estimator(cascade, X_test, y_test),
    }
    for name, display in pictures.items():
        display.figure_.savefig(folder / f"survivors_{name}.png", dpi=80)
    print("\nPictures:", ", ".join(f"survivors_{name}.png" for name in pictures))


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
