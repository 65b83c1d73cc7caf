"""A budget instead of a margin: say what may be lost, or what must be saved.

    python examples/budgeted_margin.py

MarginSearchCV measures all operating points out of fold and takes the cheapest one that
loses at most so much accuracy, or the most accurate one that saves at least so many
FLOPs; with one margin for all branches or one for each. Branches are trained once a
fold, whatever the number of points.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    CascadeDisplay,
    FrozenBackbone,
    MarginSearchCV,
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
    module = train_network(X[train], y[train], args)
    cascade = CascadeClassifier(
        FrozenBackbone(module, TAPS),
        branch=small_branch(args),
        random_state=args.seed,
    )
    budget = 0.05 if args.quick else 0.6
    questions = {
        "lose 1 point at most": {"max_accuracy_drop": 0.01},
        "the same, margins by branch": {"max_accuracy_drop": 0.01, "per_branch": True},
        f"save {budget:.0%} at least": {"flops_budget": budget},
    }
    print("                               out of fold         on test images")
    print(
        "                               accuracy   saved    accuracy   saved   margin"
    )
    searches = []
    for question, constraint in questions.items():
        search = MarginSearchCV(cascade, cv=2 if args.quick else 5, **constraint)
        # On images that the network was not trained on: see the user guide.
        search.fit(X[val], y[val])
        searches.append(search)
        margins = search.best_margin_
        margins = margins if isinstance(margins, tuple) else (margins,)
        print(
            f"{question:29}  {search.best_score_:8.1%}  "
            f"{search.best_flops_reduction_:6.1%}  "
            f"{search.score(X[test], y[test]):10.1%}  "
            f"{search.flops_reduction(X[test]):6.1%}   "
            + ", ".join(f"{margin:+.2f}" for margin in margins)
        )
    plain = search.best_estimator_.backbone_.predict(X[test])
    print(f"{'plain network':29}  {search.backbone_accuracy_:8.1%}  {0:6.1%}", end="")
    print(f"  {(plain == y[test]).mean():10.1%}  {0:6.1%}")
    draw(searches[0], args.output)


def draw(search, folder):
    """All points that were measured, with their spread over the folds."""
    ax = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    CascadeDisplay.from_cv_results(
        search.cv_results_, best_index=search.best_index_, name="out of fold", ax=ax
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "budgeted_margin.png"
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
