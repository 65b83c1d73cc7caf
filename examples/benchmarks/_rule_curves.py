"""Exit rules swept over their knob, on answers that are there: nothing is trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from _branch_sets import BranchSet
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from sk_calex.calibration._answers import StageTable


class Judged:
    """Answers of one set to its calibration and test rows, as rules read them."""

    def __init__(self, given: BranchSet) -> None:
        self.costs = given.costs
        self.labels = {"calibration": given.calibration_y, "test": given.test_y}
        self.tables = {
            "calibration": StageTable.from_probabilities(given.calibration),
            "test": StageTable.from_probabilities(given.test),
        }

    def accuracy(self, part: str, stage: int = -1) -> float:
        """Accuracy of one stage on all rows of a part."""
        return float((self.tables[part].predicted[stage] == self.labels[part]).mean())

    def fit(self, rule: Any, value: float, rows: Any = slice(None)) -> Any:
        """The rule at a value of its knob, fitted on calibration rows."""
        fitted = clone(rule).set_params(**{rule.knob: value})
        table, labels = self.tables["calibration"], self.labels["calibration"]
        if not isinstance(rows, slice):
            table, labels = table.take(rows), labels[rows]
        return fitted.fit(table, labels, costs=self.costs)

    def point(
        self, rule: Any, part: str, rows: NDArray[np.intp] | None = None
    ) -> tuple[float, float]:
        """FLOPs saved and accuracy of a fitted rule on (some) rows of a part."""
        table, labels = self.tables[part], self.labels[part]
        if rows is not None:
            table, labels = table.take(rows), labels[rows]
        depth = rule.depth(table)
        right = table.predicted[depth, np.arange(len(depth))] == labels
        return float(1 - self.costs[depth].mean()), float(right.mean())

    def curve(self, rule: Any, values: Iterable[float], seed: int) -> dict[str, Any]:
        """A run as `_fronts` takes it: traced on calibration rows, judged on test."""
        fitted = [self.fit(rule, value) for value in values]
        run: dict[str, Any] = {"seed": seed}
        for key, part in (("validation", "calibration"), ("test", "test")):
            saved, right = zip(*(self.point(f, part) for f in fitted), strict=True)
            run[key] = {"flops_reduction": list(saved), "accuracy": list(right)}
        run["backbone_accuracy"] = self.accuracy("test")
        return run


def mean_and_sd(values: ArrayLike, digits: int = 5) -> dict[str, Any]:
    """Mean and standard deviation over the first axis; None for what is missing."""
    array = np.asarray(values, dtype=float)
    sd = (
        array.std(axis=0, ddof=1)
        if len(array) > 1
        else np.full(array.shape[1:], np.nan)
    )
    return {
        "mean": plain(array.mean(axis=0), digits),
        "sd": plain(sd, digits),
        "n": len(array),
    }


def plain(array: ArrayLike, digits: int = 5) -> Any:
    """Numbers for JSON, which has no NaN."""
    rounded = np.asarray(array, dtype=float).round(digits)
    return np.where(np.isfinite(rounded), rounded.astype(object), None).tolist()
