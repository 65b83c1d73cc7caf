"""Calibration, log loss and ranking of branches with three kinds of targets."""

from __future__ import annotations

from functools import partial

import numpy as np

from .formats import Record, Table

TARGETS = {
    "soft": "soft and labels",
    "argmax": "argmax",
    "labels": "labels",
}
# How a measure is called, digits, and whether more is better.
MEASURES = {
    "ece": ("calibration error, points", 100, False),
    "nll": ("log loss", 1, False),
    "auroc": ("AUROC of errors, %", 100, True),
    "aurc": ("AURC, points", 100, False),
    "accuracy": ("accuracy, %", 100, True),
}


def measures(record: Record, backbone: str) -> Table:
    """Show the means over branches, before and after a temperature; best in bold."""
    found = record["backbones"][backbone]
    rows = []
    for name, (words, scale, more) in MEASURES.items():
        for when in ("before", "after"):
            if (name, when) == ("accuracy", "after"):
                continue  # a temperature changes no answer
            each = [found[target][f"{name}_{when}"] for target in TARGETS]
            means = [float(np.mean(one["mean"])) for one in each]
            best = max(means) if more else min(means)
            digits = 3 if scale == 1 else 2
            cells = [f"{scale * mean:.{digits}f}" for mean in means]
            shown = f"{scale * best:.{digits}f}"
            cells = [f"**{c}**" if c == shown else c for c in cells]
            rows.append([words if name == "accuracy" else f"{words}, {when}", *cells])
    return Table(["mean over branches", *TARGETS.values()], rows)


def by_branch(record: Record, backbone: str) -> Table:
    """Show the calibration error of each branch, before and after a temperature."""
    found = record["backbones"][backbone]
    rows = []
    for target, words in TARGETS.items():
        pairs = zip(
            *(found[target][f"ece_{when}"]["mean"] for when in ("before", "after")),
            found[target]["temperature"]["mean"],
            strict=True,
        )
        rows.append(
            [
                words,
                *(f"{100 * a:.1f} to {100 * b:.1f} (T {t:.2f})" for a, b, t in pairs),
            ]
        )
    branches = len(rows[0]) - 1
    return Table(["targets", *(f"branch {k + 1}" for k in range(branches))], rows)


TABLES = {
    f"{name}_{short}": partial(make, backbone=backbone)
    for short, backbone in (
        ("resnet18", "resnet18_cifar100"),
        ("resnet32", "resnet32_cifar10"),
    )
    for name, make in (("measures", measures), ("by_branch", by_branch))
}
