"""What branches cost on common networks, which ones the default chooses, and how right.

For costs, counted by torch, random weights suffice: three taps each, images of 64 x 64,
10 classes. "richest" is a `PrototypePoolingClassifier()` at each tap, "chosen" what
``branch=None`` takes.

How right they are is measured on one trained network, the ResNet-18 for CIFAR-100 with
20 coarse classes: branches trained on the first rows that trained the network,
thresholds from one half of the 5,000 validation rows, accuracy on the other half. The
test set is not read. ``SK_CALEX_DATA`` names the folder of the data; some minutes.

    python examples/benchmarks/head_costs.py            # both
    python examples/benchmarks/head_costs.py costs      # or one of them
    python examples/benchmarks/head_costs.py accuracy
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from _common import cifar_backbone, environment, read_json, write_json
from sklearn.model_selection import PredefinedSplit
from torch import nn
from torchvision import models

from sk_calex import (
    BranchClassifier,
    CascadeClassifier,
    FrozenBackbone,
    PrototypePoolingClassifier,
)
from sk_calex.branches._defaults import count_unfitted, default_branches
from sk_calex.datasets import load_cifar100_coarse

SIZE, N_CLASSES = 64, 10


def vit_tiny() -> nn.Module:
    return models.VisionTransformer(
        image_size=SIZE,
        patch_size=8,
        num_layers=12,
        num_heads=3,
        hidden_dim=192,
        mlp_dim=768,
        num_classes=N_CLASSES,
    )


LAYERS = ["layer1", "layer2", "layer3"]
NETWORKS: dict[str, tuple[Any, list[str]]] = {
    "resnet18": (models.resnet18, LAYERS),
    "resnet50": (models.resnet50, LAYERS),
    "mobilenet_v3_small": (
        models.mobilenet_v3_small,
        ["features.3", "features.6", "features.9"],
    ),
    "mobilenet_v3_large": (
        models.mobilenet_v3_large,
        ["features.4", "features.8", "features.12"],
    ),
    "efficientnet_b0": (
        models.efficientnet_b0,
        ["features.3", "features.4", "features.6"],
    ),
    "vit_tiny": (
        lambda num_classes: vit_tiny(),
        [f"encoder.layers.encoder_layer_{i}" for i in (2, 5, 8)],
    ),
}


def describe(branch: Any) -> str:
    if isinstance(branch, BranchClassifier):
        return branch.head
    return f"prototype_augmented {tuple(branch.widths)}"


def measure_costs() -> dict[str, Any]:
    """Costs of the heads, for each network."""
    networks: dict[str, Any] = {}
    for name, (build, taps) in NETWORKS.items():
        torch.manual_seed(0)
        backbone = FrozenBackbone(build(num_classes=N_CLASSES).eval(), taps=taps)
        backbone.fit(torch.randn(4, 3, SIZE, SIZE))
        layout = backbone.layout_
        stages = list(layout.stage_macs)
        chosen = default_branches(layout.shapes, stages, N_CLASSES)
        macs = {
            rule: [
                count_unfitted(branch, shape, N_CLASSES)
                for branch, shape in zip(branches, layout.shapes, strict=True)
            ]
            for rule, branches in {
                "richest": [PrototypePoolingClassifier()] * len(chosen),
                "chosen": chosen,
            }.items()
        }
        shares = {rule: sum(heads) / sum(stages) for rule, heads in macs.items()}
        networks[name] = {
            "taps": taps,
            "shapes": layout.shapes,
            "stage_macs": stages,
            "head_macs": macs,
            "share_of_backbone": shares,
            "chosen": list(map(describe, chosen)),
        }
        told = ", ".join(f"{rule} {share:.1%}" for rule, share in shares.items())
        print(f"{name}: {sum(stages) / 1e6:.1f} MMACs; {told}", flush=True)
    return networks


# What `branch=None` chooses from, and its choice.
CANDIDATES: dict[str, Any] = {
    "96, 128": PrototypePoolingClassifier(),
    "48, 64": PrototypePoolingClassifier(widths=(48, 64)),
    "24, 32": PrototypePoolingClassifier(widths=(24, 32)),
    "gap": BranchClassifier("gap"),
    "chosen": None,
}
N_TRAIN, SEED, MARGIN = 6000, 0, 0.05


def measure_accuracy() -> dict[str, Any]:
    """Accuracy of each branch, and what the cascade saves, for each candidate."""
    data = load_cifar100_coarse(split="train")
    rng = np.random.default_rng(SEED)
    calibration, judged = np.array_split(rng.permutation(data.val), 2)
    train = data.train[:N_TRAIN]
    backbone = cifar_backbone().fit(data.data[:2])

    rows = np.r_[train, calibration]
    split = PredefinedSplit(np.where(np.isin(rows, calibration), 0, -1))
    features = backbone.transform(data.data[rows])
    X, y = backbone.transform(data.data[judged]), data.target[judged]
    record: dict[str, Any] = {
        "environment": environment(),
        "settings": {
            "network": "resnet18_cifar100_coarse",
            "n_train": len(train),
            "n_calibration": len(calibration),
            "n_judged": len(judged),
            "seed": SEED,
            "margin": MARGIN,
            "alignment": "none",
        },
        "stage_macs": list(backbone.layout_.stage_macs),
        "candidates": {},
    }
    for name, branch in CANDIDATES.items():
        # Without survivor weights no branch depends on those before it.
        cascade = CascadeClassifier(
            branch=branch,
            input="features",
            margin=MARGIN,
            alignment="none",
            cv=split,
            random_state=SEED,
        )
        cascade.fit(features, data.target[rows])
        right = cascade.stage_probabilities(X).argmax(axis=2) == y
        labels = cascade.predict(X)
        record["candidates"][name] = {
            "heads": list(map(describe, cascade.branches_)),
            "head_macs": cascade._branch_macs(),
            "branch_accuracy": right[:-1].mean(axis=1).tolist(),
            "backbone_accuracy": float(right[-1].mean()),
            "accuracy": float(np.mean(labels == y)),
            "flops_saved": cascade.flops_reduction(X),
        }
        told = record["candidates"][name]
        print(name, {k: v for k, v in told.items() if k != "heads"}, flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("costs", "accuracy"))
    part = parser.parse_args().part
    record = {
        **read_json("head_costs"),
        "what": "MACs of branches as a share of the backbone's, by network; and how "
        "right they are on one trained network.",
        "settings": {"image_size": SIZE, "n_classes": N_CLASSES, "weights": "random"},
    }
    if part in (None, "costs"):
        record["environment"] = environment()
        record["networks"] = measure_costs()
    if part in (None, "accuracy"):
        record["accuracy"] = measure_accuracy()
    print(write_json("head_costs", record))


if __name__ == "__main__":
    main()
