"""Paths of exit rules from strict to lax, fixed before the certifying rows are seen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sk_calex.calibration._exit_rule import CalibrationSet
from sk_calex.policies import ExitPolicy, SharedThreshold, first_exits

__all__ = ["OperatingPath", "PathPlan", "given_path", "rule_of"]

# Neighbours on the automatic path differ by 2 to 4 points of FLOPs where the rule can:
# more points would hardly be told apart by a test, fewer leave savings unused.
_LARGEST_STEP, _SMALLEST_STEP = 0.04, 0.02
_MAX_HALVINGS = 6


@dataclass(frozen=True)
class OperatingPath:
    """Values of the knob (or positions in a given path) and their fitted rules."""

    values: list[Any]
    rules: list[ExitPolicy]

    def __len__(self) -> int:
        return len(self.rules)


@dataclass(frozen=True)
class _Point:
    """A value of the knob, its rule, and what they do to the calibration rows."""

    value: Any
    rule: ExitPolicy
    saved: float
    #: Risk less two standard errors.
    least_risk: float


@dataclass(frozen=True)
class PathPlan:
    """Choose a path from the calibration rows, which the certifying rows must not.

    Parameters
    ----------
    rule_at : callable
        Gives the fitted rule at a value of the knob.
    given : CalibrationSet
        The calibration rows.
    relative_costs : callable
        Gives the cost of an answer at each depth under a rule, as a share of the plain
        backbone's, shape (n_stages,).
    risk : {"accuracy_drop", "disagreement"}
        What is to be certified.
    """

    rule_at: Callable[[Any], ExitPolicy]
    given: CalibrationSet
    relative_costs: Callable[[ExitPolicy], NDArray[np.float64]]
    risk: str

    def try_values(self, values: Sequence[Any]) -> OperatingPath:
        """Fit rules at given values, ordered by what they save."""
        return _path_of(map(self._measure, values))

    def span(self, values: Sequence[float], max_risk: float) -> OperatingPath:
        """Fit rules at these values and between them, in nearly even steps of savings.

        Points that save nothing are left out, for the last stage alone is better. The
        path ends where even the calibration rows show too large a risk: points beyond
        would not be certified, but rows would have to be labelled for them.
        """
        known = {value: self._measure(value) for value in values}
        between = all(isinstance(value, float) for value in values)  # else whole
        for _ in range(_MAX_HALVINGS if between else 0):
            middles = [
                (low + high) / 2
                for low, high in pairwise(sorted(known))
                if abs(known[high].saved - known[low].saved) > _LARGEST_STEP
                and max(known[high].saved, known[low].saved) > 0
            ]
            if not middles:
                break
            known |= {value: self._measure(value) for value in middles}
        path: list[_Point] = []
        for point in sorted(known.values(), key=lambda point: point.saved):
            if point.saved < _SMALLEST_STEP + (path[-1].saved if path else 0.0):
                continue
            if point.least_risk > max_risk:
                break
            path.append(point)
        return _path_of(path)

    def _measure(self, value: Any) -> _Point:
        rule = self.rule_at(value)
        answers, weight = self.given.answers, self.given.weight
        depth = first_exits(rule, answers)
        costs = self.relative_costs(rule)[depth]
        answer, last = (
            answers.predicted[depth, np.arange(len(depth))],
            answers.predicted[-1],
        )
        lost = (answer != last).astype(np.float64)
        if self.risk == "accuracy_drop":
            truth = self.given.labels
            lost = (last == truth).astype(np.float64) - (answer == truth)
        total = weight.sum()
        error = np.sqrt(weight**2 @ lost**2) / total
        return _Point(
            value,
            rule,
            saved=float(1 - costs @ weight / total),
            least_risk=float(lost @ weight / total - 2 * error),
        )


def _path_of(points: Iterable[_Point]) -> OperatingPath:
    """Order points by what they save; equal ones stay as they were."""
    ordered = sorted(points, key=lambda point: point.saved)
    return OperatingPath(
        [point.value for point in ordered], [point.rule for point in ordered]
    )


def given_path(thresholds: ArrayLike, n_branches: int, n_classes: int) -> OperatingPath:
    """Make the rules of thresholds that the caller has fixed."""
    array = np.asarray(thresholds, dtype=np.float64)
    shapes: dict[int, tuple[int, ...]] = {
        1: (),
        2: (n_branches,),
        3: (n_branches, n_classes),
    }
    if array.size == 0 or array.shape[1:] != shapes.get(array.ndim):
        raise ValueError(
            f"path has shape {array.shape}. Give thresholds of the confidence from "
            "strict to lax: one for each point, (n_points,); one for each branch, "
            f"(n_points, {n_branches}); or one for each branch and class, (n_points, "
            f"{n_branches}, {n_classes})."
        )
    if np.isnan(array).any():
        raise ValueError("path holds NaN. Use inf for a branch that never answers.")
    array = array.reshape(*array.shape, *[1] * (3 - array.ndim))
    full = np.broadcast_to(array, (len(array), n_branches, n_classes))
    return OperatingPath(list(range(len(full))), [rule_of(point) for point in full])


def rule_of(thresholds: NDArray[np.float64]) -> SharedThreshold:
    """Make a fitted rule that compares the confidence with given thresholds."""
    rule = SharedThreshold()
    rule.thresholds_ = np.array(thresholds)
    return rule
