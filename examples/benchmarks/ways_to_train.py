"""Longer training, averaged weights, mixup and views of branches, compared.

On three tasks of front.py the same heads are trained in each way, every branch by
itself on soft targets and labels. Accuracy at given savings, with local margins alone
and with the ensemble and optimal stopping, points chosen on validation rows as there;
differences are taken within a seed. Finished cells are read back from the record.

    python examples/benchmarks/ways_to_train.py --cache ~/.cache/sk_calex/features
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from _common import environment, read_json, write_json
from _front_fits import Answers, Fit
from _front_judge import CUTS, judge
from _front_tasks import Task, TestLabels, load_task
from _rule_curves import mean_and_sd
from front import LOCAL, STOPPING, together
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sk_calex.branches._heads import BranchHead, build_head, fuse_for_inference
from sk_calex.branches._solvers import MINI_BATCH_RATE, adam_loop
from sk_calex.branches._training import branch_loss, soften
from sk_calex.utils._flops import count_macs
from sk_calex.utils._validation import softmax64

TASKS = {"resnet18_cifar100": 6, "resnet32_cifar10": 6, "transfer": 12}  # and epochs
TRAINING_ROWS = 8_000  # at most
WIDTHS, BATCH, WEIGHT_DECAY = (24, 32), 128, 0.01
TEMPERATURE, ALPHA = 2.0, 0.5  # of the soft targets, and their share
SHIFT = 4  # pixels, at most


@dataclass(frozen=True)
class Way:
    """How branches are trained.

    Parameters
    ----------
    longer
        Times the epochs of the task.
    decay
        Of the moving average of weights that answers in place of the last ones.
    mixup
        Parameter of the beta distribution by which pairs of rows are mixed.
    views
        Whether each epoch draws a view of each row: as it is, mirrored, or shifted.
    """

    longer: int = 1
    decay: float | None = None
    mixup: float | None = None
    views: bool = False


PLAIN = "as it is"
WAYS = {
    PLAIN: Way(),
    "twice the epochs": Way(longer=2),
    "four times the epochs": Way(longer=4),
    "average of weights": Way(decay=0.99),
    "mixup": Way(mixup=0.2),
    "mixup, twice the epochs": Way(longer=2, mixup=0.2),
    "three views": Way(views=True),
    "three views, twice the epochs": Way(longer=2, views=True),
}
VARIANTS = {"local": LOCAL, "ensemble, optimal stopping": together(STOPPING)}


def mirror(images: NDArray[Any]) -> NDArray[Any]:
    """Left to right."""
    return np.ascontiguousarray(images[..., ::-1])


def shift(images: NDArray[Any]) -> NDArray[Any]:
    """Move each image by some pixels, into zeros, as the networks were trained."""
    draws = np.random.default_rng(0).integers(0, 2 * SHIFT + 1, (len(images), 2))
    padded = np.pad(images, [(0, 0), (0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT)])
    windows = np.lib.stride_tricks.sliding_window_view(
        padded, images.shape[2:], axis=(2, 3)
    )
    return windows[np.arange(len(images)), :, draws[:, 0], draws[:, 1]]


@dataclass
class Rows:
    """Training rows: one matrix of features and last answers for each view."""

    X: list[Any]
    soft: list[NDArray[np.float64]]
    y: NDArray[np.int64]


class Known:
    """A task with a last stage that answers, and the rows that train its branches."""

    def __init__(self, task: Task) -> None:
        self.task, self.layout = task, task.X.layout
        rows = task.training
        if len(rows) > TRAINING_ROWS:
            rows, _ = train_test_split(
                rows,
                train_size=TRAINING_ROWS,
                stratify=task.y[rows],
                random_state=0,
            )
            rows = np.sort(rows)
        self.last = None
        if task.final_estimator is not None:
            outputs = self.layout.block(task.X[rows], self.layout.n_taps)
            self.last = clone(task.final_estimator).fit(outputs, task.y[rows])
        assert task.views is not None
        views = [
            task.X[rows],
            *(task.views(rows, change) for change in (mirror, shift)),
        ]
        self.rows = Rows(views, [self.answers(X) for X in views], task.y[rows])
        self.sealed = TestLabels(task.test_y._labels)

    def answers(self, X: Any) -> NDArray[np.float64]:
        """What the last stage says."""
        outputs = np.asarray(self.layout.block(X, self.layout.n_taps))
        if self.last is not None:
            proba: NDArray[np.float64] = self.last.predict_proba(outputs)
            return proba
        return softmax64(outputs)


def train(known: Known, tap: int, way: Way, epochs: int, seed: int) -> BranchHead:
    """Train the head of one tap."""
    rows, layout = known.rows, known.layout
    shape, n = layout.shapes[tap], len(rows.y)
    n_views = len(rows.X) if way.views else 1
    X = [
        torch.from_numpy(np.array(layout.block(X, tap))).view(n, *shape)
        for X in rows.X[:n_views]
    ]
    features, y = torch.cat(X), torch.from_numpy(rows.y)
    soft = np.concatenate([soften(p, TEMPERATURE) for p in rows.soft[:n_views]])
    targets, ones = torch.from_numpy(soft).float(), torch.ones(BATCH)
    generator = torch.Generator().manual_seed(1000 * seed + tap)
    draw = np.random.default_rng(1000 * seed + tap)
    n_classes = targets.shape[1]
    head = build_head("conv", shape, n_classes, generator=generator, widths=WIDTHS)
    average = None
    if way.decay is not None:
        average = AveragedModel(
            head, multi_avg_fn=get_ema_multi_avg_fn(way.decay), use_buffers=True
        )

    def loss_of(batch: Tensor) -> Tensor:
        if average is not None:  # of the weights after the update before
            average.update_parameters(head)
        views = torch.randint(n_views, batch.shape, generator=generator)
        picked = batch + n * views
        x, q = features[picked].float(), targets[picked]
        loss = partial(branch_loss, weight=ones, temperature=TEMPERATURE, alpha=ALPHA)
        if way.mixup is None:
            return loss(head(x), y[batch], soft=q)
        share = draw.beta(way.mixup, way.mixup)
        other = torch.randperm(len(batch), generator=generator)
        logits = head(share * x + (1 - share) * x[other])
        # The loss is linear in both targets, but for an entropy without gradient.
        return share * loss(logits, y[batch], soft=q) + (1 - share) * loss(
            logits, y[batch[other]], soft=q[other]
        )

    adam_loop(
        head,
        loss_of,
        n,
        epochs=epochs * way.longer,
        batch_size=BATCH,
        learning_rate=MINI_BATCH_RATE,
        weight_decay=WEIGHT_DECAY,
        generator=generator,
    )
    return (head if average is None else average.module).eval()


@torch.inference_mode()
def ask(head: BranchHead, X: NDArray[Any]) -> NDArray[np.float64]:
    """Probabilities of a head."""
    rows = torch.from_numpy(np.array(X)).view(len(X), *head.feature_shape)
    logits = torch.cat([head(part.float()) for part in rows.split(1024)])
    return softmax64(logits.numpy())


def fit(known: Known, way: Way, epochs: int, seed: int) -> Fit:
    """Train all branches, and ask them."""
    task, layout = known.task, known.layout
    start = time.process_time()
    heads = [train(known, k, way, epochs, seed) for k in range(layout.n_taps)]
    seconds = time.process_time() - start
    answers = [
        Answers(
            np.stack(
                [
                    *(ask(head, layout.block(X, k)) for k, head in enumerate(heads)),
                    known.answers(X),
                ]
            )
        )
        for X in (task.X[task.calibration], task.test_X)
    ]
    macs = [
        count_macs(fuse_for_inference(head), torch.zeros(1, *head.feature_shape))
        for head in heads
    ]
    stages = np.array(layout.stage_macs, dtype=float)
    return Fit(*answers, stages, np.array(macs, dtype=float), seconds)


def cell(known: Known, name: str, way: str, epochs: int, seed: int) -> dict[str, Any]:
    """Train in one way, and judge."""
    found = fit(known, WAYS[way], epochs, seed)
    y = known.task.y[known.task.calibration]
    variants = {rule: (variant, found) for rule, variant in VARIANTS.items()}
    # Each fit has its own points: the labels of the test set choose nothing.
    sealed = TestLabels(known.sealed._labels)
    judged = judge(variants, y, sealed, seed)
    return {
        "task": name,
        "way": way,
        "seed": seed,
        "fit_cpu_seconds": found.seconds,
        "validation_accuracy_of_stages": (
            (found.calibration.proba.argmax(axis=2) == y).mean(axis=1).tolist()
        ),
        "variants": {
            rule: {
                key: one[key] for key in ("plain", "validation_at_cuts", "test_at_cuts")
            }
            for rule, one in judged.items()
        },
    }


def mean_of_reached(gains: NDArray[np.float64]) -> float:
    """Mean over the savings that both ways reach; NaN where there is none."""
    reached = gains[np.isfinite(gains)]
    return float(reached.mean()) if len(reached) else float("nan")


def summary(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds by task, variant and way, and differences from the first way."""
    out: dict[str, Any] = {}
    for task, rule in product(dict.fromkeys(c["task"] for c in cells), VARIANTS):
        found = {
            way: {
                c["seed"]: c["variants"][rule]
                for c in cells
                if (c["task"], c["way"]) == (task, way)
            }
            for way in WAYS
        }
        for way, each in found.items():
            seeds = sorted(set(each) & set(found[PLAIN]))
            if not seeds:
                continue
            result: dict[str, Any] = {"seeds": seeds}
            for key in ("validation_at_cuts", "test_at_cuts"):
                mine, plain = (
                    np.array([one[seed][key] for seed in seeds], dtype=float)
                    for one in (each, found[PLAIN])
                )
                result[key] = mean_and_sd(mine)
                gain = [mean_of_reached(seed) for seed in mine - plain]
                result[key.replace("at_cuts", "gain")] = mean_and_sd(gain)
            out.setdefault(task, {}).setdefault(rule, {})[way] = result
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", default="~/.cache/sk_calex/features")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    torch.set_num_threads(1)
    cells = read_json("ways_to_train").get("cells", [])
    done = {(c["task"], c["way"], c["seed"]) for c in cells}
    for task in args.tasks:
        known = None
        for key in product([task], args.ways, args.seeds):
            if key in done:
                continue
            known = known or Known(load_task(task, args.cache))
            cells.append(cell(known, task, key[1], TASKS[task], key[2]))
            print(*key, f"{cells[-1]['fit_cpu_seconds']:.0f} s", flush=True)
            record = {
                "what": __doc__.splitlines()[0],
                "environment": environment(),
                "settings": {
                    "epochs": TASKS,
                    "training_rows": TRAINING_ROWS,
                    "widths": WIDTHS,
                    "batch_size": BATCH,
                    "learning_rate": MINI_BATCH_RATE,
                    "weight_decay": WEIGHT_DECAY,
                    "alpha": ALPHA,
                    "temperature": TEMPERATURE,
                    "ways": {name: vars(way) for name, way in WAYS.items()},
                    "cuts": list(CUTS),
                },
                "summary": summary(cells),
                "cells": cells,
            }
            write_json("ways_to_train", record)
    for task, rules in summary(cells).items():
        for rule, ways in rules.items():
            for way, one in ways.items():
                gains = (one[f"{part}_gain"] for part in ("validation", "test"))
                print(f"{task:18} {rule:27} {way:30}", *(g["mean"] for g in gains))


if __name__ == "__main__":
    main()
