"""Draw the comparison of all methods from its record.

    python docs/draw_methods.py

Writes ``methods-light.svg`` and ``methods-dark.svg`` to ``docs/images``: accuracy
against FLOPs saved, means over seeds. Nothing is measured here. A digest of the numbers
stands in the files: the tests compare it with the record.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from _grounds import INK, digest_of, sheet, write_for_grounds
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"
RECORD = BENCHMARKS / "results" / "compare_methods.json"
FOLDER = ROOT / "docs" / "images"
sys.path.append(str(BENCHMARKS))
fronts: Any = importlib.import_module("_fronts")  # found beside the benchmarks

# How each method looks that the page is about, in the order of the legend: colours for
# light and dark pages, and a mark and dashes that tell it apart without them.
STYLES: dict[str, dict[str, Any]] = {
    "CalexNet": {"light": "#3949ab", "dark": "#9fa8ff", "marker": "o", "dashes": "-"},
    "CalexNet, ensemble": {
        "light": "#0277bd",
        "dark": "#4fc3f7",
        "marker": "P",
        "dashes": "-",
    },
    "reference": {"light": "#8a6100", "dark": "#e0b64a", "marker": "s", "dashes": "--"},
    "PTEENet": {"light": "#c0392b", "dark": "#ff8a80", "marker": "^", "dashes": "-."},
    "ZTW": {
        "light": "#00796b",
        "dark": "#4db6ac",
        "marker": "D",
        "dashes": (0, (1, 1.2)),
    },
    "BoostNet": {
        "light": "#ad1457",
        "dark": "#f48fb1",
        "marker": "v",
        "dashes": (0, (6, 1, 1, 1)),
    },
}
NAMES = {"reference": "reference: no alignment, no soft targets"}
OTHERS = ("x", "+", "1", "2")  # marks of the methods beside these, thin and in ink
STEP = 0.01  # of the FLOPs saved; a mark at every fifth


def digest(record: dict[str, Any]) -> str:
    """Give a digest of the runs that are drawn."""
    return digest_of(list(drawn(record).values()))


def drawn(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Give the runs by method, without other exit rules on CalexNet's branches."""
    found: dict[str, list[dict[str, Any]]] = fronts.families(record["runs"])
    return {name: found[name] for name in found if name in STYLES or "," not in name}


def draw(record: dict[str, Any], ground: str) -> Figure:
    """Draw mean fronts over seeds, and bands of one standard deviation."""
    ink, runs = INK[ground], drawn(record)
    figure, ax = sheet(8.0, 5.2, ink)
    backbone = 100 * record["runs"][0]["backbone_accuracy"]
    ax.axhline(backbone, color=ink, linewidth=1, linestyle=":")
    ax.plot([0], [backbone], "*", color=ink, markersize=13, label="the network itself")
    others = [name for name in runs if name not in STYLES]
    for i, name in enumerate([*(n for n in STYLES if n in runs), *others]):
        saved, accuracy, deviation = fronts.mean_front(runs[name], STEP)
        saved, accuracy = 100 * saved, 100 * accuracy
        every = (1 + i % 5, 5)  # the marks of neighbours stand side by side
        if name in others:
            mark = OTHERS[others.index(name) % len(OTHERS)]
            look: dict[str, Any] = {"color": ink, "alpha": 0.5, "marker": mark}
            look |= {"linewidth": 0.8}
            ax.plot(saved, accuracy, label=name, markevery=every, **look)
            continue
        style = STYLES[name]
        look = {"color": style[ground], "marker": style["marker"], "zorder": 3}
        look |= {"linestyle": style["dashes"], "markersize": 5}
        wide = 2.6 if name == "CalexNet" else 1.6
        label = NAMES.get(name, name)
        ax.plot(saved, accuracy, label=label, linewidth=wide, markevery=every, **look)
        if deviation is not None:
            low, high = accuracy - 100 * deviation, accuracy + 100 * deviation
            ax.fill_between(saved, low, high, color=style[ground], alpha=0.2, lw=0)
    ax.set_xlabel("FLOPs saved (%), heads included", color=ink)
    ax.set_ylabel("Accuracy (%)", color=ink)
    ax.set(xlim=(-1, 78), ylim=(backbone - 13, backbone + 1.8))
    seeds = len({run["seed"] for run in record["runs"]})
    of = f"means of {seeds} seeds, bands: deviation" if seeds > 1 else "one seed"
    ax.set_title(f"Chosen on validation, drawn on test; {of}", fontsize=10, color=ink)
    ax.legend(frameon=False, labelcolor=ink, loc="lower left", fontsize=9)
    return figure


def main(folder: Path = FOLDER) -> None:
    """Write the pictures."""
    write_for_grounds(draw, digest, RECORD, folder, "methods")


if __name__ == "__main__":
    main()
