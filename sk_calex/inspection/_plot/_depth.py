"""Where samples are answered, for all and by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from sk_calex.cascade._costs import cost_unit, with_unit
from sk_calex.inspection._reports import depth_names as names_of
from sk_calex.model_selection._estimators import cascade_in, input_of
from sk_calex.utils._intervals import clopper_pearson

from ._style import axes_on, legend_label, short_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

__all__ = ["ExitDepthDisplay"]

_HATCHES = ("", "//", "..", "xx")
_LEAST_WRITTEN = 0.06  # smaller shares have no room for a number


class ExitDepthDisplay:
    """Share of the samples that each depth answers.

    With classes, a stacked bar for each class and one for all samples, from the class
    that is answered at the lowest cost to the dearest; without, a bar for each depth
    with its 95 % Clopper-Pearson interval. Depths go from light to dark and are
    hatched, so they differ in black and white.

    Parameters
    ----------
    share : array-like of shape (n_depths,)
        Share of the samples answered at each depth, in [0, 1].
    class_share : array-like of shape (n_classes, n_depths), default=None
        The same for the samples of each class; rows sum to 1, or are NaN for classes
        without a sample. None: one bar a depth.
    classes : array-like of shape (n_classes,), default=None
        Labels. None: 0, 1, ...
    depth_names : sequence of str, default=None
        Names of the depths. None: "depth 0", "depth 1", ...
    depth_costs : array-like of shape (n_depths,), default=None
        Cost of an answer at each depth, shown with its name.
    cost_unit : str, default="MACs"
        Unit of the costs; that of a cascade with `costs` is its own, such as "ms".
    n_samples : int, default=None
        Number of samples behind the shares, for their intervals. None: no intervals.
    class_counts : array-like of shape (n_classes,), default=None
        Number of samples of each class, written beside its name. None: not written.

    Attributes
    ----------
    bars_ : list of matplotlib.container.BarContainer
        One for each depth.
    ax_ : matplotlib.axes.Axes
        Axes with the bars.
    figure_ : matplotlib.figure.Figure
        Figure of the axes.

    See Also
    --------
    exit_report : Shares and precision by depth and predicted class.

    Examples
    --------
    >>> from sk_calex import ExitDepthDisplay
    >>> display = ExitDepthDisplay.from_predictions([0, 0, 1, 1], ["a", "a", "a", "b"])
    >>> display.share
    array([0.5, 0.5])
    >>> display.class_share.round(2)
    array([[0.67, 0.33],
           [0.  , 1.  ]])
    """

    bars_: list[Any]
    ax_: Any
    figure_: Any

    def __init__(
        self,
        *,
        share: ArrayLike,
        class_share: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        depth_names: Sequence[str] | None = None,
        depth_costs: ArrayLike | None = None,
        cost_unit: str = "MACs",
        n_samples: int | None = None,
        class_counts: ArrayLike | None = None,
    ) -> None:
        self.share = share
        self.class_share = class_share
        self.classes = classes
        self.depth_names = depth_names
        self.depth_costs = depth_costs
        self.cost_unit = cost_unit
        self.n_samples = n_samples
        self.class_counts = class_counts

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike | None = None,
        *,
        ax: Axes | FigureBase | None = None,
        sort: str = "cost",
        **kwargs: Any,
    ) -> ExitDepthDisplay:
        """Draw where a fitted cascade answers samples.

        Parameters
        ----------
        estimator : cascade, Pipeline or fitted search
            A fitted cascade of any method, or an estimator that ends in one.
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in its fit.
        y : array-like of shape (n_samples,), default=None
            Labels by which the samples are grouped: the true ones, or any others.
            None: they are not grouped.
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
        sort : {"cost", "label"}, default="cost"
            Order of the classes.

            - "cost": from the one that is answered earliest to the latest, to see
              which classes are easy.
            - "label": as the labels are sorted, to find a class again.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.bar` or ``barh``.

        Returns
        -------
        display : ExitDepthDisplay
            The drawn picture.

        Raises
        ------
        ValueError
            If `X` does not have the shape seen in fit, or lengths differ.
        TypeError
            If there is no cascade in `estimator`.
        ImportError
            If matplotlib is not installed.
        """
        cascade = cascade_in(estimator)
        check_is_fitted(cascade)
        try:
            costs = cascade.depth_costs_
        except ValueError:  # of a stage or a head they are not known
            costs = None
        names = names_of(cascade)
        return cls.from_predictions(
            cascade.exit_depth(input_of(estimator, X)),
            y,
            n_depths=len(names),
            depth_names=names,
            depth_costs=costs,
            cost_unit=cost_unit(cascade),
            ax=ax,
            sort=sort,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        depth: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        n_depths: int | None = None,
        depth_names: Sequence[str] | None = None,
        depth_costs: ArrayLike | None = None,
        cost_unit: str = "MACs",
        ax: Axes | FigureBase | None = None,
        sort: str = "cost",
        **kwargs: Any,
    ) -> ExitDepthDisplay:
        """Draw depths, as ``predict(X, return_depth=True)`` or `exit_depth` gave them.

        Parameters
        ----------
        depth : array-like of int, shape (n_samples,)
            Where each sample was answered.
        labels : array-like of shape (n_samples,), default=None
            Labels by which the samples are grouped. None: they are not grouped.
        n_depths : int, default=None
            Number of depths. None: the largest one that occurs, and one.
        depth_names : sequence of str, default=None
            Names of the depths.
        depth_costs : array-like of shape (n_depths,), default=None
            Cost of an answer at each depth.
        cost_unit : str, default="MACs"
            Unit of the costs, such as "ms".
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
        sort : {"cost", "label"}, default="cost"
            Order of the classes.

            - "cost": from the one that is answered earliest to the latest, to see
              which classes are easy.
            - "label": as the labels are sorted, to find a class again.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.bar` or ``barh``.

        Returns
        -------
        display : ExitDepthDisplay
            The drawn picture.

        Raises
        ------
        ValueError
            If a depth is not an integer from 0 to ``n_depths - 1``, or lengths differ.
        ImportError
            If matplotlib is not installed.
        """
        depths = np.asarray(column_or_1d(depth))
        if not len(depths) or depths.dtype.kind not in "iu" or depths.min() < 0:
            raise ValueError(
                f"depth must hold an integer >= 0 a sample, at least one; got "
                f"{depths!r}. Give what exit_depth returns."
            )
        n = int(depths.max()) + 1 if n_depths is None else n_depths
        if depths.max() >= n:
            raise ValueError(
                f"depth goes up to {depths.max()}, but n_depths={n_depths!r}: depths "
                "count from 0."
            )
        class_share = classes = class_counts = None
        if labels is not None:
            groups = column_or_1d(labels)
            check_consistent_length(depths, groups)
            classes, codes = np.unique(groups, return_inverse=True)
            counts = np.zeros((len(classes), n))
            np.add.at(counts, (codes, depths), 1)
            class_counts = counts.sum(axis=1).astype(np.intp)
            class_share = counts / class_counts[:, None]
        display = cls(
            share=np.bincount(depths, minlength=n) / len(depths),
            class_share=class_share,
            classes=classes,
            depth_names=depth_names,
            depth_costs=depth_costs,
            cost_unit=cost_unit,
            n_samples=len(depths),
            class_counts=class_counts,
        )
        return display.plot(ax, sort=sort, **kwargs)

    def plot(
        self,
        ax: Axes | FigureBase | None = None,
        *,
        sort: str = "cost",
        **kwargs: Any,
    ) -> ExitDepthDisplay:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
        sort : {"cost", "label"}, default="cost"
            Order of the classes.

            - "cost": from the one that is answered earliest to the latest, to see
              which classes are easy.
            - "label": as the labels are sorted, to find a class again.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.bar` or ``barh``.

        Returns
        -------
        display : ExitDepthDisplay
            The same display, with `bars_`, `ax_` and `figure_`.

        Raises
        ------
        ValueError
            If names, costs, counts or classes are not as many as the shares, or
            `sort` is unknown.
        ImportError
            If matplotlib is not installed.
        """
        share = column_or_1d(self.share).astype(np.float64)
        names = self._names(len(share))
        rows, labels = self._rows(share, sort)
        # A line of text a bar, and room for the axis and the legend.
        height = 4.0 if rows is None else 1.7 + 0.24 * len(labels)
        axes = axes_on(self, ax, figsize=(6.4, height))
        if rows is None:
            self._plot_depths(axes, share, names, kwargs)
        else:
            self._plot_classes(axes, rows, labels, names, kwargs)
        self.ax_, self.figure_ = axes, axes.figure
        return self

    def _names(self, n: int) -> list[str]:
        given = self.depth_names
        names = [f"depth {k}" for k in range(n)] if given is None else list(given)
        costs = None if self.depth_costs is None else column_or_1d(self.depth_costs)
        if len(names) != n or (costs is not None and len(costs) != n):
            raise ValueError(
                f"depth_names={self.depth_names!r} and depth_costs={self.depth_costs!r}"
                f" must have one entry for each of the {n} depths in share."
            )
        if costs is None:
            return names
        priced = zip(names, costs, strict=True)
        return [f"{name}\n{with_unit(cost, self.cost_unit)}" for name, cost in priced]

    def _rows(
        self, share: NDArray[np.float64], sort: str
    ) -> tuple[NDArray[np.float64] | None, list[str]]:
        """Give the shares of all samples and of each class, and their labels."""
        if sort not in ("cost", "label"):
            raise ValueError(f"sort={sort!r} must be 'cost' or 'label'.")
        if self.class_share is None:
            return None, []
        by_class = np.asarray(self.class_share, dtype=np.float64)
        n = len(by_class)
        classes = np.arange(n) if self.classes is None else column_or_1d(self.classes)
        counts = None if self.class_counts is None else column_or_1d(self.class_counts)
        if by_class.shape != (len(classes), len(share)) or (
            counts is not None and len(counts) != n
        ):
            raise ValueError(
                f"class_share must have shape ({len(classes)}, {len(share)}), one row "
                f"a class and one column a depth of share, and class_counts as many "
                f"entries as rows; got {by_class.shape} and class_counts={counts!r}."
            )
        labels = short_labels(classes)
        if counts is not None:
            labels = [f"{x}, n = {k}" for x, k in zip(labels, counts, strict=True)]
        if sort == "cost":
            # Without costs, a depth counts as much as its number.
            costs = self.depth_costs
            prices = np.arange(len(share)) if costs is None else column_or_1d(costs)
            order = np.argsort(by_class @ prices, kind="stable")  # NaN last
            by_class, labels = by_class[order], [labels[i] for i in order]
        rows = np.vstack([share, by_class])
        every = "all" if self.n_samples is None else f"all, n = {self.n_samples}"
        return np.nan_to_num(rows), [every, *labels]

    def _plot_depths(
        self,
        ax: Axes,
        share: NDArray[np.float64],
        names: list[str],
        kwargs: dict[str, Any],
    ) -> None:
        self.bars_ = []
        errors = None
        title = "Where samples are answered"
        if self.n_samples is not None:
            n = self.n_samples
            low, high = clopper_pearson(share * n, n)
            errors = 100 * np.stack([share - low, high - share])
            title += f"\n{n:,} samples, lines: 95 % intervals"
        for k, style in enumerate(_depth_styles(len(share))):
            if errors is not None:
                # As a list: matplotlib takes rows of an array for numbers, which NumPy
                # before 2.4 only warns of.
                yerr = errors[:, [k]].tolist()
                style |= {"yerr": yerr, "capsize": 4, "ecolor": "black"}
            bar = ax.bar([k], [100 * share[k]], 0.7, **(style | kwargs))
            ax.bar_label(bar, [f"{100 * share[k]:.1f} %"], padding=2)
            self.bars_.append(bar)
        ax.set_title(title, fontsize="medium")
        ax.set_xticks(range(len(names)), names)
        ax.set(ylabel="Share of samples (%)", xlabel="Answered at", ylim=(0, 110))
        ax.spines[["top", "right"]].set_visible(False)

    def _plot_classes(
        self,
        ax: Axes,
        rows: NDArray[np.float64],
        labels: list[str],
        names: list[str],
        kwargs: dict[str, Any],
    ) -> None:
        # The bar of all samples on top, apart from those of the classes.
        at = np.r_[0, np.arange(1, len(rows)) + 0.4]
        left = np.zeros(len(rows))
        self.bars_ = []
        for k, style in enumerate(_depth_styles(rows.shape[1])):
            width = 100 * rows[:, k]
            style = (
                style | {"label": legend_label(names[k].replace("\n", ", "))} | kwargs
            )
            bar = ax.barh(at, width, 0.8, left=left, **style)
            written = [f"{w:.0f}" if w >= 100 * _LEAST_WRITTEN else "" for w in width]
            plate = {"boxstyle": "round,pad=0.15", "facecolor": "white", "lw": 0}
            for text, string in zip(
                ax.bar_label(bar, written, label_type="center", fontsize="x-small"),
                written,
                strict=True,
            ):
                text.set_bbox(plate if string else None)
            left += width
            self.bars_.append(bar)
        ax.set_yticks(at, labels)
        ax.invert_yaxis()
        ax.set(xlabel="Share of the samples of a class (%)", xlim=(0, 100))
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(
            title="Where samples are answered, by class",
            loc="lower left",
            bbox_to_anchor=(0, 1.01),
            ncols=max(1, min(len(names), 66 // (6 + max(map(len, names))))),
            fontsize="small",
            frameon=False,
            alignment="left",
        )


def _depth_styles(n: int) -> list[dict[str, Any]]:
    """Choose fills from light to dark, with hatches that differ between neighbours."""
    from matplotlib import colormaps

    shades = colormaps["Blues"](np.linspace(0.15, 0.85, n))
    return [
        {
            "facecolor": shade,
            "edgecolor": "black",
            "linewidth": 0.6,
            "hatch": _HATCHES[k % len(_HATCHES)],
        }
        for k, shade in enumerate(shades)
    ]
