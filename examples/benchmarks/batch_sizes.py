"""A cascade against the plain module and its own stages, by batch size and threads.

Batches of 1, 8, 32 and 256 images; exit rules at which no head can answer, at which
heads could and nothing exits, and at which about 30, 50 and 60 % of the FLOPs are saved
on the images of the batch. All run in turn, in one process; processor time and elapsed
time. Branches are trained on few rows: what exits is right less often than it could be,
which changes no time.

    SK_CALEX_DATA=... python examples/benchmarks/batch_sizes.py --threads 1 2
"""

from __future__ import annotations

import argparse
import copy
from functools import partial

import numpy as np
import torch
from _common import cifar_backbone, cifar_splits, environment, read_json, write_json
from _measure import in_turns, ratio
from sklearn.model_selection import PredefinedSplit
from staged_prediction import plain_predict

from sk_calex import CascadeClassifier, PrototypePoolingClassifier
from sk_calex.policies import ClassThresholds

#: Images that are timed at each size: whole batches.
IMAGES = {1: 24, 8: 48, 32: 96, 256: 512}
SAVINGS = (0.3, 0.5, 0.6)
MARGINS = np.r_[0, np.geomspace(0.002, 0.9, 60)]
SEED = 0


def fit(n_rows, epochs):
    """Fit a cascade of three default branches on some rows."""
    train, test, split = cifar_splits()
    known = np.flatnonzero(split.test_fold < 0)[:n_rows]
    rows = np.concatenate([known, train.val])
    cascade = CascadeClassifier(
        cifar_backbone(),
        branch=PrototypePoolingClassifier(max_iter=epochs),
        cv=PredefinedSplit(split.test_fold[rows]),
        margin=0.0,
        random_state=SEED,
    )
    return cascade.fit(train.data[rows], train.target[rows]), test.data


def at_savings(cascade, images):
    """Copies of a cascade at exit rules by name, and what each saves on the images."""
    shape = cascade.thresholds_.shape
    arms = {}
    for name, value in (("no head can answer", np.inf), ("nothing exits", 1.0)):
        arms[name] = copy.copy(cascade)
        arms[name].calibrator_ = ClassThresholds(np.full(shape, value))
    found = []
    for margin in MARGINS:
        one = copy.copy(cascade)
        one.set_margin(margin)
        found.append((one.flops_reduction(images), one))
    for saving in SAVINGS:
        _, arms[f"{saving:.0%}"] = min(found, key=lambda pair: abs(pair[0] - saving))
    return arms, {name: one.flops_reduction(images) for name, one in arms.items()}


def first_stages(backbone, images, size, n_stages):
    """Run the stages up to one, with no head in between."""
    runner = backbone.runner()
    with runner.inference_mode():
        for i in range(0, len(images), size):
            state = runner.start(torch.from_numpy(images[i : i + size]))
            for k in range(n_stages):
                output, state = runner.advance(k, state)
            output.flatten(1).argmax(1).numpy()


def predict_all(cascade, images, size):
    """Predict batch by batch."""
    for i in range(0, len(images), size):
        cascade.predict(images[i : i + size])


def measure(cascade, images, size, repeats):
    """Ratios of times at one batch size."""
    images = images[: IMAGES[size]]
    rules, saved = at_savings(cascade, images)
    backbone = cascade.backbone_
    n_stages = backbone.layout_.n_taps + 1
    calls = {
        "plain": partial(plain_predict, backbone, images, size),
        **{
            f"{k} stages": partial(first_stages, backbone, images, size, k)
            for k in range(1, n_stages)
        },
        "stages": partial(first_stages, backbone, images, size, n_stages),
        **{
            name: partial(predict_all, one, images, size) for name, one in rules.items()
        },
    }
    turns = in_turns(calls, repeats)
    return {
        "images": len(images),
        "ms_an_image": {
            name: 1000 * float(np.median(seconds)) / len(images)
            for name, seconds in turns.cpu.items()
        },
        "stages_over_plain": {
            clock: ratio(times["stages"], times["plain"])
            for clock, times in turns._asdict().items()
        },
        "rules": {
            name: {
                "flops_reduction": saved[name],
                **{
                    f"over_{other}": {
                        clock: ratio(times[name], times[other])
                        for clock, times in turns._asdict().items()
                    }
                    for other in ("plain", "stages")
                },
                # Of the speed-up that the FLOPs promise over the stages.
                "share_of_implied": {
                    clock: ratio((1 - saved[name]) * times["stages"], times[name])
                    for clock, times in turns._asdict().items()
                },
            }
            for name in rules
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--sizes", type=int, nargs="+", default=list(IMAGES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--rows", type=int, default=6_000, help="rows to train on")
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    cascade, images = fit(args.rows, args.epochs)
    record = read_json("batch_sizes") or {"threads": {}}
    record |= {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {
            "images": IMAGES,
            "repeats": args.repeats,
            "rows": args.rows,
            "epochs": args.epochs,
            "seed": SEED,
            "stage_mmacs": [m / 1e6 for m in cascade.layout_.stage_macs],
        },
    }
    for n_threads in args.threads:
        torch.set_num_threads(n_threads)
        found = record["threads"].setdefault(str(n_threads), {})
        for size in args.sizes:
            found[str(size)] = measure(cascade, images, size, args.repeats)
            print(n_threads, size, found[str(size)], flush=True)
            write_json("batch_sizes", record)


if __name__ == "__main__":
    main()
