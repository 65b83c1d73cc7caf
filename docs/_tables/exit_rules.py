"""Exit rules side by side on the same branches."""

from __future__ import annotations

from functools import partial

from .formats import Record, Table, mean_sd

BACKBONES = {"resnet18": "resnet18_cifar100", "resnet32": "resnet32_cifar10"}


def accuracies(record: Record, backbone: str, part: str) -> Table:
    """Show the accuracy at given savings on one part."""
    rows = []
    for rule, result in record["backbones"][backbone].items():
        found = result[f"{part}_accuracy"]
        pairs = zip(found["mean"], found["sd"], strict=True)
        rows.append([rule, *(mean_sd(*pair) for pair in pairs)])
    return Table(["", *(f"{r:.0%}" for r in record["reductions"])], rows)


def points(record: Record, aim: str) -> Table:
    """Show what the validated point loses and saves on test, for both backbones."""
    rows = []
    for rule in record["backbones"]["resnet18_cifar100"]:
        cells = []
        if aim not in record["backbones"]["resnet18_cifar100"][rule]["points"]:
            continue
        for backbone in BACKBONES.values():
            point = record["backbones"][backbone][rule]["points"][aim]
            cells += [
                mean_sd(point["drop"]["mean"], point["drop"]["sd"]),
                mean_sd(point["saved"]["mean"], point["saved"]["sd"], 1),
                mean_sd(point["best_at_aim"]["mean"], None, 1),
            ]
        rows.append([rule, *cells])
    heads = [
        f"{name}: {what}"
        for name in ("ResNet-18", "ResNet-32")
        for what in ("points lost", "saved %", "most at the aim")
    ]
    return Table(["", *heads], rows)


TABLES = {
    f"{part}_{short}": partial(accuracies, backbone=backbone, part=part)
    for short, backbone in BACKBONES.items()
    for part in ("validation", "test")
} | {
    "half_a_point": partial(points, aim="0.005"),
    "one_point": partial(points, aim="0.01"),
    "automatic": partial(points, aim="auto"),
}
