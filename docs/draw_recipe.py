"""Draw the recipe against the baselines, a panel for each task, from the record.

    python docs/draw_recipe.py

Writes ``recipe-light.svg`` and ``recipe-dark.svg`` to ``docs/images``: accuracy at
given shares of FLOPs saved, means over seeds. Nothing is measured here. A digest of the
numbers stands in the files: the tests compare it with the record.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _grounds import INK, digest_of, plain, write_for_grounds
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "examples" / "benchmarks" / "results" / "front.json"
FOLDER = ROOT / "docs" / "images"
PANELS = {
    "resnet18_cifar100_long": "ResNet-18, CIFAR-100 coarse, trained for longer",
    "resnet18_cifar100": "ResNet-18, CIFAR-100 coarse",
    "resnet32_cifar10": "ResNet-32, CIFAR-10",
    "transfer": "ResNet-32, to CIFAR-100 coarse",
    "efficientnet_cifar100": "EfficientNet-Lite0, to CIFAR-100 coarse",
}
STYLES: dict[str, dict[str, Any]] = {
    "recipe": {"light": "#3949ab", "dark": "#9fa8ff", "marker": "o", "dashes": "-"},
    "recipe, chosen by validation": {
        "light": "#0277bd",
        "dark": "#4fc3f7",
        "marker": "P",
        "dashes": "-",
    },
    "BoostNet": {
        "light": "#ad1457",
        "dark": "#f48fb1",
        "marker": "v",
        "dashes": (0, (6, 1, 1, 1)),
    },
    "BoostNet, our ensemble and rule": {
        "light": "#c0392b",
        "dark": "#ff8a80",
        "marker": "^",
        "dashes": "-.",
    },
    "ZTW": {
        "light": "#00796b",
        "dark": "#4db6ac",
        "marker": "D",
        "dashes": (0, (1, 1.2)),
    },
    "reference": {"light": "#8a6100", "dark": "#e0b64a", "marker": "s", "dashes": "--"},
}


def drawn(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Give means and deviations by task and method, and what the network has."""
    return {
        task: {
            "backbone": record["summary"][task]["recipe"]["plain"]["mean"],
            **{
                name: record["summary"][task][name]["test_at_cuts"]
                for name in STYLES
                if name in record["summary"][task]
            },
        }
        for task in PANELS
    }


def digest(record: dict[str, Any]) -> str:
    """Give a digest of the numbers that are drawn."""
    return digest_of(drawn(record))


def draw(record: dict[str, Any], ground: str) -> Figure:
    """Draw mean accuracies at the cuts; bars are one standard deviation."""
    ink, found = INK[ground], drawn(record)
    cuts = [100 * cut for cut in record["settings"]["cuts"]]
    figure = Figure(figsize=(9.0, 10.0), layout="constrained")
    *panels, last = figure.subplots(3, 2).flat  # the last one has room for the legend
    last.set_axis_off()
    for ax, (task, title) in zip(panels, PANELS.items(), strict=True):
        plain(ax, ink)
        backbone = 100 * found[task]["backbone"]
        ax.axhline(backbone, color=ink, linewidth=1, linestyle=":")
        for name, style in STYLES.items():
            if name not in found[task]:
                continue
            one = found[task][name]
            points = [
                (cut, 100 * mean, 100 * (sd or 0))
                for cut, mean, sd in zip(cuts, one["mean"], one["sd"], strict=True)
                if mean is not None
            ]
            look = {"color": style[ground], "marker": style["marker"], "capsize": 2}
            look |= {"linestyle": style["dashes"], "markersize": 4.5}
            ax.errorbar(
                *([point[k] for point in points] for k in range(2)),
                yerr=[point[2] for point in points],
                linewidth=2.4 if name == "recipe" else 1.5,
                label=name,
                **look,
            )
        ax.set_title(title, fontsize=10, color=ink)
        ax.set_xlabel("FLOPs saved (%)", color=ink)
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("Accuracy (%), test", color=ink)
    handles, labels = panels[1].get_legend_handles_labels()
    last.legend(handles, labels, frameon=False, labelcolor=ink, loc="center")
    return figure


def main(folder: Path = FOLDER) -> None:
    """Write the pictures."""
    write_for_grounds(draw, digest, RECORD, folder, "recipe")


if __name__ == "__main__":
    main()
