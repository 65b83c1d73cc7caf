"""Operating points: what they must satisfy, and ways of looking for the best."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, product
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.cascade._costs import cost_name

from ._curves import Outcomes

__all__ = ["Constraint", "Landscape", "Measured", "best_joint", "best_shared"]

#: Operating points that are measured before a joint search turns greedy.
MAX_JOINT = 1024
# Steps on the curve, in shares of the FLOPs: larger ones are halved where the choice
# falls, and anywhere on the curve before margins are combined.
_FINE, _COARSE = 0.005, 0.05
_MAX_HALVINGS = 8

# Accuracies are counts divided by counts: 0.83 - 0.82 must not be more than 0.01.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Constraint:
    """Either a bound on the accuracy lost, or on the FLOPs saved."""

    max_accuracy_drop: float | None = None
    flops_budget: float | None = None

    @classmethod
    def of(cls, max_accuracy_drop: Any, flops_budget: Any) -> Constraint:
        """Check that one is given, and a share."""
        given = {"max_accuracy_drop": max_accuracy_drop, "flops_budget": flops_budget}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of max_accuracy_drop and flops_budget, got "
                f"max_accuracy_drop={max_accuracy_drop!r} and "
                f"flops_budget={flops_budget!r}."
            )
        ((name, value),) = given.items()
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, got {value!r}.")
        if not 0 <= float(value) <= 1:
            what = (
                "the accuracy that may be lost, such as 0.01 for one point"
                if name == "max_accuracy_drop"
                else "the share of the FLOPs to be saved, such as 0.4"
            )
            raise ValueError(f"{name}={value!r} must lie in [0, 1]: {what}.")
        return cls(**{name: float(value)})

    def violation(
        self, accuracy: float, flops_reduction: float, baseline: float
    ) -> float:
        """Compute by how much a point misses; 0 where it does not."""
        if self.max_accuracy_drop is not None:
            missing = baseline - accuracy - self.max_accuracy_drop
        else:
            missing = float(self.flops_budget or 0) - flops_reduction
        return missing if missing > _ROUNDING else 0.0

    def key(
        self, accuracy: float, flops_reduction: float, baseline: float
    ) -> tuple[float, float, float]:
        """Compute a key, larger for a better point: misses less, then the objective.

        The cheapest within a drop, the most accurate within a budget; where two are
        alike in that, the one that is better in the other.
        """
        missing = self.violation(accuracy, flops_reduction, baseline)
        if self.max_accuracy_drop is not None:
            return (-missing, flops_reduction, accuracy)
        return (-missing, accuracy, flops_reduction)

    def missed_by(
        self,
        accuracy: float,
        flops_reduction: float,
        baseline: float,
        where: str,
        cost: str = "FLOPs",
    ) -> str:
        """Write the message where even the nearest point misses."""
        nearest = (
            f"the nearest, {where}, has an accuracy of {accuracy:.4f} and saves "
            f"{flops_reduction:.4f} of the {cost}."
        )
        if self.max_accuracy_drop is not None:
            return (
                f"no operating point stays within max_accuracy_drop="
                f"{self.max_accuracy_drop:g} of {baseline:.4f}: {nearest} Allow a "
                "larger drop, or try stricter operating points (for margins: smaller "
                "ones)."
            )
        return (
            f"no operating point reaches flops_budget={self.flops_budget:g}: {nearest} "
            "Ask for less, try laxer operating points (for margins: larger ones), or "
            "tap the backbone earlier."
        )


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
    were measured stay, in their order.
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

    @property
    def cost_name(self) -> str:
        """What is saved: "FLOPs", or the unit of the cascade's `costs`."""
        return cost_name(self.folds[0].cascade)

    def at(self, value: Any) -> Measured:
        """Measure a point: a value of the knob, or a tuple of margins."""
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

    @property
    def backbone(self) -> Measured:
        """The point where nothing exits and no head runs; its value is NaN."""
        accuracies = np.array([fold.backbone_accuracy for fold in self.folds])
        key = self.constraint.key(self.backbone_accuracy, 0.0, self.backbone_accuracy)
        return Measured(
            np.nan,
            accuracies,
            np.zeros(len(accuracies)),
            self.backbone_accuracy,
            0.0,
            key,
        )

    def refine(self, values: Sequence[Any]) -> list[Any]:
        """Measure values, and halve the steps around the best one.

        Parameters
        ----------
        values : sequence
            Numbers that span the curve. Whole numbers have none between them.

        Returns
        -------
        values : list
            These and those that were added, in rising order.
        """
        known = set(values)
        if not all(isinstance(value, float) for value in known):
            return list(values)
        for _ in range(_MAX_HALVINGS):
            rising = sorted(known)
            best = rising.index(self.best_of(rising).value)
            beside = pairwise(rising[max(best - 1, 0) : best + 2])
            middles = self._middles(beside, _FINE)
            if not middles:
                break
            known.update(middles)
        return sorted(known)

    def spread(self, values: Sequence[Any]) -> list[Any]:
        """Values whose savings differ, in steps that are not large.

        Of values with equal savings one is kept, such as of those at which nothing
        exits.
        """
        known = set(values)
        if not all(isinstance(value, float) for value in known):
            return list(values)
        for _ in range(2):
            known.update(self._middles(pairwise(sorted(known)), _COARSE))
        kept: list[Any] = []
        for value in sorted(known):
            saved = self.at(value).flops_reduction
            if not kept or abs(saved - self.at(kept[-1]).flops_reduction) > _FINE:
                kept.append(value)
        return kept

    def _middles(
        self, pairs: Iterable[tuple[float, float]], step: float
    ) -> list[float]:
        """Values between those whose savings are further apart than a step."""
        return [
            (low + high) / 2
            for low, high in pairs
            if abs(self.at(high).flops_reduction - self.at(low).flops_reduction) > step
        ]

    def best_of(self, values: Iterable[Any]) -> Measured:
        """Return the best point, of equal ones the first."""
        return max(map(self.at, values), key=lambda point: point.key)

    def check(self, best: Measured, what: str) -> None:
        """Refuse a point that does not satisfy the constraint."""
        if not best.feasible:
            message = self.constraint.missed_by(
                best.accuracy,
                best.flops_reduction,
                self.backbone_accuracy,
                f"{what}={best.value!r}",
                self.cost_name,
            )
            raise ValueError(message)

    def of_taps(self, taps: Sequence[int]) -> Landscape:
        """Return the same of the cascade that has some of its branches only."""
        return Landscape([fold.of_taps(taps) for fold in self.folds], self.constraint)


def best_shared(landscape: Landscape, values: Sequence[Any]) -> tuple[Measured, str]:
    """Return the best value for all branches, and how it was found."""
    return landscape.best_of(values), "exhaustive"


def best_joint(landscape: Landscape, values: Sequence[Any]) -> tuple[Measured, str]:
    """Return the best margin for each branch, and how they were found.

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
