"""What pictures for light and for dark pages share."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The ink of each ground; the ground itself is the page's.
INK = {"light": "#333333", "dark": "#d5d8e2"}
# The same bytes on every run; text as text, in whatever sans-serif there is.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sk_calex",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "sans-serif"],
}


def sheet(width: float, height: float, ink: str) -> tuple[Figure, Axes]:
    """Make a figure of one plot, with a grid and without a box, all in one ink."""
    figure = Figure(figsize=(width, height), layout="constrained")
    ax = figure.subplots()
    plain(ax, ink)
    return figure, ax


def plain(ax: Axes, ink: str) -> None:
    """Give axes a grid and no box, all of it in one ink."""
    ax.tick_params(colors=ink)
    ax.grid(visible=True, color=ink, alpha=0.15)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink)


def digest_of(numbers: Any) -> str:
    """Give a digest of what is drawn."""
    return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:16]


def write_for_grounds(
    draw: Callable[[dict[str, Any], str], Figure],
    digest: Callable[[dict[str, Any]], str],
    path: Path,
    folder: Path,
    name: str,
) -> None:
    """Draw a record for light and for dark pages; the files tell its digest."""
    record = json.loads(path.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    description = f"{path.name}, numbers {digest(record)}"
    for ground in INK:
        save(draw(record, ground), folder / f"{name}-{ground}.svg", description)


def save(figure: Figure, path: Path, description: str) -> None:
    """Write a figure as SVG, of a few kilobytes."""
    metadata = {"Date": None, "Creator": None, "Description": description}
    with mpl.rc_context(STYLE):
        figure.savefig(path, transparent=True, metadata=metadata)
    svg = path.read_text(encoding="utf-8")
    # Coordinates to a hundredth of a point: half the size, the same picture.
    path.write_text(re.sub(r"(\d+\.\d\d)\d+", r"\1", svg), encoding="utf-8")
