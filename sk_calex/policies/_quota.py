"""A rule that gives each branch a share of the samples."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, ClassVar, cast

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.calibration._exits import CalibrationSet
from sk_calex.calibration._thresholds import just_below, prefix_ends
from sk_calex.utils._codec import savable

__all__ = ["Quota"]


@savable
class Quota(ExitPolicy):
    """Exit a set share of the samples at each branch, the most confident first.

    Parameters
    ----------
    decay : float or "auto", default=1.0
        The share at depth k is proportional to ``decay ** k``, the last stage included:
        below 1 most samples exit early, 1 gives every depth as many, above 1 most go on
        to the end. "auto": the lowest that keeps `max_accuracy_drop`, cross-fitted on
        the rows that calibrate.
    max_accuracy_drop : float, default=0.005
        With ``decay="auto"``: accuracy that may be lost against the last stage
        alone, one standard error included. Inside a cascade leave it at its default:
        there the cascade's own counts.

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
        **ExitPolicy._parameter_constraints,
        "decay": [Interval(Real, 0, None, closed="neither"), StrOptions({"auto"})],
    }

    def __init__(
        self, decay: float | str = 1.0, *, max_accuracy_drop: float = 0.005
    ) -> None:
        self.decay = decay
        self.max_accuracy_drop = max_accuracy_drop

    def _knob_values(self, given: CalibrationSet) -> Sequence[float]:
        return np.geomspace(64, 1 / 64, 73).round(4).tolist()

    def _fit(self, given: CalibrationSet) -> None:
        table, weight = given.answers, given.weight
        # Largest power 0, so that no decay overflows.
        powers = np.arange(table.n_stages) * np.log(cast(float, self.decay))
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
