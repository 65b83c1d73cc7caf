"""What the displays look alike in: colours, markers, marks, new figures, legends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BAR",
    "COLORS",
    "DASHES",
    "MARKERS",
    "axes_on",
    "check_axes",
    "legend_label",
    "line_style",
    "mark_backbone",
    "mark_operating_point",
    "mark_oracle",
    "new_axes",
    "panels_on",
    "place_legend",
    "place_values",
    "short_labels",
    "write_values",
]

# Okabe & Ito (2008), told apart by the colour-blind; black stands for the backbone.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Seven and four: lines differ in marker and dashes long before a pair comes again.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", "--", "-.", ":")
#: The line of a required value, in all pictures.
BAR = {"color": "black", "linewidth": 1.0, "linestyle": "--"}
# How these marks are known again on axes that hold others too.
_BACKBONE, _POINT, _ORACLE = (
    f"sk_calex.{what}" for what in ("backbone", "point", "oracle")
)
_VALUE, _LINES = "sk_calex.value", ("sk_calex.curve", "sk_calex.tail")
_HOLLOW = {"linestyle": "none", "markerfacecolor": "none", "zorder": 3}


def line_style(i: int) -> dict[str, Any]:
    """Give colour, marker and dashes of the line number `i`."""
    return {
        "color": COLORS[i % len(COLORS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": DASHES[i % len(DASHES)],
    }


def new_axes(display: Any, rows: int = 1, columns: int = 1, **figure: Any) -> Any:
    """Create the axes of a new figure, in an array of shape (rows, columns)."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            f"{type(display).__name__} draws with matplotlib: "
            'pip install "sk-calex[plot]".'
        ) from error
    figure = {"layout": "constrained"} | figure
    return plt.subplots(rows, columns, squeeze=False, **figure)[1]


def panels_on(
    display: Any,
    ax: Any,
    shape: tuple[int, int],
    what: str,
    *,
    figsize: tuple[float, float] | None = None,
    **grid: Any,
) -> tuple[Any, bool]:
    """Find or create axes of this shape, and tell whether the display lays them out.

    `ax` is None (a new figure), a figure or subfigure without axes of its own, or as
    many axes as are needed, which stay where the caller put them.
    """
    if ax is None:
        rows, columns = shape
        return new_axes(display, rows, columns, figsize=figsize, **grid), True
    if hasattr(ax, "subplots"):  # a Figure or SubFigure
        return ax.subplots(*shape, squeeze=False, **grid), True
    return check_axes(ax, shape, what), False


def axes_on(display: Any, ax: Any, **figure: Any) -> Any:
    """Find or create the axes of a display that needs one."""
    return panels_on(display, ax, (1, 1), "one is drawn on", **figure)[0][0, 0]


def check_axes(ax: Any, shape: tuple[int, ...], what: str) -> Any:
    """Give the axes of the caller the shape that is drawn."""
    given = np.asarray(ax, dtype=object)
    if given.size != np.prod(shape):
        raise ValueError(
            f"ax holds {given.size} axes but {what}. Give as many axes, a figure, or "
            "None."
        )
    return given.reshape(shape)


def place_legend(ax: Any) -> None:
    """Give the axes a legend where it covers least, if there is anything to say."""
    if ax.get_legend_handles_labels()[1]:
        ax.legend(loc="best", frameon=True, framealpha=0.9, fontsize="small")


def write_values(ax: Any, points: NDArray[Any], values: list[Any], color: Any) -> None:
    """Write the value of the knob beside each point, where there is room."""
    for point, value in zip(points, values, strict=True):
        look = {"fontsize": "x-small", "color": color, "gid": _VALUE}
        ax.annotate(
            f"{value:g}", point, textcoords="offset points", xytext=(0, 0), **look
        )


def place_values(ax: Any) -> None:
    """Move the values of all curves to where they cover nothing, and hide the rest."""
    from matplotlib.path import Path
    from matplotlib.transforms import Bbox

    ax.autoscale_view()
    to_pixels, scale = ax.transData.transform, ax.figure.dpi / 72
    lines = [line for line in ax.lines if line.get_gid() in _LINES]
    points = [to_pixels(line.get_xydata()) for line in lines]
    paths = [Path(each) for each in points]
    side = 8 * scale  # of a marker
    taken = [
        Bbox.from_bounds(x - side / 2, y - side / 2, side, side)
        for x, y in np.concatenate(points).tolist()
    ]
    for text in (t for t in ax.texts if t.get_gid() == _VALUE):
        x, y = to_pixels(text.xy)
        wide, high = 4.6 * len(text.get_text()), 8.0  # points, of the small font
        text.set_visible(False)
        for offset in ((5, 5), (5, -5 - high), (-5 - wide, -5 - high), (-5 - wide, 5)):
            left, low = x + scale * offset[0], y + scale * offset[1]
            box = Bbox.from_bounds(left, low, scale * wide, scale * high)
            inside = ax.bbox.containsx(box.x1) and ax.bbox.containsy(box.y1)
            if (
                inside
                and not any(box.overlaps(other) for other in taken)
                and not any(path.intersects_bbox(box, filled=False) for path in paths)
            ):
                text.set_visible(True)
                text.set_position(offset)
                taken.append(box)
                break


def short_labels(labels: Iterable[Any], length: int = 18) -> list[str]:
    """Shorten labels to fit beside an axis, so that they stay different.

    Long ones lose their end; where two would then look alike, they lose what lies
    before an end that tells them apart.
    """
    texts = [str(label) for label in labels]
    found = [_cut(text, length, 0) for text in texts]
    for end in range(1, length - 1):
        twice = {t for t, n in Counter(found).items() if n > 1}
        if not twice:
            break
        found = [
            _cut(text, length, end) if now in twice else now
            for text, now in zip(texts, found, strict=True)
        ]
    return found


def _cut(text: str, length: int, end: int) -> str:
    """Keep the last `end` characters and as many of the first as fit."""
    if len(text) <= length:
        return text
    return text[: length - 1 - end] + "…" + text[len(text) - end :]


def legend_label(name: str) -> str:
    """Make a label shown: matplotlib hides those that begin with an underscore."""
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
    """Draw a hollow star at the upper limit, with a legend entry that says so."""
    x, y = point
    whose = "oracle" if name is None else f"oracle of {name}"
    star = {"marker": "*", "markersize": 13, "gid": _ORACLE, "markeredgecolor": color}
    ax.plot([100 * x], [100 * y], label=f"{whose} (upper limit)", **(star | _HOLLOW))


def mark_backbone(ax: Any, accuracy: float) -> None:
    """Draw a star at no reduction, once for all curves that share the backbone."""
    height = 100 * accuracy
    stars = [line for line in ax.lines if line.get_gid() == _BACKBONE]
    if any(star.get_ydata()[0] == height for star in stars):
        return
    ax.axhline(height, color="black", linewidth=0.8, linestyle=":", zorder=1)
    star = {"color": "black", "linestyle": "none", "marker": "*", "markersize": 12}
    ax.plot([0], [height], label="backbone", gid=_BACKBONE, **star)
