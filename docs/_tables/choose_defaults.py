"""Which settings validation rows alone choose for CalexNet."""

from __future__ import annotations

from .formats import BENCHMARKS, CIFAR, Record, Sentence, Table, percent

SHOWN = {
    (0.5, "local, shrinkage 200"): "(the defaults)",
    (1.0, "local, shrinkage 1000"): "",
    (0.5, "local, shrinkage 1000"): "",
    (0.5, "local, shrinkage 50"): "",
    (0.5, "local, shrinkage 0"): "",
    (0.0, "local, shrinkage 1000"): "(best of labels alone)",
    (1.0, "relative"): "(best of the paper's gate)",
}


def candidates(record: Record) -> Table:
    """Show the best candidates, and the best of each kind."""
    found = {(c["alpha"], c["gate"]): c for c in record["candidates"]}
    rows = []
    for (alpha, gate), words in SHOWN.items():
        each = found[alpha, gate]
        rows.append(
            [
                f"{alpha:g}",
                f"{gate} {words}".strip(),
                percent(each["validation_score"], 2),
                percent(each["test_score"], 2),
                f"{each['margin']:+.2f}",
                f"{percent(each['test_flops_reduction_at_margin'])} %",
                f"{each['test_points_lost_at_margin']:.2f}",
            ]
        )
    headers = ["`alpha`", "gate", "validation", "test", "margin", "test: saved"]
    return Table([*headers, "points lost"], rows)


TABLES = {"candidates": candidates}


def near_each_other(record: Record) -> list[str]:
    """Write by how much the first four candidates differ on validation, in points."""
    scores = [100 * c["validation_score"] for c in record["candidates"][:4]]
    return [f"{max(scores) - min(scores):.2f}"]


def settled(record: Record) -> list[str]:
    """Write the lead over the paper's gate, and over labels alone, in points."""
    best, labels, paper = (
        max(100 * c["validation_score"] for c in record["candidates"] if is_one(c))
        for is_one in (
            lambda c: True,
            lambda c: c["alpha"] == 0,
            lambda c: c["gate"] == "relative",
        )
    )
    return [f"{best - paper:.1f}", f"{best - labels:.1f}"]


def chosen_margin(record: Record) -> list[str]:
    """Write the margin that validation chooses."""
    return [f"{record['candidates'][0]['margin']:.2f}"]


SENTENCES = (
    Sentence(BENCHMARKS, "but for a margin of {} in place of 0.05", chosen_margin),
    Sentence(
        CIFAR,
        "are what validation chooses, with a margin of {} in place of 0.05",
        chosen_margin,
    ),
    Sentence(CIFAR, "four are within {} points there", near_each_other),
    Sentence(
        CIFAR,
        "the paper's gate, by {} points, and soft targets over labels alone, by {}.",
        settled,
    ),
)
