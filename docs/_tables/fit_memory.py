"""Peak memory of extracting and fitting with 1,000 classes."""

from __future__ import annotations

from .formats import TIME, Record, Sentence, Table, thousands


def sizes(record: Record) -> Table:
    """Show the largest resident memory, by number of rows."""
    rows = [
        [
            thousands(found["rows"]),
            "on demand" if found["on_demand"] else "mapped",
            thousands(found["extracting_resident_mib"]),
            thousands(found["fitting_anonymous_mib"]),
            thousands(found["fitting_resident_mib"]),
            thousands(found["features_mib"]),
            thousands(found["float32_features_mib"]),
            thousands(found["float64_matrix_mib"]),
            thousands(found["disk_mib"]),
            f"{found['fit_cpu_seconds']:.1f}",
        ]
        for found in record["rows"]
    ]
    return Table(
        [
            "rows",
            "features",
            "extracting (MiB)",
            "fitting, without mapped files (MiB)",
            "fitting, all (MiB)",
            "features, int8 (MiB)",
            "in float32 (MiB)",
            "rows x classes, float64 (MiB)",
            "on disk (MiB)",
            "fit (s of processor time)",
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
        "Without mapped files a fit takes {} MiB at {} rows and {} at {}, with rows "
        "read on demand {} and {}.",
        lambda record: [
            thousands(record["rows"][k][key])
            for k, key in (
                (0, "fitting_anonymous_mib"),
                (0, "rows"),
                (-2, "fitting_anonymous_mib"),
                (-2, "rows"),
                (1, "fitting_anonymous_mib"),
                (-1, "fitting_anonymous_mib"),
            )
        ],
    ),
)
