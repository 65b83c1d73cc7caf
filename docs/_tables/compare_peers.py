"""Other packages as they are, on the same rows, and a smaller network."""

from __future__ import annotations

from typing import Any

import numpy as np
from _peers import accuracy_at

from .compare_methods import SAVINGS, cells
from .formats import BENCHMARKS, METHODS, README, Record, Sentence, Table, percent

NAMES = {
    "earlyon": "earlyon, defaults",
    "earlyon, best setting": "earlyon, best setting",
    "scikit-fallback": "scikit-fallback, defaults",
    "scikit-fallback, best setting": "scikit-fallback, best setting",
    "sk_calex": "sk_calex",
    "sk_calex, precision margins": "its branches, precision margins",
    "sk_calex, shared threshold": "its branches, one shared threshold",
    "sk_calex, regret-priced": "its branches, regret-priced",
    "scikit-fallback on sk_calex's branches": "its branches, scikit-fallback's search",
}
ASKED = {
    ("earlyon", "nothing (threshold 0.8)"): "nothing (threshold 0.8)",
    ("earlyon", "drop 0.01 (default)"): "at most 0.01 lost (its default)",
    ("earlyon", "compute 0.8 (default)"): "0.8 of the compute (its default)",
    ("earlyon", "compute 0.5"): "0.5 of the compute",
    (
        "scikit-fallback",
        "nothing (best score / cost)",
    ): "nothing (best score over cost)",
    ("sk_calex", "nothing (margin 0.05)"): "nothing (margin 0.05)",
}
STACKED_MARGINS = {
    0.0: "0.00",
    0.02: "0.02",
    0.05: "0.05",
    0.1: "0.10",
}


def accuracy(record: Record) -> Table:
    """Show each peer's accuracy at given savings, and its savings at given losses."""
    rows = []
    for name, words in NAMES.items():
        found = cells(record["summary"][name])
        at, saved = found[: len(SAVINGS)], found[len(SAVINGS) :]
        rows.append([words, *at, *(f"{share} %" for share in saved)])
    return Table(["", *SAVINGS, "-0.5", "-1", "-2"], rows)


def points(record: Record) -> Table:
    """Show what each peer gives when it is asked for nothing or for a round number."""
    found = {
        (run["method"], point["asked"]): (run["backbone_accuracy"], point)
        for run in record["runs"]
        for point in run.get("points", ())
    }
    rows = []
    for (method, asked), words in ASKED.items():
        backbone, point = found[method, asked]
        rows.append(
            [
                method,
                words,
                percent(point["accuracy"], 2),
                percent(backbone - point["accuracy"], 2),
                f"{percent(point['flops_reduction'])} %",
                f"{percent(point['own_count'])} %",
            ]
        )
    headers = ["", "asked for", "accuracy", "points lost", "FLOPs saved"]
    return Table([*headers, "by its own count"], rows)


def runs_of(record: Record, method: str) -> list[dict[str, Any]]:
    """Give the runs of one method."""
    return [run for run in record["runs"] if run["method"] == method]


def cascade_there(record: Record, method: str) -> str:
    """Write the accuracy of a cascade that saves as much as the ResNet-10."""
    saved = record["static"][0]["flops_reduction"]
    return percent(accuracy_at(runs_of(record, method), saved), 2)


def static(record: Record) -> Table:
    """Show the smaller network beside cascades that save as much."""
    net = record["static"][0]
    row = [
        "ResNet-10, one block a stage",
        f"{net['mmacs']:.1f}",
        f"{percent(net['flops_reduction'])} %",
        percent(net["test"], 2),
        cascade_there(record, "sk_calex"),
        cascade_there(record, "earlyon, best setting"),
    ]
    headers = ["network", "MMACs", "FLOPs saved", "accuracy"]
    return Table([*headers, "sk_calex there", "earlyon there, at best"], [row])


def stacked(record: Record) -> Table:
    """Show cascades on the smaller network."""
    (stack,) = record["stacked"]
    rows = []
    for margin, words in STACKED_MARGINS.items():
        i = stack["margins"].index(margin)
        test = {key: values[i] for key, values in stack["test"].items()}
        saved = [test["flops_reduction"], test["over_itself"]]
        rows.append(
            [words, percent(test["accuracy"], 2), *(f"{percent(s)} %" for s in saved)]
        )
    over = ["saved over the ResNet-18", "saved over the ResNet-10"]
    return Table(["margin", "accuracy", *over], rows)


def lightgbm(record: Record) -> Table:
    """Show LightGBM's early stop among its trees."""
    found = record["lightgbm"]
    saved = {
        (r["frequency"], r["margin"]): r["test"]["trees_saved"] for r in found["grid"]
    }
    settings = found["settings"]
    full = settings["off"]["predict_cpu_seconds"]
    rows = []
    for name, words, rule in (
        ("off", "off", None),
        ("default", "default (every 10 rounds, margin 10)", (10, 10.0)),
        ("best", "best (every round, margin 0.5)", (1, 0.5)),
    ):
        run = settings[name]
        trees = f"{percent(saved[rule])} %" if rule else "0 %"
        time = f"{run['predict_cpu_seconds'] / full:.2f}" if rule else "1"
        rows.append([words, percent(run["accuracy"], 2), trees, time, "0 %"])
    headers = ["early stop", "accuracy", "trees saved", "CPU time of predict"]
    return Table([*headers, "backbone MACs saved"], rows)


TABLES = {
    "accuracy": accuracy,
    "points": points,
    "static": static,
    "stacked": stacked,
    "lightgbm": lightgbm,
}


def saved_at(record: Record, method: str, drop: int = 0) -> float:
    """Give what a method saves at half a point lost; drops 1 and 2: one and two."""
    return float(record["summary"][method]["reduction_at_drop"]["mean"][drop])


def range_at_half_a_point(record: Record, peer: str, digits: int = 1) -> list[str]:
    """Write what a peer saves at half a point, by default and at best."""
    methods = (peer, f"{peer}, best setting")
    return [percent(saved_at(record, method), digits) for method in methods]


def smaller_network(record: Record) -> list[str]:
    """Write what the ResNet-10 saves and has, and what our cascade has there."""
    net = record["static"][0]
    saved = percent(net["flops_reduction"])
    return [saved, percent(net["test"], 2), cascade_there(record, "sk_calex")]


def lead_of_smaller_network(record: Record) -> list[str]:
    """Write by how many points the ResNet-10 is above our cascade at its cost."""
    _, theirs, ours = smaller_network(record)
    return [f"{float(theirs) - float(ours):.1f}"]


def stacked_at(record: Record, margin: float) -> tuple[float, float]:
    """Give saving and accuracy of the cascade on the ResNet-10 at a margin."""
    (stack,) = record["stacked"]
    i = stack["margins"].index(margin)
    return stack["test"]["flops_reduction"][i], stack["test"]["accuracy"][i]


def in_short(record: Record) -> list[str]:
    """Write the ResNet-10 and the cascade at its cost, and one on the ResNet-10."""
    saved, accuracy, ours = smaller_network(record)
    together = stacked_at(record, 0.02)
    return [accuracy, saved, ours, percent(together[0]), percent(together[1], 2)]


def plain_mmacs(record: Record) -> float:
    """Give the MMACs of the ResNet-18."""
    net = record["static"][0]
    return float(net["mmacs"] / (1 - net["flops_reduction"]))


def saved_in_batches(record: Record) -> dict[int, float]:
    """Give what earlyon saves by its own count, by size of the batch."""
    found = runs_of(record, "earlyon")[0]["on_images"]
    return {
        int(name.removeprefix("batch_")): each["own_count"]
        for name, each in found.items()
        if name.startswith("batch_")
    }


def batches(record: Record) -> list[str]:
    """Write what is saved in batches, and the sizes at which nothing is."""
    saved = saved_in_batches(record)
    nothing = [str(size) for size, share in saved.items() if share == 0]
    return [percent(saved[1]), percent(saved[4]), *nothing]


def earlyon_heads(record: Record) -> list[str]:
    """Write accuracies of earlyon's branches, and what its heads and ours cost."""
    default, best = (
        max(runs_of(record, method), key=lambda run: run["setting"]["epochs"])
        for method in ("earlyon", "earlyon, best setting")
    )
    right = [run["stage_accuracy"][:3] for run in (default, best)]
    costs = [
        run["depth_mmacs"][-1] - plain_mmacs(record)
        for run in (default, best, runs_of(record, "sk_calex")[0])
    ]
    return [
        *(percent(share, 0) for branches in right for share in branches),
        *(f"{cost:.2f}" for cost in costs[:2]),
        f"{costs[2]:.1f}",
    ]


def lost_when_asked(record: Record, asked: str) -> str:
    """Write the points that earlyon loses when asked for something."""
    run = runs_of(record, "earlyon")[0]
    (point,) = (each for each in run["points"] if each["asked"] == asked)
    return percent(run["backbone_accuracy"] - point["accuracy"], 2)


def earlyon_fractions(record: Record) -> list[str]:
    """Write where earlyon's estimator sees the exits, and where they are."""
    run = runs_of(record, "earlyon")[0]
    own = [run["own_fractions"][f"layer{k}"] for k in (1, 2, 3)]
    shares = [*own, *run["our_fractions"]]
    return [percent(share, 0) for share in shares]


def other_rules(record: Record) -> list[str]:
    """Write what two other rules have over ours, up to half the FLOPs, in points."""
    ours, *others = (
        record["summary"][name]["accuracy_at"]["mean"][:3]
        for name in (
            "sk_calex",
            "sk_calex, regret-priced",
            "scikit-fallback on sk_calex's branches",
        )
    )
    gained = 100 * np.subtract(others, ours)
    return [f"{gained.min():.1f}", f"{gained.max():.1f}"]


SENTENCES = (
    Sentence(
        README,
        "a smaller network first: at {} % saved it was level with us",
        lambda record: [percent(record["static"][0]["flops_reduction"], 0)],
    ),
    Sentence(
        README,
        "| sk_calex, the same branches | {} % |",
        lambda record: [percent(saved_at(record, "sk_calex"))],
    ),
    Sentence(
        README,
        "| earlyon 0.3, defaults to best setting | {} to {} % | the hardest sample "
        "holds the others back: nothing saved in batches of {} |",
        lambda record: [
            *range_at_half_a_point(record, "earlyon"),
            batches(record)[2],
        ],
    ),
    Sentence(
        README,
        "| scikit-fallback 0.2, defaults to best setting | {} to {} % |",
        lambda record: range_at_half_a_point(record, "scikit-fallback"),
    ),
    Sentence(
        README,
        "| a ResNet-10, trained as long | {} % ({} %, our {} there) |",
        smaller_network,
    ),
    Sentence(
        BENCHMARKS,
        "at half a point lost {} %; earlyon {} to {} %, scikit-fallback {} to {} %",
        lambda record: [
            percent(saved_at(record, "sk_calex")),
            *range_at_half_a_point(record, "earlyon", 0),
            *range_at_half_a_point(record, "scikit-fallback", 0),
        ],
    ),
    Sentence(
        BENCHMARKS,
        "trained as long, has {} % at {} % saved, this cascade {}. The two add up: "
        "{} % at {} %",
        in_short,
    ),
    Sentence(
        METHODS,
        "the frozen ResNet-18 ({} MMACs, {} %)",
        lambda record: [
            f"{plain_mmacs(record):.1f}",
            percent(record["lightgbm"]["backbone_accuracy"], 2),
        ],
    ),
    Sentence(
        METHODS,
        "The ResNet-10 of the section on [peers](#peers) ({} %,",
        lambda record: [percent(record["static"][0]["test"], 2)],
    ),
    Sentence(
        METHODS,
        "`train_backbone.py --arch resnet10 --epochs 12 --lr 0.2 --bf16`, {} minutes",
        lambda record: [f"{record['static'][0]['seconds'] / 60:.0f}"],
    ),
    Sentence(
        METHODS,
        "earlyon saves by its own count {} % in batches of one, {} % in batches of 4, "
        "and nothing in batches of {} and {}:",
        batches,
    ),
    Sentence(
        METHODS,
        "The small network is {} points above our cascade at the same cost",
        lead_of_smaller_network,
    ),
    Sentence(
        METHODS,
        "on the ResNet-10 it saves {} % of the ResNet-18's FLOPs at {} %,",
        lambda record: [
            percent(stacked_at(record, 0.02)[0], 0),
            percent(stacked_at(record, 0.02)[1]),
        ],
    ),
    Sentence(
        METHODS,
        "three averaged taps answer {}, {} and {} % of the test images right in "
        "earlyon's defaults, {}, {} and {} % in its best setting. All three cost {} to "
        "{} MMACs, though, against our {}.",
        earlyon_heads,
    ),
    Sentence(
        METHODS,
        "its best setting saves {} points of FLOPs less than ours",
        lambda record: [
            percent(
                saved_at(record, "sk_calex")
                - saved_at(record, "earlyon, best setting"),
                0,
            )
        ],
    ),
    Sentence(
        METHODS,
        "asked for 0.8 it loses {} points where its search for an accuracy saves more "
        "and loses {}.",
        lambda record: [
            lost_when_asked(record, "compute 0.8 (default)"),
            lost_when_asked(record, "drop 0.01 (default)"),
        ],
    ),
    Sentence(METHODS, "The differences of {} to {} points are within", other_rules),
    Sentence(
        METHODS,
        "exits evenly ({}, {} and {} % of the backbone, where {}, {} and {} % are "
        "right)",
        earlyon_fractions,
    ),
)
