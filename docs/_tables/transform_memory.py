"""Peak memory of extracting to a store on disk."""

from __future__ import annotations

from .formats import BENCHMARKS, Record, Sentence, Table, thousands


def sizes(record: Record) -> Table:
    """Show memory above the start, by number of samples."""
    rows = [
        [
            thousands(found["samples"]),
            thousands(found["feature_mib"]),
            thousands(found["peak_anonymous_mib_above_start"]),
            thousands(found["peak_resident_mib_above_start"]),
        ]
        for found in record["rows"]
    ]
    headers = ["samples", "features (MiB)", "anonymous memory (MiB)"]
    return Table([*headers, "resident memory (MiB)"], rows)


TABLES = {"sizes": sizes}


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "extraction of {} samples: {} MiB above the start",
        lambda record: [
            thousands(record["rows"][-1]["samples"]),
            thousands(record["rows"][-1]["peak_resident_mib_above_start"]),
        ],
    ),
)
