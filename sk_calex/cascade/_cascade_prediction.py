"""All that one run of a cascade says, be it in torch or exported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CascadePrediction"]


@dataclass(frozen=True, eq=False)
class CascadePrediction:
    """Hold what one run of a cascade says of some samples.

    Returned by the `predict_details` and `predict_iter` of a cascade.

    Parameters
    ----------
    labels : ndarray of shape (n_samples,)
        Labels as in `classes_`.
    probabilities : ndarray of float64, shape (n_samples, n_classes)
        Of the stage that answered; columns as in `classes_`.
    depth : ndarray of int, shape (n_samples,)
        Index of the branch that answered, the number of branches for the backbone.
    cost : ndarray of float64, shape (n_samples,), or None
        MACs spent (1 MAC = 2 FLOPs), heads that ran included, or in the unit of
        `costs`. None
        where the MACs of a stage or head are unknown; `cost` of the cascade says why.
    first_predicted : ndarray of int, shape (n_samples,)
        Index in `classes_` of what the first stage that answered at all said.
    first_confidence : ndarray of float64, shape (n_samples,)
        Its largest probability. An `ExitMonitor` reads these two.
    first_stage : int, default=0
        Index of that stage: of the first branch, unless no class can exit there and its
        head did not run; the number of branches where only the last stage ran.

    See Also
    --------
    ExitMonitor : Its `update` takes this, so that one run serves both.

    Examples
    --------
    >>> from sklearn.datasets import make_classification
    >>> from sk_calex import CascadeClassifier
    >>> X, y = make_classification(500, n_informative=6, n_classes=3, random_state=0)
    >>> cascade = CascadeClassifier(random_state=0).fit(X, y)
    >>> said = cascade.predict_details(X[:5])
    >>> said.labels.shape, said.probabilities.shape, said.cost.shape
    ((5,), (5, 3), (5,))
    """

    labels: NDArray[Any]
    probabilities: NDArray[np.float64]
    depth: NDArray[np.intp]
    cost: NDArray[np.float64] | None
    first_predicted: NDArray[np.intp]
    first_confidence: NDArray[np.float64]
    first_stage: int = 0

    def __len__(self) -> int:
        return len(self.labels)
