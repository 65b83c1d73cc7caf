"""Ways to train branches, compared with the plain one."""

from __future__ import annotations

from functools import partial
from itertools import product

from .formats import Record, Table, percent, signed

RULES = {"local": "local", "together": "ensemble, optimal stopping"}
PARTS = ("validation", "test")
NAMES = {
    "resnet18_cifar100": "ResNet-18",
    "resnet32_cifar10": "ResNet-32",
    "transfer": "transfer",
}


def gains(record: Record, rule: str) -> Table:
    """Show the mean gain over the plain way, on the savings that both reach."""
    found = {
        task: record["summary"][task][RULES[rule]]
        for task in NAMES
        if task in record["summary"]
    }
    rows = []
    for way in list(record["settings"]["ways"])[1:]:
        cells = []
        for task, part in product(found, PARTS):
            gain = found[task].get(way, {}).get(f"{part}_gain")
            if gain is None:
                cells.append("-")
                continue
            deviation = "" if gain["sd"] is None else f" ± {percent(gain['sd'], 2)}"
            cells.append(signed(gain["mean"]) + deviation)
        rows.append([way, *cells])
    names = [f"{NAMES[task]}, {part}" for task, part in product(found, PARTS)]
    return Table(["", *names], rows)


TABLES = {f"gains_{rule}": partial(gains, rule=rule) for rule in RULES}
