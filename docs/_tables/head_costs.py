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


HEADS = {
    "96, 128": "the first",
    "48, 64": "the second",
    "24, 32": "the third",
    "gap": "the fourth",
    "chosen": "chosen by cost",
}


def accuracy(record: Record) -> Table:
    """Show how right each head is on a trained network, and what the cascade saves."""
    measured = record["accuracy"]
    whole = sum(measured["stage_macs"])
    rows = []
    for name, words in HEADS.items():
        found = measured["candidates"][name]
        rows.append(
            [
                words,
                f"{percent(sum(found['head_macs']) / whole)} %",
                *(f"{percent(right)} %" for right in found["branch_accuracy"]),
                f"{percent(found['accuracy'])} %",
                f"{percent(found['flops_saved'])} %",
            ]
        )
    alone = measured["candidates"]["chosen"]["backbone_accuracy"]
    rows.append(
        ["none: the network alone", "0 %", *[""] * 3, f"{percent(alone)} %", "0 %"]
    )
    headers = ["head at each tap", "heads, of the backbone's MACs"]
    headers += [f"right at tap {k}" for k in (1, 2, 3)]
    return Table([*headers, "cascade right", "FLOPs saved"], rows)


TABLES = {"shares": shares, "accuracy": accuracy}
