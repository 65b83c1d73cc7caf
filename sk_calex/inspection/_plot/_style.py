"""What the displays look alike in: colours, markers, marks, new figures, legends."""

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
    "mark_backbone",
    "mark_operating_point",
    "mark_oracle",
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
# How these marks are known again on axes that hold others too.
_BACKBONE, _POINT, _ORACLE = (
    f"sk_calex.{what}" for what in ("backbone", "point", "oracle")
)
_HOLLOW = {"linestyle": "none", "markerfacecolor": "none", "zorder": 3}


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


def mark_operating_point(ax: Any, point: tuple[float, float], color: Any) -> None:
    """Ring a point of a curve; one legend entry for all rings of the axes."""
    x, y = point
    ring = {"marker": "o", "markersize": 13, "gid": _POINT, "markeredgecolor": color}
    ring |= {"markeredgewidth": 1.6} | _HOLLOW
    if not any(line.get_gid() == _POINT for line in ax.lines):
        ring["label"] = "operating point"
    ax.plot([100 * x], [100 * y], **ring)


def mark_oracle(
    ax: Any, point: tuple[float, float], color: Any, name: str | None
) -> None:
    """A hollow star at the upper limit, with a legend entry that says so."""
    x, y = point
    whose = "oracle" if name is None else f"oracle of {name}"
    star = {"marker": "*", "markersize": 13, "gid": _ORACLE, "markeredgecolor": color}
    ax.plot([100 * x], [100 * y], label=f"{whose} (upper limit)", **(star | _HOLLOW))


def mark_backbone(ax: Any, accuracy: float) -> None:
    """A star at no reduction, once for all the curves that share the backbone."""
    height = 100 * accuracy
    stars = [line for line in ax.lines if line.get_gid() == _BACKBONE]
    if any(star.get_ydata()[0] == height for star in stars):
        return
    ax.axhline(height, color="black", linewidth=0.8, linestyle=":", zorder=1)
    star = {"color": "black", "linestyle": "none", "marker": "*", "markersize": 12}
    ax.plot([0], [height], label="backbone", gid=_BACKBONE, **star)
