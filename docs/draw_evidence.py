"""Draw the pictures of the pages on alignment and on the components, from records.

    python docs/draw_evidence.py

Writes ``alignment-light.svg`` (how far training rows are from survivors, branch by
branch) and ``components-light.svg`` (what each component adds on its own) to
``docs/images``, and the same for dark pages. Nothing is measured here. A digest of the
numbers stands in the files: the tests compare it with the record.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from _grounds import STYLE, plain
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "examples" / "benchmarks" / "results" / "ablation.json"
FOLDER = ROOT / "docs" / "images"

BACKBONES = {
    "resnet18_cifar100": "ResNet-18, CIFAR-100 coarse",
    "resnet32_cifar10": "ResNet-32, CIFAR-10",
}
# Ink, and colours that are readable on the ground.
GROUNDS = {
    "light": ("#333333", ("#3949ab", "#8a6100", "#00705a", "#8e2f6b")),
    "dark": ("#d5d8e2", ("#9fa8ff", "#e0b64a", "#5fd0b5", "#e790c4")),
}
# What is drawn: setting, measure, how it is called, marker, dashes.
LINES = (
    ("soft-soft-conv", "tv_confidence_unweighted", "without weights", "o", "-"),
    ("soft-soft-conv", "tv_confidence", "soft weights", "s", "--"),
    ("hard-soft-conv", "tv_confidence", "hard weights", "^", "-."),
    ("soft_out_of_fold-soft-conv", "tv_confidence", "soft, out of fold", "D", ":"),
)


def digest(record: dict[str, Any]) -> str:
    """Give a digest of the numbers that are drawn."""
    drawn = [
        [
            found["on_its_own"],
            [found["alignment"][name][key] for name, key, *_ in LINES],
        ]
        for found in record["backbones"].values()
    ]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


def draw_alignment(record: dict[str, Any], ink: str, colors: tuple[str, ...]) -> Figure:
    """Draw the distance over confidence at each branch, one panel a backbone."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for ax, (backbone, title) in zip(
        figure.subplots(1, len(BACKBONES)), BACKBONES.items(), strict=True
    ):
        found = record["backbones"][backbone]["alignment"]
        for (setting, key, label, marker, dashes), color in zip(
            LINES, colors, strict=True
        ):
            mean, sd = (
                np.array(found[setting][key][what][1:], dtype=float)
                for what in ("mean", "sd")
            )
            branch = 2 + np.arange(len(mean))
            look = {"color": color, "marker": marker, "linestyle": dashes}
            ax.errorbar(branch, mean, sd, label=label, capsize=2, linewidth=1.8, **look)
        ax.set_xticks(branch)
        ax.set_ylim(bottom=0)
        ax.set_title(title, color=ink, fontsize=10)
        ax.set_xlabel("branch", color=ink)
        plain(ax, ink)
    first = figure.axes[0]
    first.set_ylabel("total variation", color=ink)
    first.legend(frameon=False, labelcolor=ink, fontsize=9)
    return figure


def draw_components(
    record: dict[str, Any], ink: str, colors: tuple[str, ...]
) -> Figure:
    """Draw what each component adds, as a mean over the savings."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    ax = figure.subplots()
    everything = [record["backbones"][name]["on_its_own"] for name in BACKBONES]
    names = list(dict.fromkeys(name for found in everything for name in found))[1:]
    for i, (found, title) in enumerate(
        zip(everything, BACKBONES.values(), strict=True)
    ):
        # One seed has no deviation: no bar.
        gains = {
            k: found[name]["local"]["mean_difference"]
            for k, name in enumerate(names)
            if name in found
        }
        ax.errorbar(
            [100 * gain["mean"] for gain in gains.values()],
            np.array(list(gains)) + 0.2 * i - 0.1,
            xerr=[100 * (gain["sd"] or 0) for gain in gains.values()],
            linestyle="none",
            marker="os"[i],
            color=colors[i],
            capsize=2,
            label=title,
        )
    ax.axvline(0, color=ink, linewidth=1)
    ax.set_yticks(np.arange(len(names)), names)
    ax.invert_yaxis()
    ax.set_xlabel(
        "points of accuracy gained, mean over the savings (bars: sd over seeds)",
        color=ink,
    )
    ax.legend(frameon=False, labelcolor=ink, fontsize=9)
    plain(ax, ink)
    return figure


PICTURES = {"alignment": draw_alignment, "components": draw_components}


def main(folder: Path = FOLDER) -> None:
    """Write the pictures."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    about = f"{RECORD.name}, numbers {digest(record)}"
    for ground, (ink, colors) in GROUNDS.items():
        for name, drawing in PICTURES.items():
            with mpl.rc_context(STYLE):
                drawing(record, ink, colors).savefig(
                    folder / f"{name}-{ground}.svg",
                    transparent=True,
                    metadata={"Date": None, "Creator": None, "Description": about},
                )


if __name__ == "__main__":
    main()
