"""Time of a running cascade against the plain backbone."""

from __future__ import annotations

from .cifar100_coarse import QUOTED, name_of
from .formats import (
    BENCHMARKS,
    README,
    TIME,
    Record,
    Sentence,
    Table,
    percent,
    spread,
    spread_figures,
)

RATIOS = (
    "speed_up",
    "speed_up_over_stages_alone",
    "share_of_implied_over_stages_alone",
)


def margins(record: Record) -> Table:
    """Show how much faster the cascade is, by margin."""
    rows = [
        [
            name_of(found["margin"]),
            f"{percent(found['flops_reduction'])} %",
            f"{found['implied_speed_up']:.2f}",
            *(spread(found[ratio]) for ratio in RATIOS),
        ]
        for found in record["batch_256"]
    ]
    over = ["over the plain module", "over the stages alone", "share of the implied"]
    return Table(["margin", "FLOPs saved", "speed-up implied", *over], rows)


TABLES = {"margins": margins}


def at_quoted(record: Record) -> list[float]:
    """Give the speed-ups at the quoted margin: over the module, over its stages."""
    (found,) = (each for each in record["batch_256"] if each["margin"] == QUOTED)
    return [found[ratio]["median"] for ratio in RATIOS[:2]]


def what_arrives(record: Record) -> list[str]:
    """Write which share of the implied arrives, at the first and the last margin."""
    first, last = record["batch_256"][0], record["batch_256"][-1]
    shares = [each["share_of_implied_over_stages_alone"] for each in (first, last)]
    saved = percent(last["flops_reduction"], 0)
    return [*(percent(share["median"], 0) for share in shares), saved]


def more_than_implied(record: Record) -> list[str]:
    """Write the share over the plain module at a margin of 0.05."""
    (found,) = (each for each in record["batch_256"] if each["margin"] == 0.05)
    return spread_figures(found["share_of_implied"])


SENTENCES = (
    Sentence(
        README,
        "answer batches of 256 images {} times as fast as with the plain module: {} "
        "times by exits",
        lambda record: [f"{ratio:.1f}" for ratio in at_quoted(record)],
    ),
    Sentence(
        BENCHMARKS,
        "{} times as fast as the plain module at a margin of 0.05, {} times as the "
        "same stages without exits",
        lambda record: [f"{ratio:.2f}" for ratio in at_quoted(record)],
    ),
    Sentence(
        TIME,
        "of what the FLOPs promise, {} % arrives at a quarter saved and {} % at {} %,",
        what_arrives,
    ),
    Sentence(
        TIME,
        "plain module more than all of it does ({} times, {} to {}, at",
        more_than_implied,
    ),
    Sentence(
        "docs/howto/see_what_ran.md",
        "#prediction-time): {} to {} % of what the FLOPs promise",
        lambda record: sorted(what_arrives(record)[:2]),
    ),
)
