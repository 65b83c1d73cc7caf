"""Processor time of one image at a time where nothing exits: the worst case.

Every stage runs, and nothing is saved. What differs between the rows is what is added
to the stages: heads, the checks and decisions of `predict`. Where no class can exit,
heads rest; to see what they take, `predict` runs also under thresholds that could be
reached, and are not. All run in turn, in one process, on one image after another;
processor time, which other programs on the machine disturb less than elapsed time.
Heads are hardly trained: that changes no time.

    SK_CALEX_DATA=... python examples/benchmarks/one_image.py
"""

from __future__ import annotations

import argparse
import copy
import time

import numpy as np
import torch
from _common import cifar_backbone, cifar_splits, environment, spread, write_json
from sklearn.model_selection import PredefinedSplit

from sk_calex import CascadeClassifier, PrototypePoolingClassifier
from sk_calex.policies import ClassThresholds


def fit_hardly(n_rows):
    """Cascades of three branches, where nothing can exit and does, and test images."""
    train, test, split = cifar_splits()
    known = np.flatnonzero(split.test_fold < 0)[:n_rows]
    rows = np.concatenate([known, train.val[:n_rows]])
    cascade = CascadeClassifier(
        cifar_backbone(),
        branch=PrototypePoolingClassifier(max_iter=2, solver="adam"),
        cv=PredefinedSplit(split.test_fold[rows]),
        random_state=0,
    )
    cascade.fit(train.data[rows], train.target[rows])
    shape, busy = cascade.thresholds_.shape, copy.copy(cascade)
    cascade.calibrator_ = ClassThresholds(np.full(shape, np.inf))
    busy.calibrator_ = ClassThresholds(np.full(shape, 1.0))  # what no answer reaches
    assert (busy.exit_depth(test.data[:50]) == len(cascade.branches_)).all()
    return cascade, busy, test.data


def plain(backbone, image):
    with torch.inference_mode():
        x = backbone.preprocess(torch.from_numpy(image))
        return backbone.module(x).argmax(1).numpy()


def stages(cascade, image, with_heads):
    """The stages one after the other, with the heads but nothing around them."""
    runner = cascade.backbone_.runner()
    state = runner.start(torch.from_numpy(image))
    for k in range(runner.layout.n_taps + 1):
        output, state = runner.advance(k, state)
        if with_heads and k < runner.layout.n_taps:
            cascade.branches_[k]._fused(output)
    return output.argmax(1).numpy()


def milliseconds(call, images):
    start = time.process_time()
    for image in images:
        call(image)
    return (time.process_time() - start) * 1000 / len(images)


def measure(cascade, busy, images, repeats):
    """Milliseconds an image, of each way in each round."""
    mode = cascade.backbone_.runner().inference_mode

    def in_mode(image, with_heads):
        # Entered for each image, as `predict` does.
        with mode():
            return stages(cascade, image, with_heads)

    calls = {
        "plain": lambda image: plain(cascade.backbone_, image),
        "stages": lambda image: in_mode(image, False),
        "stages_and_heads": lambda image: in_mode(image, True),
        "predict": cascade.predict,
        "predict_with_heads": busy.predict,
    }
    for call in calls.values():
        milliseconds(call, images)
    rounds = [
        {name: milliseconds(call, images) for name, call in calls.items()}
        for _ in range(repeats)
    ]
    return {name: np.array([each[name] for each in rounds]) for name in calls}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rows", type=int, default=400, help="rows to train on")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    args = parser.parse_args()

    cascade, busy, images = fit_hardly(args.rows)
    singles = [images[i : i + 1] for i in range(args.images)]
    record = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": {
            **vars(args),
            "branches": 3 * [repr(cascade.branch)],
            "seed": cascade.random_state,
        },
        "threads": {},
    }
    for n_threads in args.threads:
        torch.set_num_threads(n_threads)
        found = measure(cascade, busy, singles, args.repeats)
        record["threads"][str(n_threads)] = {
            "ms": {name: spread(times) for name, times in found.items()},
            **{
                f"{way}_over": {
                    name: spread(found[way] / found[name])
                    for name in ("plain", "stages", "stages_and_heads")
                }
                for way in ("predict", "predict_with_heads")
            },
        }
        print(n_threads, record["threads"][str(n_threads)], flush=True)
        print("written to", write_json("one_image", record).name)


if __name__ == "__main__":
    main()
