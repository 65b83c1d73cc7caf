"""Processes that use, damage and mend one feature store while others are killed."""

from __future__ import annotations

from .formats import Record, Sentence, thousands


def last_run(record: Record) -> list[str]:
    """Write what the processes did."""
    done = (
        record["operations"],
        record["by_operation"]["repair"],
        record["kills"],
    )
    return [thousands(number) for number in done]


def found_at_the_end(record: Record) -> list[str]:
    """Write what was wrong, while they ran and after one repair."""
    found = record["found"]
    names = (
        *("wrong_rows", "lost_rows", "undocumented_exceptions"),
        *("damaged_files", "orphans", "hidden_folders"),
    )
    return [thousands(found[name]) for name in names]


SENTENCES = (
    Sentence(
        "docs/background/reliability.md",
        "took {} operations, {} repairs among them, and {} kills.",
        last_run,
    ),
    Sentence(
        "docs/background/reliability.md",
        "It found {} wrong rows, {} lost rows and {} undocumented exceptions, and "
        "after one repair in the end {} damaged files, {} orphans and {} hidden "
        "folders.",
        found_at_the_end,
    ),
)
