"""CalexNet and what it is made of, on CIFAR-100 with 20 coarse classes."""

from __future__ import annotations

import numpy as np

from .formats import (
    BENCHMARKS,
    CIFAR,
    README,
    TIME,
    Record,
    Sentence,
    Table,
    mean_sd,
    percent,
    signed,
    thousands,
)

QUOTED = 0.05  # the margin that sentences quote
README_MARGINS = (0.0, 0.02, QUOTED, 0.1)
ABLATED = {
    "calexnet": "default",
    "soft_alone": "soft targets alone (`alpha=1`)",
    "labels": 'labels alone (`targets="labels"`)',
    "no_weights": 'no survivor weights (`alignment="none"`)',
}


def backbone(record: Record) -> float:
    """Give the accuracy of the plain network."""
    return float(record["summary"]["calexnet"]["stage_accuracy"]["mean"][-1])


def at_margin(record: Record, margin: float, method: str = "calexnet") -> list[float]:
    """Give mean and deviation of the accuracy at a margin, and the mean saving."""
    i = record["margins"][method].index(margin)
    found = record["summary"][method]
    accuracy = found["accuracy"]
    return [accuracy["mean"][i], accuracy["sd"][i], found["flops_reduction"]["mean"][i]]


def name_of(margin: float, sign: str = "") -> str:
    """Write a margin."""
    return f"{margin:{sign}.2f}"


def chosen_margins(record: Record) -> Table:
    """Show a few margins against the backbone."""
    rows = []
    for margin in README_MARGINS:
        mean, sd, saved = at_margin(record, margin)
        gained = signed(mean - backbone(record))
        rows.append([name_of(margin), mean_sd(mean, sd), gained, f"{percent(saved)} %"])
    return Table(["margin", "accuracy", "against the backbone", "FLOPs saved"], rows)


def savings(record: Record) -> Table:
    """Show the accuracy at given savings."""
    methods = ("calexnet", "ensemble", "reference")
    found = [record["summary"][m]["accuracy_at_reduction"] for m in methods]
    rows = [
        [saved, *(mean_sd(**method[saved]) for method in found)] for saved in found[0]
    ]
    return Table(["FLOPs saved", "CalexNet", "ensemble", "reference"], rows)


def cells_at(record: Record, margin: float, method: str) -> list[str]:
    """Give accuracy, points lost and FLOPs saved at a margin."""
    mean, sd, saved = at_margin(record, margin, method)
    lost = percent(backbone(record) - mean, 2)
    return [mean_sd(mean, sd), lost, f"{percent(saved)} %"]


def margins(record: Record) -> Table:
    """Show all margins of CalexNet and of its ensemble."""
    rows = [
        [
            name_of(margin, "+"),
            *cells_at(record, margin, "calexnet"),
            *cells_at(record, margin, "ensemble"),
        ]
        for margin in record["margins"]["calexnet"]
    ]
    costs = ["points lost", "FLOPs saved"]
    return Table(["margin", "CalexNet", *costs, "ensemble", *costs], rows)


def reference_margins(record: Record) -> Table:
    """Show all margins of the reference."""
    rows = [
        [f"{margin:+.2f}", *cells_at(record, margin, "reference")]
        for margin in record["margins"]["reference"]
    ]
    return Table(["margin", "reference", "points lost", "FLOPs saved"], rows)


def ablation(record: Record) -> Table:
    """Show the accuracy at given savings with one setting other than the default."""
    found = {name: record["summary"][name] for name in ABLATED}
    savings = list(found["calexnet"]["accuracy_at_reduction"])
    rows = [
        [
            words,
            *(mean_sd(**at) for at in found[name]["accuracy_at_reduction"].values()),
        ]
        for name, words in ABLATED.items()
    ]
    return Table(["", *savings], rows)


TABLES = {
    "chosen_margins": chosen_margins,
    "savings": savings,
    "margins": margins,
    "reference_margins": reference_margins,
    "ablation": ablation,
}


def points_over(record: Record, other: str) -> np.ndarray:
    """Give how much the default has over another setting at each saving, in points."""
    ours, theirs = (
        [
            each["mean"]
            for each in record["summary"][m]["accuracy_at_reduction"].values()
        ]
        for m in ("calexnet", other)
    )
    return 100 * np.subtract(ours, theirs, dtype=float)


def points_at_half_the_flops(record: Record, other: str) -> list[str]:
    """Write mean and deviation, over seeds, of what a setting has over the default."""
    at = record["reductions"].index(0.5)
    by_seed: dict[int, dict[str, float]] = {}
    for run in record["runs"]:
        accuracy = run["accuracy_at_reduction"][at]
        by_seed.setdefault(run["seed"], {})[run["method"]] = accuracy
    gained = [100 * (seed[other] - seed["calexnet"]) for seed in by_seed.values()]
    return [f"{np.mean(gained):.1f}", f"{np.std(gained, ddof=1):.1f}"]


def stages(record: Record, method: str) -> list[str]:
    """Write the accuracy of each stage alone; the last one is the network."""
    mean = record["summary"][method]["stage_accuracy"]["mean"]
    return [percent(share) for share in mean]


def quoted_figures(record: Record) -> list[str]:
    """Write what a margin of 0.05 saves, loses, and the deviation of the loss."""
    mean, sd, saved = at_margin(record, QUOTED)
    return [percent(saved), percent(backbone(record) - mean, 2), percent(sd, 2)]


def free_figures(record: Record) -> list[str]:
    """Write what a margin of 0.02 saves and gains."""
    mean, _, saved = at_margin(record, 0.02)
    return [percent(saved), percent(mean - backbone(record), 2)]


def alone_or_both(record: Record) -> list[str]:
    """Write what labels and soft targets together have over either, in points."""
    soft, labels = (points_over(record, other) for other in ("soft_alone", "labels"))
    up_to_half = soft[: record["reductions"].index(0.5) + 1]
    found = [up_to_half.min(), up_to_half.max(), *labels[2:]]
    return [f"{points:.1f}" for points in found]


def without_weights(record: Record) -> list[str]:
    """Write the gain without survivor weights at half the FLOPs, and elsewhere."""
    elsewhere = np.delete(points_over(record, "no_weights"), 3)
    gained = points_at_half_the_flops(record, "no_weights")
    return [*gained, f"{np.abs(elsewhere).max():.2f}"]


def third_effective_sizes(record: Record) -> list[str]:
    """Write the effective sample size of the third branch, by seed."""
    runs = [run for run in record["runs"] if run["method"] == "calexnet"]
    return [thousands(run["effective_sample_size"][2]) for run in runs]


def sweep_seconds(record: Record) -> list[str]:
    """Write the shortest and the longest sweep over twenty margins."""
    seconds = [run["sweep_20_margins_seconds"] for run in record["runs"]]
    return [f"{min(seconds):.2f}", f"{max(seconds):.2f}"]


SENTENCES = (
    Sentence(
        README,
        "A ResNet-18 ({} % on CIFAR-100",
        lambda record: [percent(backbone(record), 2)],
    ),
    Sentence(
        "docs/index.md",
        "the FLOPs saved at {} points of accuracy",
        lambda record: [percent(backbone(record) - at_margin(record, QUOTED)[0])],
    ),
    Sentence(
        BENCHMARKS,
        "A ResNet-18 for 32x32 images ({} % on CIFAR-100",
        lambda record: [percent(backbone(record), 2)],
    ),
    Sentence(BENCHMARKS, "{} % of the FLOPs for {} ± {} points", quoted_figures),
    Sentence(
        BENCHMARKS, "{} % at a margin of 0.02, with {} points gained", free_figures
    ),
    Sentence(
        BENCHMARKS,
        "Without them the curve is {} ± {} points higher at 50 % saved",
        lambda record: points_at_half_the_flops(record, "no_weights"),
    ),
    Sentence(
        CIFAR,
        "(12 epochs, {} % on test: plain",
        lambda record: [percent(backbone(record), 2)],
    ),
    Sentence(
        CIFAR,
        "The backbone has {}. The margins",
        lambda record: [percent(backbone(record), 2)],
    ),
    Sentence(
        CIFAR,
        "the three branches alone have {}, {}, {} % (CalexNet) and {}, {}, {} % "
        "(reference); as ensembles, with the last stage {}, {}, {}, {} %",
        lambda record: [
            *stages(record, "calexnet")[:3],
            *stages(record, "reference")[:3],
            *stages(record, "ensemble"),
        ],
    ),
    Sentence(
        CIFAR,
        "where much is saved: {} to {} points more than soft targets alone up to half "
        "the FLOPs, and {}, {} and {} more than labels alone at 40, 50 and 60 %",
        alone_or_both,
    ),
    Sentence(
        CIFAR,
        "Without them the curve is {} ± {} points higher at 50 %, with each of the "
        "three seeds, and within {} elsewhere",
        without_weights,
    ),
    Sentence(
        CIFAR, "effective samples ({}, {} and {} of 45,000)", third_effective_sizes
    ),
    Sentence(
        TIME,
        "A sweep of 20 margins over a fitted cascade takes {} to {} s",
        sweep_seconds,
    ),
)
