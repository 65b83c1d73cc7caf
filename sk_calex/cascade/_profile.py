"""What the training weights of each branch made of the training rows, kept small."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["N_BINS", "TrainingProfile", "bin_weights"]

#: Bins of the confidence between 0 and 1 that a fit keeps; reports may merge them.
N_BINS = 20


@dataclass(frozen=True)
class TrainingProfile:
    """Weight of the training rows by class and by confidence, for each branch.

    The confidence is that of the branch before, from which the weights are made: out
    of fold where the fit took it so. It is NaN at the first branch, and where the
    training rows were not scored since nothing depends on it.

    Parameters
    ----------
    class_weight : ndarray of float64, shape (n_branches, n_classes)
        Training weight of the rows of each true class.
    confidence_weight : ndarray of float64, shape (n_branches, N_BINS)
        Training weight of the rows by confidence, in equal bins from 0 to 1.
    plain_class_weight : ndarray of float64, shape (n_classes,)
        The same as `class_weight` with the rows' own sample weights.
    plain_confidence_weight : ndarray of float64, shape (n_branches, N_BINS)
        The same as `confidence_weight` with the rows' own sample weights.
    n_samples : int
        Training rows of positive sample weight.
    """

    class_weight: NDArray[np.float64]
    confidence_weight: NDArray[np.float64]
    plain_class_weight: NDArray[np.float64]
    plain_confidence_weight: NDArray[np.float64]
    n_samples: int

    @classmethod
    def of(
        cls,
        codes: NDArray[np.intp],
        plain: NDArray[np.float64],
        weights: Sequence[NDArray[np.float64]],
        before: Sequence[NDArray[np.float64] | None],
        n_classes: int,
    ) -> TrainingProfile:
        """Profile of training rows.

        Parameters
        ----------
        codes : ndarray of intp, shape (n_samples,)
            True class codes.
        plain : ndarray of float64, shape (n_samples,)
            Sample weights.
        weights : sequence of ndarray of float64, shape (n_samples,)
            Training weights, one array a branch.
        before : sequence of ndarray of float64, shape (n_samples,), or None
            Confidence of the branch before, one array a branch; NaN or None: unknown.
        n_classes : int
            Number of classes.
        """
        by_confidence = [bin_weights(*p) for p in zip(before, weights, strict=True)]
        return cls(
            np.stack([np.bincount(codes, w, n_classes) for w in weights]),
            np.stack(by_confidence),
            np.asarray(np.bincount(codes, plain, n_classes), np.float64),
            np.stack([bin_weights(confidence, plain) for confidence in before]),
            int(np.count_nonzero(plain)),
        )

    def of_branches(self, branches: Sequence[int]) -> TrainingProfile:
        """The same of some of the branches; NaN where another one now comes before."""
        rows = list(branches)
        follows = np.array(rows) == np.array([-1, *rows[:-1]]) + 1
        kept = np.where(follows, 1.0, np.nan)[:, None]
        return replace(
            self,
            class_weight=self.class_weight[rows],
            confidence_weight=kept * self.confidence_weight[rows],
            plain_confidence_weight=kept * self.plain_confidence_weight[rows],
        )


def bin_weights(
    confidence: NDArray[np.float64] | None, weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weight of samples in equal bins of confidence; NaN if one's is unknown.

    A bin holds its lower edge; the last one also holds 1.
    """
    if confidence is None or np.isnan(confidence[weight > 0]).any():
        return np.full(N_BINS, np.nan)
    cells = (np.nan_to_num(confidence) * N_BINS).astype(np.intp)
    cells = np.clip(cells, 0, N_BINS - 1)
    return np.asarray(np.bincount(cells, weight, N_BINS), np.float64)
