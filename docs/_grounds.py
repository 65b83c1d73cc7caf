"""What pictures for light and for dark pages share."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The ink of each ground; the ground itself is the page's.
INK = {"light": "#333333", "dark": "#d5d8e2"}
# The same bytes on every run; text as text, in whatever sans-serif there is.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sk_calex",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
}


def axes(width: float, height: float, ink: str) -> Axes:
    """Make axes with a grid and without a box, all of it in one ink."""
    ax = Figure(figsize=(width, height), layout="constrained").subplots()
    ax.tick_params(colors=ink)
    ax.grid(visible=True, color=ink, alpha=0.15)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)
    return ax


def save(figure: Figure, path: Path, description: str) -> None:
    """Write a figure as SVG, of a few kilobytes."""
    metadata = {"Date": None, "Creator": None, "Description": description}
    with mpl.rc_context(STYLE):
        figure.savefig(path, transparent=True, metadata=metadata)
    svg = path.read_text(encoding="utf-8")
    # Coordinates to a hundredth of a point: half the size, the same picture.
    path.write_text(re.sub(r"(\d+\.\d\d)\d+", r"\1", svg), encoding="utf-8")
