"""A model of timm as the backbone: which names to tap, which preprocessing to give.

    pip install timm
    python examples/timm_model.py

Any architecture of timm will do. Its weights are not downloaded here: a small ResNet
is trained on scikit-learn's digits for some seconds.
For a pretrained one, `timm.create_model(name, pretrained=True)`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torchvision.transforms import v2

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    CascadeDisplay,
    FrozenBackbone,
    margin_curve,
)
from sk_calex.datasets import load_digits_images

try:
    import timm
except ImportError:
    sys.exit(
        "This example needs timm, which sk_calex itself does not: pip install timm"
    )

MARGINS = (0.0, 0.05, 0.1, 0.2)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, hardly trained: a smoke test")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    add("--model", default="resnet10t", help="of timm.list_models()")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    X, y, train, val, test = load_digits(args)
    module = train_network(X[train], y[train], args)

    # feature_info names the modules at which the resolution changes: good places.
    names = [place["module"] for place in module.feature_info]
    taps = names[1:-1]
    print(f"{args.model} offers {names}; tapped: {taps}")

    # How the weights want their images. Trained here, these want them as they are.
    wanted = timm.data.resolve_model_data_config(module)
    print(f"A pretrained one wants mean={wanted['mean']}, std={wanted['std']}")
    preprocess = v2.ToDtype(torch.float32, scale=True)

    # The network is over-confident on the rows that trained it: others calibrate.
    known = np.r_[train, val]
    held_out = PredefinedSplit(np.where(np.isin(known, val), 0, -1))
    cascade = CascadeClassifier(
        FrozenBackbone(module, taps, preprocess=preprocess),
        branch=small_branch(args),
        cv=held_out,
        random_state=args.seed,
    )
    cascade.fit(X[known], y[known])
    curve = margin_curve(cascade, X[test], y[test], margins=MARGINS)
    print(f"Plain model: {curve.backbone_accuracy:.1%} right")
    print("margin  accuracy  FLOPs saved")
    for margin, accuracy, saved in zip(
        curve.margins, curve.accuracy, curve.flops_reduction, strict=True
    ):
        print(f"{margin:+6.2f}  {accuracy:8.1%}  {saved:11.1%}")
    draw(curve, args)


def draw(curve, args):
    """Draw accuracy against FLOPs saved, a point for each margin."""
    ax = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    CascadeDisplay.from_curve(curve, name=args.model, ax=ax)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "timm_model.png"
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
    """Train a model of timm: AdamW under a one-cycle schedule."""
    torch.manual_seed(args.seed)  # initial weights, order of the images
    module = timm.create_model(args.model, num_classes=10)
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
