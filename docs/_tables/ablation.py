"""What each component adds, and how far training rows are from survivors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from .formats import Record, Table, mean_sd, percent, signed, thousands

RESNET18, RESNET32 = "resnet18_cifar100", "resnet32_cifar10"
CLASSES = {
    RESNET18: (
        "aquatic mammals",
        "fish",
        "flowers",
        "food containers",
        "fruit and vegetables",
        "household electrical devices",
        "household furniture",
        "insects",
        "large carnivores",
        "large man-made outdoor things",
        "large natural outdoor scenes",
        "large omnivores and herbivores",
        "medium mammals",
        "non-insect invertebrates",
        "people",
        "reptiles",
        "small mammals",
        "trees",
        "vehicles 1",
        "vehicles 2",
    ),
    RESNET32: (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ),
}
WEIGHTS = {
    "none-soft-conv": "none",
    "soft-soft-conv": "soft",
    "hard-soft-conv": "hard",
    "soft_out_of_fold-soft-conv": "soft, out of fold",
    "hard_out_of_fold-soft-conv": "hard, out of fold",
}
VALIDATION = "local, validation"
HEADS = {
    "conv": "all, conv head",
    "prototype": "prototype head",
    "linear": "linear head",
}


def gains(record: Record, backbone: str, name: str, gate: str = "local") -> Table:
    """Show the accuracy of the first case, and how much the others gain on it."""
    rows: list[list[str]] = []
    cuts = range(len(record["reductions"]))
    for change, result in record["backbones"][backbone][name].items():
        key = "difference" if rows else "accuracy"
        means, sds = result[gate][key]["mean"], result[gate][key]["sd"]
        cells = [_gain(means[i], sds[i], signs=bool(rows)) for i in cuts]
        mean = result[gate]["mean_difference"]
        cells.append(_gain(mean["mean"], mean["sd"]) if rows else "")
        rows.append([_of_seeds(change, result, record), *cells])
    return Table(["", *(f"{r:.0%}" for r in record["reductions"]), "mean gain"], rows)


def _of_seeds(words: str, found: Any, record: Record) -> str:
    """Say how many seeds a line has where they are not all."""
    n = len(found["seeds"])
    if n == len(record["settings"]["seeds"]):
        return words
    return f"{words} ({n} seed{'s' if n > 1 else ''})"


def _gain(mean: float | None, sd: float | None, signs: bool = True) -> str:
    if mean is None or not signs:
        return mean_sd(mean, sd)
    return signed(mean) if sd is None else f"{signed(mean)} ± {100 * sd:.2f}"


def mean_gains(record: Record) -> Table:
    """Show the mean gains under the paper's gate, where all seeds were measured."""
    found = [record["backbones"][name]["on_its_own"] for name in (RESNET18, RESNET32)]
    rows = []
    for change in list(found[0])[1:]:
        each = [one.get(change, {"seeds": []}) for one in found]
        if any(one["seeds"] != record["settings"]["seeds"] for one in each):
            continue
        gains = [one["relative"]["mean_difference"] for one in each]
        rows.append([change, *(_gain(gain["mean"], gain["sd"]) for gain in gains)])
    return Table(["", "ResNet-18", "ResNet-32"], rows)


def heads(record: Record, backbone: str) -> Table:
    """Show what heads cost, how right they are, and what they gain on convolutions."""
    found = record["backbones"][backbone]
    rows = []
    for head, change in HEADS.items():
        trained = found["alignment"][f"soft-soft-{head}"]
        cells = [
            head,
            f"{100 * trained['heads_flops']['mean']:.1f} %",
            f"{trained['fit_cpu_seconds']['mean']:.0f} s",
            ", ".join(percent(a) for a in trained["stage_accuracy"]["mean"][:-1]),
        ]
        for key in (VALIDATION, "local"):
            gain = found["all_but_one"][change][key]["mean_difference"]
            cells.append("" if head == "conv" else _gain(gain["mean"], gain["sd"]))
        rows.append(cells)
    headers = ["head", "MACs of the backbone's", "fit", "accuracy of the branches, %"]
    return Table([*headers, "mean gain on validation", "on test"], rows)


def class_distances(record: Record, backbone: str, automatic: bool = False) -> Table:
    """Show the distance of the training rows from survivors over classes."""
    found = record["backbones"][backbone]["alignment"]
    keys = ["tv_class_unweighted", "tv_class", "tv_class_noise"]
    if automatic:
        keys = ["tv_class_automatic_unweighted", "tv_class_automatic"]
    rows = []
    for setting, words in WEIGHTS.items():
        if words == "none" or any(key not in found.get(setting, {}) for key in keys):
            continue
        each = found[setting]
        columns = list(zip(*(each[key]["mean"] for key in keys), strict=True))[1:]
        cells = []
        for before, after, *noise in columns:
            words_of_noise = "".join(f" ({value:.3f})" for value in noise)
            cells.append(f"{before:.3f} to {after:.3f}{words_of_noise}")
        if automatic:
            margin = each["automatic_margin"]["mean"]
            cells.insert(0, f"{margin:.3f}")
        rows.append([_of_seeds(words, each, record), *cells])
    branches = [f"branch {k + 2}" for k in range(len(columns))]
    return Table(["weights", *(["margin"] if automatic else []), *branches], rows)


def distances(record: Record, backbone: str) -> Table:
    """Show the distance of the training rows from survivors over confidence."""
    found = record["backbones"][backbone]["alignment"]
    rows = []
    for setting, words in WEIGHTS.items():
        if words == "none" or setting not in found:
            continue
        each = found[setting]
        cells = []
        for k in range(1, len(each["tv_confidence"]["mean"])):
            values = [
                each[key]["mean"][k]
                for key in (
                    "tv_confidence_unweighted",
                    "tv_confidence",
                    "tv_confidence_noise",
                )
            ]
            cells.append("{:.3f} to {:.3f} ({:.3f})".format(*values))
        rows.append([_of_seeds(words, each, record), *cells])
    branches = len(rows[0]) - 1
    return Table(["weights", *(f"branch {k + 2}" for k in range(branches))], rows)


def sizes(record: Record, backbone: str) -> Table:
    """Show the effective sample size at each branch, in cascade order."""
    found = record["backbones"][backbone]["alignment"]
    rows = [
        [
            _of_seeds(words, found[setting], record),
            *map(thousands, found[setting]["effective_sample_size"]["mean"]),
        ]
        for setting, words in WEIGHTS.items()
        if setting in found
    ]
    reach = found["none-soft-conv"]["n_survivors"]["mean"]
    rows.append(["test images that get there", *map(thousands, reach)])
    return Table(["weights", *(f"branch {k + 1}" for k in range(len(reach)))], rows)


def served(record: Record, backbone: str) -> Table:
    """Show each branch's accuracy on the test images that get there."""
    found = record["backbones"][backbone]["alignment"]
    rows = []
    for setting, words in WEIGHTS.items():
        # Of the same seeds, since the images that get there differ between them.
        if found.get(setting, {}).get("seeds") != record["settings"]["seeds"]:
            continue
        each = found[setting]["accuracy_on_survivors"]
        pairs = list(zip(each["mean"], each["sd"], strict=True))[1:]
        rows.append([words, *(mean_sd(*pair) for pair in pairs)])
    branches = len(rows[0]) - 1
    return Table(["weights", *(f"branch {k + 2}" for k in range(branches))], rows)


def classes(record: Record, backbone: str) -> Table:
    """Show the shares of the classes at the last branch, in per cent."""
    found: Any = record["backbones"][backbone]["alignment"]
    soft, hard = (found[name] for name in ("soft-soft-conv", "hard-soft-conv"))
    columns = {
        "all rows": soft["class_unweighted"],
        "soft weights": soft["class_training"],
        "survivors on test": soft["class_survivors"],
        "hard weights": hard["class_training"],
        "their survivors": hard["class_survivors"],
    }
    rows = [
        [name, *(f"{100 * each['mean'][-1][c]:.1f}" for each in columns.values())]
        for c, name in enumerate(CLASSES[backbone])
    ]
    return Table(["class", *columns], rows)


TABLES: dict[str, Callable[[Record], Table]] = {
    f"{name}_{short}": partial(make, backbone=backbone)
    for short, backbone in (("resnet18", RESNET18), ("resnet32", RESNET32))
    for name, make in (
        ("on_its_own", partial(gains, name="on_its_own")),
        ("all_but_one", partial(gains, name="all_but_one")),
        ("distances", distances),
        ("class_distances", class_distances),
        ("sizes", sizes),
        ("served", served),
        ("classes", classes),
    )
} | {
    "mean_gains": mean_gains,
    "heads_resnet18": partial(heads, backbone=RESNET18),
    "heads_resnet32": partial(heads, backbone=RESNET32),
    "automatic_resnet18": partial(class_distances, backbone=RESNET18, automatic=True),
}
