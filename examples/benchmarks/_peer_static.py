"""The honest rivals: smaller networks, cheap for every sample; cascades on them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import TAPS, Normalize
from _peers import Clock, Data
from safetensors.torch import load_file
from torch import nn

from sk_calex import CascadeClassifier, FrozenBackbone, operating_curve
from sk_calex.flops import count_macs

STACKED_MARGINS = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3)


def static(folder: Path, data: Data) -> list[dict[str, Any]]:
    """Accuracy and MACs of the networks that train_backbone.py left in a folder."""
    out = []
    for path in sorted(folder.glob("*.json")):
        told, module, scale = _loaded(path, data)
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
    told, module, scale = _loaded(path, data)
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


def _loaded(path: Path, data: Data) -> tuple[dict[str, Any], nn.Module, Normalize]:
    sys.path.append(str(Path(__file__).parents[1]))
    from train_backbone import small_image_resnet

    told = json.loads(path.read_text())
    if set(told["validation_rows"]) != set(data.validation_rows.tolist()):
        raise SystemExit(f"{path}: trained on rows that validate here.")
    module = small_image_resnet(told["settings"]["arch"], 20)
    module.load_state_dict(load_file(path.with_suffix(".safetensors")))
    scale = Normalize()
    for name in ("mean", "std"):
        setattr(scale, name, torch.tensor(told[name]).view(3, 1, 1))
    return told, module.eval(), scale
