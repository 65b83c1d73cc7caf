"""From answers at the points of a path to the points that hold together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._answers import StageTable
from sk_calex.policies import Policy, first_exits

from ._paired_test import disagreement_p_value, drop_p_value, nuisance_error_of
from ._path_results import PathResults

__all__ = ["PathAnswers", "certify"]


@dataclass(frozen=True)
class PathAnswers:
    """What the cascade answers at each point where the last stage answers otherwise.

    Parameters
    ----------
    last : ndarray of intp, shape (n_rows,)
        Class codes of the last stage.
    rows, codes : list of ndarray of intp
        At each point, the rows that are answered differently, and the answers there.
    depth_share : ndarray of float64, shape (n_points, n_stages)
        Share of all rows answered at each depth.
    """

    last: NDArray[np.intp]
    rows: list[NDArray[np.intp]]
    codes: list[NDArray[np.intp]]
    depth_share: NDArray[np.float64]

    @classmethod
    def of(cls, rules: Sequence[Policy], table: StageTable) -> PathAnswers:
        """Follow each rule on the answers of all stages."""
        last, everyone = table.predicted[-1], np.arange(table.n_samples)
        rows, codes = [], []
        share = np.empty((len(rules), table.n_stages))
        for j, rule in enumerate(rules):
            depth = first_exits(rule, table)
            answer = table.predicted[depth, everyone]
            rows.append(np.flatnonzero(answer != last))
            codes.append(answer[rows[-1]])
            share[j] = np.bincount(depth, minlength=table.n_stages) / len(depth)
        return cls(last, rows, codes, share)

    def to_label(self) -> NDArray[np.intp]:
        """Find rows where some point answers otherwise: no other row can be lost."""
        differs = np.zeros(len(self.last), dtype=bool)
        for rows in self.rows:
            differs[rows] = True
        return np.flatnonzero(differs)

    def lost_and_gained(self, truth: NDArray[np.intp]) -> NDArray[np.intp]:
        """Count rows lost and gained at each point, of shape (2, n_points)."""
        counts = []
        for rows, codes in zip(self.rows, self.codes, strict=True):
            right, also = self.last[rows] == truth[rows], codes == truth[rows]
            counts.append(((right & ~also).sum(), (also & ~right).sum()))
        return np.array(counts, dtype=np.intp).reshape(-1, 2).T


def certify(
    answers: PathAnswers,
    margins: Sequence[Any],
    truth: NDArray[np.intp] | None,
    relative_costs: Sequence[NDArray[np.float64]],
    *,
    risk: str,
    max_risk: float,
    error: float,
) -> PathResults:
    """Test the points in their order and stop at the first that cannot be shown.

    Each point is tested at the whole error, for a test is made only where all before it
    were right to reject: a promise is broken with probability `error` at most.
    `truth` are class codes; those of rows that no point answers differently are not
    looked at. `relative_costs` are per point and depth, as shares of the plain
    backbone's.
    """
    n, n_points = len(answers.last), len(answers.rows)
    differ = np.array([len(rows) for rows in answers.rows], dtype=np.intp)
    lost = gained = np.full(n_points, -1)
    if truth is not None:
        lost, gained = answers.lost_and_gained(truth)
    if risk == "disagreement":
        estimate = differ / n
        p_values = [disagreement_p_value(int(k), n, max_risk) for k in differ]
    else:
        estimate = (lost - gained) / n
        nuisance = nuisance_error_of(error)
        p_values = [
            drop_p_value(int(a), int(b), n, max_risk, nuisance)
            for a, b in zip(lost, gained, strict=True)
        ]
    holds = np.logical_and.accumulate(np.array(p_values) <= error)
    spent = zip(answers.depth_share, relative_costs, strict=True)
    last_alone = np.zeros(answers.depth_share.shape[1])
    last_alone[-1] = 1.0
    return PathResults(
        margin=_column(margins),
        n_lost=np.r_[0, lost],
        n_gained=np.r_[0, gained],
        n_disagree=np.r_[0, differ],
        risk_estimate=np.r_[0.0, estimate],
        p_value=np.r_[0.0, p_values],
        certified=np.r_[True, holds],
        # The backbone by itself runs no head.
        flops_reduction=np.r_[0.0, [1 - share @ costs for share, costs in spent]],
        depth_share=np.vstack([last_alone, answers.depth_share]),
    )


def _column(margins: Sequence[Any]) -> NDArray[Any]:
    """Put knob values behind a NaN for the last stage alone."""
    if any(isinstance(margin, tuple) for margin in margins):
        column = np.empty(len(margins) + 1, dtype=object)
        for j, margin in enumerate([np.nan, *margins]):  # a tuple stays one value
            column[j] = margin
        return column
    return np.array([np.nan, *margins], dtype=np.float64)
