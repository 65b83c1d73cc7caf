"""A cascade of which only the answers are known: stage probabilities as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from sk_calex.backbone._layout import TapLayout
from sk_calex.calibration._answers import StageTable
from sk_calex.calibration._exit_rule import ExitPolicy, as_table, check_class_codes
from sk_calex.calibration._exits import CalibrationSet, Policy, evaluated_branches
from sk_calex.cascade._costs import Prices
from sk_calex.utils._validation import check_finite, check_sample_weight, is_auto

__all__ = ["CachedCascade", "check_answers"]


@dataclass(frozen=True)
class CachedCascade:
    """What curves ask of a cascade, for answers that come from anywhere.

    Parameters
    ----------
    calibrator_ : ExitPolicy
        The exit rule; it need not be fitted.
    given : CalibrationSet
        What it is fitted on.
    costs : array-like or dict
        As the parameter `costs` of a cascade.
    layout_ : TapLayout
        Its taps are the branches.
    """

    calibrator_: ExitPolicy
    given: CalibrationSet
    costs: Any
    layout_: TapLayout

    @classmethod
    def of(
        cls,
        rule: ExitPolicy,
        table: StageTable,
        labels: NDArray[np.intp],
        calibration: Any,
        costs: Any,
    ) -> CachedCascade:
        """Check the arrays that stand for a cascade.

        Parameters
        ----------
        rule : ExitPolicy
            The exit rule.
        table : StageTable
            Answers of all stages to the samples of the curve.
        labels : ndarray of intp, shape (n_samples,)
            Their class codes.
        calibration : CalibrationSet, tuple or None
            See `operating_curve`.
        costs : array-like or dict
            See `operating_curve`.

        Returns
        -------
        cascade : CachedCascade
            The stand-in.
        """
        n_branches = table.n_stages - 1
        if costs is None:
            raise ValueError(
                f"costs=None, but the curve of an exit rule needs the cost of each "
                f"stage: {table.n_stages} numbers, one for each depth, or a dict with "
                "'stages' and 'heads' as measure_costs returns it."
            )
        prices = Prices.read(costs, n_branches).per_depth
        falls = np.flatnonzero(np.diff(prices) < 0)
        if falls.size:
            k = int(falls[0])
            raise ValueError(
                f"costs falls from {prices[k]:g} at depth {k} to {prices[k + 1]:g} at "
                f"depth {k + 1}, but a later answer has run all that comes before it. "
                "Give the cost of an answer at each depth, not that of each stage; or "
                "a dict with those of 'stages' and 'heads'."
            )
        given = _calibration_set(rule, table, labels, calibration, prices)
        layout = TapLayout.identity(table.n_classes, n_branches)
        return cls(clone(rule), given, costs, layout)

    @property
    def classes_(self) -> NDArray[np.intp]:
        """Class codes, as of the columns."""
        return np.arange(self.given.answers.n_classes)

    @property
    def _knob_name(self) -> str:
        return self.calibrator_.knob

    def _running_heads(self, rule: Policy | None) -> NDArray[np.bool_]:
        """Tell which heads run under a rule, each branch answering by itself."""
        return evaluated_branches(rule, self.layout_.n_taps)

    def _rule_at(self, value: Any) -> ExitPolicy:
        """Return the fitted exit rule at another value of its knob."""
        if is_auto(value):
            raise ValueError(
                f"values holds 'auto', which is no point of a curve. Give numbers for "
                f"{self._knob_name!r}."
            )
        rule: ExitPolicy = clone(self.calibrator_)
        rule.set_params(**{self._knob_name: value})
        return rule.fit_on(self.given)


def check_answers(
    answers: Any, y: ArrayLike, name: str
) -> tuple[StageTable, NDArray[np.intp]]:
    """Check stage probabilities and class codes; give them as a table and integers."""
    if isinstance(answers, list | tuple):
        shapes = [np.shape(stage) for stage in answers]
        if len(set(shapes)) > 1:
            raise ValueError(
                f"{name} must hold one array of shape (n_samples, n_classes) for each "
                f"stage, all of one shape, got the shapes {shapes}."
            )
    table = as_table(answers)
    check_finite(table.confidence, name, "Fill in every stage.")
    return table, check_class_codes(y, table)


def _calibration_set(
    rule: ExitPolicy,
    table: StageTable,
    labels: NDArray[np.intp],
    calibration: Any,
    prices: NDArray[np.float64],
) -> CalibrationSet:
    """Check what a rule is fitted on; one that learns nothing may take any samples."""
    if isinstance(calibration, CalibrationSet):
        given = calibration
    elif calibration is not None:
        if not isinstance(calibration, tuple | list) or len(calibration) not in (2, 3):
            raise ValueError(
                "calibration must be (probabilities, y) or (probabilities, y, "
                "sample_weight) of the samples that the rule is fitted on, or the "
                f"calibration_ of a cascade, got {type(calibration).__name__}."
            )
        answers, codes = check_answers(calibration[0], calibration[1], "calibration[0]")
        weight = calibration[2] if len(calibration) == 3 else None
        given = CalibrationSet(answers, codes, check_sample_weight(weight, codes))
    elif rule.needs_calibration:
        raise ValueError(
            f"calibration=None, but {type(rule).__name__} learns from samples. Give "
            "calibration=(probabilities, y) of samples that are not those of the "
            "curve: on what it was fitted on a rule looks better than it is."
        )
    else:
        given = CalibrationSet(table, labels, np.ones(len(labels)))
    stages, classes = given.answers.n_stages, given.answers.n_classes
    if (stages, classes) != (table.n_stages, table.n_classes):
        raise ValueError(
            f"calibration has {stages} stages and {classes} classes, but X has "
            f"{table.n_stages} stages and {table.n_classes} classes. Give the answers "
            "of the same stages."
        )
    return CalibrationSet(
        given.answers,
        given.labels,
        given.weight,
        prices,
        given.reference,
        skips_unseen=True,
    )
