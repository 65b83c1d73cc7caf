"""How little predictions move with the last bits."""

from __future__ import annotations

import numpy as np

from .formats import BENCHMARKS, Record, Sentence


def largest_change(record: Record, cause: str) -> float:
    """Give the largest change of a probability, over heads and cascades."""
    return max(float(each["proba"]) for each in record["changes"][cause].values())


def power(number: float) -> str:
    """Write a small number as a digit and a power of ten."""
    digit, _, exponent = f"{number:.0e}".partition("e")
    return f"{digit}e{int(exponent)}"


def changes(record: Record) -> list[str]:
    """Write the largest changes, now and with the former solver."""
    now = max(largest_change(record, cause) for cause in ("noise", "older_cpu"))
    former = largest_change(record, "former_noise")
    return [power(record["settings"]["noise"]), power(now), f"{former:.1f}"]


def price(record: Record) -> list[str]:
    """Write what the present solver takes and loses against the former one."""
    seconds, accuracy = record["fit_seconds"], record["accuracy"]
    ratios = [seconds["now"][k] / seconds["former"][k] for k in seconds["now"]]
    lost = [accuracy["former"][k] - accuracy["now"][k] for k in accuracy["now"]]
    return [f"{np.mean(ratios):.1f}", f"{100 * np.mean(lost):.1f}"]


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "noise of {} in the features of small sets moves a probability by at most {}, "
        "another CPU's kernels by as much, no exit and no answer; until 0.1 it was {} ",
        changes,
    ),
    Sentence(
        BENCHMARKS,
        "fits of 150 to 600 rows take {} times as long and lose {} points on average",
        price,
    ),
)
