"""What an operating point must satisfy, and which of those that do is best."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import Any

__all__ = ["Constraint"]

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
        """By how much a point misses; 0 where it does not."""
        if self.max_accuracy_drop is not None:
            missing = baseline - accuracy - self.max_accuracy_drop
        else:
            missing = float(self.flops_budget or 0) - flops_reduction
        return missing if missing > _ROUNDING else 0.0

    def key(
        self, accuracy: float, flops_reduction: float, baseline: float
    ) -> tuple[float, float, float]:
        """Larger for a better point: one that misses less, then what is asked for.

        The cheapest within a drop, the most accurate within a budget; where two are
        alike in that, the one that is better in the other.
        """
        missing = self.violation(accuracy, flops_reduction, baseline)
        if self.max_accuracy_drop is not None:
            return (-missing, flops_reduction, accuracy)
        return (-missing, accuracy, flops_reduction)

    def missed_by(
        self, accuracy: float, flops_reduction: float, baseline: float, where: str
    ) -> str:
        """Message where even the nearest point misses."""
        nearest = (
            f"the nearest, {where}, has an accuracy of {accuracy:.4f} and saves "
            f"{flops_reduction:.4f} of the FLOPs."
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
