"""What the short examples share: digits as images, and a small network trained on them.

The digits come with scikit-learn, so nothing is downloaded; the network is trained anew
by each example, within seconds.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import PredefinedSplit
from sklearn.utils import Bunch
from torch import nn

from sk_calex import BranchClassifier
from sk_calex.datasets import load_digits_images

TAPS = ["block1", "block2", "block3"]


def parser(doc: str) -> argparse.ArgumentParser:
    """The options that every example has."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, hardly trained: a smoke test")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    return parser


def load(args: argparse.Namespace, noise: tuple[float, float] = (0, 0.7)) -> Bunch:
    """Noisy digits: the rows that a cascade may know, which of them calibrate, test."""
    if args.quick:
        digits = load_digits_images(noise=0, shift=0, copies=1)
    else:
        digits = load_digits_images(noise=noise, copies=(3, 4, 2))
    train, val, test = digits.train, digits.val, digits.test
    if args.quick:
        train, val, test = train[:300], val[:150], test[:100]
    known = np.r_[train, val]
    return Bunch(
        X=digits.data[known],
        y=digits.target[known],
        # The network is over-confident on the rows that trained it: others calibrate.
        held_out=PredefinedSplit(np.r_[np.full(len(train), -1), np.zeros(len(val))]),
        X_train=digits.data[train],
        y_train=digits.target[train],
        X_val=digits.data[val],
        y_val=digits.target[val],
        X_test=digits.data[test],
        y_test=digits.target[test],
    )


def network(widths: tuple[int, ...]) -> nn.Sequential:
    """Blocks of two convolutions, block1, block2, ..., and a linear classifier."""
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


def trained_network(data: Bunch, args: argparse.Namespace) -> nn.Module:
    """The network above, trained."""
    widths = (8, 16, 32, 32) if args.quick else (16, 32, 64, 128)
    return trained(lambda: network(widths), data, args)


def trained(
    make: Callable[[], nn.Module],
    data: Bunch,
    args: argparse.Namespace,
    *,
    epochs: int = 4,
    learning_rate: float = 3e-3,
) -> nn.Module:
    """A classifier trained on the training digits: AdamW under a one-cycle schedule."""
    torch.manual_seed(args.seed)  # initial weights, order of the images
    module = make()
    X = torch.from_numpy(data.X_train) / 255
    y = torch.from_numpy(data.y_train)
    steps = (1 if args.quick else epochs) * -(-len(X) // 64)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps
    )
    module.train()
    while schedule.last_epoch < steps:
        for rows in torch.randperm(len(X)).split(64):
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def small_branch(args: argparse.Namespace) -> BranchClassifier:
    """A branch that fits so small a network; the default is made for a ResNet-18."""
    if args.quick:
        return BranchClassifier("gap", max_iter=2)
    return BranchClassifier("conv", head_params={"widths": (16, 32)})
