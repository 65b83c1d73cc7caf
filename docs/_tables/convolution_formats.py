"""Which memory format runs convolutions fastest on a CPU."""

from __future__ import annotations

from typing import Any

from .formats import TIME, Record, Sentence, Table, percent

NETWORKS = {
    "resnet18": "ResNet18 (32 x 32)",
    "resnet50": "ResNet50 (64 x 64)",
    "mobilenet_v3": "MobileNetV3 large (96 x 96)",
}
BATCHES = (1, 8, 32, 256)
RATIOS = (
    ("contiguous", "plain"),
    ("packed", "contiguous"),
    ("packed", "channels last"),
    ("packed", "plain"),
)


def ratios(record: Record) -> Table:
    """Show times of whole networks over each other, with one thread."""
    rows = []
    for network, words in NETWORKS.items():
        for batch in BATCHES:
            time = record["runs"][f"{network}, batch {batch}, threads 1"]["whole_ms"]
            name = f"{words}, {batch}" if batch == BATCHES[0] else f"{batch}"
            rows.append([name, *(f"{time[a] / time[b]:.2f}" for a, b in RATIOS)])
    headers = ["network, batch", "folded / plain", "packed / folded"]
    headers += ["packed / folded, channels last", "packed / plain"]
    return Table(headers, rows)


TABLES = {"ratios": ratios}


def one_thread(record: Record) -> dict[str, Any]:
    """Give the runs in one thread."""
    return {name: run for name, run in record["runs"].items() if "threads 1" in name}


def gained_at_batch_8(record: Record) -> list[str]:
    """Write what packing gains over the better other format, at least and at most."""
    gained = [
        1 - time["packed"] / min(time["contiguous"], time["channels last"])
        for name, run in one_thread(record).items()
        if "batch 8," in name
        for time in [run["whole_ms"]]
    ]
    return [percent(min(gained), 0), percent(max(gained), 0)]


def left_to_gain(record: Record) -> list[str]:
    """Write what the best format of each stage would gain over packing all."""
    left = [
        1
        - run["best_over_plain"] * run["whole_ms"]["plain"] / run["whole_ms"]["packed"]
        for run in one_thread(record).values()
    ]
    return [percent(max(left), 0)]


def slowest_stage(record: Record) -> list[str]:
    """Write how much longer a stage of a ResNet takes packed, from batch 32 on."""
    ratios = [
        stage["packed"]["median"]
        for name, run in one_thread(record).items()
        if "resnet" in name and ("batch 32," in name or "batch 256," in name)
        for stage in run["stages"]
    ]
    return [percent(max(ratios) - 1, 0)]


def loads(record: Record) -> list[str]:
    """Write the lowest and the highest load of the machine."""
    found = [run["load"] for run in one_thread(record).values()]
    return [f"{min(found):.0f}", f"{max(found):.0f}"]


def two_threads(record: Record) -> list[str]:
    """Write the ratios to the plain network with two threads: ahead, then behind."""
    ratios = sorted(
        run["whole_ms"]["packed"] / run["whole_ms"]["plain"]
        for name, run in record["runs"].items()
        if "threads 2" in name
    )
    *ahead, behind = ratios
    return [f"{ratio:.2f}" for ratio in (ahead[0], ahead[-1], behind)]


SENTENCES = (
    Sentence(
        TIME,
        "at batch 8 it gains {} to {} % over the better of the other two formats",
        gained_at_batch_8,
    ),
    Sentence(TIME, "would gain at most {} % more (MobileNetV3, batch 1)", left_to_gain),
    Sentence(TIME, "run up to {} % longer packed than contiguous", slowest_stage),
    Sentence(TIME, "(load {} to {} on two cores)", loads),
    Sentence(
        TIME,
        "four with packing ahead ({} to {} of plain) and one behind (MobileNetV3 at "
        "batch 1: {})",
        two_threads,
    ),
)
