"""What branches cost on common networks."""

from __future__ import annotations

from .formats import Record, Table, percent

NETWORKS = {
    "resnet18": "ResNet18",
    "resnet50": "ResNet50",
    "mobilenet_v3_small": "MobileNetV3-small",
    "mobilenet_v3_large": "MobileNetV3-large",
    "efficientnet_b0": "EfficientNet-B0",
    "vit_tiny": "ViT-tiny, patches of 8",
}


def shares(record: Record) -> Table:
    """Show the MACs of the heads as a share of the backbone's."""
    rows = []
    for name, found in record["networks"].items():
        share = found["share_of_backbone"]
        rows.append(
            [
                NETWORKS[name],
                f"{sum(found['stage_macs']) / 1e6:.1f}",
                f"{percent(share['richest'])} %",
                f"{percent(share['chosen'])} %",
            ]
        )
    headers = ["network", "MMACs", "the first head at each tap", "chosen by cost"]
    return Table(headers, rows)


TABLES = {"shares": shares}
