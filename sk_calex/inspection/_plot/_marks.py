"""Single points of the accuracy-FLOPs picture: backbone, operating point, oracle."""

from __future__ import annotations

from typing import Any

__all__ = ["mark_backbone", "mark_operating_point", "mark_oracle"]

# How these marks are known again on axes that hold others too.
_BACKBONE, _POINT, _ORACLE = (
    f"sk_calex.{what}" for what in ("backbone", "point", "oracle")
)
_HOLLOW = {"linestyle": "none", "markerfacecolor": "none", "zorder": 3}


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
