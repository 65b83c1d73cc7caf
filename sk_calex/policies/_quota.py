"""A rule that gives each branch a share of the samples."""

from __future__ import annotations

from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.utils._param_validation import Interval

from sk_calex.calibration._exit_rule import CalibrationSet, ExitPolicy
from sk_calex.calibration._thresholds import just_below, prefix_ends
from sk_calex.utils._codec import savable

__all__ = ["Quota"]


@savable
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

    def _fit(self, given: CalibrationSet) -> None:
        table, weight = given.answers, given.weight
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
