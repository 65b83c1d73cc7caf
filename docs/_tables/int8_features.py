"""Cascades trained on features in int8 against float32."""

from __future__ import annotations

from .formats import TIME, Record, Sentence, Table, percent, signed, thousands


def formats(record: Record) -> Table:
    """Show bytes and rounding, by type of the features."""
    rows = [
        [
            name,
            thousands(found["bytes_per_row"]),
            f"{found['bytes_on_disk'] / 2**20:,.0f}",
            f"{max(found['largest_errors']):.1g}",
        ]
        for name, found in record["formats"].items()
    ]
    headers = ["features", "bytes a row", "on disk (MiB)"]
    return Table([*headers, "largest error / largest value"], rows)


def cascades(record: Record) -> Table:
    """Show accuracy and saved FLOPs on the judged rows, seed by seed."""
    found = record["cascades"]
    rows = [
        [
            str(plain["seed"]),
            *(
                percent(run[key])
                for key in ("accuracy", "flops_reduction")
                for run in (plain, small)
            ),
        ]
        for plain, small in zip(
            found["float32"]["runs"], found["int8"]["runs"], strict=False
        )
    ]
    headers = ["seed", "accuracy, float32 (%)", "int8 (%)"]
    return Table([*headers, "FLOPs saved, float32 (%)", "int8 (%)"], rows)


TABLES = {"formats": formats, "cascades": cascades}


def branch_differences(record: Record) -> list[str]:
    """Write how far a branch's accuracy lies from float32's, in points."""
    found = record["cascades"]["int8"]["branch_accuracy_difference"]
    return [signed(found[key]) for key in ("median", "min", "max")]


SENTENCES = (
    Sentence(
        TIME,
        "A branch by itself is {} points from one trained in float32 ({} to {})",
        branch_differences,
    ),
)
