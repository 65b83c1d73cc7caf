"""What branches cost on common networks, and which ones the default chooses.

Random weights suffice: costs are counted by torch. Three taps each, images of 64 x 64,
10 classes. "richest" is a `PrototypePoolingClassifier()` at each tap, "chosen" what
``branch=None`` takes.

    python examples/benchmarks/head_costs.py
"""

from __future__ import annotations

from typing import Any

import torch
from _common import environment, write_json
from torch import nn
from torchvision import models

from sk_calex import BranchClassifier, FrozenBackbone, PrototypePoolingClassifier
from sk_calex.branches._defaults import default_branches
from sk_calex.branches._heads import build_head, fuse_for_inference
from sk_calex.utils._flops import count_macs

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


def count_branch(branch: Any, shape: tuple[int, ...]) -> int:
    """MACs of a branch that is not fitted."""
    if isinstance(branch, PrototypePoolingClassifier):
        head = build_head("prototype_augmented", shape, N_CLASSES, widths=branch.widths)
    else:
        head = build_head(branch.head, shape, N_CLASSES)
    return count_macs(fuse_for_inference(head), torch.zeros(1, *shape))


def describe(branch: Any) -> str:
    if isinstance(branch, BranchClassifier):
        return branch.head
    return f"prototype_augmented {tuple(branch.widths)}"


def main() -> None:
    record = {
        "what": "MACs of branches as a share of the backbone's, by network.",
        "environment": environment(),
        "settings": {"image_size": SIZE, "n_classes": N_CLASSES, "weights": "random"},
        "networks": {},
    }
    for name, (build, taps) in NETWORKS.items():
        torch.manual_seed(0)
        backbone = FrozenBackbone(build(num_classes=N_CLASSES).eval(), taps=taps)
        backbone.fit(torch.randn(4, 3, SIZE, SIZE))
        layout = backbone.layout_
        stages = list(layout.stage_macs)
        chosen = default_branches(layout.shapes, stages, N_CLASSES)
        macs = {
            "richest": [
                count_branch(PrototypePoolingClassifier(), s) for s in layout.shapes
            ],
            "chosen": list(map(count_branch, chosen, layout.shapes)),
        }
        shares = {rule: sum(heads) / sum(stages) for rule, heads in macs.items()}
        record["networks"][name] = {
            "taps": taps,
            "shapes": layout.shapes,
            "stage_macs": stages,
            "head_macs": macs,
            "share_of_backbone": shares,
            "chosen": list(map(describe, chosen)),
        }
        told = ", ".join(f"{rule} {share:.1%}" for rule, share in shares.items())
        print(f"{name}: {sum(stages) / 1e6:.1f} MMACs; {told}", flush=True)
    print(write_json("head_costs", record))


if __name__ == "__main__":
    main()
