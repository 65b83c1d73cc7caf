"""Cascades trained on features in int8 against float32: accuracy, time and bytes.

Features of the CIFAR-100 ResNet18, the same rows in each type. Cascades are trained on
rows of the training part, calibrated on one half of the validation rows and judged on
the other half. Of float16 only the bytes and the rounding are measured.

    python examples/benchmarks/int8_features.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from _common import cifar_backbone, cifar_splits, environment, spread, write_json
from sklearn.model_selection import PredefinedSplit

from sk_calex import BranchClassifier, CascadeClassifier, FeatureArray
from sk_calex.store import FeatureStore, row_keys
from sk_calex.utils._int8 import Int8Features, RowFormat

SEEDS = (0, 1, 2)
MARGIN = 0.05


def encoded(features):
    """The int8 features that `transform` gives, without another run of the network."""
    layout = features.layout
    form = RowFormat(layout.shapes, layout.n_outputs)
    rows = form.empty(len(features))
    for k in range(layout.n_taps + 1):
        shape = layout.shapes[k] if k < layout.n_taps else (layout.n_outputs,)
        block = torch.from_numpy(np.array(layout.block(features, k)))
        form.put(rows, k, block.reshape(-1, *shape))
    return Int8Features(rows, form, layout)


def bytes_on_disk(features):
    """Size of a store that holds the rows, keys and headers included."""
    rows = features.rows if isinstance(features, Int8Features) else features
    rows = np.asarray(rows)
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(folder)
        section = store.section("0" * 16, rows.shape[1], str(rows.dtype))
        keys = row_keys(np.arange(len(rows)))
        for start in range(0, len(rows), 512):
            section.write(keys[start : start + 512], rows[start : start + 512])
        return store.info()["bytes"]


def largest_error(features, full):
    """The largest error of a tap's values, as a share of its largest value."""
    layout, found = full.layout, []
    for k in range(layout.n_taps):
        a, b = (np.asarray(layout.block(X, k), np.float64) for X in (features, full))
        found.append(float(np.abs(a - b).max() / np.abs(b).max()))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--held", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)

    train, _, _ = cifar_splits()
    backbone = cifar_backbone(str(Path(args.cache).expanduser()), verbose=1)
    rng = np.random.default_rng(0)
    chosen = rng.permutation(train.train)[: args.rows]
    held = rng.permutation(train.val)[: args.held]
    rows = np.concatenate([chosen, held])
    full = backbone.fit(train.data[:2]).transform(train.data[rows])
    full = FeatureArray.wrap(np.array(full), backbone.layout_)
    y = train.target[rows]
    formats = {
        "float32": full,
        "float16": FeatureArray.wrap(np.asarray(full, np.float16), full.layout),
        "int8": encoded(full),
    }
    n, half = len(chosen), len(chosen) + len(held) // 2
    split = PredefinedSplit(np.where(np.arange(half) < n, -1, 0))
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {
            "rows": n,
            "calibration_rows": half - n,
            "judged_rows": len(rows) - half,
            "seeds": SEEDS,
            "margin": MARGIN,
            "branch": "conv, widths 24 and 32",
            "epochs": args.epochs,
        },
        "formats": {
            name: {
                "bytes_per_row": X.nbytes / len(rows),
                "bytes_on_disk": bytes_on_disk(X),
                "largest_errors": largest_error(X, full),
            }
            for name, X in formats.items()
        },
    }
    found = {name: [] for name in ("float32", "int8")}
    for seed in SEEDS:
        for name in found:
            X = formats[name]
            cascade = CascadeClassifier(
                backbone,
                branch=BranchClassifier(
                    "conv",
                    head_params={"widths": (24, 32)},
                    solver="adam",
                    max_iter=args.epochs,
                ),
                input="features",
                margin=MARGIN,
                cv=split,
                random_state=seed,
            )
            start = time.process_time()
            cascade.fit(X[:half], y[:half])
            seconds = time.process_time() - start
            judged, truth = X[half:], y[half:]
            stages = cascade.stage_probabilities(judged).argmax(axis=2)
            codes = np.searchsorted(cascade.classes_, truth)
            found[name].append(
                {
                    "seed": seed,
                    "fit_seconds": seconds,
                    "accuracy": cascade.score(judged, truth),
                    "flops_reduction": cascade.flops_reduction(judged),
                    "branch_accuracy": (stages == codes).mean(axis=1).tolist(),
                }
            )
            print(name, found[name][-1], flush=True)
        write_json("int8_features", record | summary(found))
    print("written")


def summary(found):
    """Spread over the seeds that are done."""
    result = {}
    for name, runs in found.items():
        branches, plain = (
            np.array([run["branch_accuracy"][:-1] for run in each])
            for each in (runs, found["float32"])
        )
        seconds = [
            [run["fit_seconds"] for run in each] for each in (runs, found["float32"])
        ]
        result[name] = {
            "runs": runs,
            "accuracy": spread([run["accuracy"] for run in runs]),
            "flops_reduction": spread([run["flops_reduction"] for run in runs]),
            "branch_accuracy_difference": spread(branches - plain),
            "fit_time_ratio": spread(np.divide(*seconds)),
        }
    return {"cascades": result}


if __name__ == "__main__":
    main()
