"""What the displays look alike in: colours, markers, new figures, legends."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = [
    "BAR",
    "COLORS",
    "DASHES",
    "MARKERS",
    "check_axes",
    "legend_label",
    "line_style",
    "new_axes",
    "place_legend",
    "short",
]

# Okabe & Ito (2008), told apart by the colour-blind; black stands for the backbone.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Seven and four: lines differ in marker and dashes long before a pair comes again.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
#: What was asked for, in all pictures.
BAR = {"color": "black", "linewidth": 1.0, "linestyle": "--"}


def line_style(i: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line number `i`."""
    return {
        "color": COLORS[i % len(COLORS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def new_axes(display: Any, rows: int = 1, columns: int = 1, **figure: Any) -> Any:
    """Axes of a new figure in an array of shape (rows, columns)."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{type(display).__name__} draws with matplotlib: "
            'pip install "sk-calex[plot]".'
        ) from error
    figure = {"layout": "constrained"} | figure
    return plt.subplots(rows, columns, squeeze=False, **figure)[1]


def check_axes(ax: Any, shape: tuple[int, ...], what: str) -> Any:
    """Axes that the caller gave, in an array of this shape."""
    given = np.asarray(ax, dtype=object)
    if given.size != np.prod(shape):
        raise ValueError(
            f"ax holds {given.size} axes but {what}. Give as many axes, or None."
        )
    return given.reshape(shape)


def place_legend(ax: Any) -> None:
    """Give the axes a legend where it covers least, if there is anything to say."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="best", frameon=True, framealpha=0.9, fontsize="small")


def short(label: Any, length: int = 18) -> str:
    """A label that fits beside an axis."""
    text = str(label)
    return text if len(text) <= length else text[: length - 1] + "…"


def legend_label(name: str) -> str:
    """A label that is shown: matplotlib hides those that begin with an underscore."""
    return f" {name}" if name.startswith("_") else name
