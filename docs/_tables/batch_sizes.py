"""A cascade against the plain module and its stages, by batch size and threads."""

from __future__ import annotations

from functools import partial

from .formats import BENCHMARKS, TIME, Record, Sentence, Table, percent, spread

SAVINGS = ("30%", "50%", "60%")
CLOCKS = {"1": "cpu", "2": "wall"}


def nothing_saved(record: Record, threads: str) -> Table:
    """Show stages and cascades that save nothing over the plain module."""
    clock = CLOCKS[threads]
    rows = [
        [
            size,
            f"{found['ms_an_image']['plain']:.2f}",
            spread(found["stages_over_plain"][clock]),
            *(
                spread(found["rules"][rule]["over_plain"][clock])
                for rule in ("no head can answer", "nothing exits")
            ),
        ]
        for size, found in record["threads"][threads].items()
    ]
    headers = [
        "batch",
        "plain, ms of processor time an image",
        "stages alone / plain",
        "`predict`, no head can answer / plain",
        "`predict`, heads could, nothing exits / plain",
    ]
    return Table(headers, rows)


def shares(record: Record, threads: str) -> Table:
    """Show how much of the implied speed-up over the stages arrives."""
    clock = CLOCKS[threads]
    rows = [
        [
            size,
            *(
                f"{spread(found['rules'][name]['share_of_implied'][clock])} at "
                f"{percent(found['rules'][name]['flops_reduction'], 0)} %"
                for name in SAVINGS
            ),
            *(
                f"{1 / found['rules'][name]['over_plain'][clock]['median']:.2f}"
                for name in SAVINGS
            ),
        ]
        for size, found in record["threads"][threads].items()
    ]
    headers = ["batch", *(f"of the implied, about {name} saved" for name in SAVINGS)]
    headers += [f"over the plain module, {name}" for name in SAVINGS]
    return Table(headers, rows)


TABLES = {
    "nothing_saved_1": partial(nothing_saved, threads="1"),
    "nothing_saved_2": partial(nothing_saved, threads="2"),
    "shares_1": partial(shares, threads="1"),
    "shares_2": partial(shares, threads="2"),
}


def most(record: Record, threads: str, rule: str | None = None) -> float:
    """Give the largest ratio to the plain module over the batch sizes."""
    found = record["threads"][threads].values()
    if rule is None:
        ratios = [each["stages_over_plain"] for each in found]
    else:
        ratios = [each["rules"][rule]["over_plain"] for each in found]
    return max(ratio[CLOCKS[threads]]["median"] for ratio in ratios)


def over(record: Record, rule: str, of: str, size: str = "1") -> float:
    """Give the processor time under a rule over another way's, on one thread."""
    found = record["threads"]["1"][size]["rules"][rule]
    ratio: float = found[f"over_{of}"]["cpu"]["median"]
    return ratio


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "one image at a time, one thread: {} of the time of the plain module where no "
        "head can answer, {} where all run for nothing",
        lambda record: [
            f"{over(record, rule, 'plain'):.2f}"
            for rule in ("no head can answer", "nothing exits")
        ],
    ),
    Sentence(
        TIME,
        "the first stage has {} % of the FLOPs and, at batch 256, {} % of the time",
        lambda record: [
            percent(
                record["settings"]["stage_mmacs"][0]
                / sum(record["settings"]["stage_mmacs"]),
                0,
            ),
            percent(
                record["threads"]["1"]["256"]["ms_an_image"]["1 stages"]
                / record["threads"]["1"]["256"]["ms_an_image"]["stages"],
                0,
            ),
        ],
    ),
    Sentence(
        TIME,
        "On one thread the stages take {} of the plain module's time at most, a "
        "cascade in which heads run and nothing exits {}; on two threads {} and {}.",
        lambda record: [
            f"{most(record, threads, rule):.2f}"
            for threads in ("1", "2")
            for rule in (None, "nothing exits")
        ],
    ),
)
