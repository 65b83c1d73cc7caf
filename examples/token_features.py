"""A transformer as the backbone: taps that give tokens, of shape (length, width).

    python examples/token_features.py

A small vision transformer is trained on scikit-learn's digits: three convolutions make
16 tokens of an image, four layers work on them. It is given as an `nn.Sequential` of
its stages, because torch's own transformer layers cannot be traced by `torch.fx`.
Branches on tokens are the same classes as those on feature maps; their heads pool over
the tokens.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from _digits import load, parser, trained
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    PrototypePoolingClassifier,
    margin_curve,
)

WIDTH, LENGTH = 64, 16
MARGINS = (0.0, 0.05, 0.2)


class Tokens(nn.Module):
    """Images (N, 3, 32, 32) to tokens (N, 16, 64), each with its position."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Sequential(*map(halve, (3, 16, 32), (16, 32, WIDTH)))
        self.position = nn.Parameter(torch.zeros(1, LENGTH, WIDTH))

    def forward(self, images):
        return self.embed(images).flatten(2).transpose(1, 2) + self.position


def halve(before, after):
    """A convolution that halves the resolution."""
    convolution = nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU())


class Head(nn.Module):
    """The mean of the tokens, and a linear layer."""

    def __init__(self):
        super().__init__()
        self.norm, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 10)

    def forward(self, tokens):
        return self.out(self.norm(tokens.mean(dim=1)))


def transformer():
    layers = [
        nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0, batch_first=True, norm_first=True
        )
        for _ in range(4)
    ]
    named = {f"layer{i}": layer for i, layer in enumerate(layers, start=1)}
    return nn.Sequential(OrderedDict(tokens=Tokens(), **named, head=Head()))


def main(argv=None):
    args = parser(__doc__).parse_args(argv)
    data = load(args)
    module = trained(transformer, data, args, epochs=12, learning_rate=2e-3)
    backbone = FrozenBackbone(module, ["layer1", "layer2", "layer3"])
    backbone.fit(data.X)
    for tap, shape in zip(backbone.taps, backbone.layout_.shapes, strict=True):
        print(f"{tap}: tokens of shape {shape}")

    epochs = 2 if args.quick else None
    branches = {
        "gap": BranchClassifier("gap", max_iter=epochs),
        "conv1d": BranchClassifier("conv1d", max_iter=epochs),
        "prototype": PrototypePoolingClassifier(widths=(32,), max_iter=epochs),
    }
    print("branch     margin  accuracy  FLOPs saved")
    for name, branch in branches.items():
        cascade = CascadeClassifier(
            backbone, branch=branch, cv=data.held_out, random_state=args.seed
        )
        cascade.fit(data.X, data.y)
        curve = margin_curve(cascade, data.X_test, data.y_test, margins=MARGINS)
        for i, margin in enumerate(curve.margins):
            print(
                f"{name:9}  {margin:+6.2f}  {curve.accuracy[i]:8.1%}  "
                f"{curve.flops_reduction[i]:11.1%}"
            )
    print(f"The transformer itself: {curve.backbone_accuracy:.1%} right")


if __name__ == "__main__":
    main()
