"""What every branch said of the calibration samples: thresholds for any margin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._calibrator import precision_bars
from sk_calex.calibration._thresholds import (
    BranchThresholds,
    find_local_thresholds,
    find_thresholds,
)
from sk_calex.utils._validation import check_margins

__all__ = ["CalibrationRule", "CalibrationTable", "exits_at"]


@dataclass(frozen=True)
class CalibrationRule:
    """Settings of the thresholds; see `SurvivorThresholdCalibrator`."""

    margin_mode: str = "relative"
    min_support: float = 10
    rule: str = "smallest"
    survivors_only: bool = True
    shrinkage: float = 200


@dataclass(frozen=True)
class CalibrationTable:
    """Scores of the branches on the calibration samples.

    Parameters
    ----------
    scores : ndarray of float64, shape (n_branches, n_samples)
        Confidence of each branch.
    predicted : ndarray of intp, shape (n_branches, n_samples)
        Class code that it predicts.
    labels : ndarray of intp, shape (n_samples,)
        True class codes.
    weight : ndarray of float64, shape (n_samples,)
        Sample weights.
    reference : ndarray of float64, shape (n_classes,)
        Precision of the last stage for each predicted class; NaN where unknown.
    last_correct : ndarray of bool, shape (n_samples,)
        Whether the last stage is right.
    """

    scores: NDArray[np.float64]
    predicted: NDArray[np.intp]
    labels: NDArray[np.intp]
    weight: NDArray[np.float64]
    reference: NDArray[np.float64]
    last_correct: NDArray[np.bool_]

    def branch_thresholds(
        self,
        branch: int,
        survivors: NDArray[np.bool_],
        margin: float,
        rule: CalibrationRule,
    ) -> BranchThresholds:
        """Thresholds of one branch on the samples that reach it."""
        rows = self.weight > 0
        if rule.survivors_only:
            rows = rows & survivors
        said = (
            self.scores[branch][rows],
            self.predicted[branch][rows],
            (self.predicted[branch] == self.labels)[rows],
        )
        if rule.margin_mode == "local":
            return find_local_thresholds(
                *said,
                self.last_correct[rows],
                self.weight[rows],
                len(self.reference),
                margin,
                min_support=rule.min_support,
                shrinkage=rule.shrinkage,
            )
        return find_thresholds(
            *said,
            self.weight[rows],
            precision_bars(self.reference, margin, rule.margin_mode),
            min_support=rule.min_support,
            rule=rule.rule,
        )

    def thresholds(
        self, margin: float | Sequence[float], rule: CalibrationRule
    ) -> list[BranchThresholds]:
        """Thresholds of all branches, in cascade order: one sorted pass a branch.

        The margin is one number for all branches, or a sequence with one for each.
        """
        margins = check_margins(margin, len(self.scores))
        survivors = np.ones(len(self.labels), dtype=bool)
        found = []
        for k in range(len(self.scores)):
            found.append(self.branch_thresholds(k, survivors, margins[k], rule))
            survivors &= ~exits_at(
                self.scores[k], self.predicted[k], found[-1].thresholds
            )
        return found

    def with_answers(self, answers: StageTable) -> CalibrationTable:
        """The same samples with other answers of all stages."""
        return replace(
            self,
            scores=answers.confidence[:-1],
            predicted=answers.predicted[:-1],
            last_correct=answers.predicted[-1] == self.labels,
        )

    def of_branches(self, branches: Sequence[int]) -> CalibrationTable:
        """The same of some of the branches, as if there were no others."""
        rows = list(branches)
        return replace(self, scores=self.scores[rows], predicted=self.predicted[rows])


def exits_at(
    scores: NDArray[np.float64],
    predicted: NDArray[np.intp],
    thresholds: NDArray[np.float64],
) -> NDArray[np.bool_]:
    """The gate of one branch: who reaches the threshold of its predicted class."""
    mask: NDArray[np.bool_] = scores >= thresholds[predicted]
    return mask
