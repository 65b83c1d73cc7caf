"""Time of a running cascade against the plain backbone."""

from __future__ import annotations

from .cifar100_coarse import DEFAULT, name_of
from .formats import BENCHMARKS, README, Record, Sentence, Table, percent, spread

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


def at_default(record: Record) -> list[float]:
    """Give the speed-ups at the default margin: over the module, over its stages."""
    (found,) = (each for each in record["batch_256"] if each["margin"] == DEFAULT)
    return [found[ratio]["median"] for ratio in RATIOS[:2]]


SENTENCES = (
    Sentence(
        README,
        "answer batches of 256 images {} times as fast as with the plain module: {} "
        "times by exits",
        lambda record: [f"{ratio:.1f}" for ratio in at_default(record)],
    ),
    Sentence(
        BENCHMARKS,
        "{} times as fast as the plain module at the default, {} times as the same "
        "stages without exits",
        lambda record: [f"{ratio:.2f}" for ratio in at_default(record)],
    ),
    Sentence(
        BENCHMARKS,
        "half the time of the plain module, {} times that of its stages alone",
        lambda record: [
            f"{record['batch_1_nothing_exits']['time_ratio_to_stages_alone']['median']:.1f}"
        ],
    ),
)
