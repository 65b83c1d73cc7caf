"""What leaving out branches that do not pay saves."""

from __future__ import annotations

from functools import partial

from .formats import Record, Table, percent, signed


def gains(record: Record, task: str) -> Table:
    """Show savings and accuracy with all branches and with those that pay."""
    rows = []
    for margin, found in record["summary"][task].items():
        deviation = found["saves_more"]["sd"]
        rows.append(
            [
                margin,
                f"{found['left_out']['mean']:.1f}",
                *(percent(found[f"saved_{which}"]["mean"]) for which in WHICH),
                signed(found["saves_more"]["mean"])
                + ("" if deviation is None else f" ± {percent(deviation, 2)}"),
                *(percent(found[f"accuracy_{which}"]["mean"], 2) for which in WHICH),
            ]
        )
    headers = [
        "margin",
        "left out, of six",
        "saved by all, %",
        "by those that pay, %",
        "more, points",
        "accuracy of all, %",
        "of those that pay, %",
    ]
    return Table(headers, rows)


WHICH = ("all", "auto")
TABLES = {
    "resnet32": partial(gains, task="resnet32_cifar10"),
    "resnet18": partial(gains, task="resnet18_cifar100"),
}
