"""What a cascade does with new rows, beside what it did with its calibration rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._run_on_samples import stage_table
from sk_calex.model_selection._estimators import cascade_in, input_of
from sk_calex.policies import first_exits
from sk_calex.utils._intervals import share_limits
from sk_calex.utils._validation import check_open_interval

from ._reports import depth_names, distance_noise, label_codes

__all__ = ["drift_report"]

_N_BINS = 10


def drift_report(
    estimator: Any,
    X: Any,
    y: ArrayLike | None = None,
    *,
    confidence_level: float = 0.95,
) -> Bunch:
    """Compare what a cascade does with new rows and what it did with calibration rows.

    Parameters
    ----------
    estimator : cascade, Pipeline or fitted search
        A fitted cascade of any method, or an estimator that holds one; not changed.
    X : array, tensor or Dataset of shape (n_samples, ...)
        New rows, as in fit.
    y : array-like of shape (n_samples,), default=None
        Their labels, if they are known: adds what is right.
    confidence_level : float, default=0.95
        Of each interval, taken by itself.

    Returns
    -------
    report : Bunch
        depth, predicted_class, confidence : Bunch
            Shares of the rows that are answered at each depth, of the classes that the
            cascade answers, and of the first branch's confidence in ten equal bins from
            0 to 1. Each has

            new, calibration : ndarray of float64, shape (n_parts,)
                The shares among the new and among the calibration rows.
            new_limits, calibration_limits : ndarray of float64, shape (2, n_parts)
                Lower and upper confidence limits of each share.
            distance, noise : float
                Total-variation distance of the two, in [0, 1], and what is to be
                expected of samples of these sizes from one distribution.
        accuracy, last_stage_accuracy : Bunch
            Only with `y`: new and calibration, floats, with their limits, of shape
            (2,). On the calibration rows, which chose the thresholds, the cascade looks
            a little better than it is.
        depth_precision : Bunch
            Only with `y`: new and calibration, of shape (n_branches + 1,), and their
            limits, of shape (2, n_branches + 1): the accuracy of what each depth
            answers; NaN where it answers nothing.
        n_samples, n_calibration : int
            Rows of either kind.
        classes : ndarray of shape (n_classes,)
            Labels, in the order of `predicted_class`.
        depth_names : list of str
            Taps, and "last stage".

    Raises
    ------
    ValueError
        If `X` does not have the shape seen in fit, `y` holds an unknown label or the
        confidence level does not lie between 0 and 1.
    TypeError
        If there is no cascade in `estimator`.

    See Also
    --------
    ExitMonitor : Notice a change while rows come in.
    exit_report : Precision by depth and class against the required precision.

    Notes
    -----
    Limits are those of Clopper and Pearson (1934), exact for calibration rows of equal
    weight. Among many shares some leave their limits by chance: compare the distance
    with the noise first. The distance and its noise are those of `alignment_report`.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier, drift_report
    >>> X, y = make_classification(2000, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(margin=0.05, random_state=0).fit(X[:1000], y[:1000])
    >>> same = drift_report(cascade, X[1000:])
    >>> other = drift_report(cascade, X[1000:] / 9)
    >>> bool(same.confidence.distance < 0.2 < other.confidence.distance)
    True
    """
    check_open_interval(confidence_level, 0, 1, "confidence_level")
    cascade = cascade_in(estimator)
    check_is_fitted(cascade)
    codes = None if y is None else label_codes(cascade, y)
    table = stage_table(cascade, input_of(estimator, X))
    known = cascade.calibration_
    n = table.n_samples
    new = _Side(cascade, table, np.ones(n), confidence_level)
    old = _Side(cascade, known.answers, known.weight, confidence_level)
    n_depths, n_classes = table.n_stages, table.n_classes
    report = Bunch(
        depth=_compare(new, old, "depth", n_depths),
        predicted_class=_compare(new, old, "answer", n_classes),
        confidence=_compare(new, old, "confidence_bin", _N_BINS),
        n_samples=n,
        n_calibration=known.answers.n_samples,
        classes=cascade.classes_,
        depth_names=depth_names(cascade),
    )
    if codes is not None:
        check_consistent_length(codes, table.predicted[0])
        truths = ((new, codes), (old, known.labels))
        right = [side.answer == truth for side, truth in truths]
        last = [side.table.predicted[-1] == truth for side, truth in truths]
        report |= Bunch(
            accuracy=_pair(
                *(s.rate(r) for s, r in zip((new, old), right, strict=True))
            ),
            last_stage_accuracy=_pair(
                *(s.rate(r) for s, r in zip((new, old), last, strict=True))
            ),
            depth_precision=_pair(
                *(
                    s.rate(r, s.depth, n_depths)
                    for s, r in zip((new, old), right, strict=True)
                )
            ),
        )
    return Bunch(**report)


class _Side:
    """Rows of one kind: their answers, weights and limits."""

    def __init__(
        self,
        cascade: Any,
        table: StageTable,
        weight: NDArray[np.float64],
        confidence_level: float,
    ) -> None:
        self.table, self.weight = table, weight
        self.confidence_level = confidence_level
        self.depth = first_exits(cascade.calibrator_, table)
        self.answer = table.predicted[self.depth, np.arange(table.n_samples)]
        bins = (table.confidence[0] * _N_BINS).astype(np.intp)
        self.confidence_bin = np.minimum(bins, _N_BINS - 1)
        self.size = weight.sum() ** 2 / (weight**2).sum()

    def shares(
        self, part: NDArray[np.intp], n_parts: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Share of each part, and its limits."""
        sums = np.empty((3, n_parts))
        sums[0] = np.bincount(part, self.weight, n_parts)
        sums[1:] = [[self.weight.sum()], [(self.weight**2).sum()]]
        return share_limits(sums, self.confidence_level)

    def rate(
        self,
        right: NDArray[np.bool_],
        part: NDArray[np.intp] | None = None,
        n_parts: int | None = None,
    ) -> tuple[Any, NDArray[np.float64]]:
        """Share of right answers, of all rows or in each part, and its limits."""
        where = np.zeros(len(right), dtype=np.intp) if part is None else part
        weights = (self.weight * right, self.weight, self.weight**2)
        sums = np.stack([np.bincount(where, w, n_parts or 1) for w in weights])
        share, limits = share_limits(sums.astype(np.float64), self.confidence_level)
        return (float(share[0]), limits[:, 0]) if part is None else (share, limits)


def _compare(new: _Side, old: _Side, name: str, n_parts: int) -> Bunch:
    """Compare shares on both sides: shares, their limits and their distance."""
    both = _pair(*(side.shares(getattr(side, name), n_parts) for side in (new, old)))
    sizes = (np.array([new.size]), np.array([old.size]))
    both["distance"] = float(np.abs(both.new - both.calibration).sum() / 2)
    noise = distance_noise(both.new[None], both.calibration[None], *sizes)
    both["noise"] = float(noise[0])
    return both


def _pair(new: tuple[Any, Any], calibration: tuple[Any, Any]) -> Bunch:
    return Bunch(
        new=new[0],
        new_limits=new[1],
        calibration=calibration[0],
        calibration_limits=calibration[1],
    )
