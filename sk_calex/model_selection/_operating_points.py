"""Operating points measured on held-out samples, and ways of looking for the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._constraint import Constraint
from ._outcomes import Outcomes

__all__ = ["Landscape", "Measured", "best_joint", "best_shared"]

#: Operating points that are measured before a joint search turns greedy.
MAX_JOINT = 1024


@dataclass(frozen=True, eq=False)
class Measured:
    """An operating point, its figures on each fold, and on all of them."""

    value: Any
    accuracies: NDArray[np.float64]
    reductions: NDArray[np.float64]
    accuracy: float
    flops_reduction: float
    key: tuple[float, float, float]

    @property
    def feasible(self) -> bool:
        """Whether it satisfies the constraint."""
        return self.key[0] == 0


@dataclass
class Landscape:
    """The points of one cascade over the folds that held samples out.

    Every sample counts once, in the fold that held it out, with its weight. Points that
    were measured are kept, in their order.
    """

    folds: Sequence[Outcomes]
    constraint: Constraint
    measured: dict[Any, Measured] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._totals = [fold.total for fold in self.folds]
        last = [fold.backbone_accuracy for fold in self.folds]
        self.backbone_accuracy = float(np.average(last, weights=self._totals))

    @property
    def n_branches(self) -> int:
        """Number of branches."""
        return self.folds[0].table.n_stages - 1

    def at(self, value: Any) -> Measured:
        """A point: a value of the knob, or a tuple of margins."""
        if value not in self.measured:
            points = [fold.at(value) for fold in self.folds]
            right = np.array([point.accuracy for point in points])
            saved = np.array([point.flops_reduction for point in points])
            accuracy = float(np.average(right, weights=self._totals))
            reduction = float(np.average(saved, weights=self._totals))
            key = self.constraint.key(accuracy, reduction, self.backbone_accuracy)
            self.measured[value] = Measured(
                value, right, saved, accuracy, reduction, key
            )
        return self.measured[value]

    def best_of(self, values: Iterable[Any]) -> Measured:
        """The best point, of equal ones the first."""
        return max(map(self.at, values), key=lambda point: point.key)

    def check(self, best: Measured, what: str) -> None:
        """Refuse a point that does not satisfy the constraint."""
        if not best.feasible:
            message = self.constraint.missed_by(
                best.accuracy,
                best.flops_reduction,
                self.backbone_accuracy,
                f"{what}={best.value!r}",
            )
            raise ValueError(message)

    def of_taps(self, taps: Sequence[int]) -> Landscape:
        """The same of the cascade that has some of its branches only."""
        return Landscape([fold.of_taps(taps) for fold in self.folds], self.constraint)


def best_shared(landscape: Landscape, values: Sequence[Any]) -> tuple[Measured, str]:
    """One value for all branches, and how it was found."""
    return landscape.best_of(values), "exhaustive"


def best_joint(landscape: Landscape, values: Sequence[Any]) -> tuple[Measured, str]:
    """A margin for each branch, and how they were found.

    All combinations where they are few. Else coordinate descent: from the best shared
    margin, one branch after the other takes its best margin given the others', until
    none of them changes; never worse than one margin for all.
    """
    n = landscape.n_branches
    if len(values) ** n <= MAX_JOINT:
        return landscape.best_of(product(values, repeat=n)), "exhaustive"
    best = landscape.best_of((value,) * n for value in values)
    changed = True
    while changed:
        changed = False
        for k in range(n):
            before, after = best.value[:k], best.value[k + 1 :]
            found = landscape.best_of((*before, value, *after) for value in values)
            if found.key > best.key:
                best, changed = found, True
    return best, "greedy"
