"""Two models as one cascade: a small network before a large one.

    python examples/small_model_first.py

Both networks are trained already, each for itself. One module that calls both makes
them a cascade: the small one's logits are the tap, and what its branch does not answer
goes on to the large one. Nothing in either network changes. Here they are ResNets on
scikit-learn's digits, trained for some seconds; it shows

1. how right each network is alone, and what it costs;
2. the cascade of the two, over margins, beside these two points: it has points between
   them, and above the line that mixing both at random would give;
3. where the images are answered.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from sk_calex import CascadeClassifier, CascadeDisplay, FrozenBackbone, margin_curve
from sk_calex.datasets import load_digits_images

MARGINS = [0.0, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2]


class SmallFirst(nn.Module):
    """A small network, then a large one: two stages of one module.

    The outputs are those of the large network; the small one is called so that it can
    be tapped. Each sees the images as they come.
    """

    def __init__(self, small, large):
        super().__init__()
        self.small, self.large = small, large

    def forward(self, images):
        self.small(images)
        return self.large(images)


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
    torch.manual_seed(args.seed)  # initial weights
    large_width = 8 if args.quick else 24
    small = train_network(make_resnet(6, 1), X[train], y[train], args)
    large = train_network(make_resnet(large_width, 2), X[train], y[train], args)

    # The networks are too sure of the images that trained them: others calibrate.
    known = np.r_[train, val]
    held_out = PredefinedSplit(np.where(np.isin(known, val), 0, -1))
    # On a vector, such as these logits, the default branch is a logistic regression.
    cascade = CascadeClassifier(
        FrozenBackbone(SmallFirst(small, large), taps=["small"]),
        targets="labels",
        margin=0.02,
        cv=held_out,
        random_state=args.seed,
    ).fit(X[known], y[known])

    costs = cascade.layout_.stage_macs
    alone = FrozenBackbone(small, taps=["layer1"]).fit(X[:2])
    right = np.mean(alone.predict(X[test]) == y[test])
    saved = 1 - costs[0] / costs[1]
    curve = margin_curve(cascade, X[test], y[test], margins=MARGINS)
    print(f"large alone  {curve.backbone_accuracy:.1%}  {costs[1] / 1e6:.2f} MMACs")
    print(f"small alone  {right:.1%}  {costs[0] / 1e6:.2f} MMACs, {saved:.1%} less")

    print("margin  accuracy  FLOPs saved against the large one  answered by the small")
    reduction = against_large(curve.flops_reduction, costs)
    for margin, accuracy, less, share in zip(
        curve.margins, curve.accuracy, reduction, curve.depth_share, strict=True
    ):
        print(f"{margin:6.3f}  {accuracy:8.1%}  {less:33.1%}  {share[0]:21.1%}")
    path = draw(curve, reduction, (saved, right), args.output)
    print(f"Picture: {path}")


def against_large(reduction, costs):
    """Saving against the large network alone; the cascade counts it against both."""
    return 1 - (1 - reduction) * sum(costs) / costs[1]


def make_resnet(width, depth):
    """Return a ResNet for images of 32 x 32, of three stages."""
    module = ResNet(BasicBlock, [depth, depth, depth, 1], num_classes=10)
    parts = {"conv1": nn.Conv2d(3, width, 3, padding=1, bias=False)}
    parts["bn1"] = nn.BatchNorm2d(width)
    module.inplanes = width
    for i in range(3):
        layer = module._make_layer(BasicBlock, width * 2**i, depth, stride=2)
        parts[f"layer{i + 1}"] = layer
    parts |= {"layer4": nn.Identity(), "maxpool": nn.Identity()}
    parts["fc"] = nn.Linear(4 * width, 10)
    for name, part in parts.items():
        setattr(module, name, part)
    return module


def load_digits(args):
    """Return images, labels, and the row numbers of the train, val and test parts."""
    if args.quick:
        digits = load_digits_images(noise=0, shift=0, copies=1)
        rows = digits.train[:300], digits.val[:150], digits.test[:100]
    else:
        digits = load_digits_images(noise=(0.0, 0.8), copies=(6, 6, 8))
        rows = digits.train, digits.val, digits.test
    return digits.data, digits.target, *rows


def train_network(module, X, y, args):
    """Train a network: AdamW under a one-cycle schedule."""
    torch.manual_seed(args.seed)  # order of the images
    X, y = torch.from_numpy(X) / 255, torch.from_numpy(y)
    epochs = 1 if args.quick else 5
    steps = epochs * -(-len(X) // 64)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(64):
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def draw(curve, reduction, small, folder):
    """Draw the cascade between its two networks."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    display = CascadeDisplay(
        flops_reduction=reduction,
        accuracy=curve.accuracy,
        backbone_accuracy=curve.backbone_accuracy,
        values=curve.margins,
        value_name="margin",
        name="small, then large",
    )
    display.plot(axes)
    axes.plot(100 * small[0], 100 * small[1], "ks", label="small alone")
    axes.plot(
        [0, 100 * small[0]],
        [100 * curve.backbone_accuracy, 100 * small[1]],
        "k:",
        label="either, at random",
    )
    axes.legend()  # the backbone is the large network alone
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "small_model_first.png", dpi=100)
    return folder / "small_model_first.png"


if __name__ == "__main__":
    main()
