"""Accuracy of cascades against the FLOPs that they save."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from sklearn.utils.validation import (
    check_is_fitted,
    column_or_1d,
)

from sk_calex.cascade._alignment import effective_sample_size
from sk_calex.cascade._costs import cost_name as name_of_cost
from sk_calex.inspection._reports import label_codes
from sk_calex.model_selection import pareto_front
from sk_calex.model_selection._curves import Outcomes
from sk_calex.model_selection._estimators import cascade_in, input_of, knob_of
from sk_calex.policies import ExitPolicy, Oracle, Policy, first_exits
from sk_calex.utils._validation import check_sample_weight

from ._points import (
    curve_of_probabilities,
    knob_values,
    numbers_of,
    points_in_per_cent,
    points_of_cv_results,
    points_of_predictions,
)
from ._style import (
    axes_on,
    legend_label,
    line_style,
    mark_backbone,
    mark_operating_point,
    mark_oracle,
    place_legend,
    place_values,
    write_values,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

__all__ = ["CascadeDisplay"]

# How the lines of this class are known again on axes that hold others too.
_CURVE, _TAIL, _BEATEN = (f"sk_calex.{what}" for what in ("curve", "tail", "beaten"))


_NUMBERS = "numbers: "


class CascadeDisplay:
    """Accuracy of a cascade against the FLOPs that it saves.

    Use :meth:`from_estimator` for a fitted cascade, :meth:`from_curve` for the result
    of `operating_curve`, :meth:`from_cv_results` for a grid search and
    :meth:`from_predictions` for answers from anywhere. Several methods share a picture
    by ``ax=display.ax_``: each gets a colour, a marker and dashes of its own, so they
    also differ in black and white. The numbers beside the points are values of the
    knob, written where there is room. Points before the most accurate one are pale:
    another point saves more and is not less accurate.

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
        Value of the knob at each operating point, written beside it if it is a number.
    n_samples : float, default=None
        Number of samples behind the accuracies, or their effective number if they are
        weighted: 95 % Clopper-Pearson intervals are drawn. None: none are drawn.
    value_name : str, default=None
        What the values are, such as "margin", for the title.
    name : str, default=None
        Name in the legend. None: the curve has no entry.
    cost_name : str, default="FLOPs"
        What is saved, for the axis and the title. Of a cascade with `costs` it is their
        ``"unit"``, such as "ms", or "cost".

    Attributes
    ----------
    line_ : matplotlib.lines.Line2D
        The curve, without its pale part.
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
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X, y)
    >>> display = CascadeDisplay.from_estimator(cascade, X, y, name="CalexNet")
    >>> display.ax_.get_xlabel(), display.ax_.get_ylabel()
    ('FLOPs saved (%)', 'Accuracy (%)')
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
        n_samples: float | None = None,
        value_name: str | None = None,
        name: str | None = None,
        cost_name: str = "FLOPs",
    ) -> None:
        self.flops_reduction = flops_reduction
        self.accuracy = accuracy
        self.backbone_accuracy = backbone_accuracy
        self.accuracy_std = accuracy_std
        self.flops_reduction_std = flops_reduction_std
        self.operating_point = operating_point
        self.oracle = oracle
        self.values = values
        self.n_samples = n_samples
        self.value_name = value_name
        self.name = name
        self.cost_name = cost_name

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
        ax: Axes | FigureBase | None = None,
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
            that knows the labels can do.
        pareto : bool or "only", default=False
            True: the line joins the points that no other point beats, and the others
            stand small and grey. "only": without them. Chosen on the samples that are
            drawn, a front looks better than it is.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        name : str, default=None
            Name in the legend. None: the name of the cascade's class.
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
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

        def mark(
            wanted: bool, depth: Any, rule: Policy | None = None
        ) -> tuple[float, float] | None:
            if not wanted:
                return None
            point = outcomes.exiting(depth(outcomes.table), rule)
            return point.flops_reduction, point.accuracy

        display = cls(
            flops_reduction=[point.flops_reduction for point in points],
            accuracy=[point.accuracy for point in points],
            backbone_accuracy=outcomes.backbone_accuracy,
            operating_point=mark(
                mark_operating_point,
                lambda table: first_exits(cascade.calibrator_, table),
                cascade.calibrator_,
            ),
            oracle=mark(oracle, lambda table: Oracle().depth(table, codes)),
            values=chosen,
            n_samples=outcomes.effective_size,
            value_name=knob_of(cascade).rpartition("__")[2],
            name=type(cascade).__name__ if name is None else name,
            cost_name=name_of_cost(cascade),
        )
        return display.plot(ax, pareto=pareto, **kwargs)

    @classmethod
    def from_curve(
        cls,
        curve: Bunch,
        *,
        pareto: bool | str = False,
        name: str | None = None,
        ax: Axes | FigureBase | None = None,
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
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
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
            n_samples=curve.get("n_samples"),
            value_name="margin" if "margins" in curve else curve.get("value_name"),
            name=name,
            cost_name=curve.get("cost_name", "FLOPs"),
        )
        return display.plot(ax, pareto=pareto, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        depth: ArrayLike | None = None,
        *,
        costs: Any,
        backbone_cost: float | None = None,
        backbone_pred: ArrayLike | None = None,
        rule: ExitPolicy | None = None,
        calibration: Any = None,
        sample_weight: ArrayLike | None = None,
        values: ArrayLike | None = None,
        pareto: bool | str = False,
        name: str | None = None,
        cost_name: str = "FLOPs",
        ax: Axes | FigureBase | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw plain arrays: answers with their depths, or probabilities of the stages.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            True labels; with probabilities class codes, ``0 .. n_classes - 1``.
        y_pred : array-like of shape (n_points, n_samples), (n_samples,) or \
                (n_stages, n_samples, n_classes)
            - labels answered at each operating point, with their `depth`;
            - without `depth`, the probabilities of all stages, or a list of one array
              for each. A `rule` then says who exits.
        depth : array-like of int, shape (n_points, n_samples) or (n_samples,), \
                default=None
            Where each sample was answered: what ``predict(X, return_depth=True)``
            returns beside the labels. None: `y_pred` holds probabilities.
        costs : array-like of shape (n_depths,)
            Cost of an answer at each depth in any unit, heads included: a cascade's
            `depth_costs_`. With probabilities also a dict with ``"stages"`` and
            ``"heads"``.
        backbone_cost : float, default=None
            Cost of the plain backbone, without heads, in the same unit. Needed with
            `depth`; with probabilities see `operating_curve`.
        backbone_pred : array-like of shape (n_samples,), default=None
            Labels that the plain backbone answers; with `depth` only. None: it is not
            drawn.
        rule : ExitPolicy, default=None
            With probabilities, the exit rule whose knob is moved. None:
            ``SharedThreshold()``, on the largest probability.
        calibration : tuple or CalibrationSet, default=None
            With probabilities, what the rule is fitted on: see `operating_curve`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        values : array-like of shape (n_points, ...), default=None
            Value of the knob at each operating point, written beside it if it is a
            number. With probabilities those to draw; None: some that span the curve.
        pareto : bool or "only", default=False
            As of :meth:`plot`.
        name : str, default=None
            Name in the legend. None: the curve has no entry.
        cost_name : str, default="FLOPs"
            What is saved, for the axis and the title: "ms", "cost", ...
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot`.

        Returns
        -------
        display : CascadeDisplay
            The drawn picture.

        Raises
        ------
        ValueError
            If shapes do not fit, a depth has no cost, a cost is not positive or falls
            with the depth, or what belongs to answers is given with probabilities, or
            the reverse.
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

        From the probabilities of a branch and of the backbone:

        >>> first = [[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]]
        >>> last = [[0.9, 0.1], [0.1, 0.9], [0.1, 0.9]]
        >>> display = CascadeDisplay.from_predictions(
        ...     [0, 1, 1], [first, last], costs=[1, 4], values=[0.5, 0.7]
        ... )
        >>> display.flops_reduction.round(3), display.accuracy.round(3)
        (array([0.75, 0.5 ]), array([0.667, 1.   ]))
        """
        if depth is None:
            curve = curve_of_probabilities(
                y_true,
                y_pred,
                rule,
                values,
                calibration=calibration,
                costs=costs,
                backbone_cost=backbone_cost,
                backbone_pred=backbone_pred,
                sample_weight=sample_weight,
            )
            curve.cost_name = cost_name
            return cls.from_curve(curve, pareto=pareto, name=name, ax=ax, **kwargs)
        for what, given in (("rule", rule), ("calibration", calibration)):
            if given is not None:
                raise ValueError(
                    f"{what} was given, but with depth it is known who exits where. "
                    "Leave one of the two out."
                )
        if backbone_cost is None:
            raise ValueError(
                "backbone_cost=None, but the saving is a share of it: give the cost of "
                "the plain backbone, without heads, in the unit of costs."
            )
        points = points_of_predictions(
            y_true, y_pred, depth, costs, backbone_cost, backbone_pred, sample_weight
        )
        display = cls(**points, values=values, name=name, cost_name=cost_name)
        weight = check_sample_weight(sample_weight, column_or_1d(y_true))
        display.n_samples = effective_sample_size(weight)
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
        cost_name: str = "FLOPs",
        ax: Axes | FigureBase | None = None,
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
        cost_name : str, default="FLOPs"
            What is saved, for the axis and the title: "ms", "cost", ...
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
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
        display = cls(**points, name=name, cost_name=cost_name)
        return display.plot(ax, pareto=pareto, spread="bars", **kwargs)

    def plot(
        self,
        ax: Axes | FigureBase | None = None,
        *,
        pareto: bool | str = False,
        spread: str = "band",
        name: str | None = None,
        **kwargs: Any,
    ) -> CascadeDisplay:
        """Draw the curve, and the backbone where the axes do not show it yet.

        Parameters
        ----------
        ax : matplotlib Axes, Figure or SubFigure, default=None
            What to draw on. None: a new figure.
        pareto : bool or "only", default=False
            True: the line joins the points that no other point beats, and the others
            stand small and grey. "only": without them.
        spread : {"band", "bars"}, default="band"
            How intervals and standard deviations are drawn.
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
        x, y, x_std, low, high, values = points_in_per_cent(self)
        axes = axes_on(self, ax)
        from matplotlib import cbook
        from matplotlib.lines import Line2D

        drawn = sum(line.get_gid() == _CURVE for line in axes.lines)
        if drawn == 0:
            axes.set(
                xlabel=f"{self._saving} (%)",
                ylabel="Accuracy (%)",
            )
            axes.grid(visible=True, alpha=0.3)
            if not axes.get_title():
                axes.set_title(self._title(spread), fontsize="medium")
        else:
            self._share_title(axes)
        name = self.name if name is None else name
        label = None if name is None else legend_label(name)
        style = line_style(drawn) | {"label": label, "gid": _CURVE, "markersize": 5}
        style |= cbook.normalize_kwargs(kwargs, Line2D)
        front = pareto_front(x, y)
        # What lies before the first point that none beats, or after the last one.
        ends = np.flatnonzero(front)[[0, -1]]
        shown = front if pareto else np.ones(len(x), dtype=bool)
        if pareto is True:
            beaten = {"marker": style["marker"], "linestyle": "none", "zorder": 1.5}
            beaten |= {"color": "0.6", "markersize": 3, "gid": _BEATEN}
            axes.plot(x[~front], y[~front], **beaten)
        middle = shown & (np.arange(len(x)) >= ends[0]) & (np.arange(len(x)) <= ends[1])
        (self.line_,) = axes.plot(x[middle], y[middle], **style)
        color = self.line_.get_color()
        if not pareto:
            pale = style | {"color": color, "alpha": 0.35, "label": None, "gid": _TAIL}
            for part in (slice(None, ends[0] + 1), slice(ends[1], None)):
                if len(x[part]) > 1:
                    axes.plot(x[part], y[part], **pale)
        if spread == "bars" and not (x_std is None and low is None):
            bars = {"fmt": "none", "ecolor": color, "elinewidth": 0.8, "capsize": 2}
            axes.errorbar(
                x[shown],
                y[shown],
                xerr=None if x_std is None else x_std[shown],
                yerr=None if low is None else np.stack([y - low, high - y])[:, shown],
                **bars,
            )
        elif spread == "band" and low is not None:
            axes.fill_between(
                x[shown], low[shown], high[shown], color=color, alpha=0.15, lw=0
            )
        if self.operating_point is not None:
            mark_operating_point(axes, self.operating_point, color)
        if self.oracle is not None:
            mark_oracle(axes, self.oracle, color, name)
        if self.backbone_accuracy is not None:
            mark_backbone(axes, self.backbone_accuracy)
        if values is not None:
            write_values(axes, np.c_[x, y][shown], values[shown].tolist(), color)
        place_values(axes)
        place_legend(axes)
        self.ax_, self.figure_ = axes, axes.figure
        return self

    def _share_title(self, axes: Any) -> None:
        """Say in the title that the numbers of two curves are not the same thing."""
        title, written = axes.get_title(), f"numbers: {self.value_name}"
        if _NUMBERS in title and written not in title and self.values is not None:
            before, _, rest = title.partition(_NUMBERS)
            _, comma, after = rest.partition(",")
            axes.set_title(
                f"{before}{_NUMBERS}the knob of each{comma}{after}", fontsize="medium"
            )

    @property
    def _saving(self) -> str:
        return f"{self.cost_name} saved"

    def _title(self, spread: str) -> str:
        """Say what is drawn, what the numbers are, and what the band is."""
        title, notes = f"Accuracy against {self._saving}", []
        if self.value_name is not None and numbers_of(self.values) is not None:
            notes.append(f"{_NUMBERS}{self.value_name}")
        if self.accuracy_std is not None:
            notes.append(f"{spread}: one standard deviation")
        elif self.n_samples is not None:
            notes.append(f"{spread}: 95 % interval, n = {self.n_samples:,.0f}")
        return "\n".join([title, *([", ".join(notes)] if notes else [])])
