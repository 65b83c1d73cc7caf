"""A thousand classes: what heads cost, and what few rows of each class allow."""

from __future__ import annotations

from .formats import Record, Table, percent, thousands

NETWORKS = {"resnet18": "ResNet18", "mobilenet_v3_small": "MobileNetV3-small"}
HEADS = {
    "richest": "`PrototypePoolingClassifier()`",
    "narrow": "the same, `widths=(24, 32)`",
    "narrow_conv": '`BranchClassifier("conv")`, widths (24, 32)',
    "gap": '`BranchClassifier("gap")`',
    "chosen": "`branch=None`",
}


def shares(record: Record) -> Table:
    """Show the MACs of all three heads as a share of the backbone's."""
    rows = [
        [
            words,
            *(
                f"{percent(record['networks'][name]['share_of_backbone'][kind])} %"
                for name in NETWORKS
            ),
        ]
        for kind, words in HEADS.items()
    ]
    return Table(["head at each of three taps", *NETWORKS.values()], rows)


def fits(record: Record) -> Table:
    """Show time, memory and which classes may exit, with and without shared ones."""
    rows = []
    for per_class, found in record["fits"].items():
        for rare in ("never", "shared"):
            auto, given = (
                found["settings"][f"{rare}, {margin}"] for margin in ("auto", 0.05)
            )
            rows.append(
                [
                    per_class,
                    f"{found['fit_seconds_of_processor']:.0f}",
                    thousands(found["fit_peak_mib"]),
                    thousands(found["classes_with_calibration_rows"]),
                    f'`"{rare}"`',
                    thousands(auto["classes_that_exit"]),
                    f"{percent(auto['flops_saved'])} %",
                    thousands(given["classes_that_exit"]),
                    f"{percent(given['flops_saved'])} %",
                    f"{percent(given['accuracy_lost'])}",
                ]
            )
    headers = [
        "rows per class",
        "fit, s",
        "fit, MiB",
        "classes with a calibration row",
        "`rare_classes`",
        "classes that exit at `auto`",
        "saved",
        "classes that exit at 0.05",
        "saved",
        "points lost",
    ]
    return Table(headers, rows)


TABLES = {"shares": shares, "fits": fits}
