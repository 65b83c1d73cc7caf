"""Features of image files, extracted by several processes or machines at once.

    python examples/distributed_extraction.py

starts two workers on this machine. They read, run and store what they are given; a
second pass then finds every row in the store, and so does a grid search over margins
that goes over the same workers. On a cluster that runs already, with a folder that all
of its machines see:

    python examples/distributed_extraction.py --scheduler tcp://10.0.0.1:8786 \
        --folder /shared/calex
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import joblib
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from PIL import Image
from sklearn.model_selection import GridSearchCV
from torch import nn

from sk_calex import BranchClassifier, CascadeClassifier, FrozenBackbone
from sk_calex.datasets import load_digits_images
from sk_calex.store import FeatureStore

MARGINS = [-0.1, 0.0, 0.1, 0.3]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--scheduler", metavar="ADDRESS", help="of a Dask cluster that runs already")
    add("--folder", type=Path, metavar="DIR", help="for images and features")
    add("--workers", type=int, default=2, help="of a cluster started here (default 2)")
    add("--quick", action="store_true", help="few images: a smoke test")
    args = parser.parse_args(argv)
    if args.scheduler and not args.folder:
        parser.error("--scheduler needs a --folder that all of its machines see")
    return args


def network():
    """A small classifier of 3x32x32 images; its first three parts are tapped."""

    def block(n_in, n_out):
        return nn.Sequential(
            nn.Conv2d(n_in, n_out, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
            nn.Conv2d(n_out, n_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(n_out),
            nn.ReLU(),
        )

    torch.manual_seed(0)
    answer = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    parts = {"first": block(3, 16), "second": block(16, 32), "third": block(32, 64)}
    return nn.Sequential(OrderedDict(**parts, answer=answer))


def train(module, X, y, epochs):
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(X)).split(64):
            loss = nn.functional.cross_entropy(module(X[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def write_images(images, folder):
    """One PNG file an image, as if they had always been there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:05d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image.transpose(1, 2, 0)).save(path)
    return paths


def connect(args, stack):
    """A client of the cluster that was named, or of one on this machine."""
    if args.scheduler:
        return stack.enter_context(Client(args.scheduler))
    # One thread a worker: joblib counts on the workers, torch on the threads in them.
    cluster = LocalCluster(
        n_workers=args.workers,
        threads_per_worker=1,
        dashboard_address=None,
        silence_logs=logging.ERROR,
    )
    return stack.enter_context(Client(stack.enter_context(cluster)))


def timed_pass(name, backbone, paths):
    start = time.perf_counter()
    features = backbone.transform(paths)
    seconds = time.perf_counter() - start
    print(f"{name}: {len(features)} rows of {features.shape[1]} in {seconds:.1f} s")
    return features


def saved(cascade, X, y):
    return cascade.flops_reduction(X)


def search_margins(backbone, paths, y):
    cascade = CascadeClassifier(
        backbone, branch=BranchClassifier("gap", max_iter=5), random_state=0
    )
    search = GridSearchCV(
        cascade,
        {"margin": MARGINS},
        scoring={"accuracy": "accuracy", "saved": saved},
        refit=False,
        cv=2,
        error_score="raise",
    )
    start = time.perf_counter()
    found = search.fit(paths, y).cv_results_
    seconds = time.perf_counter() - start
    print(f"Grid search: {2 * len(MARGINS)} fits in {seconds:.1f} s")
    print("\nmargin  accuracy  FLOPs saved")
    table = zip(
        MARGINS, found["mean_test_accuracy"], found["mean_test_saved"], strict=True
    )
    for margin, accuracy, share in table:
        print(f"{margin:+6.2f}  {accuracy:8.2%}  {share:11.1%}")


def main(argv=None):
    args = parse_args(argv)
    with contextlib.ExitStack() as stack:
        folder = args.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        copies = 1 if args.quick else (2, 4, 4)
        digits = load_digits_images(noise=(0.0, 0.5), copies=copies)
        known = digits.train[:300] if args.quick else digits.train
        module = network()
        images = torch.from_numpy(digits.data[known]) / 255
        train(module, images, torch.from_numpy(digits.target[known]), epochs=4)
        new = np.concatenate([digits.val, digits.test])[: 200 if args.quick else None]
        paths = write_images(digits.data[new], folder / "images")
        print(f"{len(paths)} image files, a network trained on {len(known)} others")

        client = connect(args, stack)
        print(f"{len(client.scheduler_info()['workers'])} workers")
        store = FeatureStore(folder / "features")
        backbone = FrozenBackbone(
            module, ["first", "second", "third"], batch_size=64, cache=store
        ).fit(paths)
        with joblib.parallel_config(backend="dask"):
            first = timed_pass("First pass, computed by workers", backbone, paths)
            again = timed_pass("Second pass, read from the store", backbone, paths)
            print(f"The same numbers: {np.array_equal(first, again)}")
            del first, again  # memory maps of files in the store
            search_margins(backbone, paths, digits.target[new])
        print(f"\nThe store holds {store.info()['rows']} rows in {store.folder}")


if __name__ == "__main__":
    main()
