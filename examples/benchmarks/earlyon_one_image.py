"""One image at a time: a cascade against earlyon, at points chosen for one accuracy.

Both train their heads on the same rows of the same frozen ResNet18, and both choose, on
the same validation rows, the cheapest point that loses at most so much there. Then the
plain module, earlyon's wrapper and the cascade answer the same test images in turn, one
image a call; processor time. earlyon runs with the best of three settings of its heads,
by what validation says.

    python -m pip install "earlyon>=0.3"
    SK_CALEX_DATA=... python examples/benchmarks/earlyon_one_image.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from _common import (
    Normalize,
    cifar_backbone,
    cifar_splits,
    environment,
    spread,
    write_json,
)
from _measure import in_turns, ratio
from _peer_earlyon import CANDIDATES, Batches, calibrated, point, trained
from _peers import Clock, Data, Part, pooled, pooled_columns
from sklearn.model_selection import PredefinedSplit
from torch import nn

from sk_calex import CascadeClassifier, PrototypePoolingClassifier, operating_curve

PLAIN, EARLYON, OURS = "plain module", "earlyon", "cascade"
#: Accuracy that may be lost on validation.
AIMS = (0.0, 0.005, 0.01, 0.02)
MARGINS = np.round(np.arange(-0.1, 0.2, 0.005), 3).tolist()
TUNED = ("confidence_thresholds", "entropy_thresholds", "enabled_exits", "temperatures")


def load(cache: str | None, n_rows: int, n_held: int) -> tuple[Any, Data]:
    """The fitted backbone, and the same rows for both."""
    train, test, split = cifar_splits()
    known = np.flatnonzero(split.test_fold < 0)[:n_rows]
    backbone = cifar_backbone(cache, verbose=1).fit(train.data[known])
    layout = backbone.layout_

    def part(images: Any, target: Any) -> Part:
        features = backbone.transform(images)
        return Part(images, features, pooled(features, layout), target)

    fit = part(train.data[known], train.target[known])
    rows = train.val[:n_held]
    held = part(train.data[rows], train.target[rows])
    fold = np.r_[np.full(len(known), -1), np.zeros(len(rows), dtype=int)]
    return backbone, Data(
        fit,
        held,
        part(test.data[:n_held], test.target[:n_held]),
        (
            np.concatenate([fit.images, held.images]),
            np.concatenate([fit.target, held.target]),
        ),
        np.arange(len(known), len(fold)),
        PredefinedSplit(fold),
        pooled_columns(layout),
        np.array(layout.stage_macs, dtype=float),
    )


def validation_accuracy(data: Data) -> float:
    """Of the backbone alone."""
    logits = data.validation.pooled[:, data.columns[-1]]
    return float((logits.argmax(axis=1) == data.validation.target).mean())


def cheapest(points: list[dict[str, Any]], least: float) -> dict[str, Any] | None:
    """The point that saves most on validation among those that are right as often."""
    within = [p for p in points if p["validation"]["accuracy"] >= least - 1e-9]
    return max(within, key=lambda p: p["validation"]["flops_reduction"], default=None)


def tuned_state(config: Any) -> dict[str, Any]:
    """What calibration sets in earlyon's configuration."""
    state = {name: getattr(config, name, None) for name in TUNED}
    copied = {
        name: value.copy() if isinstance(value, (list, dict)) else value
        for name, value in state.items()
        if value is not None
    }
    return copied | {"routing_policy": config.routing_policy}


def earlyon_points(
    data: Data, setting: dict[str, Any], seed: int
) -> tuple[list[dict[str, Any]], nn.Module, dict[str, float]]:
    """Its operating points, its wrapper around the network, and the time of the fit."""
    from earlyon.core.thresholds import collect_head_logits

    with Clock() as clock:
        model, wrapper = trained(data, setting, seed)
    parts = {"validation": data.validation, "test": data.test}
    caches = {
        name: collect_head_logits(model, Batches(part), "cpu")
        for name, part in parts.items()
    }
    points = [
        {"state": tuned_state(model.config), "asked": list(target)}
        | {name: point(model, cache, data) for name, cache in caches.items()}
        for target, _ in calibrated(model, data, setting)
    ]
    return points, wrapper, clock.seconds


def cascade_points(cascade: CascadeClassifier, data: Data) -> list[dict[str, Any]]:
    """Operating points of the cascade along its margin."""
    parts = {"validation": data.validation, "test": data.test}
    curves = {
        name: operating_curve(cascade, part.images, part.target, MARGINS)
        for name, part in parts.items()
    }
    return [
        {"margin": margin}
        | {
            name: {
                "accuracy": float(curve.accuracy[i]),
                "flops_reduction": float(curve.flops_reduction[i]),
            }
            for name, curve in curves.items()
        }
        for i, margin in enumerate(MARGINS)
    ]


def answer_plain(backbone: Any, images: list[np.ndarray]) -> None:
    with torch.inference_mode():
        for image in images:
            x = backbone.preprocess(torch.from_numpy(image))
            backbone.module(x).argmax(1).numpy()


def answer_earlyon(wrapper: Any, images: list[np.ndarray]) -> None:
    scale = Normalize()
    for image in images:
        wrapper(scale(torch.from_numpy(image)), mode="inference").prediction.argmax(1)


def answer_cascade(cascade: CascadeClassifier, images: list[np.ndarray]) -> None:
    for image in images:
        cascade.predict(image)


def time_arms(
    arms: dict[str, Callable[[list[np.ndarray]], None]],
    images: list[np.ndarray],
    repeats: int,
) -> dict[str, Any]:
    """Processor time of an image, and that of the others over the cascade's."""
    cpu = in_turns(
        {name: partial(arm, images) for name, arm in arms.items()}, repeats
    ).cpu
    return {
        "cpu_ms_an_image": {
            name: spread(seconds * 1000 / len(images)) for name, seconds in cpu.items()
        },
        "over_cascade": {
            name: ratio(seconds, cpu[OURS])
            for name, seconds in cpu.items()
            if name != OURS
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", help="folder of the features")
    parser.add_argument("--rows", type=int, default=6_000, help="rows to train on")
    parser.add_argument(
        "--held", type=int, default=3_000, help="rows to choose on, and to report on"
    )
    parser.add_argument("--epochs", type=int, default=8, help="of the cascade")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    args = parser.parse_args()

    backbone, data = load(args.cache, args.rows, args.held)
    start = validation_accuracy(data)
    tried = [earlyon_points(data, setting, args.seed) for setting in CANDIDATES]
    theirs = [
        p | {"candidate": i} for i, (points, *_) in enumerate(tried) for p in points
    ]
    cascade = CascadeClassifier(
        backbone,
        branch=PrototypePoolingClassifier(max_iter=args.epochs),
        cv=data.split,
        random_state=args.seed,
    )
    with Clock() as clock:
        cascade.fit(*data.everything)
    ours = cascade_points(cascade, data)
    record: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "environment": environment(),
        "settings": vars(args) | {"cache": None, "candidates": list(CANDIDATES)},
        "backbone_accuracy": {"validation": start, "test": data.backbone_accuracy},
        "fit": {OURS: clock.seconds} | {EARLYON: [seconds for *_, seconds in tried]},
        "aims": [],
    }
    images = [data.test.images[i : i + 1] for i in range(args.images)]
    for aim in AIMS:
        chosen = {
            OURS: cheapest(ours, start - aim),
            EARLYON: cheapest(theirs, start - aim),
        }
        entry: dict[str, Any] = {"aim": aim, "points": chosen, "threads": {}}
        record["aims"].append(entry)
        if None in chosen.values():
            continue
        wrapper = tried[chosen[EARLYON]["candidate"]][1]
        for name, value in chosen[EARLYON]["state"].items():
            setattr(wrapper.config, name, value)
        cascade.set_margin(chosen[OURS]["margin"])
        arms = {
            PLAIN: partial(answer_plain, backbone),
            EARLYON: partial(answer_earlyon, wrapper),
            OURS: partial(answer_cascade, cascade),
        }
        for n_threads in args.threads:
            torch.set_num_threads(n_threads)
            entry["threads"][str(n_threads)] = time_arms(arms, images, args.repeats)
        print(entry, flush=True)
        write_json("earlyon_one_image", record)


if __name__ == "__main__":
    main()
