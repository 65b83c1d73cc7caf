"""Draw the picture of the landing page from the benchmark's record.

    python docs/draw_front.py

Writes ``docs/images/front-light.svg`` and ``front-dark.svg``, of a few kilobytes each:
text stays text, and the page's colours shine through. Nothing is measured here. A
digest of the numbers stands in the files: the tests compare it with the record.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "examples" / "benchmarks" / "results" / "cifar100_coarse.json"
FOLDER = ROOT / "docs" / "images"

# Ink, and one colour a curve, each readable on its ground.
GROUNDS = {
    "light": {"ink": "#333333", "calexnet": "#3949ab", "reference": "#8a6100"},
    "dark": {"ink": "#d5d8e2", "calexnet": "#9fa8ff", "reference": "#e0b64a"},
}
CURVES = {
    "calexnet": ("CalexNet", "o", "-"),
    "reference": ("no alignment, no soft targets", "s", "--"),
}
DROP = 1.0  # points of accuracy; the cheapest margin within them is marked


def digest(record: dict[str, Any]) -> str:
    """Give a digest of the numbers that are drawn."""
    drawn = [record["margins"], *(record["summary"][name] for name in CURVES)]
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


def draw(record: dict[str, Any], colors: dict[str, str]) -> Figure:
    """Draw accuracy against FLOPs saved: means over seeds, bands of one deviation."""
    ax = Figure(figsize=(6.4, 3.6), layout="constrained").subplots()
    ink = colors["ink"]
    for name, (label, marker, dashes) in CURVES.items():
        found = record["summary"][name]
        saved, right, spread = (
            100 * np.array(values)
            for values in (
                found["flops_reduction"]["mean"],
                found["accuracy"]["mean"],
                found["accuracy"]["sd"],
            )
        )
        look = {"color": colors[name], "linestyle": dashes, "marker": marker}
        ax.plot(saved, right, label=label, linewidth=2, markersize=5, **look)
        ax.fill_between(
            saved, right - spread, right + spread, color=colors[name], alpha=0.2, lw=0
        )
    backbone = 100 * record["summary"]["calexnet"]["stage_accuracy"]["mean"][-1]
    ax.axhline(backbone, color=ink, linewidth=1, linestyle=":")
    ax.plot([0], [backbone], "*", color=ink, markersize=13, label="the network itself")
    found = record["summary"]["calexnet"]
    points = 100 * np.array(
        [found["flops_reduction"]["mean"], found["accuracy"]["mean"]]
    )
    point = max(points[:, points[1] >= backbone - DROP].T.tolist())
    ax.annotate(
        f"{point[0]:.0f}% of the FLOPs saved,\n"
        f"{backbone - point[1]:.1f} points of accuracy lost",
        point,
        (point[0] - 34, point[1] - 3.2),
        color=ink,
        arrowprops={"arrowstyle": "->", "color": ink},
    )
    ax.set_xlabel("FLOPs saved (%), heads included", color=ink)
    ax.set_ylabel("Accuracy (%)", color=ink)
    ax.set_xlim(-3, 73)
    ax.tick_params(colors=ink)
    ax.grid(visible=True, color=ink, alpha=0.15)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    ax.legend(frameon=False, labelcolor=ink, loc="lower left")
    return ax.figure


def main(folder: Path = FOLDER) -> None:
    """Write both pictures."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    # The same bytes on every run; text as text, in whatever sans-serif there is.
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "sk_calex",
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans", "sans-serif"],
    }
    for ground, colors in GROUNDS.items():
        with mpl.rc_context(style):
            draw(record, colors).savefig(
                folder / f"front-{ground}.svg",
                transparent=True,
                metadata={
                    "Date": None,
                    "Creator": None,
                    "Description": f"{RECORD.name}, numbers {digest(record)}",
                },
            )


if __name__ == "__main__":
    main()
