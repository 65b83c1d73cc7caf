"""What branches were trained on against the samples that reach them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch

from sk_calex.inspection._reports import alignment_report, distribution_report
from sk_calex.utils._intervals import clopper_pearson

from ._style import panels_on, short_labels

__all__ = ["AlignmentDisplay"]

_SURVIVORS = {"facecolor": "0.55", "edgecolor": "black", "linewidth": 0.6}
_TRAINING = {
    "facecolor": "white",
    "edgecolor": "#0072B2",
    "linewidth": 0.9,
    "hatch": "////",
}
_UNWEIGHTED = {"color": "black", "marker": "_", "linestyle": "none"}


class AlignmentDisplay:
    """Survivors against training weights, branch by branch.

    A row for each branch: shares over the true classes, and over the confidence of the
    branch before. Grey bars are the samples that really reach the branch (survivors),
    with 95 % Clopper-Pearson intervals; hatched bars the weighted training rows; dashes
    the training rows without weights. Classes go from the most frequent among the
    survivors to the rarest.

    The titles hold the total-variation distance between survivors and weighted rows: 0
    if they are alike, 1 if they have nothing in common. Beside it stand the distance
    without weights, and what chance alone would give.

    Parameters
    ----------
    report : Bunch
        What `alignment_report` returns.

    Attributes
    ----------
    axes_ : ndarray of matplotlib.axes.Axes, shape (n_rows, n_columns)
        The panels: over classes, and over confidence where it is known.
    figure_ : matplotlib.figure.Figure
        Figure of the panels.

    See Also
    --------
    alignment_report : The numbers behind the picture.

    Examples
    --------
    >>> from sk_calex import AlignmentDisplay
    >>> display = AlignmentDisplay.from_predictions(
    ...     ["a", "a", "b", "b"], [1.5, 1.5, 0.5, 0.5], ["a", "a", "a", "b"]
    ... )
    >>> display.report.tv_class, display.report.tv_class_unweighted
    (array([0.]), array([0.25]))
    """

    axes_: NDArray[Any]
    figure_: Any

    def __init__(self, *, report: Bunch) -> None:
        self.report = report

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        X_train: Any = None,
        y_train: ArrayLike | None = None,
        at: str = "operating_point",
        n_bins: int = 10,
        branches: Sequence[int] | None = None,
        ax: Any = None,
    ) -> AlignmentDisplay:
        """Draw what `alignment_report` measures.

        Parameters
        ----------
        estimator : cascade, Pipeline or fitted search
            A fitted cascade of any method, or an estimator that ends in one.
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in its fit, that did not train it.
        y : array-like of shape (n_samples,)
            True labels.
        X_train : array, tensor or Dataset of shape (n_samples, ...), default=None
            The rows that trained the branches, for methods that train on all alike.
        y_train : array-like of shape (n_samples,), default=None
            Labels of `X_train`.
        at : {"operating_point", "alignment"}, default="operating_point"
            Whose survivors: see `alignment_report`.
        n_bins : int, default=10
            Bins of the confidence: 1, 2, 4, 5, 10 or 20.
        branches : sequence of int, default=None
            Branches to draw. None: all but the first, which every sample reaches, or
            the first where there is no other.
        ax : Figure, SubFigure or array-like of Axes, default=None
            What to draw on; axes as many as panels. None: a new figure.

        Returns
        -------
        display : AlignmentDisplay
            The drawn picture.

        Raises
        ------
        ValueError
            As `alignment_report`, or if there is no such branch.
        TypeError
            If there is no cascade in `estimator`.
        ImportError
            If matplotlib is not installed.
        """
        report = alignment_report(
            estimator, X, y, X_train=X_train, y_train=y_train, at=at, n_bins=n_bins
        )
        return cls(report=report).plot(ax, branches=branches)

    @classmethod
    def from_predictions(
        cls,
        y_train: ArrayLike,
        weight: ArrayLike,
        y_survivors: ArrayLike,
        *,
        train_confidence: ArrayLike | None = None,
        survivor_confidence: ArrayLike | None = None,
        n_bins: int = 10,
        ax: Any = None,
    ) -> AlignmentDisplay:
        """Draw one branch from labels, weights and confidences.

        Parameters
        ----------
        y_train : array-like of shape (n_train,)
            Labels of the training rows.
        weight : array-like of shape (n_train,)
            Their training weights.
        y_survivors : array-like of shape (n_survivors,)
            Labels of the samples that reach the branch.
        train_confidence : array-like of shape (n_train,), default=None
            Confidence of the branch before, in [0, 1]. None: only classes are drawn.
        survivor_confidence : array-like of shape (n_survivors,), default=None
            The same of the survivors.
        n_bins : int, default=10
            Bins of the confidence: 1, 2, 4, 5, 10 or 20.
        ax : Figure, SubFigure or array-like of Axes, default=None
            What to draw on; axes as many as panels: one, or two with confidences.
            None: a new figure.

        Returns
        -------
        display : AlignmentDisplay
            The drawn picture.

        Raises
        ------
        ValueError
            If lengths differ, a weight is negative or all are zero, or only one of the
            confidences is given.
        ImportError
            If matplotlib is not installed.
        """
        report = distribution_report(
            y_train, weight, y_survivors, train_confidence, survivor_confidence, n_bins
        )
        return cls(report=report).plot(ax)

    def plot(
        self, ax: Any = None, *, branches: Sequence[int] | None = None
    ) -> AlignmentDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : Figure, SubFigure or array-like of Axes, default=None
            What to draw on; axes as many as panels. None: a new figure.
        branches : sequence of int, default=None
            Branches to draw. None: all but the first, which every sample reaches, or
            the first where there is no other.

        Returns
        -------
        display : AlignmentDisplay
            The same display, with `axes_` and `figure_`.

        Raises
        ------
        ValueError
            If there is no such branch, or `ax` does not hold as many axes as panels.
        ImportError
            If matplotlib is not installed.
        """
        report = self.report
        n = len(report.branch_names)
        rows = list(range(n > 1, n) if branches is None else branches)
        if not rows or not set(rows) <= set(range(n)):
            raise ValueError(
                f"branches={branches!r} must be indices from 0 to {n - 1}, at least "
                f"one: the branches are {report.branch_names}."
            )
        columns = 1 + bool(np.isfinite(report.tv_confidence[rows]).any())
        shape = (len(rows), columns)
        sizes = [max(4.2, 1.5 + 0.32 * len(report.classes)), 4.2][:columns]
        tall = 3.6 if self._crowded() else 2.8  # slanted names need height
        axes, whole = panels_on(
            self,
            ax,
            shape,
            f"{shape[0]} x {shape[1]} panels are drawn",
            figsize=(sum(sizes), 0.7 + tall * len(rows)),
            width_ratios=sizes,
        )
        for panels, branch in zip(axes, rows, strict=True):
            self._plot_classes(panels[0], branch)
            if columns == 2:
                self._plot_confidence(panels[1], branch)
        self.axes_, self.figure_ = axes, axes[0, 0].figure
        if whole:
            handles, labels = axes[0, 0].get_legend_handles_labels()
            self.figure_.legend(
                [*handles[1:], handles[0]],  # bars first
                [*labels[1:], labels[0]],
                loc="outside lower center",
                ncols=3,
                frameon=False,
                fontsize="small",
            )
        return self

    def _plot_classes(self, ax: Any, branch: int) -> None:
        report = self.report
        order = np.argsort(-_shares(report.class_share, branch)[0], kind="stable")
        names = np.array(self._class_names(), dtype=object)[order]
        self._bars(ax, np.arange(len(order)), 1.0, report.class_share, branch, order)
        crowded = self._crowded()
        ax.set_xticks(
            np.arange(len(order)),
            names,
            rotation=45 if crowded else 0,
            ha="right" if crowded else "center",
            rotation_mode="anchor",
            fontsize="small",
        )
        size, n = report.effective_sample_size[branch], report.n_train
        ax.set(xlabel="True class", ylabel="Share (%)")
        ax.set_title(
            f"Branch {branch + 1} ({report.branch_names[branch]}): "
            f"{report.n_survivors[branch]:,} survivors, "
            f"{n:,} training rows worth {size:,.0f}\n"
            + self._distance("class", branch),
            fontsize="small",
        )

    def _class_names(self) -> list[str]:
        return short_labels(self.report.classes, 16)

    def _crowded(self) -> bool:
        """Tell whether the names of the classes have no room side by side."""
        return sum(len(name) + 3 for name in self._class_names()) > 40

    def _plot_confidence(self, ax: Any, branch: int) -> None:
        report = self.report
        if np.isnan(report.tv_confidence[branch]):
            ax.set_axis_off()
            return
        edges = 100 * report.confidence_edges
        width = edges[1]
        at = edges[:-1] + width / 2
        order = np.arange(len(at))
        self._bars(ax, at, width, report.confidence_share, branch, order)
        ax.set(xlabel="Confidence of the branch before (%)", ylabel="Share (%)")
        ax.set_xlim(-1, 101)
        ax.set_title(self._distance("confidence", branch), fontsize="small")

    def _distance(self, what: str, branch: int) -> str:
        tv, plain, noise = (
            self.report[f"tv_{what}{suffix}"][branch]
            for suffix in ("", "_unweighted", "_noise")
        )
        return f"Distance {tv:.3f} (unweighted {plain:.3f}, by chance {noise:.3f})"

    def _bars(
        self,
        ax: Any,
        at: NDArray[Any],
        width: float,
        shares: Bunch,
        branch: int,
        order: NDArray[np.intp],
    ) -> None:
        half = 0.4 * width
        real, trained, plain = (part[order] for part in _shares(shares, branch))
        # Counts, as long as the survivors are not weighted; else an approximation.
        n = self.report.n_survivors[branch]
        errors = np.abs(clopper_pearson(real * n, n) - real) if n else None
        ax.bar(
            at - half / 2,
            100 * real,
            half,
            yerr=None if errors is None else 100 * errors,
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
            label="survivors",
            **_SURVIVORS,
        )
        ax.bar(
            at + half / 2, 100 * trained, half, label="weighted training", **_TRAINING
        )
        ax.plot(
            at, 100 * plain, label="training, unweighted", markersize=9, **_UNWEIGHTED
        )
        ax.grid(visible=True, axis="y", alpha=0.3)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)


def _shares(shares: Bunch, branch: int) -> list[NDArray[np.float64]]:
    """Give the shares of survivors, weighted and plain training rows at a branch."""
    keys = ("survivors", "training", "unweighted")
    return [np.nan_to_num(shares[key][branch]) for key in keys]
