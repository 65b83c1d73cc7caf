"""The honest rivals: smaller networks, cheap for every sample; cascades on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import TAPS, load_network
from _peers import Clock, Data

from sk_calex import CascadeClassifier, FrozenBackbone, operating_curve
from sk_calex.utils._flops import count_macs

STACKED_MARGINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def static(folder: Path, data: Data) -> list[dict[str, Any]]:
    """Accuracy and MACs of the networks that train_backbone.py left in a folder."""
    out = []
    for path in sorted(folder.glob("*.json")):
        told, module, scale = load_network(path, data.validation_rows)
        keys = ("settings", "device", "seconds")
        net = {"arch": told["settings"]["arch"], **{key: told[key] for key in keys}}
        for name, part in (("validation", data.validation), ("test", data.test)):
            images = torch.from_numpy(np.asarray(part.images))
            with torch.inference_mode():
                said = [module(scale(x)).argmax(1) for x in images.split(1024)]
            net[name] = float((torch.cat(said).numpy() == part.target).mean())
        macs = count_macs(module, torch.zeros(1, 3, 32, 32))
        saved = 1 - macs / data.plain
        out.append(net | {"mmacs": macs / 1e6, "flops_reduction": saved})
    return out


def stacked(path: Path, data: Data, images: Any, seed: int) -> dict[str, Any]:
    """`CascadeClassifier()` on a static network; savings are over the large one.

    `images` are those of `data.everything`.
    """
    told, module, scale = load_network(path, data.validation_rows)
    backbone = FrozenBackbone(module, TAPS, preprocess=scale).fit(images[:1])
    features = backbone.transform(images)
    test = backbone.transform(data.test.images)
    cascade = CascadeClassifier(input="features", cv=data.split, random_state=seed)
    target = data.everything[1]
    with Clock() as clock:
        cascade.fit(features, target)
    share = sum(cascade.layout_.stage_macs) / data.plain
    rows = data.validation_rows
    record = {"arch": told["settings"]["arch"], "seed": seed, **clock.seconds}
    record["margins"] = list(STACKED_MARGINS)
    for name, X, y in (
        ("validation", features[rows], target[rows]),
        ("test", test, data.test.target),
    ):
        curve = operating_curve(cascade, X, y, STACKED_MARGINS)
        over_large = 1 - share * (1 - curve.flops_reduction)
        record[name] = {
            "accuracy": curve.accuracy.tolist(),
            "flops_reduction": over_large.tolist(),
            "over_itself": curve.flops_reduction.tolist(),
        }
    return record | {"static_accuracy": curve.backbone_accuracy}
