"""A cascade in bfloat16 against itself and the module in float32."""

from __future__ import annotations

from .formats import TIME, Record, Sentence, Table, percent, spread

WAYS = {
    "module, bfloat16": "module, bfloat16",
    "cascade": "cascade, float32",
    "cascade, bfloat16": "cascade, bfloat16",
}
DEPLOY = "docs/guide/deploy.md"


def faster(record: Record) -> Table:
    """Show how many times as fast as the module in float32 each way is."""
    rows = [
        [
            size,
            f"{found['ms_an_image']['module']:.2f}",
            *(spread(found["faster_than_module"][way]) for way in WAYS),
        ]
        for size, found in record["batches"].items()
    ]
    return Table(["batch", "module, ms an image", *WAYS.values()], rows)


TABLES = {"faster": faster}


def times(record: Record, size: str) -> str:
    """Write how many times as fast the cascade in bfloat16 is."""
    found = record["batches"][size]["faster_than_module"]["cascade, bfloat16"]
    return f"{found['median']:.1f}"


SENTENCES = (
    Sentence(
        TIME,
        "Labels are equal for {} % of {} images; accuracy on them is {} % in float32 "
        "and {} in bfloat16, at {} and {} % saved.",
        lambda record: [
            percent(record["equal_labels"]),
            f"{record['settings']['images']:,}",
            *(percent(record["accuracy"][way]) for way in ("float32", "bfloat16")),
            *(
                percent(record["flops_reduction"][way], 0)
                for way in ("float32", "bfloat16")
            ),
        ],
    ),
    Sentence(
        DEPLOY,
        "{} times as fast as the module in float32 at batch 1, {} times at 256",
        lambda record: [times(record, "1"), times(record, "256")],
    ),
)
