"""Quickstart: a frozen ResNet becomes a cascade that answers easy images early.

    python examples/quickstart.py

trains a small ResNet on scikit-learn's digits (no download; the weights are kept for
the next run), freezes it, puts branches on three of its layers, prints what each margin
costs and saves, and draws the accuracy-FLOPs picture. The same on CIFAR-100 with its 20
coarse classes, for a ResNet18 that was trained elsewhere:

    python examples/quickstart.py --data cifar100 --backbone resnet18.safetensors
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import safetensors.torch
import sklearn
import torch
import torchvision
from matplotlib.figure import Figure
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torchvision.models.resnet import BasicBlock, resnet18

import sk_calex
from sk_calex import (
    CascadeClassifier,
    FrozenBackbone,
    PrototypePoolingClassifier,
    margin_curve,
)
from sk_calex.baselines import NoAlignmentClassifier
from sk_calex.datasets import load_cifar100_coarse, load_digits_images
from sk_calex.inspection import CascadeDisplay

TAPS = ["layer1", "layer2", "layer3"]
# Of the two, since they are not the same: what an exit may cost at its threshold, and
# what the precision of a class may lose on average.
MARGINS = {
    "CalexNet": (0.0, 0.02, 0.05, 0.1, 0.2),
    "no alignment": (-0.2, -0.1, 0.0, 0.1, 0.2),
}
NOISE, SHIFT = (0.0, 0.7), 4  # what makes the digits hard
MEAN, STD = (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762)  # of CIFAR-100


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", choices=["digits", "cifar100"], default="digits")
    add("--backbone", type=Path, metavar="FILE", help="ResNet18 weights for cifar100")
    add("--data-home", type=Path, metavar="DIR", help="where CIFAR-100 lies")
    add("--epochs", type=int, default=4, help="of the digit network (default 4)")
    add("--seed", type=int, default=0, help="of all that is random (default 0)")
    add("--quick", action="store_true", help="few rows, tiny network: a smoke test")
    add("--output", type=Path, metavar="DIR", default=Path(__file__).parent / "output")
    args = parser.parse_args(argv)
    if (args.data == "cifar100") != (args.backbone is not None):
        parser.error("--data cifar100 and --backbone FILE need each other")
    return args


def load_digits(args):
    """Digits made hard, a ResNet trained on them, and a branch of a fitting size."""
    copies = 1 if args.quick else (4, 2, 2)
    data = load_digits_images(noise=NOISE, shift=SHIFT, copies=copies)
    print(
        f"Data: scikit-learn's 8x8 digits as 3x32x32 images, moved by up to {SHIFT} "
        "pixels, under\nGaussian noise whose strength is drawn for each image, from "
        f"{NOISE[0]:.0%} to {NOISE[1]:.0%} of the ink."
    )
    widths = (8, 16, 32, 64) if args.quick else (32, 64, 128, 256)
    torch.manual_seed(args.seed)  # initial weights, order of the training images
    module = small_resnet(widths, n_classes=10)
    settings = {"widths": widths, "epochs": args.epochs, "seed": args.seed}
    train_or_load(module, data, settings, args.output / "cache")
    # The default branch is made for a ResNet18; this network is smaller, so is its own.
    branch = PrototypePoolingClassifier(widths=(8, 8) if args.quick else (32, 64))
    return data, module, None, branch


def small_resnet(widths, n_classes):
    """One residual block a width, named as in torchvision's ResNet."""
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


def train_or_load(module, data, settings, folder):
    """Train the module, or give it the weights that the same settings gave before.

    The name of the file holds a digest of settings and data, and one of its content: a
    file that was cut off or altered does not fit its name, and is not used.
    """
    start = time.perf_counter()
    X = torch.from_numpy(data.data[data.train]) / 255
    y = torch.from_numpy(data.target[data.train])
    recipe = json.dumps([settings, torch.__version__, torchvision.__version__]).encode()
    key = digest(recipe + X.numpy().tobytes() + y.numpy().tobytes())
    for path in folder.glob(f"digits-{key}-*.safetensors"):
        content = path.read_bytes()
        if path.stem.endswith(digest(content)):
            module.load_state_dict(safetensors.torch.load(content))
            print(f"Backbone: weights kept from an earlier run, {path}")
            return
    train(module, X, y, settings["epochs"])
    content = safetensors.torch.save(module.state_dict())
    path = folder / f"digits-{key}-{digest(content)}.safetensors"
    path.write_bytes(content)
    seconds = time.perf_counter() - start
    print(f"Backbone: trained in {seconds:.0f} s, weights kept in {path}")


def digest(content):
    return hashlib.sha256(content).hexdigest()[:16]


def train(module, X, y, epochs, batch_size=64):
    """AdamW under a one-cycle schedule."""
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


def load_cifar100(args):
    """CIFAR-100 and a ResNet18 that was trained on its train rows, but not on val."""
    data = load_cifar100_coarse(data_home=args.data_home)
    if args.quick:
        data.update(train=data.train[:800], val=data.val[:400], test=data.test[:400])
    print("Data: CIFAR-100 with its 20 coarse classes.")
    module = resnet18(num_classes=20)
    module.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    weights = safetensors.torch.load_file(args.backbone)
    module.load_state_dict({name: value.float() for name, value in weights.items()})
    print(f"Backbone: {args.backbone}")
    return data, module, normalise, PrototypePoolingClassifier()


def normalise(batch):
    """uint8 images as the ResNet18 saw them in training."""
    mean = torch.tensor(MEAN, device=batch.device)[:, None, None]
    std = torch.tensor(STD, device=batch.device)[:, None, None]
    return (batch / 255 - mean) / std


def fit_cascades(data, module, preprocess, branch, args):
    """CalexNet, and the same branches without its three ideas."""
    features = args.output / "cache" / "features"
    backbone = FrozenBackbone(
        module, TAPS, preprocess=preprocess, dtype="float16", cache=features
    )
    if args.quick:
        branch.set_params(max_iter=2)
    # The backbone is over-confident on the rows that trained it: others calibrate.
    known = np.concatenate([data.train, data.val])
    held_out = PredefinedSplit(np.where(np.isin(known, data.val), 0, -1))
    shared = {"branch": branch, "cv": held_out, "random_state": args.seed}
    cascades = {
        "CalexNet": CascadeClassifier(backbone, **shared),
        "no alignment": NoAlignmentClassifier(backbone, **shared),
    }
    for name, cascade in cascades.items():
        start = time.perf_counter()
        cascade.fit(data.data[known], data.target[known])
        print(f"Fitted {name!r} in {time.perf_counter() - start:.0f} s")
    return cascades


def measure_seconds(cascades, X, rounds):
    """Median seconds of the backbone, and of each method at each margin.

    They take turns: a machine that is busy for a while slows all of them alike.
    """
    seconds = {}

    def run(key, predict):
        start = time.perf_counter()
        predict(X)
        seconds.setdefault(key, []).append(time.perf_counter() - start)

    for _ in range(rounds):
        for name, cascade in cascades.items():
            run("backbone", cascade.backbone_.predict)
            for margin in MARGINS[name]:
                run((name, margin), cascade.set_margin(margin).predict)
    return {key: np.median(values) for key, values in seconds.items()}


def print_table(curves, seconds):
    backbone = next(iter(curves.values())).backbone_accuracy
    print(
        f"\nPlain backbone: {backbone:.2%} of the test images right.\n\n"
        "                      accuracy    drop  FLOPs   wall-   answered at (%)\n"
        "margin  method             (%)   (pts)  saved   clock   "
        f"{' '.join(f'{tap:>8}' for tap in [*TAPS, 'backbone'])}"
    )
    for name, curve in curves.items():
        for i, margin in enumerate(curve.margins):
            accuracy = curve.accuracy[i]
            shares = " ".join(f"{100 * share:8.1f}" for share in curve.depth_share[i])
            print(
                f"{margin:+6.2f}  {name:12}  {100 * accuracy:8.2f}  "
                f"{100 * (backbone - accuracy):6.2f}  {curve.flops_reduction[i]:5.1%}  "
                f"{seconds['backbone'] / seconds[name, margin]:5.2f}x  {shares}"
            )
    print(
        "\nFLOPs are counted by torch, heads included; wall-clock is how many times "
        "faster than\nthe plain backbone. Choose a margin on validation images."
    )


def draw(curves, path):
    ax = Figure(figsize=(7, 5), layout="constrained").subplots()
    for name, curve in curves.items():
        CascadeDisplay.from_curve(curve, name=name, ax=ax)
    ax.figure.savefig(path, dpi=150)
    print(f"Picture: {path}")


def main(argv=None):
    args = parse_args(argv)
    start = time.perf_counter()
    for package in (sk_calex, sklearn, torch, torchvision, np):
        print(package.__name__, package.__version__, end=", ")
    print(f"{torch.get_num_threads()} threads, seed {args.seed}")
    (args.output / "cache").mkdir(parents=True, exist_ok=True)
    load = load_digits if args.data == "digits" else load_cifar100
    data, module, preprocess, branch = load(args)
    print(
        f"Images: {len(data.train)} train, {len(data.val)} val, {len(data.test)} test"
    )

    cascades = fit_cascades(data, module, preprocess, branch, args)
    calexnet = cascades["CalexNet"]
    heads = " + ".join(f"{branch.macs_ / 1e6:.2f}" for branch in calexnet.branches_)
    backbone = sum(calexnet.backbone_.stage_macs_) / 1e6
    print(f"Million MACs an image: backbone {backbone:.1f}, heads {heads}")

    X_test, y_test = data.data[data.test], data.target[data.test]
    curves = {
        name: margin_curve(c, X_test, y_test, margins=MARGINS[name])
        for name, c in cascades.items()
    }
    seconds = measure_seconds(cascades, X_test[:512], rounds=1 if args.quick else 5)
    print_table(curves, seconds)
    draw(curves, args.output / f"quickstart_{args.data}.png")
    print(f"Total time: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
