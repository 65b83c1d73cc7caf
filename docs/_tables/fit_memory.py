"""Peak memory of extracting and fitting with 1,000 classes."""

from __future__ import annotations

from .formats import TIME, Record, Sentence, Table, thousands


def sizes(record: Record) -> Table:
    """Show the largest resident memory, by number of rows."""
    rows = [
        [
            thousands(found["rows"]),
            thousands(found["extracting_resident_mib"]),
            thousands(found["fitting_anonymous_mib"]),
            thousands(found["fitting_resident_mib"]),
            thousands(found["features_mib"]),
            thousands(found["float32_features_mib"]),
            thousands(found["float64_matrix_mib"]),
        ]
        for found in record["rows"]
    ]
    return Table(
        [
            "rows",
            "extracting (MiB)",
            "fitting, without mapped files (MiB)",
            "fitting, all (MiB)",
            "features, int8 (MiB)",
            "in float32 (MiB)",
            "rows x classes, float64 (MiB)",
        ],
        rows,
    )


TABLES = {"sizes": sizes}

SENTENCES = (
    Sentence(
        TIME,
        "At {} rows the process holds {} MiB before it begins",
        lambda record: [
            thousands(record["rows"][-1]["rows"]),
            thousands(record["rows"][-1]["start_resident_mib"]),
        ],
    ),
    Sentence(
        TIME,
        "Without mapped files a fit takes {} MiB at {} rows and {} at {}.",
        lambda record: [
            thousands(record["rows"][k][key])
            for k in (0, -1)
            for key in ("fitting_anonymous_mib", "rows")
        ],
    ),
)
