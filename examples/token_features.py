"""A transformer as the backbone: taps that give tokens, of shape (length, width).

    python examples/token_features.py

A small vision transformer is trained on scikit-learn's digits: three convolutions make
16 tokens of an image, four layers work on them. It is given as an `nn.Sequential` of
its stages, because torch's own transformer layers cannot be traced by `torch.fx`.
Branches on tokens are the same classes as those on feature maps; their heads pool over
the tokens.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import PredefinedSplit
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    CascadeDisplay,
    FrozenBackbone,
    PrototypePoolingClassifier,
    margin_curve,
)
from sk_calex.datasets import load_digits_images

WIDTH, LENGTH = 64, 16
MARGINS = (0.0, 0.05, 0.2)


class Tokens(nn.Module):
    """Turn images (N, 3, 32, 32) into tokens (N, 16, 64), each with its position."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(*map(halve, (3, 16, 32), (16, 32, WIDTH)))
        self.position = nn.Parameter(torch.zeros(1, LENGTH, WIDTH))

    def forward(self, images):
        return self.embed(images).flatten(2).transpose(1, 2) + self.position


def halve(before, after):
    """Return a convolution that halves the resolution."""
    convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


class Head(nn.Module):
    """Average the tokens and classify the mean."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, tokens):
        return self.out(self.norm(tokens.mean(dim=1)))


def make_transformer():
    layers = [
        nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True, norm_first=True
        )
        for _ in range(4)
    ]
    named = {f"layer{i}": layer for i, layer in enumerate(layers, start=1)}
    return nn.Sequential(OrderedDict(tokens=Tokens(), **named, head=Head()))


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
    module = train_network(X[train], y[train], args)
    backbone = FrozenBackbone(module, ["layer1", "layer2", "layer3"])
    # The network is over-confident on the rows that trained it: others calibrate.
    known = np.r_[train, val]
    held_out = PredefinedSplit(np.where(np.isin(known, val), 0, -1))
    backbone.fit(X[known])
    for tap, shape in zip(backbone.taps, backbone.layout_.shapes, strict=True):
        print(f"{tap}: tokens of shape {shape}")

    epochs = 2 if args.quick else None
    branches = {
        "gap": BranchClassifier("gap", max_iter=epochs),
        "conv1d": BranchClassifier("conv1d", max_iter=epochs),
        "prototype": PrototypePoolingClassifier(widths=(32,), max_iter=epochs),
    }
    ax = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    print("branch     margin  accuracy  FLOPs saved")
    for name, branch in branches.items():
        cascade = CascadeClassifier(
            backbone, branch=branch, cv=held_out, random_state=args.seed
        )
        cascade.fit(X[known], y[known])
        curve = margin_curve(cascade, X[test], y[test], margins=MARGINS)
        for i, margin in enumerate(curve.margins):
            print(
                f"{name:9}  {margin:+6.2f}  {curve.accuracy[i]:8.1%}  "
                f"{curve.flops_reduction[i]:11.1%}"
            )
        CascadeDisplay.from_curve(curve, name=name, ax=ax)
    print(f"The transformer itself: {curve.backbone_accuracy:.1%} right")
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "token_features.png"
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


def train_network(X, y, args):
    """Train the transformer: AdamW under a one-cycle schedule."""
    torch.manual_seed(args.seed)  # initial weights, order of the images
    module = make_transformer()
    X, y = torch.from_numpy(X) / 255, torch.from_numpy(y)
    epochs = 1 if args.quick else 12
    steps = epochs * -(-len(X) // 64)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(64):
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()


if __name__ == "__main__":
    main()
