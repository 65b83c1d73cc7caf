"""Exit rules over branch probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["ClassThresholds"]


class Policy(Protocol):
    """Decides who exits at a branch."""

    def exits(self, branch: int, proba: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Mask of the rows of `proba`, branch number `branch`'s answers, that exit."""
        ...


@dataclass(frozen=True)
class ClassThresholds:
    """Exit where the confidence reaches the threshold of the predicted class.

    Parameters
    ----------
    thresholds : ndarray of float64, shape (n_branches, n_classes)
        Thresholds tau; ``inf`` never exits, ``-inf`` always does.

    Notes
    -----
    The gate of METHODS: x exits at the first branch k with
    ``max p_k(x) >= tau[k, argmax p_k(x)]``. Decided in float64.

    Examples
    --------
    >>> import numpy as np
    >>> from sk_calex.policies import ClassThresholds
    >>> policy = ClassThresholds(np.array([[0.8, 0.5]]))
    >>> policy.exits(0, np.array([[0.7, 0.3], [0.4, 0.6]]))
    array([False,  True])
    """

    thresholds: NDArray[np.float64]

    def exits(self, branch: int, proba: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Tell which samples exit at a branch.

        Parameters
        ----------
        branch : int
            Index of the branch, 0 for the first.
        proba : ndarray of float64, shape (n_samples, n_classes)
            Probabilities of that branch.

        Returns
        -------
        exits : ndarray of bool, shape (n_samples,)
            Who exits.
        """
        mask: NDArray[np.bool_] = (
            proba.max(axis=1) >= self.thresholds[branch][proba.argmax(axis=1)]
        )
        return mask
