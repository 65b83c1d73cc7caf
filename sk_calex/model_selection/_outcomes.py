"""What a fitted cascade does with labelled samples, at any operating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length, column_or_1d

from sk_calex.calibration._answers import StageTable
from sk_calex.cascade._alignment import effective_sample_size
from sk_calex.policies import first_exits
from sk_calex.utils._validation import check_sample_weight

if TYPE_CHECKING:
    from sk_calex.cascade._base import BaseCascade

__all__ = ["Outcomes", "Point"]


@dataclass(frozen=True)
class Point:
    """An operating point: accuracy, share of FLOPs saved, share of each depth."""

    accuracy: float
    flops_reduction: float
    depth_share: NDArray[np.float64]


@dataclass(frozen=True)
class Outcomes:
    """A fitted cascade, and which stages are right about which samples.

    Every stage answers every sample once; an operating point then costs a calibration
    and a comparison. `weight` is None or of shape (n_samples,).
    """

    cascade: Any
    table: StageTable
    right: NDArray[np.bool_]
    weight: NDArray[np.float64] | None

    @classmethod
    def of(
        cls,
        cascade: BaseCascade,
        X: Any,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Outcomes:
        """Ask all stages about all samples."""
        truth = column_or_1d(y)
        table = cascade._tabulate(X)
        check_consistent_length(truth, table.predicted[0])
        weight = None
        if sample_weight is not None:
            weight = check_sample_weight(sample_weight, truth)
        right = cascade.classes_[table.predicted] == truth
        return cls(cascade, table, right, weight)

    @property
    def total(self) -> float:
        """Samples, or their total weight."""
        return float(self.table.n_samples if self.weight is None else self.weight.sum())

    @property
    def effective_size(self) -> float:
        """Number of samples; with weights, Kish's effective number."""
        if self.weight is None:
            return float(self.table.n_samples)
        return effective_sample_size(self.weight)

    @property
    def backbone_accuracy(self) -> float:
        """Accuracy of the last stage on all samples."""
        return float(np.average(self.right[-1], weights=self.weight))

    def at(self, value: Any) -> Point:
        """The operating point at a value of the knob; the cascade is not changed."""
        return self.exiting(first_exits(self.cascade._policy_at(value), self.table))

    def exiting(self, depth: NDArray[np.intp]) -> Point:
        """The operating point where every sample exits at a given depth."""
        costs = self.cascade.depth_costs_
        right = self.right[depth, np.arange(len(depth))]
        share = np.bincount(depth, self.weight, minlength=len(costs)) / self.total
        return Point(
            float(np.average(right, weights=self.weight)),
            float(1 - share @ costs / sum(self.cascade._macs()[0])),
            share,
        )

    def of_taps(self, taps: Sequence[int]) -> Outcomes:
        """The same of the cascade that has some of its branches only."""
        return replace(
            self,
            cascade=self.cascade._of_taps(taps),
            table=self.table.of_stages([*taps, -1]),
            right=self.right[[*taps, -1]],
        )
