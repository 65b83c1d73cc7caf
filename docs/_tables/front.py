"""The recipe against the baselines on several backbones."""

from __future__ import annotations

from functools import partial
from typing import Any

from .formats import Record, Table, mean_sd, percent, signed

TASKS = (
    "resnet18_cifar100",
    "resnet32_cifar10",
    "transfer",
    "efficientnet_cifar100",
)
LONG = "resnet18_cifar100_long"
LEADERS = {
    "recipe": "recipe",
    "chosen": "recipe, chosen by validation",
    "sums": "recipe, sums of logits",
}
TRAINED_LONG = (
    "recipe",
    "recipe, chosen by validation",
    "recipe, alpha by validation",
    "recipe, labels on all",
    "recipe, no ensemble",
    "recipe, local margins, no ensemble",
    "recipe, sums of logits",
    "labels alone, quota, ensemble",
    "defaults",
    "defaults, ensemble, optimal stopping",
    "BoostNet",
    "BoostNet, our ensemble",
    "BoostNet, our ensemble and rule",
    "BoostNet, chosen so, too",
)
MAIN = (
    "recipe",
    "recipe, chosen by validation",
    "recipe, sums of logits",
    "defaults",
    "defaults, ensemble, optimal stopping",
    "BoostNet",
    "BoostNet, our ensemble",
    "BoostNet, our ensemble and rule",
    "BoostNet, chosen so, too",
    "ZTW",
    "reference",
    "BTS-EE",
    "PTEENet",
)
PARTS = (
    "recipe",
    "recipe, local margins",
    "recipe, no ensemble",
    "recipe, local margins, no ensemble",
    "recipe, soft targets on all",
    "recipe, labels on all",
    "recipe, alpha by validation",
    "recipe, sums of logits",
    "recipe, sums of logits, no ensemble",
)
BOOSTING = (
    "labels alone, quota",
    "BoostNet",
    "labels alone, quota, ensemble",
    "BoostNet, our ensemble",
    "recipe, labels on all",
    "BoostNet, our ensemble and rule",
    "recipe",
    "recipe, sums of logits",
)
AUTOMATIC = (
    "defaults",
    "defaults, optimal stopping",
    "defaults, ensemble",
    "defaults, ensemble, optimal stopping",
    "recipe, local margins, no ensemble",
    "recipe, no ensemble",
    "recipe, local margins",
    "recipe",
    "recipe, sums of logits",
)


def accuracies(record: Record, task: str, part: str, names: tuple[str, ...]) -> Table:
    """Show the accuracy at given savings."""
    found = record["summary"][task]
    rows = []
    for name in (name for name in names if name in found):
        one = found[name][f"{part}_at_cuts"]
        pairs = zip(one["mean"], one["sd"], strict=True)
        seeds = str(len(found[name]["seeds"]))
        rows.append([name, *(mean_sd(*pair) for pair in pairs), seeds])
    return Table(["", *_cuts(record), "seeds"], rows)


def ahead(record: Record, task: str, leader: str) -> Table:
    """Show by how much a recipe is ahead, on the same seeds."""
    rows = []
    for name, lead in record["summary"][task][leader]["ahead_by"].items():
        pairs = zip(lead["mean"], lead["sd"], strict=True)
        rows.append([name, *(_signed(*pair) for pair in pairs), str(lead["n"])])
    return Table([f"{leader}, against", *_cuts(record), "seeds"], rows)


def aims(record: Record, task: str, names: tuple[str, ...]) -> Table:
    """Show what the validated point for each loss loses and saves on test."""
    rows = []
    for name in (name for name in names if name in record["summary"][task]):
        cells = []
        for aim in record["settings"]["aims"]:
            one = record["summary"][task][name]["aims"][str(aim)]
            cells += [
                mean_sd(one["lost"]["mean"], one["lost"]["sd"]),
                mean_sd(one["saved"]["mean"], one["saved"]["sd"], 1),
            ]
        rows.append([name, *cells])
    heads = [
        f"{100 * aim:g} {'point' if aim == 0.01 else 'points'}: {what}"
        for aim in record["settings"]["aims"]
        for what in ("lost", "saved %")
    ]
    return Table(["", *heads], rows)


def automatic(record: Record, task: str) -> Table:
    """Show what the value that a rule finds by itself loses and saves."""
    rows = []
    for name in AUTOMATIC:
        one = record["summary"][task][name]["auto"]
        share = one["share_of_best"]["mean"]
        rows.append(
            [
                name,
                mean_sd(one["validated_lost"]["mean"], one["validated_lost"]["sd"]),
                mean_sd(one["validated_saved"]["mean"], None, 1),
                mean_sd(one["lost"]["mean"], one["lost"]["sd"]),
                mean_sd(one["test_error"]["mean"], None),
                mean_sd(one["saved"]["mean"], one["saved"]["sd"], 1),
                "-" if share is None else percent(share, 0),
            ]
        )
    heads = [
        "validation: lost",
        "saved %",
        "test: lost",
        "error",
        "saved %",
        "of the best %",
    ]
    return Table(["", *heads], rows)


def _cuts(record: Record) -> list[str]:
    return [f"{cut:.0%}" for cut in record["settings"]["cuts"]]


def _signed(mean: float | None, sd: float | None) -> str:
    if mean is None:
        return "-"
    return signed(mean) + ("" if sd is None else f" ± {percent(sd, 2)}")


TABLES: dict[str, Any] = {}
for _task in TASKS:
    TABLES |= {
        f"ahead_{short}_{_task}": partial(ahead, task=_task, leader=leader)
        for short, leader in LEADERS.items()
    }
    TABLES |= {
        f"test_{_task}": partial(accuracies, task=_task, part="test", names=MAIN),
        f"aims_{_task}": partial(aims, task=_task, names=MAIN),
        f"parts_validation_{_task}": partial(
            accuracies, task=_task, part="validation", names=PARTS
        ),
        f"parts_test_{_task}": partial(
            accuracies, task=_task, part="test", names=PARTS
        ),
        f"boosting_{_task}": partial(
            accuracies, task=_task, part="test", names=BOOSTING
        ),
        f"automatic_{_task}": partial(automatic, task=_task),
    }
TABLES |= {
    "test_long": partial(accuracies, task=LONG, part="test", names=TRAINED_LONG),
    "aims_long": partial(aims, task=LONG, names=TRAINED_LONG),
    "ahead_chosen_long": partial(ahead, task=LONG, leader=LEADERS["chosen"]),
    "automatic_long": partial(automatic, task=LONG),
    "ahead_recipe_long": partial(ahead, task=LONG, leader=LEADERS["recipe"]),
}
