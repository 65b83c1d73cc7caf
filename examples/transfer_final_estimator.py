"""A new task for a pretrained ImageNet backbone: the last stage is a final estimator.

    python examples/transfer_final_estimator.py

The network has never seen the classes, so a logistic regression on its last features
answers in its place, and the branches imitate that. The weights are torchvision's where
they lie in torch's cache, which they do once you have run

    torchvision.models.resnet18(weights="DEFAULT")

Nothing is downloaded here. Without them the network keeps its random weights: the use
is the same, but the accuracies then say nothing of transfer. Branches, whose
convolutions are trained, beat the end of a network that never was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.transforms import v2

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    ExitDepthDisplay,
    FrozenBackbone,
    margin_curve,
)
from sk_calex.datasets import load_digits_images

TAPS = ["layer1", "layer2", "layer3"]
MARGINS = (0.0, 0.05, 0.2)
NORMALISE = v2.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def imagenet_resnet18(seed):
    """Return ResNet-18 without its classifier; pretrained where that needs no net."""
    weights = ResNet18_Weights.DEFAULT
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    torch.manual_seed(seed)
    module = resnet18(weights=weights if kept.is_file() else None)
    module.fc = nn.Identity()  # 512 features instead of 1000 ImageNet classes
    return module, kept.is_file()


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
    module, pretrained = imagenet_resnet18(args.seed)
    print("Weights:", "ImageNet" if pretrained else "random (ImageNet's are not here)")

    # As in pretraining, but for the size: 64 pixels are enough for a digit.
    size = v2.Resize(32 if args.quick else 64)
    preprocess = v2.Compose([size, v2.ToDtype(torch.float32, scale=True), NORMALISE])
    known = np.r_[train, val]
    held_out = PredefinedSplit(np.where(np.isin(known, val), 0, -1))
    cascade = CascadeClassifier(
        FrozenBackbone(module, TAPS, preprocess=preprocess),
        branch=small_branch(args),
        final_estimator=LogisticRegression(max_iter=1000),
        cv=held_out,
        random_state=args.seed,
    )
    cascade.fit(X[known], y[known])

    curve = margin_curve(cascade, X[test], y[test], margins=MARGINS)
    print(f"Whole network and final estimator: {curve.backbone_accuracy:.1%} right")
    print("margin  accuracy  FLOPs saved  answered at layer1, layer2, layer3, end")
    for i, margin in enumerate(curve.margins):
        shares = " ".join(f"{share:6.1%}" for share in curve.depth_share[i])
        print(
            f"{margin:+6.2f}  {curve.accuracy[i]:8.1%}  "
            f"{curve.flops_reduction[i]:11.1%}  {shares}"
        )
    draw(cascade, X[test], y[test], args)


def draw(cascade, X, y, args):
    """Draw at which depth the digits are answered, class by class."""
    ax = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    ExitDepthDisplay.from_estimator(cascade, X, y, ax=ax)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "transfer_final_estimator.png"
    ax.figure.savefig(path, dpi=100)
    print(f"Picture: {path.name}")


def load_digits(args):
    """Return images, labels, and the row numbers of the train, val and test parts."""
    if args.quick:
        digits = load_digits_images(noise=0, shift=0, copies=1)
        rows = digits.train[:300], digits.val[:150], digits.test[:100]
    else:
        digits = load_digits_images(noise=(0, 0.3), copies=(3, 4, 2))
        rows = digits.train, digits.val, digits.test
    return digits.data, digits.target, *rows


def small_branch(args):
    """Return a branch for so small a network; the default is made for a ResNet-18."""
    if args.quick:
        return BranchClassifier("gap", max_iter=2)
    return BranchClassifier("conv", head_params={"widths": (16, 32)})


if __name__ == "__main__":
    main()
