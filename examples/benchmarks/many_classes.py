"""A thousand classes with 1.5, 5 and 50 rows each: time, memory, thresholds, heads.

Costs of the heads are counted on two torchvision networks for 224 x 224 images, with
random weights: what `branch=None` chooses, the richest head, narrow ones, "gap".

Fits are on features that are made, not computed: a row is the direction of its class
under noise, at three taps and in the logits, more clearly from tap to tap, and some
rows are harder than others. So the last stage is calibrated, no network runs, and what
is measured is the cascade. Stages cost what those of ResNet18 do. Each fit has a
process of its own; accuracy and saving are those of 5,000 rows more.

    OMP_NUM_THREADS=1 python examples/benchmarks/many_classes.py          # both
    OMP_NUM_THREADS=1 python examples/benchmarks/many_classes.py costs    # or one
    OMP_NUM_THREADS=1 python examples/benchmarks/many_classes.py fits --per-class 5
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch
from _common import environment, read_json, write_json
from _measure import PeakMemory, in_new_process
from numpy.typing import NDArray
from torchvision import models

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FeatureArray,
    FrozenBackbone,
    PrototypePoolingClassifier,
    SurvivorThresholdCalibrator,
    TapLayout,
)
from sk_calex.branches._defaults import count_unfitted, default_branches

N_CLASSES, N_TEST = 1000, 5000
PER_CLASS = (1.5, 5, 50)
NETWORKS: dict[str, tuple[Any, list[str]]] = {
    "resnet18": (models.resnet18, ["layer1", "layer2", "layer3"]),
    "mobilenet_v3_small": (
        models.mobilenet_v3_small,
        ["features.3", "features.6", "features.9"],
    ),
}
HEADS: dict[str, Any] = {
    "richest": PrototypePoolingClassifier(),
    "narrow": PrototypePoolingClassifier(widths=(24, 32)),
    "narrow_conv": BranchClassifier("conv", head_params={"widths": (24, 32)}),
    "gap": BranchClassifier("gap"),
}
TAPS = ("layer1", "layer2", "layer3")
SHAPES = ((64, 2, 2), (128, 2, 2), (256, 2, 2))
# How far a class lies from the origin at each tap, in standard deviations of the noise.
CLEAR = (3.0, 4.5, 6.0)


def measure_costs() -> dict[str, Any]:
    """MACs of the heads of each kind, as a share of the network's."""
    networks = {}
    for name, (build, taps) in NETWORKS.items():
        torch.manual_seed(0)
        backbone = FrozenBackbone(build(num_classes=N_CLASSES).eval(), taps=taps)
        layout = backbone.fit(torch.randn(2, 3, 224, 224)).layout_
        stages = list(layout.stage_macs)
        kinds = {kind: [head] * len(taps) for kind, head in HEADS.items()}
        kinds["chosen"] = default_branches(layout.shapes, stages, N_CLASSES)
        macs = {
            kind: [
                count_unfitted(head, shape, N_CLASSES)
                for head, shape in zip(heads, layout.shapes, strict=True)
            ]
            for kind, heads in kinds.items()
        }
        networks[name] = {
            "taps": taps,
            "shapes": layout.shapes,
            "stage_macs": stages,
            "head_macs": macs,
            "share_of_backbone": {k: sum(v) / sum(stages) for k, v in macs.items()},
            "chosen": [repr(head) for head in kinds["chosen"]],
        }
        print(name, networks[name]["share_of_backbone"], flush=True)
    return networks


def made_rows(n: int, seed: int) -> tuple[NDArray[np.float16], NDArray[np.intp]]:
    """Features of three taps and logits, and the classes, each as often as another."""
    directions = np.random.default_rng(0)  # the same for all rows
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % N_CLASSES)
    ease = rng.uniform(0.6, 1.4, size=n)[:, None]
    blocks = []
    for (channels, *grid), clear in zip(SHAPES, CLEAR, strict=True):
        means = directions.standard_normal((N_CLASSES, channels))
        means *= clear / np.linalg.norm(means, axis=1, keepdims=True)
        x = rng.standard_normal((n, channels, *grid), dtype=np.float32)
        # Over the positions the noise is averaged away: so much less of it is signal.
        x += (ease * means[y] / np.sqrt(np.prod(grid)))[:, :, None, None]
        blocks.append(x.reshape(n, -1))
    # Logits whose softmax is right as often as it says.
    logits = rng.standard_normal((n, N_CLASSES), dtype=np.float32)
    logits[np.arange(n), y] += (5 * ease)[:, 0]
    blocks.append(5 * ease.astype(np.float32) * logits)
    return np.concatenate(blocks, axis=1, dtype=np.float16), y


def measure_fit(per_class: float, stage_macs: list[int], seed: int) -> dict[str, Any]:
    """One fit, and its thresholds under several settings."""
    torch.set_num_threads(1)
    layout = TapLayout(TAPS, SHAPES, N_CLASSES, tuple(stage_macs))
    X, y = made_rows(int(per_class * N_CLASSES), seed + 1)
    X_test, y_test = made_rows(N_TEST, seed + 2)
    train, test = FeatureArray.wrap(X, layout), FeatureArray.wrap(X_test, layout)
    cascade = CascadeClassifier(
        branch=BranchClassifier("gap"), input="features", random_state=seed
    )
    with warnings.catch_warnings(record=True) as caught, PeakMemory() as memory:
        warnings.simplefilter("always")
        cpu = time.process_time()
        cascade.fit(train, y)
        seconds = time.process_time() - cpu
    given = cascade.calibration_
    proba = cascade.stage_probabilities(test)
    record: dict[str, Any] = {
        "rows": len(y),
        "feature_mib": X.nbytes / 2**20,
        "fit_seconds_of_processor": seconds,
        "fit_peak_mib": memory.peak,
        "calibration_rows": len(given.labels),
        "classes_with_calibration_rows": int(given.seen.sum()),
        "warnings": [f"{w.category.__name__}: {w.message}" for w in caught],
        "branch_accuracy": (proba.argmax(axis=2) == y_test).mean(axis=1).tolist(),
        "settings": {},
    }
    for rare in ("never", "shared"):
        for margin in ("auto", 0.05):
            rule = SurvivorThresholdCalibrator(margin_mode="local", rare_classes=rare)
            cascade.set_params(margin=margin, calibrator=None)
            cpu = time.process_time()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                cascade.set_calibrator(rule)
            spent = time.process_time() - cpu
            labels, depth = cascade.predict(test, return_depth=True)
            right = proba[-1].argmax(axis=1) == y_test
            record["settings"][f"{rare}, {margin}"] = {
                "calibration_seconds": spent,
                "margin": float(np.mean(cascade.margin_)),
                "classes_that_exit": int(np.isfinite(cascade.thresholds_).any(0).sum()),
                "thresholds": int(np.isfinite(cascade.thresholds_).sum()),
                "exit_share": float(np.mean(depth < len(TAPS))),
                "accuracy_lost": float(right.mean() - np.mean(labels == y_test)),
                "flops_saved": cascade.flops_reduction(test),
                "warnings": [str(w.message) for w in caught],
            }
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("costs", "fits"))
    parser.add_argument("--per-class", type=float, nargs="*", default=PER_CLASS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    record = {
        **read_json("many_classes"),
        "what": "1,000 classes: MACs of heads on two networks, and fits with few rows "
        "of each class on features that are made.",
        "environment": environment(),
        "settings": {
            "n_classes": N_CLASSES,
            "n_test": N_TEST,
            "seed": args.seed,
            "shapes": SHAPES,
            "clear": CLEAR,
            "branch": "gap",
            "threads": 1,
        },
    }
    if args.part in (None, "costs"):
        record["networks"] = measure_costs()
        write_json("many_classes", record)
    if args.part in (None, "fits"):
        stages = record["networks"]["resnet18"]["stage_macs"]
        fits = record.setdefault("fits", {})
        for per_class in args.per_class:
            key = f"{per_class:g}"
            fits[key] = in_new_process(measure_fit, per_class, stages, args.seed)
            told = {k: v for k, v in fits[key].items() if k != "settings"}
            print(key, told, flush=True)
            for name, point in fits[key]["settings"].items():
                print("   ", name, point, flush=True)
            print(write_json("many_classes", record), flush=True)


if __name__ == "__main__":
    main()
