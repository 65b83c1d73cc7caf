"""A pipeline and a grid search over margins: twenty margins, one training a fold.

    python examples/pipeline_grid_search.py

The backbone is a step of a pipeline that turns images into features; the cascade behind
it is searched by scikit-learn's own GridSearchCV. Accuracy and FLOPs are scored side by
side, and a refit rule takes the cheapest margin that loses at most a point of accuracy.
Margins share their branches, and features are kept in a store.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from torch import nn

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    cheapest_within,
    flops_reduction_scorer,
)
from sk_calex.datasets import load_digits_images

TAPS = ["block1", "block2", "block3"]
MARGINS = np.linspace(0, 0.19, 20).round(2)


class CountedBranch(BranchClassifier):
    """A branch that counts how often any of its kind is trained."""

    trained = 0

    def fit(self, X, y, **params):
        CountedBranch.trained += 1
        return super().fit(X, y, **params)


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
    branch = CountedBranch(
        "conv",
        head_params={"widths": (16, 32)},
        max_iter=2 if args.quick else None,
    )
    CountedBranch.trained = 0
    with tempfile.TemporaryDirectory() as store:
        pipeline = Pipeline(
            [
                ("backbone", FrozenBackbone(module, TAPS, cache=store)),
                (
                    "cascade",
                    CascadeClassifier(
                        input="features", branch=branch, random_state=args.seed
                    ),
                ),
            ]
        )
        search = GridSearchCV(
            pipeline,
            {"cascade__margin": MARGINS[::5] if args.quick else MARGINS},
            scoring={"accuracy": "accuracy", "flops": flops_reduction_scorer},
            refit=cheapest_within(max_accuracy_drop=0.01),
            cv=2 if args.quick else 5,
        )
        # On images that the network was not trained on: see the user guide.
        search.fit(X[val], y[val])
        print_results(search)
        right = (search.predict(X[test]) == y[test]).mean()
        saved = flops_reduction_scorer(search, X[test])
        print(f"On test images: accuracy {right:.1%}, FLOPs saved {saved:.1%}")
        draw(search, args.output)


def draw(search, folder):
    """Draw both scores over the margin, and mark the one that was taken."""
    found = search.cv_results_
    margins = np.asarray(found["param_cascade__margin"], dtype=float)
    ax = Figure(figsize=(6.4, 4), layout="constrained").subplots()
    ax.plot(margins, 100 * found["mean_test_accuracy"], "o-", label="accuracy")
    ax.plot(margins, 100 * found["mean_test_flops"], "s--", label="FLOPs saved")
    ax.axvline(margins[search.best_index_], color="0.5", linestyle=":", label="taken")
    ax.set(xlabel="margin", ylabel="%", title="Means over the folds")
    ax.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pipeline_grid_search.png"
    ax.figure.savefig(path, dpi=100)
    print(f"Picture: {path.name}")


def print_results(search):
    found = search.cv_results_
    margins = found["param_cascade__margin"]
    fits = (len(margins) * search.n_splits_ + 1) * len(TAPS)
    print(f"Branches trained: {CountedBranch.trained}, not {fits}")
    print("margin  accuracy  FLOPs saved     (means over the folds)")
    for i, margin in enumerate(margins):
        mark = "  <- taken" if i == search.best_index_ else ""
        print(
            f"{margin:+6.2f}  {found['mean_test_accuracy'][i]:8.1%}  "
            f"{found['mean_test_flops'][i]:11.1%}{mark}"
        )


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


if __name__ == "__main__":
    main()
