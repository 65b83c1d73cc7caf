"""Wall-clock of a running cascade against the plain backbone, in the same run.

At batch 256, over margins, the speed-up is compared with what the FLOPs reduction
implies. At batch 1 nothing exits (thresholds of infinity), which is the worst case:
every stage and every head runs. Plain means the module itself on preprocessed batches
in inference mode, nothing of this library around it.

    python examples/benchmarks/staged_prediction.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _common import cifar_backbone, cifar_splits, environment, spread, write_json

from sk_calex import CascadeClassifier, PrototypePoolingClassifier
from sk_calex.policies import ClassThresholds


def plain_predict(backbone, images, size):
    out = []
    with torch.inference_mode():
        for i in range(0, len(images), size):
            x = backbone.preprocess(torch.from_numpy(images[i : i + size]))
            out.append(backbone.module(x).argmax(1).numpy())
    return np.concatenate(out)


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def in_turn(a, b, repeats):
    """Times of two calls made in turn, after one of each to warm up."""
    a(), b()
    pairs = [(timed(a), timed(b)) for _ in range(repeats)]
    return np.array(pairs).T


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()

    train, test, split = cifar_splits()
    backbone = cifar_backbone(str(Path(args.cache).expanduser()), verbose=1)
    backbone.fit(train.data)
    cascade = CascadeClassifier(
        backbone,
        branch=PrototypePoolingClassifier(max_iter=args.epochs),
        cv=split,
        random_state=0,
    ).fit(train.data, train.target)
    images = test.data[: 256 * 6]

    rows = []
    for margin in (-0.2, -0.1, -0.05):
        cascade.set_margin(margin)
        reduction = cascade.flops_reduction(images)
        plain, staged = in_turn(
            lambda: plain_predict(backbone, images, 256),
            lambda: cascade.predict(images),
            args.repeats,
        )
        implied = 1 / (1 - reduction)
        rows.append(
            {
                "margin": margin,
                "flops_reduction": reduction,
                "implied_speed_up": implied,
                "speed_up": spread(plain / staged),
                "share_of_implied": spread(plain / staged / implied),
            }
        )
        print(rows[-1], flush=True)

    # Nobody exits: the price of asking every head, one sample at a time.
    never = ClassThresholds(np.full_like(cascade.thresholds_, np.inf))
    cascade.thresholds_ = never.thresholds
    singles = [images[i : i + 1] for i in range(100)]
    plain, staged = in_turn(
        lambda: [plain_predict(backbone, x, 1) for x in singles],
        lambda: [cascade.predict(x) for x in singles],
        args.repeats,
    )
    _, wrapped = in_turn(
        lambda: [plain_predict(backbone, x, 1) for x in singles],
        lambda: [cascade.backbone_.predict(x) for x in singles],
        args.repeats,
    )
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {
            "images": len(images),
            "repeats": args.repeats,
            "branch_epochs": args.epochs,
            "depth_mmacs": (cascade.depth_costs_ / 1e6).tolist(),
        },
        "batch_256": rows,
        "batch_1_nothing_exits": {
            "time_ratio_to_plain": spread(staged / plain),
            "plain_ms": spread(plain * 10),
            "cascade_ms": spread(staged * 10),
            "backbone_predict_ms": spread(wrapped * 10),
        },
    }
    path = write_json("staged_prediction", record)
    print(record["batch_1_nothing_exits"])
    print("written to", path.name)


if __name__ == "__main__":
    main()
