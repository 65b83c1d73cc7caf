"""The laxest value of a rule's knob at which little accuracy is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exits import CalibrationSet, Policy, first_exits

__all__ = ["N_FOLDS", "KnobPath", "deal_weights", "find_laxest"]

#: Folds of the calibration rows: a rule is fitted on four fifths, judged on the fifth.
N_FOLDS = 5
# Of a list of values every so many are tried before the last step is halved.
_STRIDE = 8
# Accuracies are counts divided by counts: 0.83 - 0.82 must not be more than 0.01.
_ROUNDING = 1e-9
# Below this share of a row a weight is rounding.
_LEAST = 1e-6

FitAt = Callable[[Any, CalibrationSet], Policy]
"""Value of a knob and calibration rows to a rule fitted there."""


@dataclass(frozen=True)
class _Judged:
    """A value of the knob, judged on rows that the rule was not fitted on."""

    value: Any
    n_lost: float
    n_gained: float
    n_rows: float
    exit_share: float
    mean_cost: float

    @property
    def drop(self) -> float:
        return (self.n_lost - self.n_gained) / self.n_rows

    @property
    def standard_error(self) -> float:
        # As if one row more were lost or gained: a handful of rows without any
        # difference shows nothing.
        changed = self.n_lost + self.n_gained + 1
        net = self.n_lost - self.n_gained
        return float(np.sqrt(changed - net**2 / (self.n_rows + 1))) / self.n_rows


@dataclass(frozen=True)
class KnobPath:
    """Values of a knob that were judged, from strict to lax, and which was chosen.

    Parameters
    ----------
    judged : tuple
        One entry for each value.
    max_drop : float
        Accuracy that may be lost.
    n_rows : float
        Calibration rows, or their total weight.
    most_to_pay : float
        Mean cost above which the last stage alone is cheaper.
    """

    judged: tuple[_Judged, ...]
    max_drop: float
    n_rows: float
    most_to_pay: float

    def is_within(self, point: _Judged) -> bool:
        """Say whether a point keeps the accuracy."""
        return point.drop + point.standard_error <= self.max_drop + _ROUNDING

    @property
    def within(self) -> list[_Judged]:
        """Points that keep the accuracy and let samples exit, the cheapest first."""
        kept = [p for p in self.judged if p.exit_share > 0 and self.is_within(p)]
        return sorted(kept, key=lambda p: (p.mean_cost, p.drop))

    @property
    def candidates(self) -> list[_Judged]:
        """Those that cost no more than the last stage alone, the cheapest first."""
        return [p for p in self.within if p.mean_cost <= self.most_to_pay]

    @property
    def nearest(self) -> _Judged | None:
        """The point with exits that misses the accuracy by the least."""
        exiting = [p for p in self.judged if p.exit_share > 0]
        if not exiting:
            return None
        return min(exiting, key=lambda p: p.drop + p.standard_error)

    def as_table(self, knob: str) -> dict[str, NDArray[Any]]:
        """Columns by name, one row for each value."""
        points = self.judged
        return {
            knob: np.array([p.value for p in points]),
            "n_lost": np.array([p.n_lost for p in points]),
            "n_gained": np.array([p.n_gained for p in points]),
            "accuracy_drop": np.array([p.drop for p in points]),
            "standard_error": np.array([p.standard_error for p in points]),
            "exit_share": np.array([p.exit_share for p in points]),
            "mean_cost": np.array([p.mean_cost for p in points]),
            "within": np.array([self.is_within(p) for p in points], dtype=bool),
        }

    def explain(self, knob: str) -> str:
        """Say why no value was chosen, with the numbers."""
        if self.within:
            cheapest = self.within[0]
            share = cheapest.mean_cost / self.most_to_pay
            fitted = ", more once it is fitted on all rows" if share < 1 else ""
            return (
                f"{knob}='auto' lets no sample exit: on {self.n_rows:g} calibration "
                f"rows no value of {knob} within max_accuracy_drop={self.max_drop:g} "
                "costs less than the network without branches; the cheapest, "
                f"{cheapest.value:.4g}, costs {share:.1%} of it{fitted}. Give cheaper "
                "branches or fewer taps, calibrate on more rows (cv), allow a larger "
                f"max_accuracy_drop, or give {knob} a number."
            )
        needed = np.inf if self.max_drop == 0 else np.ceil(1 / self.max_drop)
        text = (
            f"{knob}='auto' lets no sample exit: on {self.n_rows:g} calibration rows "
            f"no value of {knob} keeps within max_accuracy_drop={self.max_drop:g}"
        )
        nearest = self.nearest
        if nearest is not None:
            text += (
                f"; the nearest, {nearest.value:.4g}, loses {nearest.drop:.4f} with a "
                f"standard error of {nearest.standard_error:.4f}"
            )
        if self.n_rows < needed:
            text += (
                f". One row is {1 / self.n_rows:.2g} of accuracy, so that no fewer "
                f"than {needed:g} rows could show it"
            )
        return (
            f"{text}. Calibrate on more rows (cv), allow a larger max_accuracy_drop, "
            f"or give {knob} a number."
        )


def find_laxest(
    fit_at: FitAt, values: Sequence[Any], given: CalibrationSet, max_drop: float
) -> KnobPath:
    """Judge values of a knob by cross-fitting, up to the laxest that loses little.

    Parameters
    ----------
    fit_at : callable
        Fits the rule at a value of its knob on some rows.
    values : sequence
        Values of the knob, from strict to lax.
    given : CalibrationSet
        The calibration rows; their costs order the points.
    max_drop : float
        Accuracy that may be lost against the last stage alone.

    Returns
    -------
    path : KnobPath
        What was judged, and the choice.

    Notes
    -----
    Our definition. In turn the rule is fitted on all rows but a fifth, which count a
    quarter more so that supports and penalties mean the same, and judged on the fifth.
    Of n rows let l be those that the last stage gets right and the cascade wrong, g the
    reverse. A value is within where

        (l - g) / n + sqrt(l + g + 1 - (l - g)^2 / (n + 1)) / n <= max_drop

    the second term being one standard error of the first, with one row more that
    differs. Every eighth value is judged, then the step after the laxest one within is
    halved.
    """
    judge = _Judge(fit_at, given)
    judged: dict[int, _Judged] = {}
    path = KnobPath((), max_drop, judge.n_rows, given.most_to_pay)

    def is_within(i: int) -> bool:
        if i not in judged:
            judged[i] = judge(values[i])
        # Where nothing exits nothing is lost.
        return judged[i].exit_share == 0 or path.is_within(judged[i])

    if judge.folds and values:
        coarse = [*range(0, len(values) - 1, _STRIDE), len(values) - 1]
        passed = [i for i in coarse if is_within(i)]
        low = passed[-1] if passed else -1
        high = next((i for i in coarse if i > low), low)
        while high - low > 1:
            middle = (low + high) // 2
            if is_within(middle):
                low = middle
            else:
                high = middle
    return replace(path, judged=tuple(judged[i] for i in sorted(judged)))


@dataclass(frozen=True)
class _Fold:
    """Rows to fit on, and rows to judge on, with the weights that they have there."""

    fitted: CalibrationSet
    table: StageTable
    right: NDArray[np.bool_]
    reference_right: NDArray[np.bool_]
    weight: NDArray[np.float64]


class _Judge:
    """Judges values of a knob on the folds of the calibration rows."""

    def __init__(self, fit_at: FitAt, given: CalibrationSet) -> None:
        self._fit_at, self._costs_under = fit_at, given.costs_under
        self.n_rows = float(given.weight.sum())
        self.folds = list(_make_folds(given))

    def __call__(self, value: Any) -> _Judged:
        sums = np.zeros(5)
        for fold in self.folds:
            rule = self._fit_at(value, fold.fitted)
            depth = first_exits(rule, fold.table)
            right = fold.right[depth, np.arange(len(depth))]
            columns = [
                fold.reference_right & ~right,
                right & ~fold.reference_right,
                np.ones(len(depth)),
                depth < fold.table.n_stages - 1,
                self._costs_under(rule)[depth],
            ]
            sums += np.stack(columns) @ fold.weight
        lost, gained, total, exited, cost = sums.tolist()
        return _Judged(value, lost, gained, total, exited / total, cost / total)


def _make_folds(given: CalibrationSet) -> Iterator[_Fold]:
    total = given.weight.sum()
    for held in deal_weights(given):
        kept = np.where(given.weight - held > _LEAST * held, given.weight - held, 0.0)
        if not held.any() or not kept.any():
            continue
        rows = np.flatnonzero(held)
        yield _Fold(
            replace(given, weight=kept * (total / kept.sum())),
            given.answers.take(rows),
            given.right[:, rows],
            given.reference_right[rows],
            held[rows],
        )


def deal_weights(given: CalibrationSet, n_folds: int = N_FOLDS) -> NDArray[np.float64]:
    """Deal the calibration rows to folds, each of all classes and all confidences.

    Parameters
    ----------
    given : CalibrationSet
        The rows.
    n_folds : int, default=5
        Number of folds.

    Returns
    -------
    held : ndarray of float64, shape (n_folds, n_samples)
        Weight of each row in each fold; they sum to the weight of the row.

    Notes
    -----
    Our definition. The rows, sorted by class and by what the stages say of them, are
    dealt in turn, a row at a time; a row of weight 3 is three of them. So folds need no
    random numbers, repeated rows are dealt as their weight is, and a class with one row
    is no obstacle.
    """
    answers, weight = given.answers, given.weight
    order = np.lexsort((*answers.predicted, *answers.confidence[::-1], given.labels))
    # Fractions of rows are dealt as rows are.
    step = min(1.0, weight[weight > 0].min()) if weight.any() else 1.0
    ends = np.cumsum(weight[order]) / step
    starts = np.append(0.0, ends[:-1])
    held = np.empty((n_folds, len(weight)))
    for fold in range(n_folds):
        held[fold, order] = _dealt(ends, fold, n_folds) - _dealt(starts, fold, n_folds)
    held *= step
    return np.where(held > _LEAST * step, held, 0.0)


def _dealt(position: NDArray[np.float64], fold: int, n: int) -> NDArray[np.float64]:
    """How much of a line, dealt to n folds unit by unit, is a fold's up to here."""
    rounds, rest = np.divmod(position, n)
    dealt: NDArray[np.float64] = rounds + np.clip(rest - fold, 0, 1)
    return dealt
