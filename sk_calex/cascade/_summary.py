"""A cascade as a table for notebooks: stages, heads, costs, thresholds, exits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sk_calex.backbone._summary import stage_cells, unfitted_taps
from sk_calex.calibration._exit_rule import first_exits
from sk_calex.cascade._costs import (
    cost_unit,
    depth_prices,
    stage_and_head_macs,
    with_unit,
)
from sk_calex.utils._html import Cell, picked, si, table
from sk_calex.utils._validation import is_auto

__all__ = ["cascade_summary"]

_MAX_LABELS = 3
_MAX_LABEL = 15

_HEADER = (
    *("stage", "feature shape", "stage, MACs", "branch", "branch, MACs"),
    *("answer here costs", "classes that may exit", "threshold"),
    *("answered here", "of them right"),
)


def cascade_summary(cascade: Any) -> str:
    """Write the table of a cascade: stages, heads and exits; before a fit the taps."""
    name = type(cascade).__name__
    if not _is_whole(cascade):
        backbone = cascade.backbone
        known = hasattr(backbone, "taps")
        return unfitted_taps(f"{name}: not fitted", backbone) if known else ""
    layout = cascade.layout_
    outcome, columns = _CalibrationOutcome.of(cascade), _CostColumns.of(cascade)
    rows: list[list[Cell | str]] = []
    for stage in picked(layout.n_taps):
        if stage is None:
            rows.append(["…"] * len(_HEADER))
            continue
        stage_name, shape, _, macs = stage_cells(layout, stage)
        if stage == layout.n_taps:
            stage_name = "last stage"
        rows.append(
            [
                *(stage_name, shape, macs),
                *(_head_name(cascade, stage), *columns.cells(stage)),
                *_threshold_cells(cascade, stage),
                *outcome.cells(stage),
            ]
        )
    branches = f"{layout.n_taps} branch{'es' * (layout.n_taps > 1)}"
    return table(
        f"{name}: {branches}, {len(cascade.classes_)} classes, {_rule_name(cascade)}",
        _HEADER,
        rows,
        outcome.note(columns.shares, columns.unit or "cost"),
    )


def _is_whole(cascade: Any) -> bool:
    """Tell whether it is fitted: a fit leaves all of it, or nothing."""
    return hasattr(cascade, "calibrator_")


def _rule_name(cascade: Any) -> str:
    if cascade._knob_name != cascade.knob:
        return repr(cascade.calibrator)
    rule, given = cascade.calibrator_, getattr(cascade, cascade.knob)
    if not is_auto(given):
        return f"{cascade.knob}={given}"
    used = getattr(rule, f"{rule.knob}_")
    found = "nothing exits" if np.isnan(used) else f"{used:.3g}"
    return f"{cascade.knob}={given!r} ({found})"


def _head_name(cascade: Any, stage: int) -> str:
    if stage < len(cascade.branches_):
        branch = cascade.branches_[stage]
        return type(getattr(branch, "head_", branch)).__name__
    if cascade.final_estimator_ is not None:
        return type(cascade.final_estimator_).__name__
    return "the backbone's"


def _threshold_cells(cascade: Any, stage: int) -> Iterator[Cell | str]:
    """Write how many classes exit at a branch, and the range of their thresholds."""
    classes = cascade.classes_
    thresholds = getattr(cascade.calibrator_, "thresholds_", None)
    if thresholds is None or stage >= len(thresholds):
        yield from ("", "")
        return
    row = np.asarray(thresholds[stage])
    on = row < np.inf
    off = _labels(classes[~on])
    yield Cell(f"{on.sum()} of {len(row)}", f"never: {off}" if off else "")
    if not on.any():
        yield ""
        return
    lowest, highest = row[on].min(), row[on].max()
    if lowest == highest:
        yield f"{lowest:.2f}"
        return
    where = (
        f"lowest: {_labels(classes[row == lowest])}; "
        f"highest: {_labels(classes[row == highest])}"
    )
    yield Cell(f"{lowest:.2f} to {highest:.2f}", where)


def _labels(labels: NDArray[Any]) -> str:
    shown = [str(label)[:_MAX_LABEL] for label in labels[:_MAX_LABELS].tolist()]
    more = len(labels) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


@dataclass(frozen=True)
class _CostColumns:
    """MACs of the heads; cost and unit of an answer at each depth. None: unknown."""

    heads: list[int] | None
    costs: NDArray[np.float64] | None
    whole: float
    unit: str

    @classmethod
    def of(cls, cascade: Any) -> _CostColumns:
        try:
            _, heads = stage_and_head_macs(cascade)
        except ValueError:  # of the stages or of a head
            heads = None
        try:
            costs, whole = depth_prices(cascade, cascade.calibrator_)
        except ValueError:
            costs, whole = None, 0.0
        return cls(heads, costs, whole, cost_unit(cascade))

    @property
    def shares(self) -> NDArray[np.float64] | None:
        """Cost of an answer at each depth, the plain backbone's being 1."""
        if self.costs is None or not self.whole:
            return None
        return self.costs / self.whole

    def cells(self, stage: int) -> Iterator[Cell | str]:
        if self.heads is None:
            yield "?"
        else:
            yield si(self.heads[stage]) if stage < len(self.heads) else ""
        if self.costs is None:
            yield "?"
            return
        cost, shares = self.costs[stage], self.shares
        share = "" if shares is None else f" ({100 * shares[stage]:.0f} %)"
        if self.unit == "MACs":
            yield Cell(si(cost) + share, f"{cost:,.0f} MACs")
        else:
            yield with_unit(cost, self.unit) + share


@dataclass(frozen=True)
class _CalibrationOutcome:
    """What became of the calibration samples: their depths, and which were right."""

    depth: NDArray[np.intp]
    right: NDArray[np.bool_]
    last_right: NDArray[np.bool_]
    weight: NDArray[np.float64]

    @classmethod
    def of(cls, cascade: Any) -> _CalibrationOutcome:
        weight = cascade.calibration_.weight
        used = weight > 0
        answers = cascade.calibration_.answers.take(used)
        depth = first_exits(cascade.calibrator_, answers)
        right = answers.predicted == cascade.calibration_.labels[used]
        chosen = right[depth, np.arange(len(depth))]
        return cls(depth, chosen, right[-1], weight[used])

    def cells(self, stage: int) -> Iterator[Cell | str]:
        here = self.depth == stage
        share = self.weight[here].sum() / self.weight.sum()
        yield Cell(f"{100 * share:.0f} %", f"{here.sum()} samples", share)
        if not here.any():
            yield ""
            return
        right = np.average(self.right[here], weights=self.weight[here])
        yield f"{100 * right:.1f} % of {here.sum():,}"

    def note(self, shares: NDArray[np.float64] | None, unit: str) -> str:
        """Write accuracy and saving, with the samples that they are of."""
        right, last = (
            100 * np.average(a, weights=self.weight)
            for a in (self.right, self.last_right)
        )
        text = (
            f"On the {len(self.depth):,} calibration samples, which set the exit rule: "
            f"accuracy {right:.1f} %, of the last stage alone {last:.1f} %"
        )
        if shares is not None:
            saved = 1 - np.average(shares[self.depth], weights=self.weight)
            less = "fewer" if unit == "MACs" else "less"
            kind = less if saved >= 0 else "more"
            text += f"; {100 * abs(saved):.0f} % {kind} {unit} than the backbone"
        return text + "."
