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
    ("chosen", "contiguous"),
    ("chosen", "channels last"),
    ("chosen", "plain"),
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
    headers += ["chosen / folded", "chosen / folded, channels last", "chosen / plain"]
    return Table(headers, rows)


TABLES = {"ratios": ratios}


def one_thread(record: Record) -> dict[str, Any]:
    """Give the runs in one thread."""
    return {name: run for name, run in record["runs"].items() if "threads 1" in name}


def rounds(record: Record) -> list[str]:
    """Write the fewest and the most rounds of a run."""
    found = {run["stages"][0]["plain"]["n"] for run in one_thread(record).values()}
    return [f"{min(found)}", f"{max(found)}"]


def gained(record: Record, batch: int) -> list[float]:
    """Compute the share that packing gains over the better other format, by network."""
    times = [
        record["runs"][f"{network}, batch {batch}, threads 1"]["whole_ms"]
        for network in NETWORKS
    ]
    return [
        1 - time["chosen"] / min(time["contiguous"], time["channels last"])
        for time in times
    ]


def gained_at_batch_1(record: Record) -> list[str]:
    """Write what packing gains on the ResNets, and loses on MobileNetV3."""
    resnet18, resnet50, mobilenet = gained(record, 1)
    return [percent(resnet18, 0), percent(resnet50, 0), percent(-mobilenet, 0)]


def gained_at_batch_8(record: Record) -> list[str]:
    """Write the least and the most that packing gains."""
    shares = gained(record, 8)
    return [percent(min(shares), 0), percent(max(shares), 0)]


def over_plain(record: Record) -> list[str]:
    """Write the ratios of the chosen formats to the plain network."""
    ratios = [
        run["whole_ms"]["chosen"] / run["whole_ms"]["plain"]
        for run in one_thread(record).values()
    ]
    return [f"{min(ratios):.2f}", f"{max(ratios):.2f}"]


def slowest_stages(record: Record) -> list[str]:
    """Write how much longer a stage takes packed, and as chosen, than contiguous."""
    found = [
        [
            stage[arm]["median"]
            for name, run in one_thread(record).items()
            if "batch 32," in name or "batch 256," in name
            for stage in run["stages"]
        ]
        for arm in ("packed", "chosen")
    ]
    return [percent(max(ratios) - 1, 0) for ratios in found]


def slowest_over_plain(record: Record) -> list[str]:
    """Write the largest ratio of a stage to the plain one."""
    ratios = [
        stage["chosen"]["median"] / stage["plain"]["median"]
        for run in one_thread(record).values()
        for stage in run["stages"]
    ]
    return [f"{max(ratios):.2f}"]


def loads(record: Record) -> list[str]:
    """Write the lowest and the highest load of the machine."""
    found = [run["load"] for run in one_thread(record).values()]
    return [f"{min(found):.0f}", f"{max(found):.0f}"]


def two_threads(record: Record) -> list[str]:
    """Write the ratios to the plain network with two threads."""
    ratios = [
        run["whole_ms"]["chosen"] / run["whole_ms"]["plain"]
        for name, run in record["runs"].items()
        if "threads 2" in name
    ]
    return [f"{min(ratios):.2f}", f"{max(ratios):.2f}"]


SENTENCES = (
    Sentence(TIME, "medians of {} to {} rounds", rounds),
    Sentence(
        TIME,
        "gains {} and {} % at batch 1 on the ResNets, and loses {} % on MobileNetV3",
        gained_at_batch_1,
    ),
    Sentence(TIME, "at batch 8 it gains {} to {} % on all three", gained_at_batch_8),
    Sentence(
        TIME,
        "takes up to {} % longer packed than contiguous, and {} % as chosen",
        slowest_stages,
    ),
    Sentence(TIME, "take {} to {} of the time of the plain network", over_plain),
    Sentence(TIME, "no stage alone more than {} of the plain one", slowest_over_plain),
    Sentence(TIME, "(load {} to {} on two cores)", loads),
    Sentence(TIME, "{} to {} of the plain network at batches 1 and 32", two_threads),
)
