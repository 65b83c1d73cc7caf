"""Thresholds from clean images, when images are corrupted."""

from __future__ import annotations

from .formats import CIFAR, Record, Sentence, Table, percent

IMAGES = {
    "clean": "clean",
    "blur, radius 1": "blur, radius 1",
    "half the contrast": "half the contrast",
    "noise, sd 10": "noise, sd 10",
    "40 % darker": "40 % darker",
    "noise, sd 25.5": "noise, sd 25.5",
}
RULES = {
    ("local", 0.05, "survivors"): "local 0.05, survivors",
    ("local", 0.05, "all"): "local 0.05, all rows",
    ("relative", -0.1, "survivors"): "mean -0.1, survivors",
    ("relative", -0.1, "all"): "mean -0.1, all rows",
}


def drops(record: Record) -> Table:
    """Show the points lost against the last stage, at what is saved."""
    found = {
        (c["images"], c["margin_mode"], c["margin"], c["calibrate_on"]): c
        for c in record["cells"]
    }
    rows = []
    for images in IMAGES:
        cells = [found[(images, *rule)] for rule in RULES]
        rows.append(
            [
                images,
                f"{percent(cells[0]['last_stage_accuracy'])} %",
                *(
                    f"{percent(c['drop'], 2)} at {percent(c['flops_saved'], 0)} %"
                    for c in cells
                ),
            ]
        )
    return Table(["images", "last stage", *RULES.values()], rows)


TABLES = {"drops": drops}


def survivors_or_all(record: Record) -> list[str]:
    """Write how far survivors and all rows differ at most with local margins."""
    drops: dict[str, list[float]] = {}
    for cell in record["cells"]:
        if (cell["margin_mode"], cell["margin"]) == ("local", 0.05):
            drops.setdefault(cell["images"], []).append(100 * cell["drop"])
    return [f"{max(abs(one - other) for one, other in drops.values()):.1f}"]


def lost_by_the_network(record: Record) -> list[str]:
    """Write how many points the last stage itself loses at most."""
    last = {c["images"]: c["last_stage_accuracy"] for c in record["cells"]}
    return [percent(last["clean"] - min(last.values()), 0)]


SENTENCES = (
    Sentence(
        CIFAR,
        "survivors and all rows differ by {} points at most with local margins",
        survivors_or_all,
    ),
    Sentence(CIFAR, "The last stage itself loses up to {} points", lost_by_the_network),
)
