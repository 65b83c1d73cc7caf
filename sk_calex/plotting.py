"""Pictures of what a cascade costs and what it gets right."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_calex._validation import check_finite
from sk_calex.model_selection import DEFAULT_MARGINS, margin_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sk_calex.cascade import CascadeClassifier

__all__ = ["CascadeDisplay"]

# Seven and four: lines differ in marker and dashes long before a pair comes again.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES = ("-", "--", "-.", ":")

# How the lines of this class are known again on axes that hold others too.
_CURVE, _BACKBONE = "sk_calex.curve", "sk_calex.backbone"


class CascadeDisplay:
    """Accuracy of a cascade against the FLOPs that it saves.

    Use :meth:`from_estimator` for a fitted cascade, :meth:`from_curve` for the result
    of `margin_curve`. Several methods share a picture by ``ax=display.ax_``: each gets
    a marker and dashes of its own, which also differ without colours.

    Parameters
    ----------
    flops_reduction : array-like of shape (n_points,)
        Share of the plain backbone's FLOPs saved at each operating point; at most 1.
    accuracy : array-like of shape (n_points,)
        Accuracy at each operating point, in [0, 1].
    backbone_accuracy : float, default=None
        Accuracy of the plain backbone, in [0, 1]. None: it is not drawn.
    margins : array-like of shape (n_points,), default=None
        Margin of each operating point; kept, not drawn.
    name : str, default=None
        Name in the legend. None: the curve has no entry.

    Attributes
    ----------
    line_ : matplotlib.lines.Line2D
        The curve.
    ax_ : matplotlib.axes.Axes
        Axes with the curve.
    figure_ : matplotlib.figure.Figure
        Figure of the axes.

    See Also
    --------
    margin_curve : The numbers behind the picture.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier
    >>> from sk_calex.plotting import CascadeDisplay
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(random_state=0).fit(X, y)
    >>> display = CascadeDisplay.from_estimator(cascade, X, y, name="CalexNet")
    >>> display.ax_.get_xlabel(), display.ax_.get_ylabel()
    ('FLOPs reduction (%)', 'Accuracy (%)')
    """

    line_: Any
    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        flops_reduction: ArrayLike,
        accuracy: ArrayLike,
        backbone_accuracy: float | None = None,
        margins: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        self.flops_reduction = flops_reduction
        self.accuracy = accuracy
        self.backbone_accuracy = backbone_accuracy
        self.margins = margins
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        cascade: CascadeClassifier,
        X: Any,
        y: ArrayLike,
        *,
        margins: Iterable[float] = DEFAULT_MARGINS,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw a fitted cascade over margins; nothing is trained.

        Parameters
        ----------
        cascade : CascadeClassifier
            A fitted cascade; not changed.
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in its fit.
        y : array-like of shape (n_samples,)
            True labels.
        margins : iterable of float, default=(-0.4, ..., 0.3)
            Margins, finite and below 1.
        name : str, default=None
            Name in the legend. None: the name of the cascade's class.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw on. None: those of a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : CascadeDisplay
            The drawn picture.

        Raises
        ------
        ValueError
            If a margin is not finite or not below 1, or the MACs are unknown.
        ImportError
            If matplotlib is not installed.
        """
        curve = margin_curve(cascade, X, y, margins=margins)
        if name is None:
            name = type(cascade).__name__
        return cls.from_curve(curve, name=name, ax=ax, **kwargs)

    @classmethod
    def from_curve(
        cls,
        curve: Bunch,
        *,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw what `margin_curve` returned.

        Parameters
        ----------
        curve : Bunch
            Result of `margin_curve`.
        name : str, default=None
            Name in the legend. None: the curve has no entry.
        ax : matplotlib.axes.Axes, default=None
            Axes to draw on. None: those of a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : CascadeDisplay
            The drawn picture.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        display = cls(
            flops_reduction=curve.flops_reduction,
            accuracy=curve.accuracy,
            backbone_accuracy=curve.backbone_accuracy,
            margins=curve.margins,
            name=name,
        )
        return display.plot(ax, **kwargs)

    def plot(
        self, ax: Axes | None = None, *, name: str | None = None, **kwargs: Any
    ) -> CascadeDisplay:
        """Draw the curve, and the backbone where the axes do not show it yet.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw on. None: those of a new figure.
        name : str, default=None
            Name in the legend. None: the `name` of the display.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : CascadeDisplay
            The same display, with `line_`, `ax_` and `figure_`.

        Raises
        ------
        ValueError
            If the values are not finite, or not as many accuracies as reductions.
        ImportError
            If matplotlib is not installed.
        """
        reduction, accuracy = self._points()
        if ax is None:
            _, ax = _pyplot().subplots()
        name = self.name if name is None else name
        drawn = sum(line.get_gid() == _CURVE for line in ax.lines)
        style = {
            "marker": _MARKERS[drawn % len(_MARKERS)],
            "linestyle": _DASHES[drawn % len(_DASHES)],
            "label": name,
            "gid": _CURVE,
        }
        if drawn == 0:
            ax.set(xlabel="FLOPs reduction (%)", ylabel="Accuracy (%)")
            ax.grid(visible=True, alpha=0.3)
        (self.line_,) = ax.plot(100 * reduction, 100 * accuracy, **(style | kwargs))
        self._mark_backbone(ax)
        if ax.get_legend_handles_labels()[1]:
            ax.legend()
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _points(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Reductions and accuracies, from the dearest point to the cheapest."""
        reduction = column_or_1d(self.flops_reduction).astype(np.float64)
        accuracy = column_or_1d(self.accuracy).astype(np.float64)
        check_consistent_length(reduction, accuracy)
        check_finite(reduction, "flops_reduction", "Leave such points out.")
        check_finite(accuracy, "accuracy", "Leave such points out.")
        order = np.argsort(reduction, kind="stable")
        return reduction[order], accuracy[order]

    def _mark_backbone(self, ax: Axes) -> None:
        """Draw a star at no reduction, once for all the curves that share it."""
        if self.backbone_accuracy is None:
            return
        height = 100 * self.backbone_accuracy
        stars = [line for line in ax.lines if line.get_gid() == _BACKBONE]
        if any(star.get_ydata()[0] == height for star in stars):  # type: ignore[index]
            return
        ax.axhline(height, color="black", linewidth=0.8, linestyle=":", zorder=1)
        ax.plot(
            [0],
            [height],
            color="black",
            linestyle="none",
            marker="*",
            markersize=12,
            label="backbone",
            gid=_BACKBONE,
        )


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            'CascadeDisplay draws with matplotlib: pip install "sk-calex[plot]".'
        ) from error
    return plt
