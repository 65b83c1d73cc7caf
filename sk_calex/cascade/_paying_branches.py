"""An exit rule on those branches only whose heads save more than they cost."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from sk_calex.branches._defaults import BranchCostWarning
from sk_calex.calibration._exit_rule import ExitPolicy
from sk_calex.calibration._exits import COST_ROUNDING, CalibrationSet, Policy
from sk_calex.utils._validation import is_auto
from sk_calex.utils._warn import warn_caller

__all__ = ["fit_on_paying_branches"]


def fit_on_paying_branches(rule: ExitPolicy, given: CalibrationSet) -> ExitPolicy:
    """Fit a rule, and let branches rest whose heads cost more than their exits save.

    Parameters
    ----------
    rule : ExitPolicy
        The rule, at a value of its knob or "auto"; not changed.
    given : CalibrationSet
        What it is fitted on, with its costs.

    Returns
    -------
    rule : ExitPolicy
        Fitted. Where a branch rests its thresholds are ``inf``, and those of the others
        are found as if it did not exist. Its mean cost on these rows is at most that
        with all branches, and at most that of the last stage alone.

    Warns
    -----
    CalibrationWarning
        If the knob is "auto" and no value is chosen, whatever rests.
    BranchCostWarning
        If every choice of branches costs more than the last stage alone.

    Notes
    -----
    Our definition. Branches are left out one at a time, each time the one without which
    the mean cost on these rows is lowest, at the same value of the knob, as long as it
    falls. With "auto" the value is then found anew. Where "auto" finds none for all
    branches, it is asked for each choice on the way, down to one branch.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        whole = clone(rule).fit_on(given)
    n_branches = given.answers.n_stages - 1
    first = _Fitted(whole, tuple(range(n_branches)), given)
    auto = is_auto(getattr(rule, rule.knob, None))
    value: Any = getattr(whole, f"{rule.knob}_", None)
    lost = auto and bool(np.isnan(value))
    fixed = clone(rule).set_params(**{rule.knob: value}) if auto and not lost else rule
    found = _leave_out(fixed, first, given, through=lost)
    if auto and not lost and found is not first:
        again = _Fitted.on(rule, found.kept, given)
        # The value that was found with all branches is not known to keep the accuracy.
        found = again if again.exits and again.cost < first.cost else first
    if found is first:
        for each in said:
            warn_caller(str(each.message), each.category)
    if found.cost > given.most_to_pay:
        found.rule._let_none_exit()
        setattr(found.rule, f"{rule.knob}_", np.nan)  # as where "auto" finds none
        warn_caller(
            "no branch pays on the calibration rows: with those that cost least the "
            f"mean cost is {found.cost / given.most_to_pay:.1%} of that of the last "
            "stage alone, so that no sample exits. Give cheaper branches or fewer "
            "taps, or let more exit (a larger margin, a lower threshold).",
            BranchCostWarning,
        )
    return found.rule


@dataclass(frozen=True)
class _Fitted:
    """A rule fitted on some of the branches, and its mean cost."""

    rule: ExitPolicy
    kept: tuple[int, ...]
    given: CalibrationSet

    @classmethod
    def on(
        cls, rule: ExitPolicy, kept: Sequence[int], given: CalibrationSet
    ) -> _Fitted:
        """Fit a rule as if there were these branches only."""
        n_branches = given.answers.n_stages - 1
        stages = [*kept, -1]

        def prices(part: Policy | None) -> NDArray[np.float64]:
            spread = None if part is None else _spread(part, kept, n_branches)
            return given.costs_under(spread)[stages]

        part = replace(given.select_stages(stages), prices=prices)
        new = clone(rule)
        own: Any = getattr(rule, rule.knob, None)
        if np.ndim(own) == 1:  # one value for each branch
            new.set_params(**{rule.knob: [own[k] for k in kept]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what counts is said of the choice
            new.fit_on(part)
        if np.ndim(own) == 1:
            new.set_params(**{rule.knob: own})
            setattr(new, f"{rule.knob}_", own)
        return cls(_spread(new, kept, n_branches), tuple(kept), given)

    @property
    def cost(self) -> float:
        return self.given.mean_cost(self.rule)

    @property
    def exits(self) -> bool:
        return bool((self.rule.thresholds_ < np.inf).any())


def _leave_out(
    rule: ExitPolicy, first: _Fitted, given: CalibrationSet, *, through: bool
) -> _Fitted:
    """Leave out one branch after the other while that saves; `through`: down to one."""
    best = here = first
    while len(here.kept) > 1:
        trials = [
            _Fitted.on(rule, [k for k in here.kept if k != left], given)
            for left in here.kept
        ]
        here = min(trials, key=lambda trial: trial.cost)
        better = here.cost < best.cost * (1 - COST_ROUNDING)
        if not better and not through:
            break
        best = here if better else best
    return best


def _spread(rule: Any, kept: Sequence[int], n_branches: int) -> Any:
    """Return a rule fitted on some branches as one for all, where the others rest."""
    spread = clone(rule)
    spread.__dict__.update(rule.__dict__)
    for name, blank in rule._per_branch.items():
        part = getattr(rule, name)
        if isinstance(part, list):
            whole: Any = [part[0]] * n_branches  # whichever: nothing exits by it
            for k, each in zip(kept, part, strict=True):
                whole[k] = each
        else:
            whole = np.full((n_branches, *part.shape[1:]), blank, dtype=part.dtype)
            whole[list(kept)] = part
        setattr(spread, name, whole)
    return spread
