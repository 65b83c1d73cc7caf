"""Precision of a branch over all thresholds, with the bar and the chosen one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
)

from sk_calex.inspection._reports import precision_bars_of
from sk_calex.model_selection._estimators import cascade_in
from sk_calex.utils._intervals import clopper_pearson
from sk_calex.utils._validation import check_finite, check_sample_weight

from ._precision_curves import (
    choose_classes,
    curve_window,
    has_support,
    precision_curve,
)
from ._style import BAR, COLORS, panels_on, short_labels

__all__ = ["ThresholdDisplay"]

_CURVE, _FEW, _LAST, _BAR, _CHOSEN, _NOTE = (
    f"sk_calex.{what}" for what in ("precision", "few", "last", "bar", "chosen", "note")
)


_LEGEND = (
    *("precision", "its 95 % interval", "too few samples"),
    *("last stage on the same samples", "bar: precision asked for"),
    *("chosen threshold", "chosen, below the bar (few samples)"),
)


class ThresholdDisplay:
    """Precision of a branch over the threshold of each predicted class.

    One panel per class. Read it from right to left: a lower threshold lets more samples
    exit, of which fewer are right.

    - The line is the precision of the samples at or above a threshold, dotted where
      they are fewer than `min_support`; the band is its 95 % Clopper-Pearson interval.
    - The grey line is the precision of the last stage on the same samples.
    - The dot is the threshold that was chosen: what lies to its right exits. A class
      without a dot never exits at this branch.
    - The dashed line is the bar: the precision required of the samples that exit.
    - A hollow dot lies below its bar. With local margins that is no mistake: a class
      with few samples is judged by all classes together, and its own deviation counts
      in part only (`shrinkage`).

    The axes show the part with enough samples.

    Parameters
    ----------
    curves : list of Bunch
        For each class `threshold`, `precision`, `support` and `last_precision` (NaN:
        unknown), each an array from the lowest threshold to the highest.
    class_names : sequence of str
        Title of each panel.
    bars : array-like of shape (n_classes,), default=None
        Precision required of each class, in [0, 1]; NaN or None: not drawn.
    thresholds : array-like of shape (n_classes,), default=None
        Threshold of each class; ``inf``: the class never exits. None: not drawn.
    min_support : float, default=0
        Samples that must stand at or above a threshold.
    score_name : str, default="confidence"
        What the thresholds are compared with.
    title : str, default=None
        Title of the figure.

    Attributes
    ----------
    axes_ : ndarray of matplotlib.axes.Axes, shape (n_classes,)
        The panels.
    lines_ : list of matplotlib.lines.Line2D
        The curve of each panel.
    figure_ : matplotlib.figure.Figure
        Figure of the panels.

    See Also
    --------
    SurvivorThresholdCalibrator : How thresholds are chosen.
    exit_report : Precision on samples that did not choose them.

    Examples
    --------
    >>> from sk_calex import ThresholdDisplay
    >>> display = ThresholdDisplay.from_predictions(
    ...     [0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], [1, 1, 0, 1], bars=[0.9], classes=[1]
    ... )
    >>> display.curves[0].precision.round(2)
    array([0.75, 0.67, 1.  , 1.  ])
    """

    axes_: NDArray[Any]
    lines_: list[Any]
    figure_: Any

    def __init__(
        self,
        *,
        curves: list[Bunch],
        class_names: Sequence[str],
        bars: ArrayLike | None = None,
        thresholds: ArrayLike | None = None,
        min_support: float = 0,
        score_name: str = "confidence",
        title: str | None = None,
    ) -> None:
        self.curves = curves
        self.class_names = class_names
        self.bars = bars
        self.thresholds = thresholds
        self.min_support = min_support
        self.score_name = score_name
        self.title = title

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        branch: int | str = 0,
        *,
        classes: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ThresholdDisplay:
        """Draw a branch of a fitted cascade on the samples that calibrated it.

        Parameters
        ----------
        estimator : cascade, Pipeline or fitted search
            A fitted cascade of any method, or an estimator that ends in one.
        branch : int or str, default=0
            Index of the branch, or name of its tap.
        classes : array-like of shape (n_classes,), default=None
            Labels of the predicted classes to draw. None: all, or the 12 that the
            branch answers most often.
        ax : Figure, SubFigure or array-like of Axes, default=None
            What to draw on; axes one per class. None: a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot` for the curves.

        Returns
        -------
        display : ThresholdDisplay
            The drawn picture, of the calibration samples that the branch's thresholds
            were chosen on: those that reach it, or all with ``calibrate_on="all"``.

        Raises
        ------
        ValueError
            If there is no such branch or label.
        TypeError
            If there is no cascade in `estimator`.
        ImportError
            If matplotlib is not installed.
        """
        cascade = cascade_in(estimator)
        check_is_fitted(cascade)
        k = _branch_number(cascade, branch)
        given, rule = cascade.calibration_, cascade.calibrator_
        answers, used = given.answers, given.weight > 0
        if getattr(rule, "calibrate_on", "survivors") == "survivors":
            for before in range(k):
                used &= ~rule.exits(before, answers.stage(before))
        said = answers.stage(k)
        scores = rule.scores(k, said)
        name = cascade.layout_.names[k]
        shown = choose_classes(cascade.classes_, classes, said.predicted[used])
        codes, weight = given.labels, given.weight
        answered, last = said.predicted, answers.predicted[-1] == codes
        parts = [part[used] for part in (scores, answered == codes, weight, last)]
        return cls(
            curves=[precision_curve(answered[used] == c, *parts) for c in shown],
            class_names=short_labels(cascade.classes_[shown]),
            bars=precision_bars_of(cascade)[k][shown],
            thresholds=rule.thresholds_[k][shown],
            min_support=getattr(rule, "min_support", 0),
            score_name=_score_name(rule),
            title=f"Branch {k + 1} ({name}): precision of what would exit, by "
            f"predicted class; {used.sum():,} calibration samples",
        ).plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        scores: ArrayLike,
        predicted: ArrayLike,
        y_true: ArrayLike,
        *,
        bars: ArrayLike | None = None,
        thresholds: ArrayLike | None = None,
        last_predicted: ArrayLike | None = None,
        min_support: float = 0,
        sample_weight: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ThresholdDisplay:
        """Draw scores and answers of one branch.

        Parameters
        ----------
        scores : array-like of shape (n_samples,)
            Confidence, or any score that is compared with the thresholds.
        predicted : array-like of shape (n_samples,)
            Labels that the branch answers.
        y_true : array-like of shape (n_samples,)
            True labels.
        bars : array-like of shape (n_classes,), default=None
            Precision required of each class of `classes`; NaN: none. None: of no class.
        thresholds : array-like of shape (n_classes,), default=None
            Chosen threshold of each class of `classes`; ``inf``: it never exits. None:
            not drawn.
        last_predicted : array-like of shape (n_samples,), default=None
            Labels that the last stage answers. None: its precision is not drawn.
        min_support : float, default=0
            Samples that must stand at or above a threshold.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples.
        classes : array-like of shape (n_classes,), default=None
            Labels of the predicted classes to draw, in the order of `bars` and
            `thresholds`. None: all that occur, sorted.
        ax : Figure, SubFigure or array-like of Axes, default=None
            What to draw on; axes one per class. None: a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot` for the curves.

        Returns
        -------
        display : ThresholdDisplay
            The drawn picture.

        Raises
        ------
        ValueError
            If lengths differ or a score is not finite.
        ImportError
            If matplotlib is not installed.
        """
        s = column_or_1d(scores).astype(np.float64)
        c, y = column_or_1d(predicted), column_or_1d(y_true)
        last = None if last_predicted is None else column_or_1d(last_predicted)
        check_consistent_length(s, c, y, last)
        check_finite(s, "scores", "Leave such samples out.")
        weight = check_sample_weight(sample_weight, s)
        shown = np.unique(np.r_[c, y]) if classes is None else column_or_1d(classes)
        for name, given in (("bars", bars), ("thresholds", thresholds)):
            if given is not None and np.shape(given) != shown.shape:
                raise ValueError(
                    f"{name} must have one entry for each of the {len(shown)} classes "
                    f"{shown.tolist()[:5]}; got shape {np.shape(given)}."
                )
        return cls(
            curves=[
                precision_curve(
                    c == label, s, c == y, weight, None if last is None else last == y
                )
                for label in shown
            ],
            class_names=short_labels(shown),
            bars=bars,
            thresholds=thresholds,
            min_support=min_support,
        ).plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> ThresholdDisplay:
        """Draw the panels.

        Parameters
        ----------
        ax : Figure, SubFigure or array-like of Axes, default=None
            What to draw on; axes one per class. None: a new figure.
        **kwargs : dict
            Passed to :meth:`matplotlib.axes.Axes.plot` for the curves.

        Returns
        -------
        display : ThresholdDisplay
            The same display, with `axes_`, `lines_` and `figure_`.

        Raises
        ------
        ValueError
            If `ax` does not hold one axes a class.
        ImportError
            If matplotlib is not installed.
        """
        n = len(self.curves)
        columns = n if _is_axes(ax) else min(n, 4)
        rows = -(-n // columns)
        grid, whole = panels_on(
            self,
            ax,
            (rows, columns),
            f"{n} classes are to be drawn",
            figsize=(1.2 + 2.2 * columns, 1.4 + 1.8 * rows),
            **({} if _is_axes(ax) else {"sharex": True, "sharey": True}),
        )
        axes = grid.ravel()[:n]
        for empty in grid.ravel()[n:]:
            empty.remove()
        bars = np.full(n, np.nan) if self.bars is None else np.asarray(self.bars)
        chosen = self.thresholds
        taus = np.full(n, np.nan) if chosen is None else np.asarray(chosen)
        parts = zip(axes, self.curves, self.class_names, bars, taus, strict=True)
        self.lines_ = [self._panel(*each, kwargs) for each in parts]
        left, right, floor = curve_window(self.curves, bars, taus, self.min_support)
        for panel in axes:
            panel.set_xlim(left, right)
            panel.set_ylim(floor, 100 + 0.04 * (100 - floor))
            panel.grid(visible=True, alpha=0.3)
        # Of each column the last panel, and of each row the first.
        for panel in axes[-columns:] if whole else axes:
            panel.set_xlabel(f"Threshold ({self.score_name})", fontsize="small")
            panel.tick_params(labelbottom=True)
        for panel in grid[:, 0]:
            panel.set_ylabel("Precision (%)", fontsize="small")
        self.axes_, self.figure_ = axes, axes[0].figure
        if whole:
            self._dress(axes)
        return self

    def _panel(
        self,
        ax: Any,
        curve: Bunch,
        name: str,
        bar: float,
        tau: float,
        kwargs: dict[str, Any],
    ) -> Any:
        """Draw one class: its curve with the interval, bar and chosen threshold."""
        x, y = curve.threshold, 100 * curve.precision
        enough = has_support(curve, self.min_support)
        style = {"color": COLORS[0], "drawstyle": "steps-pre", "linewidth": 1.6}
        style |= {"label": "precision", "gid": _CURVE} | kwargs
        (line,) = ax.plot(x[enough], y[enough], **style)
        if enough.any():
            limits = 100 * clopper_pearson(
                curve.precision * curve.support, curve.support
            )
            band = {"color": line.get_color(), "alpha": 0.15, "linewidth": 0}
            band |= {"step": "pre", "label": "its 95 % interval"}
            ax.fill_between(x[enough], *limits[:, enough], **band)
        if np.isfinite(curve.last_precision).any():
            last = {"color": "0.55", "linewidth": 1.0, "drawstyle": "steps-pre"}
            last |= {"label": "last stage on the same samples", "gid": _LAST}
            ax.plot(x, 100 * curve.last_precision, zorder=1.5, **last)
        if not enough.all():
            # From the last point with enough support on, so that no gap opens.
            start = max(int(np.count_nonzero(enough)) - 1, 0)
            few = {"color": line.get_color(), "linestyle": ":", "linewidth": 1.2}
            few |= {"label": "too few samples", "gid": _FEW}
            ax.plot(x[start:], y[start:], drawstyle="steps-pre", **few)
        if np.isfinite(bar):
            ax.axhline(100 * bar, label="bar: precision asked for", gid=_BAR, **BAR)
        if np.isfinite(tau):
            reached = np.searchsorted(x, tau)
            if reached < len(x):
                self._mark_chosen(ax, tau, y[reached], bar)
        elif np.isinf(tau):
            note = "never exits" if tau > 0 else "always exits"
            plate = {"boxstyle": "round", "facecolor": "white", "alpha": 0.8, "lw": 0}
            ax.text(
                0.5,
                0.06,
                note,
                ha="center",
                transform=ax.transAxes,
                bbox=plate,
                fontsize="small",
                gid=_NOTE,
            )
        ax.set_title(name, fontsize="small")
        return line

    def _mark_chosen(self, ax: Any, tau: float, height: float, bar: float) -> None:
        """Draw the dot of a threshold, hollow where it lies below its bar."""
        dot = {"color": "black", "marker": "o", "markersize": 7, "linestyle": "none"}
        dot |= {"label": "chosen threshold", "gid": _CHOSEN, "zorder": 3}
        if height < 100 * bar - 1e-9:
            dot |= {
                "markerfacecolor": "white",
                "label": "chosen, below the bar (few samples)",
            }
        ax.plot([tau], [height], **dot)

    def _dress(self, axes: NDArray[Any]) -> None:
        """Give all panels one legend and one title."""
        figure = self.figure_
        entries: dict[str, Any] = {}
        for panel in axes:
            handles, labels = panel.get_legend_handles_labels()
            entries |= dict(zip(labels, handles, strict=True))
        wide = figure.get_figure(root=True).get_figwidth() * figure.bbox.width
        inches = wide / figure.get_figure(root=True).bbox.width
        texts = [label for label in _LEGEND if label in entries]
        texts += [label for label in entries if label not in _LEGEND]
        columns = max(1, int(inches * 9 // (max(map(len, texts), default=1) + 7)))
        figure.legend(
            [entries[label] for label in texts],
            texts,
            loc="outside lower center",
            ncols=min(columns, len(texts)) or 1,
            frameon=False,
            fontsize="small",
        )
        if self.title is not None:
            lines = textwrap.wrap(self.title, max(20, int(11 * inches)))
            figure.suptitle("\n".join(lines), fontsize="medium")


def _is_axes(ax: Any) -> bool:
    """Tell whether the caller gave axes, and not a figure or nothing."""
    return ax is not None and not hasattr(ax, "subplots")


_SCORES = {
    "EntropyThreshold": "minus entropy, nats",
    "Patience": "equal answers in a row",
    "OwnGate": "confidence of the method",
    "LearnedGate": "probability that exiting loses nothing",
}


def _score_name(policy: Any) -> str:
    """Name what an exit rule compares with its thresholds."""
    name = _SCORES.get(type(policy).__name__)
    return str(getattr(policy, "score", "confidence")) if name is None else name


def _branch_number(cascade: Any, branch: int | str) -> int:
    names = cascade.layout_.names
    if isinstance(branch, str) and branch in names:
        return int(names.index(branch))
    if isinstance(branch, str) or not 0 <= branch < len(names):
        raise ValueError(
            f"branch={branch!r} must be an index from 0 to {len(names) - 1} or one of "
            f"the taps {list(names)}."
        )
    return int(branch)
