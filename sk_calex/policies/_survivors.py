"""Rules whose thresholds come from the calibration samples that reach a branch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from sk_calex.calibration._calibrator import class_precision
from sk_calex.calibration._table import CalibrationRule, CalibrationTable

from ._base import Calibration, ExitPolicy, just_below, prefix_ends

__all__ = ["PrecisionThresholds", "Quota"]


class PrecisionThresholds(ExitPolicy):
    """Exit where the precision of the predicted class was high enough.

    Parameters
    ----------
    margin : float or sequence of float, default=-0.15
        How much precision each class may give up against the last stage's; a sequence
        holds one margin a branch.
    margin_mode : {"relative", "absolute", "local"}, default="relative"
        Bar of a class: ``(1 - margin) * precision`` or ``precision - margin``, on
        average. "local": what exiting may cost at each confidence; see
        `SurvivorThresholdCalibrator`.
    min_support : float, default=10
        Calibration samples (total weight) that must stand at or above a threshold.
    rule : {"smallest", "first_violation"}, default="smallest"
        Which threshold; see `SurvivorThresholdCalibrator`.
    shrinkage : float, default=200
        See `SurvivorThresholdCalibrator`; for "local".
    calibrate_on : {"survivors", "all"}, default="survivors"
        Calibration samples of a branch: those that reach it, or all.

    Attributes
    ----------
    bars_ : ndarray of float64, shape (n_branches, n_classes)
        Precision asked of what exits. With "local" it is the last stage's own on the
        samples that exit, less the margin; NaN where none do.

    Notes
    -----
    CalexNet's gate (Aperstein & Apartsin 2026, Eq. 8), for any method's answers. The
    local mode is our definition.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import PrecisionThresholds
    >>> proba = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.2, 0.8]]])
    >>> policy = PrecisionThresholds(0.0, min_support=1).fit(proba, [0, 1])
    >>> policy.depth(proba)
    array([0, 1])
    """

    knob: ClassVar[str] = "margin"
    _parameter_constraints: dict[str, list[Any]] = {
        "margin": [Real, "array-like"],
        "margin_mode": [StrOptions({"relative", "absolute", "local"})],
        "min_support": [Interval(Real, 0, None, closed="left")],
        "rule": [StrOptions({"smallest", "first_violation"})],
        "shrinkage": [Interval(Real, 0, None, closed="both")],
        "calibrate_on": [StrOptions({"survivors", "all"})],
    }

    def __init__(
        self,
        margin: float | Sequence[float] = -0.15,
        *,
        margin_mode: str = "relative",
        min_support: float = 10,
        rule: str = "smallest",
        shrinkage: float = 200,
        calibrate_on: str = "survivors",
    ) -> None:
        self.margin = margin
        self.margin_mode = margin_mode
        self.min_support = min_support
        self.rule = rule
        self.shrinkage = shrinkage
        self.calibrate_on = calibrate_on

    def _fit(self, given: Calibration) -> None:
        table, labels, weight = given.table, given.labels, given.weight
        reference = class_precision(
            labels, table.predicted[-1], table.n_classes, weight
        )
        calibration = CalibrationTable(
            table.confidence[:-1],
            table.predicted[:-1],
            labels,
            weight,
            reference,
            given.right[-1],
        )
        rule = CalibrationRule(
            self.margin_mode,
            self.min_support,
            self.rule,
            self.calibrate_on == "survivors",
            self.shrinkage,
        )
        found = calibration.thresholds(self.margin, rule)
        self.thresholds_ = np.stack([branch.thresholds for branch in found])
        self.bars_ = np.stack([branch.bars for branch in found])


class Quota(ExitPolicy):
    """Exit a set share of the samples at each branch, the most confident first.

    Parameters
    ----------
    decay : float, default=1.0
        The share at depth k is proportional to ``decay ** k``, the last stage included:
        below 1 most samples exit early, 1 gives every depth as many, above 1 most go on
        to the end.

    Notes
    -----
    The quota of MSDNet's and BoostNet's dynamic inference (Huang et al. 2018; Yu et al.
    2023): the threshold of branch k is the confidence of the last of the ``floor(q_k
    n)`` most confident calibration samples that reach it. Ties exit with it, a weight
    counts as that many samples, and where fewer are left all exit (our definitions).

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import Quota
    >>> proba = np.array([[[0.9, 0.1], [0.6, 0.4]], [[0.9, 0.1], [0.2, 0.8]]])
    >>> Quota(1.0).fit(proba, [0, 1]).depth(proba)
    array([0, 1])
    """

    knob: ClassVar[str] = "decay"
    _parameter_constraints: dict[str, list[Any]] = {
        "decay": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, decay: float = 1.0) -> None:
        self.decay = decay

    def _fit(self, given: Calibration) -> None:
        table, weight = given.table, given.weight
        # Largest power 0, so that no decay overflows.
        powers = np.arange(table.n_stages) * np.log(self.decay)
        shares = np.exp(powers - powers.max())
        shares /= shares.sum()
        self._set_all(given, np.inf)
        reaching = weight > 0
        for k in range(table.n_stages - 1):
            scores = table.confidence[k]
            order = np.flatnonzero(reaching)[np.argsort(-scores[reaching])]
            ends = prefix_ends(scores[order])
            filled = np.cumsum(weight[order])[ends]
            ties = np.diff(filled, prepend=0)
            # Ties exit together where the first of them has a place. A weight is that
            # many samples. A hair more: rounded sums may reach the quota.
            places = shares[k] * weight.sum() * (1 + 1e-12)
            fitting = filled - ties + np.minimum(ties, 1) <= places
            if fitting.any():
                last = ends[fitting.sum() - 1]
                self.thresholds_[k] = just_below(scores[order], last)
                reaching = reaching & (scores < self.thresholds_[k, 0])
