"""Accuracy of cascades against the FLOPs that they save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from sk_calex.inspection._reports import label_codes
from sk_calex.model_selection import pareto_front
from sk_calex.model_selection._estimators import cascade_in, input_of
from sk_calex.model_selection._outcomes import Outcomes
from sk_calex.policies import Oracle, first_exits
from sk_calex.utils._validation import check_finite

from ._points import knob_values, points_of_cv_results, points_of_predictions
from ._style import (
    legend_label,
    line_style,
    mark_backbone,
    mark_operating_point,
    mark_oracle,
    new_axes,
    place_legend,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CascadeDisplay"]

# How the lines of this class are known again on axes that hold others too.
_CURVE, _BEATEN = "sk_calex.curve", "sk_calex.beaten"


class CascadeDisplay:
    """Accuracy of a cascade against the FLOPs that it saves.

    Use :meth:`from_estimator` for a fitted cascade, :meth:`from_curve` for the result
    of `operating_curve`, :meth:`from_cv_results` for a grid search and
    :meth:`from_predictions` for answers from anywhere. Several methods share a picture
    by ``ax=display.ax_``: each gets a colour, a marker and dashes of its own, so they
    also differ in black and white.

    Parameters
    ----------
    flops_reduction : array-like of shape (n_points,)
        Share of the plain backbone's FLOPs saved at each operating point; at most 1.
    accuracy : array-like of shape (n_points,)
        Accuracy at each operating point, in [0, 1].
    backbone_accuracy : float, default=None
        Accuracy of the plain backbone, in [0, 1]. None: it is not drawn.
    accuracy_std : array-like of shape (n_points,), default=None
        Standard deviation of the accuracy, over folds or seeds. None: none is drawn.
    flops_reduction_std : array-like of shape (n_points,), default=None
        Standard deviation of the reduction; drawn as bars only.
    operating_point : (float, float), default=None
        Reduction and accuracy of a point to be marked, such as the fitted one.
    oracle : (float, float), default=None
        Reduction and accuracy of the upper limit, marked as such.
    values : array-like of shape (n_points, ...), default=None
        Value of the knob at each operating point; kept, not drawn.
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
    operating_curve : The numbers behind the picture.
    pareto_front : Which points no other point beats.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, CascadeDisplay
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
        accuracy_std: ArrayLike | None = None,
        flops_reduction_std: ArrayLike | None = None,
        operating_point: tuple[float, float] | None = None,
        oracle: tuple[float, float] | None = None,
        values: ArrayLike | None = None,
        name: str | None = None,
    ) -> None:
        self.flops_reduction = flops_reduction
        self.accuracy = accuracy
        self.backbone_accuracy = backbone_accuracy
        self.accuracy_std = accuracy_std
        self.flops_reduction_std = flops_reduction_std
        self.operating_point = operating_point
        self.oracle = oracle
        self.values = values
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        values: Iterable[Any] | None = None,
        margins: Iterable[Any] | None = None,
        mark_operating_point: bool = True,
        oracle: bool = False,
        pareto: bool | str = False,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw a fitted cascade of any method over its knob; nothing is trained.

        Parameters
        ----------
        estimator : cascade, Pipeline or fitted search
            A fitted cascade of any method, or an estimator that ends in one; not
            changed.
        X : array, tensor or Dataset of shape (n_samples, ...)
            Samples, as in its fit.
        y : array-like of shape (n_samples,)
            True labels.
        values : iterable of float, default=None
            Values of the knob: margins, thresholds, quotas, ...; margins may be
            sequences, one a branch. None: some that span the curve.
        margins : iterable of float, default=None
            The same, for cascades that move by a margin.
        mark_operating_point : bool, default=True
            Mark the point at which the cascade stands.
        oracle : bool, default=False
            Mark the upper limit: exits at the first stage that is right, which only
            who knows the labels can do.
        pareto : bool or "only", default=False
            True: the line joins the points that no other point beats, and the others
            stand small and grey. "only": without them. Chosen on the samples that are
            drawn, a front looks better than it is.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
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
            If a value is not accepted by the method, both `values` and `margins` are
            given, `margins` does not name the knob, the MACs are unknown, or `y` holds
            an unknown label.
        TypeError
            If there is no cascade in `estimator`.
        ImportError
            If matplotlib is not installed.
        """
        cascade = cascade_in(estimator)
        check_is_fitted(cascade)
        chosen = knob_values(cascade, values, margins)
        codes = label_codes(cascade, y)
        outcomes = Outcomes.of(cascade, input_of(estimator, X), y, sample_weight)
        points = [outcomes.at(value) for value in chosen.tolist()]

        def mark(wanted: bool, depth: Any) -> tuple[float, float] | None:
            if not wanted:
                return None
            point = outcomes.exiting(depth(outcomes.table))
            return point.flops_reduction, point.accuracy

        display = cls(
            flops_reduction=[point.flops_reduction for point in points],
            accuracy=[point.accuracy for point in points],
            backbone_accuracy=outcomes.backbone_accuracy,
            operating_point=mark(
                mark_operating_point,
                lambda table: first_exits(cascade._policy(), table),
            ),
            oracle=mark(oracle, lambda table: Oracle().depth(table, codes)),
            values=chosen,
            name=type(cascade).__name__ if name is None else name,
        )
        return display.plot(ax, pareto=pareto, **kwargs)

    @classmethod
    def from_curve(
        cls,
        curve: Bunch,
        *,
        pareto: bool | str = False,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw what `margin_curve` or `operating_curve` returned.

        Parameters
        ----------
        curve : Bunch
            Result of `margin_curve` or `operating_curve`.
        pareto : bool or "only", default=False
            As of :meth:`plot`.
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
            values=curve.get("knob_values", curve.get("margins")),
            name=name,
        )
        return display.plot(ax, pareto=pareto, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        depth: ArrayLike,
        *,
        costs: ArrayLike,
        backbone_cost: float,
        backbone_pred: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        values: ArrayLike | None = None,
        pareto: bool | str = False,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw answers and their depths, one row an operating point.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels.
        y_pred : array-like of shape (n_points, n_samples) or (n_samples,)
            Labels answered at each operating point.
        depth : array-like of int, shape (n_points, n_samples) or (n_samples,)
            Where each sample was answered: what ``predict(X, return_depth=True)``
            returns beside the labels.
        costs : array-like of shape (n_depths,)
            Cost of an answer at each depth in any unit, heads included: a cascade's
            `depth_costs_`.
        backbone_cost : float
            Cost of the plain backbone, without heads, in the same unit.
        backbone_pred : array-like of shape (n_samples,), default=None
            Labels that the plain backbone answers. None: it is not drawn.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        values : array-like of shape (n_points, ...), default=None
            Value of the knob at each operating point; kept, not drawn.
        pareto : bool or "only", default=False
            As of :meth:`plot`.
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
        ValueError
            If shapes do not fit, a depth has no cost, or a cost is not positive.
        ImportError
            If matplotlib is not installed.

        Examples
        --------
        >>> from sk_calex import CascadeDisplay
        >>> display = CascadeDisplay.from_predictions(
        ...     [0, 1, 1],
        ...     [[0, 1, 1], [0, 1, 0]],
        ...     [[0, 1, 1], [0, 0, 0]],
        ...     costs=[25.0, 110.0],
        ...     backbone_cost=100.0,
        ... )
        >>> display.flops_reduction.round(3), display.accuracy.round(3)
        (array([0.183, 0.75 ]), array([1.   , 0.667]))
        """
        points = points_of_predictions(
            y_true, y_pred, depth, costs, backbone_cost, backbone_pred, sample_weight
        )
        display = cls(**points, values=values, name=name)
        return display.plot(ax, pareto=pareto, **kwargs)

    @classmethod
    def from_cv_results(
        cls,
        cv_results: Mapping[str, Any],
        *,
        accuracy: str = "accuracy",
        flops: str = "flops",
        best_index: int | None = None,
        pareto: bool | str = False,
        name: str | None = None,
        ax: Axes | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw a search, with error bars of one standard deviation over its folds.

        Parameters
        ----------
        cv_results : dict of arrays
            `cv_results_` of a `GridSearchCV` or `RandomizedSearchCV` with both metrics
            in its `scoring`, or of a `MarginSearchCV`. Candidates whose fit failed
            (NaN) are left out.
        accuracy, flops : str, default="accuracy", "flops"
            Names of the metrics: the accuracy, and the FLOPs reduction of
            `flops_reduction_scorer`.
        best_index : int, default=None
            Candidate to be marked: the search's `best_index_`.
        pareto : bool or "only", default=False
            As of :meth:`plot`; useful where the grid varies more than the knob.
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
        ValueError
            If a metric is absent or no candidate was scored.
        ImportError
            If matplotlib is not installed.
        """
        points = points_of_cv_results(cv_results, accuracy, flops, best_index)
        display = cls(**points, name=name)
        return display.plot(ax, pareto=pareto, spread="bars", **kwargs)

    def plot(
        self,
        ax: Axes | None = None,
        *,
        pareto: bool | str = False,
        spread: str = "band",
        name: str | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw the curve, and the backbone where the axes do not show it yet.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, default=None
            Axes to draw on. None: those of a new figure.
        pareto : bool or "only", default=False
            True: the line joins the points that no other point beats, and the others
            stand small and grey. "only": without them.
        spread : {"band", "bars"}, default="band"
            How the standard deviations are drawn.
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
            If the values are not finite, not as many accuracies as reductions, or an
            option is unknown.
        ImportError
            If matplotlib is not installed.
        """
        if pareto not in (False, True, "only") or spread not in ("band", "bars"):
            raise ValueError(
                f"pareto={pareto!r} must be False, True or 'only', and "
                f"spread={spread!r} 'band' or 'bars'."
            )
        x, y, x_std, y_std = self._points()
        if ax is None:
            ax = new_axes(self)[0, 0]
        from matplotlib import cbook
        from matplotlib.lines import Line2D

        drawn = sum(line.get_gid() == _CURVE for line in ax.lines)
        if drawn == 0:
            ax.set(xlabel="FLOPs reduction (%)", ylabel="Accuracy (%)")
            ax.grid(visible=True, alpha=0.3)
        name = self.name if name is None else name
        label = None if name is None else legend_label(name)
        style = line_style(drawn) | {"label": label, "gid": _CURVE, "markersize": 5}
        style |= cbook.normalize_kwargs(kwargs, Line2D)
        front = pareto_front(x, y) if pareto else np.ones(len(x), dtype=bool)
        if pareto is True:
            beaten = {"marker": style["marker"], "linestyle": "none", "zorder": 1.5}
            beaten |= {"color": "0.6", "markersize": 3, "gid": _BEATEN}
            ax.plot(x[~front], y[~front], **beaten)
        x, y = x[front], y[front]
        x_std, y_std = (None if s is None else s[front] for s in (x_std, y_std))
        (self.line_,) = ax.plot(x, y, **style)
        color = self.line_.get_color()
        if spread == "bars" and not (x_std is None and y_std is None):
            bars = {"fmt": "none", "ecolor": color, "elinewidth": 0.8, "capsize": 2}
            ax.errorbar(x, y, xerr=x_std, yerr=y_std, **bars)
        elif spread == "band" and y_std is not None:
            ax.fill_between(x, y - y_std, y + y_std, color=color, alpha=0.2, lw=0)
        if self.operating_point is not None:
            mark_operating_point(ax, self.operating_point, color)
        if self.oracle is not None:
            mark_oracle(ax, self.oracle, color, name)
        if self.backbone_accuracy is not None:
            mark_backbone(ax, self.backbone_accuracy)
        place_legend(ax)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _points(self) -> Any:
        """Points and deviations in per cent, from the dearest point to the cheapest."""
        parts: list[Any] = []
        for what in ("flops_reduction", "accuracy"):
            for suffix in ("", "_std"):
                given = getattr(self, what + suffix)
                if given is None:
                    parts.append(None)
                    continue
                part = 100 * column_or_1d(given).astype(np.float64)
                check_finite(part, what + suffix, "Leave such points out.")
                parts.append(part)
        check_consistent_length(*(part for part in parts if part is not None))
        x, x_std, y, y_std = parts
        order = np.argsort(np.asarray(x), kind="stable")
        return [None if p is None else p[order] for p in (x, y, x_std, y_std)]
