"""The course of a monitor's statistic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.validation import check_is_fitted

from ._style import BAR, COLORS, axes_on, place_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from sk_calex.inspection._monitor import ExitMonitor

__all__ = ["MonitorDisplay"]


class MonitorDisplay:
    """Course of an `ExitMonitor`'s statistic, and the level at which it alarms.

    Parameters
    ----------
    rows : array-like of int, shape (n_points,)
        Rows seen up to each point.
    statistic : array-like of float, shape (n_points,)
        Largest value of the statistic up to each point from the one before.
    level : float
        Level at which an alarm is raised.
    alarm_row : int, default=None
        Rows seen when it was raised. None: it was not.

    Attributes
    ----------
    line_ : matplotlib.lines.Line2D
        The course.
    level_ : matplotlib.lines.Line2D
        The level.
    ax_ : matplotlib.axes.Axes
        Axes with the course.
    figure_ : matplotlib.figure.Figure
        Figure of the axes.

    See Also
    --------
    ExitMonitor : What the statistic is.

    Examples
    --------
    >>> from sk_calex import MonitorDisplay
    >>> display = MonitorDisplay(rows=[1, 2, 3], statistic=[1, 9, 200], level=100)
    >>> display.plot().ax_.get_yscale()
    'log'
    """

    line_: Any
    level_: Any
    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        rows: ArrayLike,
        statistic: ArrayLike,
        level: float,
        alarm_row: int | None = None,
    ) -> None:
        self.rows = rows
        self.statistic = statistic
        self.level = level
        self.alarm_row = alarm_row

    @classmethod
    def from_monitor(
        cls, monitor: ExitMonitor, *, ax: Axes | FigureBase | None = None, **kwargs: Any
    ) -> MonitorDisplay:
        """Draw what a fitted monitor has seen so far.

        Parameters
        ----------
        monitor : ExitMonitor
            A fitted monitor.
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : MonitorDisplay
            The drawn picture.

        Raises
        ------
        NotFittedError
            If the monitor is not fitted.
        ImportError
            If matplotlib is not installed.
        """
        check_is_fitted(monitor)
        display = cls(
            rows=monitor.statistic_rows_,
            statistic=monitor.statistic_,
            level=monitor.mean_time_between_false_alarms,
            alarm_row=monitor.alarm_row_,
        )
        return display.plot(ax=ax, **kwargs)

    def plot(
        self, *, ax: Axes | FigureBase | None = None, **kwargs: Any
    ) -> MonitorDisplay:
        """Draw the course on a logarithmic axis.

        Parameters
        ----------
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : MonitorDisplay
            The drawn picture.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        axes: Any = axes_on(self, ax)
        style = {"color": COLORS[0], "linewidth": 1.2, "label": "statistic"} | kwargs
        rows, statistic = np.asarray(self.rows), np.asarray(self.statistic)
        (self.line_,) = axes.plot(rows, statistic, **style)
        self.level_ = axes.axhline(self.level, label="alarm level", **BAR)
        if self.alarm_row is not None:
            axes.axvline(
                self.alarm_row,
                color=COLORS[1],
                linewidth=1.2,
                linestyle=":",
                label=f"alarm at row {self.alarm_row:,}",
            )
        axes.set(xlabel="Rows seen", ylabel="Statistic", yscale="log")
        if not axes.get_title():
            axes.set_title(
                "Is this still the data of the reference?", fontsize="medium"
            )
        # Above the level there is nothing to tell apart.
        axes.set_ylim(top=30 * self.level)
        place_legend(axes)
        self.ax_, self.figure_ = axes, axes.figure
        return self
