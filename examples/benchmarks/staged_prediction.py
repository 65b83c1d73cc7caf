"""Wall-clock of a running cascade against the plain backbone, in the same run.

At batch 256, over margins, the speed-up is compared with what the FLOPs reduction
implies; other batch sizes are in batch_sizes.py. Plain means the module itself on
preprocessed batches in inference mode, nothing of this library around it. The library
runs the module's stages with normalisation folded and weights packed; so that the
cascade is not given credit for that, it is also compared with those stages alone, no
head in between.

    python examples/benchmarks/staged_prediction.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from _common import cifar_backbone, cifar_splits, environment, spread, write_json
from sklearn.model_selection import PredefinedSplit

from sk_calex import CascadeClassifier, PrototypePoolingClassifier
from sk_calex.cascade._costs import depth_prices


def plain_predict(backbone, images, size):
    out = []
    with torch.inference_mode():
        for i in range(0, len(images), size):
            x = backbone.preprocess(torch.from_numpy(images[i : i + size]))
            out.append(backbone.module(x).argmax(1).numpy())
    return np.concatenate(out)


def stages_predict(backbone, images, size):
    """The optimised stages one after the other: the backbone without a cascade."""
    out, runner = [], backbone.runner()
    with runner.inference_mode():
        for i in range(0, len(images), size):
            state = runner.start(torch.from_numpy(images[i : i + size]))
            for k in range(runner.layout.n_taps + 1):
                output, state = runner.advance(k, state)
            out.append(output.argmax(1).numpy())
    return np.concatenate(out)


def timed(function, *args):
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def in_turn(*calls, repeats):
    """Times of some calls made in turn, after one of each to warm up."""
    for call in calls:
        call()
    return np.array([[timed(call) for call in calls] for _ in range(repeats)]).T


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rows", type=int, default=45_000, help="rows to train on")
    args = parser.parse_args()

    train, test, split = cifar_splits()
    backbone = cifar_backbone(str(Path(args.cache).expanduser()), verbose=1)
    # Enough rows for thresholds at which a real share exits.
    rows = np.concatenate([np.flatnonzero(split.test_fold < 0)[: args.rows], train.val])
    split = PredefinedSplit(split.test_fold[rows])
    backbone.fit(train.data)
    cascade = CascadeClassifier(
        backbone,
        branch=PrototypePoolingClassifier(max_iter=args.epochs),
        cv=split,
        random_state=0,
    ).fit(train.data[rows], train.target[rows])
    images = test.data[: 256 * 6]

    batches = []
    for margin in (0.0, 0.02, 0.05, 0.08):
        cascade.set_margin(margin)
        reduction = cascade.flops_reduction(images)
        plain, alone, staged = in_turn(
            lambda: plain_predict(backbone, images, 256),
            lambda: stages_predict(cascade.backbone_, images, 256),
            lambda: cascade.predict(images),
            repeats=args.repeats,
        )
        implied = 1 / (1 - reduction)
        batches.append(
            {
                "margin": margin,
                "flops_reduction": reduction,
                "implied_speed_up": implied,
                "speed_up": spread(plain / staged),
                "share_of_implied": spread(plain / staged / implied),
                "speed_up_over_stages_alone": spread(alone / staged),
                "share_of_implied_over_stages_alone": spread(alone / staged / implied),
            }
        )
        print(batches[-1], flush=True)

    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {
            "images": len(images),
            "repeats": args.repeats,
            "branch_epochs": args.epochs,
            "training_rows": args.rows,
            "depth_mmacs": (depth_prices(cascade, None)[0] / 1e6).tolist(),
            "seed": 0,
        },
        "batch_256": batches,
    }
    path = write_json("staged_prediction", record)
    print("written to", path.name)


if __name__ == "__main__":
    main()
