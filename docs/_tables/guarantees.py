"""Whether the promises hold: risk control and the monitor."""

from __future__ import annotations

from typing import Any

from .formats import BENCHMARKS, GUARANTEES, Record, Sentence, Table, percent, thousands

ROWS = (1_000, 5_000, 10_000)
LIMITS = (0.005, 0.01, 0.02)
CHANGES = {
    "blur, radius 1": "blur, radius 1 pixel",
    "half the contrast": "half the contrast",
    "noise, sd 10": "noise, 10 of 255",
    "40 % darker": "40 % darker",
    "noise, sd 25.5": "noise, 25.5 of 255",
}


def outcome(
    record: Record,
    n: int,
    limit: float,
    error: float = 0.1,
    risk: str = "accuracy_drop",
) -> Any:
    """Give what the draws of one setting came to."""
    (found,) = (
        each
        for each in record["risk_control"]
        if (each["risk"], each["max_risk"], each["n"], each["error"])
        == (risk, limit, n, error)
    )
    return found


def saved_and_broken(found: Any) -> str:
    """Write the FLOPs saved, and the draws that broke the promise in brackets."""
    return f"{percent(found['flops_saved'])} ({percent(found['violations'])})"


def rows_needed(record: Record) -> Table:
    """Show what is saved, and how often the promise was broken, by number of rows."""
    settings = [(n, limit, "accuracy_drop") for n in ROWS for limit in LIMITS]
    settings += [(n, 0.01, "disagreement") for n in ROWS]
    rows = []
    for n, limit, risk in settings:
        surer = [outcome(record, n, limit, error, risk) for error in (0.1, 0.05)]
        words = ", no labels" if risk == "disagreement" else ""
        rows.append(
            [
                thousands(n) + words,
                f"{100 * limit:g}",
                *(saved_and_broken(each["certified"]) for each in surer),
                saved_and_broken(surer[0]["estimated"]),
            ]
        )
    headers = ["rows", "points that may be lost", "90 % sure", "95 % sure"]
    return Table([*headers, "estimate alone"], rows)


def delays(record: Record) -> Table:
    """Show after how many rows the monitor notices a change."""
    found = {each["corruption"]: each for each in record["monitor"]["delays"]}
    rows = []
    for name, words in CHANGES.items():
        each = found[name]
        before, after = each["clean_accuracy"], each["last_stage_accuracy"]
        rows.append(
            [
                words,
                f"{each['median_rows']:.0f}, {each['ninth_decile']:.0f}",
                f"{percent(before)} to {percent(after)} %",
            ]
        )
    headers = ["change", "rows until the alarm: median, 90 %"]
    return Table([*headers, "accuracy of the backbone"], rows)


TABLES = {"rows_needed": rows_needed, "delays": delays}


def kept(found: Any) -> str:
    """Write in how many of 100 draws the limit was kept."""
    return f"{100 * (1 - found['violations']):.0f}"


def kept_by_both(record: Record) -> list[str]:
    """Write how often an estimate, and a certificate, of 5,000 rows kept the limit."""
    outcomes = [outcome(record, 5_000, limit) for limit in LIMITS]
    return [kept(each[by]) for by in ("estimated", "certified") for each in outcomes]


def saved_by_both(record: Record) -> list[str]:
    """Write what an estimate, and a certificate, of 5,000 rows save."""
    outcomes = [outcome(record, 5_000, limit) for limit in LIMITS]
    return [
        percent(each[by]["flops_saved"], 0)
        for by in ("estimated", "certified")
        for each in outcomes
    ]


def half_a_point(record: Record) -> list[str]:
    """Write what a certificate of half a point came to, then an estimate."""
    found = outcome(record, 5_000, 0.005)
    return [
        figure
        for by in ("certified", "estimated")
        for figure in (kept(found[by]), percent(found[by]["flops_saved"], 0))
    ]


def to_label(record: Record) -> list[str]:
    """Write how many of 100 rows need a label, at least and at most."""
    shares = [
        each["rows_to_label"]
        for each in record["risk_control"]
        if each["risk"] == "accuracy_drop"
    ]
    return [percent(min(shares), 0), percent(max(shares), 0)]


def false_alarms(record: Record) -> list[str]:
    """Write the share of streams with a false alarm, and its bound, one by one."""
    return [
        figure
        for each in record["monitor"]["clean"]
        for figure in (percent(each["false_alarms"]), percent(each["bound"], 0))
    ]


def largest_size(record: Record) -> list[str]:
    """Write how often the test rejects on the boundary, at most, at both errors."""
    rejected: dict[float, list[float]] = {}
    for each in record["size"]:
        rejected.setdefault(each["error"], []).append(each["rejected"])
    return [f"{max(rejected[error]):.3f}" for error in (0.1, 0.05)]


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "by 5,000 rows: kept in {} of 100 draws, {} % saved; the estimate alone in {}, "
        "at {} %",
        half_a_point,
    ),
    Sentence(
        GUARANTEES,
        "at most 0.5 / 1 / 2 points | in {} / {} / {} of 100 draws | in {} / {} / {} "
        "of 100 draws; 90 promised |",
        kept_by_both,
    ),
    Sentence(
        GUARANTEES,
        "| saves there | {} / {} / {} % of the FLOPs | {} / {} / {} % |",
        saved_by_both,
    ),
    Sentence(
        GUARANTEES, "the other rows, {} to {} of 100 in the table below", to_label
    ),
    Sentence(
        GUARANTEES,
        "{} % of streams of 1,000 rows at A = 10,000 (bound {} %); {} % of streams of "
        "3,000 rows at A = 10,000 (bound {} %); {} % of streams of 10,000 rows at A = "
        "1,000,000 (bound {} %)",
        false_alarms,
    ),
    Sentence(
        "docs/background/methods.md",
        "is at most {} at delta = 0.1 and {} at 0.05,",
        largest_size,
    ),
)
