"""Time of one image where nothing exits."""

from __future__ import annotations

from .formats import BENCHMARKS, TIME, Record, Sentence, Table, spread

WAYS = {
    "plain": "plain module",
    "stages": "stages alone",
    "stages_and_heads": "stages and heads",
    "predict": "`predict`, no head can answer",
    "predict_with_heads": "`predict`, heads could, and do not",
}


def milliseconds(record: Record) -> Table:
    """Show the processor time of an image, and that of `predict` over the others."""
    headers = ["", *(f"{n} thread{'s' * (n != '1')}, ms" for n in record["threads"])]
    headers += [f"`predict` over it, {n}" for n in record["threads"]]
    headers += [f"with heads over it, {n}" for n in record["threads"]]
    rows = []
    for way, name in WAYS.items():
        found = record["threads"].values()
        times = [f"{each['ms'][way]['median']:.1f}" for each in found]
        over = [
            "" if way.startswith("predict") else spread(each[f"{of}_over"][way])
            for of in ("predict", "predict_with_heads")
            for each in found
        ]
        rows.append([name, *times, *over])
    return Table(headers, rows)


TABLES = {"milliseconds": milliseconds}


def ratio(record: Record, way: str, of: str = "predict") -> float:
    """Give the time of `predict` over that of another way, on one thread."""
    return record["threads"]["1"][f"{of}_over"][way]["median"]


SENTENCES = (
    Sentence(
        BENCHMARKS,
        "one image at a time, one thread: {} of the time of the plain module, {} times "
        "that of its stages alone",
        lambda record: [f"{ratio(record, way):.1f}" for way in ("plain", "stages")],
    ),
    Sentence(
        TIME,
        "heads that could answer make it {} times the stages, {} times the module",
        lambda record: [
            f"{ratio(record, way, 'predict_with_heads'):.2f}"
            for way in ("stages", "plain")
        ],
    ),
)
