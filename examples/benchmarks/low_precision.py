"""A cascade that runs in bfloat16 (`amp=`) against itself and the module in float32.

The same branches; the thresholds are calibrated anew on what runs in bfloat16. Batches
of 1, 32 and 256 images, all ways in turn in one process, on one thread; processor time.
Beside it how often labels are equal, and how right they are. What is found depends on
whether the processor computes in bfloat16.

    SK_CALEX_DATA=... python examples/benchmarks/low_precision.py
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import numpy as np
import torch
from _common import environment, write_json
from _measure import in_turns, ratio
from batch_sizes import SEED, fit, predict_all
from staged_prediction import plain_predict

from sk_calex.datasets import load_cifar100_coarse

IMAGES = {1: 24, 32: 96, 256: 512}
MARGIN = 0.03


def plain_in_bfloat16(backbone, images, size):
    with torch.autocast("cpu", torch.bfloat16):
        plain_predict(backbone, images, size)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=6_000, help="rows to train on")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument(
        "--images", type=int, default=2_000, help="to compare labels on"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    cascade, images = fit(args.rows, args.epochs)
    cascade.set_margin(MARGIN)
    low = copy.deepcopy(cascade)
    low.backbone_.set_params(amp="bfloat16")
    train = load_cifar100_coarse(split="train")
    low.recalibrate(train.data[train.val], train.target[train.val])
    y = load_cifar100_coarse(split="test").target[: args.images]

    compared = images[: args.images]
    answers = {
        "float32": cascade.predict(compared, return_depth=True),
        "bfloat16": low.predict(compared, return_depth=True),
    }
    (labels, depth), (low_labels, low_depth) = answers.values()
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {**vars(args), "margin": MARGIN, "seed": SEED},
        "equal_labels": float(np.mean(labels == low_labels)),
        "equal_depths": float(np.mean(depth == low_depth)),
        "accuracy": {name: float(np.mean(a[0] == y)) for name, a in answers.items()},
        "flops_reduction": {
            "float32": cascade.flops_reduction(compared),
            "bfloat16": low.flops_reduction(compared),
        },
        "batches": {},
    }
    for size, n in IMAGES.items():
        part = images[:n]
        backbone = cascade.backbone_
        turns = in_turns(
            {
                "module": partial(plain_predict, backbone, part, size),
                "module, bfloat16": partial(plain_in_bfloat16, backbone, part, size),
                "cascade": partial(predict_all, cascade, part, size),
                "cascade, bfloat16": partial(predict_all, low, part, size),
            },
            args.repeats,
        )
        record["batches"][str(size)] = {
            "ms_an_image": {
                name: 1000 * float(np.median(seconds)) / n
                for name, seconds in turns.cpu.items()
            },
            "faster_than_module": {
                name: ratio(turns.cpu["module"], seconds)
                for name, seconds in turns.cpu.items()
            },
        }
        print(size, record["batches"][str(size)], flush=True)
        write_json("low_precision", record)
    print({k: v for k, v in record.items() if k != "batches"})


if __name__ == "__main__":
    main()
