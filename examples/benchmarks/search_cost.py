"""What a grid search over 20 margins costs, against one over a single margin.

Clones of a cascade share what they train, and score from what the stages said once, so
a margin more should cost a calibration and no training. Both searches have the same
folds, the same two metrics and a refit; they are run in turn, in one process with one
thread: processor time then says what was computed, also on a busy machine. On digits a
search over two training settings is run as well, to see that what must be trained is.
What a margin more does cost is a digest of the data: it counts where training is cheap.

    OMP_NUM_THREADS=1 python examples/benchmarks/search_cost.py
    OMP_NUM_THREADS=1 python examples/benchmarks/search_cost.py --data cifar100 \
        --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
import time
from collections import OrderedDict

import numpy as np
import torch
from _common import (
    cifar_backbone,
    cifar_splits,
    environment,
    read_json,
    spread,
    write_json,
)
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from torch import nn
from torchvision.models.resnet import BasicBlock

from sk_calex import (
    CascadeClassifier,
    FrozenBackbone,
    MarginSearchCV,
    PrototypePoolingClassifier,
    cheapest_within,
    flops_reduction_scorer,
)
from sk_calex.branches import _base as branch_base
from sk_calex.datasets import load_digits_images

MARGINS = np.linspace(-0.45, 0.5, 20).round(2).tolist()
SCORING = {"accuracy": "accuracy", "flops": flops_reduction_scorer}
FOLDS = 5


def digits(args):
    """Hard digits and a small ResNet that was trained on others of them."""
    data = load_digits_images()
    torch.manual_seed(args.seed)
    module = small_resnet((16, 32, 64, 128), n_classes=10)
    seen = data.train[: len(data.train) // 2]
    X = torch.from_numpy(data.data[seen]) / 255
    train(module, X, torch.from_numpy(data.target[seen]), epochs=args.epochs)
    rows = np.setdiff1d(data.train, seen)[: args.rows]
    backbone = FrozenBackbone(module.eval(), ["layer1", "layer2", "layer3"])
    branch = PrototypePoolingClassifier(widths=(32, 64), max_iter=args.branch_epochs)
    return data.data[rows], data.target[rows], backbone, branch


def cifar100(args):
    """CIFAR-100 with 20 coarse classes, rows that did not train the ResNet18."""
    data, _, _ = cifar_splits()
    rows = data.val[: args.rows]
    branch = PrototypePoolingClassifier(max_iter=args.branch_epochs)
    return data.data[rows], data.target[rows], cifar_backbone(args.cache), branch


def small_resnet(widths, n_classes):
    """Return one residual block a width, named as in torchvision's ResNet."""
    first = widths[0]
    parts = OrderedDict(
        conv1=nn.Conv2d(3, first, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(first),
        relu=nn.ReLU(),
        layer1=BasicBlock(first, first),
    )
    for i, (before, after) in enumerate(itertools.pairwise(widths), start=2):
        shortcut = nn.Sequential(
            nn.Conv2d(before, after, 1, stride=2, bias=False), nn.BatchNorm2d(after)
        )
        parts[f"layer{i}"] = BasicBlock(before, after, stride=2, downsample=shortcut)
    parts["avgpool"] = nn.AdaptiveAvgPool2d(1)
    parts["flatten"] = nn.Flatten()
    parts["fc"] = nn.Linear(widths[-1], n_classes)
    return nn.Sequential(parts)


def train(module, X, y, epochs, batch_size=64):
    """Train with AdamW under a one-cycle schedule."""
    steps = epochs * math.ceil(len(X) / batch_size)
    optimizer = torch.optim.AdamW(module.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(batch_size):
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


class Trainings:
    """Count the heads that are trained."""

    def __init__(self):
        self.n = 0
        self._train = branch_base.train_head

    def __enter__(self):
        def counting(*args):
            self.n += 1
            return self._train(*args)

        branch_base.train_head = counting
        return self

    def __exit__(self, *_):
        branch_base.train_head = self._train


def timed(search, X, y):
    """Seconds by the clock and of the processor, and heads trained."""
    search = clone(search)
    # As a user who begins: nothing is shared with a search that was run before.
    estimator = search.estimator
    estimator.__dict__.pop("_shared_fits", None)
    with Trainings() as trainings:
        wall, cpu = time.perf_counter(), time.process_time()
        search.fit(X, y)
        return (
            time.perf_counter() - wall,
            time.process_time() - cpu,
            trainings.n,
            search,
        )


def grid(cascade, grid):
    return GridSearchCV(
        cascade,
        grid,
        scoring=SCORING,
        refit=cheapest_within(max_accuracy_drop=0.02),
        cv=FOLDS,
    )


def compare(name, cascade, X, y, repeats):
    """The searches in turn; ratios within each round."""
    searches = {
        "one_margin": grid(cascade, {"margin": MARGINS[9:10]}),
        "twenty_margins": grid(cascade, {"margin": MARGINS}),
    }
    seconds = {key: [] for key in searches}
    heads = {}
    for _ in range(repeats):
        for key, search in searches.items():
            wall, cpu, heads[key], _ = timed(search, X, y)
            seconds[key].append((wall, cpu))
            print(f"{name}, {key}: {wall:.1f} s, {cpu:.1f} s of processor", flush=True)
    one, twenty = (np.array(seconds[key]) for key in searches)
    ratio = twenty / one
    record = {
        "heads_trained": heads,
        "seconds": {
            key: {
                "wall": spread([w for w, _ in pairs]),
                "processor": spread([c for _, c in pairs]),
            }
            for key, pairs in seconds.items()
        },
        "ratio_wall": spread(ratio[:, 0]),
        "ratio_processor": spread(ratio[:, 1]),
    }
    print(f"{name}: ratio {record['ratio_processor']['median']:.3f} of processor time")
    return record


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", choices=["digits", "cifar100"], default="digits")
    add("--rows", type=int, default=1500, help="rows that are searched on")
    add("--epochs", type=int, default=3, help="of the digit network")
    add("--branch-epochs", type=int, help="fewer: the search is less about training")
    add("--repeats", type=int, default=3)
    add("--seed", type=int, default=0)
    add("--cache", help="folder of the features, for cifar100")
    args = parser.parse_args()
    torch.set_num_threads(1)

    X, y, backbone, branch = {"digits": digits, "cifar100": cifar100}[args.data](args)
    settings = {"branch": branch, "random_state": args.seed}
    backbone = backbone.fit(X)
    features = backbone.transform(X)
    record = {
        "settings": {
            "rows": len(X),
            "folds": FOLDS,
            "margins": MARGINS,
            "taps": list(backbone.layout_.names),
            "width": int(backbone.layout_.width),
            "branch": repr(branch),
            "metrics": list(SCORING),
            "repeats": args.repeats,
            "seed": args.seed,
        },
    }
    on_features = CascadeClassifier(input="features", **settings)
    record["features"] = compare("features", on_features, features, y, args.repeats)
    if args.data == "digits":
        on_samples = CascadeClassifier(clone(backbone), **settings)
        record["samples"] = compare("samples", on_samples, X, y, args.repeats)
        with tempfile.TemporaryDirectory() as folder:
            stored = clone(backbone).set_params(cache=folder)
            on_store = CascadeClassifier(stored, **settings)
            record["samples_with_store"] = compare(
                "samples with a store", on_store, X, y, args.repeats
            )
        two = {"margin": MARGINS, "branch__temperature": [1.0, 2.0]}
        wall, cpu, n, _ = timed(grid(on_features, two), features, y)
        record["two_settings_of_the_branch"] = {
            "heads_trained": n,
            "wall": wall,
            "processor": cpu,
        }
    found = MarginSearchCV(on_features, max_accuracy_drop=0.02, cv=FOLDS)
    wall, cpu, n, found = timed(found, features, y)
    record["margin_search"] = {
        "heads_trained": n,
        "wall": wall,
        "processor": cpu,
        "operating_points": len(found.cv_results_["margin"]),
        "accuracy": found.best_score_,
        "backbone_accuracy": found.backbone_accuracy_,
        "flops_reduction": found.best_flops_reduction_,
    }
    whole = read_json("search_cost")
    whole |= {"what": __doc__.splitlines()[0]}
    # Of this run: another setting may have been measured elsewhere.
    name = args.data
    if args.branch_epochs is not None:
        name += f"_{args.branch_epochs}_epochs"
    whole[name] = record | {"environment": environment()}
    print("written to", write_json("search_cost", whole).name)


if __name__ == "__main__":
    main()
